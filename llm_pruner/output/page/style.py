"""How the page looks: light and dark, narrow and wide, on paper. Colours are those of Okabe and Ito, which people
with any colour vision tell apart; in the dark they are lighter."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1a2027; --soft: #59636f; --line: #dfe3e8; --grid: #e8ebef; --ghost: #d9dee4;
  --c0: #707a85; --c1: #0072b2; --c2: #d55e00; --c3: #009e73; --c4: #b8558f; --c5: #b98000; --c6: #2f9bd8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0f1317; --card: #171c22; --ink: #e6eaee; --soft: #9ba6b2; --line: #2c343d; --grid: #262d35;
    --ghost: #38424d;
    --c0: #98a3ae; --c1: #56b4e9; --c2: #f0894d; --c3: #2fc39a; --c4: #dd95c1; --c5: #e6ac2f; --c6: #7f9cf5;
  }
}
.c0 { --own: var(--c0); } .c1 { --own: var(--c1); } .c2 { --own: var(--c2); } .c3 { --own: var(--c3); }
.c4 { --own: var(--c4); } .c5 { --own: var(--c5); } .c6 { --own: var(--c6); }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 16px 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 0 0 12px; }
h3 { font-size: 1rem; margin: 24px 0 8px; overflow-wrap: anywhere; }
header > p { color: var(--soft); margin: 0 0 20px; overflow-wrap: anywhere; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 20px; margin: 20px 0; }
section > p { color: var(--soft); margin: 8px 0 12px; max-width: 75ch; overflow-wrap: anywhere; }
section > h3:first-of-type { margin-top: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 160px), 1fr)); gap: 12px; }
.tiles > div { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 16px; }
.tiles p { margin: 0; }
.tiles .name, .tiles .note { color: var(--soft); font-size: .85rem; overflow-wrap: anywhere; }
.tiles .value { font-size: 1.6rem; font-weight: 650; line-height: 1.3; font-variant-numeric: tabular-nums; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); gap: 20px 28px; }
figure { margin: 0; min-width: 0; }
figcaption { color: var(--soft); font-size: .85rem; margin-top: 4px; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: 8px 0; }
table {
  border-collapse: separate; border-spacing: 0; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums;
}
caption { text-align: left; color: var(--soft); font-size: .85rem; padding: 4px 0; }
th, td { padding: 6px 12px; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child { padding-left: 0; position: sticky; left: 0; background: var(--card); }
thead th { color: var(--soft); font-weight: 500; white-space: normal; vertical-align: bottom; min-width: 5.5em; }
td small, th small { display: block; color: var(--soft); font-weight: 400; }
tbody th { font-weight: 500; } tbody tr:last-child > * { border-bottom: 0; }
.number { text-align: right; } tr.strong > * { font-weight: 700; }
.legend {
  list-style: none; display: flex; flex-wrap: wrap; gap: 4px 18px;
  margin: 4px 0 8px; padding: 0; font-size: .85rem;
}
.swatch {
  display: inline-block; width: .8em; height: .8em; border-radius: 3px; margin-right: .5em; background: var(--own);
}
.swatch.ghost { background: var(--ghost); }
dl {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 220px), 1fr)); gap: 8px 24px;
  margin: 12px 0;
}
dt { color: var(--soft); font-size: .8rem; } dd { margin: 0; overflow-wrap: anywhere; font-size: .9rem; }
pre {
  background: var(--page); border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; margin: 8px 0;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem;
}
details { margin: 8px 0; } summary { cursor: pointer; color: var(--soft); }
.chart { display: block; width: 100%; max-width: 520px; height: auto; }
.chart text { font-size: 12px; fill: var(--ink); font-variant-numeric: tabular-nums; }
.chart .title { fill: var(--soft); } .chart .strong { font-weight: 600; }
.chart .label { paint-order: stroke; stroke: var(--card); stroke-width: 3px; stroke-linejoin: round; }
.chart .rule { stroke: var(--grid); } .chart .axis { stroke: var(--soft); }
.dot { fill: var(--own); stroke: var(--card); stroke-width: 1.5; } .bar { fill: var(--own); }
.line { fill: none; stroke: var(--own); stroke-width: 2; stroke-linejoin: round; }
.line.faint { stroke-width: 1; opacity: .45; }
.level { stroke: var(--own); stroke-width: 1.5; stroke-dasharray: 5 4; }
.leader, .whisker { stroke: var(--soft); stroke-width: 1; } .spread { stroke: var(--ink); stroke-width: 1.5; }
.ghost { fill: var(--ghost); } .box { fill: var(--card); stroke: var(--own); stroke-width: 1.5; }
.median { stroke: var(--ink); stroke-width: 2; }
@media (min-width: 860px) {
  .grid > figure:only-child {
    grid-column: 1 / -1; display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px 28px;
    align-items: center;
  }
  .grid > figure:only-child > .legend { grid-column: 1 / -1; }
}
@media (max-width: 600px) {
  main { padding: 12px 10px 40px; } section { padding: 14px; }
  th, td { padding: 6px 8px; } tbody th { white-space: normal; overflow-wrap: anywhere; min-width: 7.5em; }
  dl, .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); } .tiles .value { font-size: 1.25rem; }
}
@media print { body { background: none; } section { break-inside: avoid; } }
"""
