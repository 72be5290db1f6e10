"""The documentation: its commands can be typed, what it names exists, its figures are those that were measured."""

import configparser
import importlib.util
import json
import re
import shlex
import tomllib
from collections.abc import Iterable

import pytest

import llm_pruner
from llm_pruner.cli.commands import COMMANDS
from llm_pruner.cli.main import build_parser, parse
from llm_pruner.cli.stages import DECIDED
from llm_pruner.config.options import fields_of
from llm_pruner.errors import PrunerError
from tests import REPOSITORY

RESULTS = REPOSITORY / "benchmarks" / "results"
RATIOS = ("0.2", "0.3", "0.5")
# Flags of other programs, and of llm-pruner itself
OTHERS = {"help", "version", "gpu", "num_processes"}


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def hook():
    """The module that mkdocs runs on every page."""
    found = importlib.util.spec_from_file_location("generated", REPOSITORY / "docs" / "generated.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


GENERATED = hook()
PAGES = {path.relative_to(REPOSITORY).as_posix(): path for path in sorted((REPOSITORY / "docs").rglob("*.md"))}
PAGES = {name: GENERATED.filled(read(name)) for name in ("README.md", "CONTRIBUTING.md", *PAGES)}
README, METHODS = PAGES["README.md"], PAGES["docs/results/methods.md"]


def result(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def tables(name: str) -> list[str]:
    """The tables that a benchmark wrote."""
    return (RESULTS / name).read_text(encoding="utf-8").strip().split("\n\n")


def rows(table: str) -> Iterable[dict[str, str]]:
    """Every row of a table, by the heads of its columns; those that have none by their number."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    heads = [head or str(column) for column, head in enumerate(cells[0])]
    return [dict(zip(heads, row, strict=True)) for row in cells[2:]]


def code(languages: tuple[str, ...]) -> list[str]:
    """The fenced blocks of all pages."""
    return [
        block
        for text in PAGES.values()
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        if language in languages
    ]


def typed() -> list[tuple[str, list[str]]]:
    """(command, its arguments) of every line that can be typed."""
    found = []
    for line in "\n".join(code(("bash",))).splitlines():
        words = shlex.split(line, comments=True)
        if words[:2] == ["python", "prune_llm.py"]:
            found.append(("prune", words[2:]))
        elif words[:1] == ["llm-pruner"]:
            found.append((words[1], words[2:]))
        elif words[:4] == ["accelerate", "launch", "-m", "llm_pruner"]:
            found.append((words[4], words[5:]))
    return found


def test_readme_has_at_most_150_lines():
    assert len(README.splitlines()) <= 150


def test_commands_parse(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    found = typed()
    assert {name for name, _ in found} == set(COMMANDS)
    assert len(found) > 25
    for name, arguments in found:
        assert parse(arguments, COMMANDS[name]).model


def test_options_in_the_text_exist():
    known = {name for command in COMMANDS.values() for name in fields_of(command.options)}
    named = {
        (page, name)
        for page, text in PAGES.items()
        for name in re.findall(r"--([a-z][a-z_]+)", text.replace("\\_", "_"))
    }
    assert {(page, name) for page, name in named if name not in known | OTHERS} == set()
    assert len(named) > 100


def test_what_is_named_exists():
    """Targets of the Makefile, scripts, option files, rooms of the package, and links from file to file."""
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    for page, text in PAGES.items():
        assert set(re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)`", text, re.MULTILINE)) <= {
            pair for target in targets for pair in ((target, ""), ("", target))
        }, page
        for path in re.findall(r"\b((?:benchmarks|configs|examples|llm_pruner|tests)/[\w./-]*\w)", text):
            assert (REPOSITORY / path).exists(), f"{page}: {path}"
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert ((REPOSITORY / page).parent / link).exists(), f"{page}: {link}"


def test_the_files_of_the_extension_are_shown():
    """By marks that pymdownx.snippets understands; anything else would stand in the page as it is."""
    mark = re.compile(r'^--8<-- "([^"]+)"$', re.MULTILINE)
    shown = {path for text in PAGES.values() for path in mark.findall(text)}
    extension = REPOSITORY / "examples" / "extension"
    files = {path.relative_to(REPOSITORY).as_posix() for path in extension.rglob("*.py") if path.name != "__init__.py"}
    assert files <= shown
    assert len(files) == 5
    for page, text in PAGES.items():
        assert "--8" not in mark.sub(lambda found: read(found[1]), text), page


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_is_in_the_reference(name):
    page = PAGES["docs/reference/command-line.md"]
    section = page.partition(f"\n## llm-pruner {name} ")[2].partition("\n## ")[0]
    flags = re.findall(r"^\| `--(\w+)", section, re.MULTILINE)
    assert flags == list(dict.fromkeys(flags))
    assert set(flags) == set(fields_of(COMMANDS[name].options))
    assert len(flags) > 5


def test_help_shows_defaults_as_they_are_typed():
    for command in COMMANDS.values():
        assert not re.search(r"default: [(\[{]", build_parser(command).format_help())
    assert "(default: q,k,v,o,gate,up,down)" in " ".join(build_parser(COMMANDS["sparsify"]).format_help().split())


def test_every_public_name_is_in_the_reference():
    assert sorted(re.findall(r"^::: llm_pruner\.(\w+)$", read("docs/reference/python.md"), re.MULTILINE)) == sorted(
        set(llm_pruner.__all__) - {"__version__"}
    )


def test_rooms_are_in_the_order_that_the_linter_checks():
    layers = tomllib.loads(read("pyproject.toml"))["tool"]["importlinter"]["contracts"][0]["layers"]
    rooms = re.findall(r"^\| `(\w+)/?`", PAGES["docs/architecture.md"], re.MULTILINE)
    assert rooms == [room for room in reversed(layers) if room != "_version"]


def test_names_in_the_python_examples_are_public():
    named = {name for block in code(("python",)) for name in re.findall(r"\bllm_pruner\.(\w+)", block)}
    assert named <= set(llm_pruner.__all__)
    assert len(named) > 10


def test_every_field_of_a_report_is_explained():
    explained = read("docs/reference/report.md")
    named = re.findall(r"^\| `(\w+)` \|", GENERATED.report_fields(), re.MULTILINE)
    assert len(named) > 20
    assert [name for name in named if f"`{name}`" not in explained] == []


def test_options_that_a_pipeline_decides_are_named():
    assert [name for name in DECIDED if f"`{name}`" not in PAGES["docs/guides/pipelines.md"]] == []


def test_every_extra_is_explained():
    metadata = configparser.ConfigParser()
    metadata.read(REPOSITORY / "setup.cfg")
    extras = set(metadata["options.extras_require"])
    assert {extra for extra in extras if f"`{extra}`" not in PAGES["docs/install.md"]} == set()
    assert len(extras) > 3


def test_every_exit_code_is_explained():
    codes = {0, 129, 130, 143, PrunerError.exit_code, *(error.exit_code for error in PrunerError.__subclasses__())}
    listed = re.findall(r"^\| (\d+) \|", PAGES["docs/guides/troubleshooting.md"], re.MULTILINE)
    assert sorted(map(int, listed)) == sorted(codes)


def test_families_are_named():
    for page in ("README.md", "docs/extend/family.md"):
        for family in llm_pruner.FAMILIES:
            assert f"`{family}`" in PAGES[page]


def test_the_demo_prints_what_is_shown(command):
    done = command("--model", "demo", "--pruning_ratio", "0.5", "--importance", "magnitude", "--dry_run")
    table = done.stdout[done.stdout.index("   ") :].rstrip()
    assert "intermediate_size" in table
    for page in ("README.md", "docs/quickstart.md"):
        assert table in PAGES[page]
        for side, value in result("demo")["perplexity"].items():
            assert f"\nperplexity {side}: {value:.2f}\n" in PAGES[page]


def test_a_dry_run_of_llama_3_1_8b_prints_what_is_shown(command, tmp_path):
    config = {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
        "num_key_value_heads": 8, "num_hidden_layers": 32, "vocab_size": 128256, "dtype": "bfloat16",
        "tie_word_embeddings": False,
    }  # fmt: skip
    folder = tmp_path / "Llama-3.1-8B"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    done = command("--model", folder, "--pruning_ratio", "0.5", "--dry_run")
    table = done.stdout[done.stdout.index("   ") :].rstrip()
    assert "2,337,409,024" in table
    assert table in PAGES["docs/quickstart.md"]


def test_magnitude_is_what_was_measured():
    magnitude = result("magnitude")
    assert f"dense {magnitude['dense']:.2f}." in METHODS
    assert f"dense is not {magnitude['dense']:.2f} here" in METHODS
    for row in magnitude["table"]:
        line = f"| {row['pruning_ratio']} | {row['parameters']:,} | {row['magnitude']:.1f} | {row['random']:.1f} |"
        assert line in METHODS


def test_quality_is_what_was_measured():
    """The table that benchmarks/quality.py wrote is in the documentation, and its cells are those of the JSON."""
    quality = result("quality")
    (table,) = tables("quality.md")
    assert table in METHODS
    found = {row["0"]: row for row in rows(table)}
    dense = f"{quality['dense']['perplexity']:.1f}"
    assert found.pop("dense") == {"0": "dense"} | {f"{float(ratio):.0%} removed": dense for ratio in RATIOS} | {
        "checkpoint": "stock"
    }
    assert found.keys() == {row["method"] for row in quality["table"]}
    for row in quality["table"]:
        shown = found[row["method"]]
        for ratio in RATIOS:
            assert shown[f"{float(ratio):.0%} removed"] == spread(row[ratio])
        assert shown["checkpoint"] == ("stock" if row["stock"] else "per layer")
    removed = {
        # whole layers, and whole blocks of so small a model, do not come nearer
        ratio: [
            run["removed"]
            for key, run in quality["runs"].items()
            if f"| {ratio} |" in key and not key.startswith(("ShortGPT", "BlockPruner"))
        ]
        for ratio in RATIOS
    }
    assert all(abs(share - float(ratio)) <= 0.01 for ratio, shares in removed.items() for share in shares)
    assert sum(map(len, removed.values())) >= 100
    assert "../../benchmarks/results/quality.png" in METHODS


def spread(measured: dict) -> str:
    low, mean, high = (f"{measured[name]:.1f}" for name in ("lowest", "perplexity", "highest"))
    return mean if measured["lowest"] == measured["highest"] else f"{mean} ({low} – {high})"


def test_the_table_of_the_readme_is_a_part_of_it():
    (table,) = tables("quality.md")
    shown = [line for line in README.splitlines() if line.endswith(("| stock |", "| per layer |"))]
    assert set(shown) <= set(table.splitlines())
    assert {row["0"] for row in rows("\n".join([*table.splitlines()[:2], *shown]))} >= {
        "dense", "random", "magnitude", "AMP", "Wanda-sp", "FLAP WIFV", "FLAP WIFV, AL-AM", "reconstruct",
        "reconstruct, per layer",
    }  # fmt: skip
    assert "![perplexity against parameters](benchmarks/results/quality.png)" in README


def test_explanations_of_quality_are_what_was_measured():
    quality, text = result("quality"), " ".join(METHODS.split())
    first, *_, last = (layer["rank_correlation"] for layer in quality["neurons"])
    assert f"(rank correlation {first:.2f} in the first layer, falling to {last:.2f} in the last)" in text
    shares = [layer["mean_share"] for layer in quality["neurons"]]
    assert f"({min(shares):.2f} to {max(shares):.2f} of its root mean square)" in text
    told = "({down_proj:.1f} against {none:.1f} without any, one seed) "
    told += "and that of o_proj hurts ({o_proj:.1f}; both together {both:.1f})"
    assert told.format(**quality["bias_at_half"]) in text


def test_reconstruction_is_what_was_measured():
    """Its tables are those that benchmarks/reconstruction.py wrote, with the JSON's figures."""
    page, measured = PAGES["docs/results/reconstruction.md"], result("reconstruction")
    runs, shares = measured["runs"], measured["shares"]
    half, families, widths, whole = tables("reconstruction.md")
    for table in (half, families, widths, whole):
        assert table in page

    def cell(key: str) -> str:
        value = f"{runs[key]['perplexity']:.1f}"
        return f"{value} ({shares[key]:.2f})" if key in shares else value

    ablation = {key.split(" | ")[2]: run for key, run in runs.items() if "| half |" in key}
    assert len(ablation) == len(list(rows(half))) == 7
    for row, (name, run) in zip(rows(half), ablation.items(), strict=True):
        label, kl, perplexity = row.values()
        assert label == name
        assert (kl, perplexity) == (f"{run['kl']:.3f}", f"{run['perplexity']:.1f}")
    for table, what in ((families, "{removed}"), (widths, "every width {width}"), (whole, "whole 0.3")):
        for row in rows(table):
            size = what.format(removed=float(row.get("removed", "0").strip("%")) / 100, width=row.get("every width"))
            for name in row.keys() & {"magnitude", "AMP", "Wanda-sp", "FLAP", "FLAP, AL-AM", "reconstruct",
                                      "reconstruct, per layer"}:  # fmt: skip
                assert row[name] == cell(f"{row['0']} | {size} | {name}")


def test_reconstruction_keeps_what_it_promises():
    """At most 0.45 of the published methods' loss as a stock checkpoint, 0.40 with widths per layer."""
    quality, best = result("quality")["against_best_published"], result("reconstruction")
    text = " ".join(PAGES["docs/results/reconstruction.md"].split())
    for name, most, told in (
        ("reconstruct", 0.45, "reconstruction has {} at 20 / 30 / 50 % as a stock checkpoint"),
        ("reconstruct, per layer", 0.40, "and {} with widths per layer"),
    ):
        shares = [quality[name][ratio] for ratio in RATIOS]
        assert max(shares) <= most
        assert told.format(" / ".join(f"{share:.2f}" for share in shares)) in text
    assert len({key.split(" | ")[0] for key in best["shares"]}) >= 3
    for share, most in ((0.25, 0.20), (0.5, 0.25)):
        assert best["shares"][f"llama-6m | every width {share} | reconstruct"] <= most
    dense = [f"{best['runs'][f'{name} | dense']['perplexity']:.1f}" for name in ("qwen3-2m", "phi3-3m")]
    assert f"their perplexity is {dense[0]} and {dense[1]} on the same windows" in text


def test_recovery_is_what_was_measured():
    """At least half of the gap comes back by distillation and a third by LoRA, in three minutes of training."""
    recover, page = result("recover_cpu"), PAGES["docs/results/recovery.md"]
    assert f"dense {recover['perplexity']['before']:.1f}, pruned {recover['perplexity']['after']:.1f} on all" in page
    for name, least in (("distil", 0.5), ("lora", 1 / 3)):
        run = recover["runs"][name]
        assert run["recovered_share"] >= least
        assert run["training"]["minutes"] <= 3
        told = f"{run['perplexity']:.1f} | {run['recovered_share']:.0%} | {run['training']['minutes']:.1f}"
        assert f"| {name} | {told} | {run['training']['tokens']:,} |" in page


def test_the_cached_teacher_is_what_was_measured():
    """The loss rises towards the divergence with k, and 256 tokens have nine tenths of it."""
    cache, page = result("teacher_cache"), PAGES["docs/guides/recovery.md"]
    assert f"KL, {cache['kl']:.3f} over all tokens" in page
    losses = [own["kl"] for own in cache["k"].values()]
    assert losses == sorted(losses)
    assert 0.9 * cache["kl"] < cache["k"]["256"]["kl"] < cache["kl"]
    for k, own in cache["k"].items():
        error, rest = own["mean_absolute_error_of_kl"], own["mean_mass_of_the_rest"]
        assert f"| {k} | {own['bytes_per_token']:,.0f} | {rest:.0%} | {own['kl']:.3f} | {error:.3f} |" in page
    seconds = f"({cache['seconds_forward']:.1f} s for these {cache['windows']} windows of {cache['length']} tokens"
    assert f"{seconds}, with the cache of k = 256 {cache['k']['256']['seconds_to_fill']:.1f} s)" in page


def test_speed_and_memory_are_what_was_measured():
    tracing, score_cut, calibration = result("tracing"), result("score_cut_cpu"), result("calibration_cpu")
    speed, best = result("speed_cpu")["ratio"]["eager"], result("reconstruction")["runs"]
    ratios, cost, scaling = calibration["ratio_to_plain"], best["llama-6m | cost"]["seconds"], best["scaling"]
    page = PAGES["docs/results/speed.md"]
    for row, value in {
        "trace and plan, Llama-3.1-8B shape, no weights": f"{tracing['llama_8b_seconds']:.1f} s",
        "the same, 70B shape (80 layers)": f"{tracing['llama_70b_seconds']:.1f} s",
        "160 layers against 20": f"{tracing['ratio_of_160_to_20_layers']:.1f}× the time",
        "score and cut, random 1.1 B-parameter Llama in bfloat16": f"{score_cut['ratio']:.2f}×",
        "its peak memory": f"{score_cut['peak_over_model']:.2f}×",
        "reconstruction, llama-6m to half of its attention and MLP, search included": f"{cost['all']:.0f} s",
        "reconstruction of twice the layers, of twice the text": (
            f"{scaling['twice_the_layers']:.1f}×, {scaling['twice_the_text']:.1f}×"
        ),
        "calibration for FLAP and Wanda-sp (mean, variance, norm)": f"{ratios['moments']:.2f}×",
        "calibration with the mean of absolute values besides": f"{ratios['both']:.2f}×",
        "calibration for AMP's heads": f"{ratios['head norm']:.2f}×",
        **{f"{what} tokens/s, every width halved against dense": ratio(speed[what]) for what in ("prefill", "decode")},
    }.items():
        assert f"| {row} | {value} |" in page
    assert f"| {cost['search']:.0f} s of it the search;" in page
    assert cost["all"] <= 180
    assert ratios["both"] <= 1.15
    memory = PAGES["docs/guides/large-models.md"]
    assert f"[{score_cut['peak_over_model']:.2f} times the bytes of the model](../results/speed.md)" in memory


def ratio(measured: dict) -> str:
    return f"{measured['median']:.2f}× ({measured['low']:.2f} – {measured['high']:.2f})"


def test_sparse_models_are_what_was_measured():
    """And the tables bear out what the text beside them says."""
    found, page = result("sparse"), PAGES["docs/results/sparsity.md"]
    after = {run["pattern"]: run["perplexity"]["after"] for run in found["runs"]}
    massive = {run["pattern"]: run["perplexity"]["after"] for run in found["massive"]["runs"]}
    dense = found["runs"][0]["perplexity"]["before"]
    measured = {f"{value:,.1f}" for value in (dense, *after.values(), *massive.values())}
    shown: set[str] = set()
    assert len(tables("sparse.md")) == 3
    for table in tables("sparse.md"):
        assert table in page
        shown |= {cell for row in rows(table) for cell in list(row.values())[1:] if cell}
    assert shown <= measured
    assert all(value in page for value in measured)
    assert f"(even where only a fifth of every token goes: {massive['act_0.2']:.1f})" in " ".join(page.split())
    assert after["act_8_16"] < after["act_2_4"]
    assert after["act_0.2"] < 1.01 * dense
    for pattern in ("2_4", "8_16"):
        assert after[f"act_{pattern}"] < after[f"weight_{pattern}"]
        assert after[f"act_{pattern}_combined"] == min(
            value for name, value in after.items() if name.startswith(f"act_{pattern}") and "qkvo" not in name
        )
    assert massive["act_8_16_combined"] < after["act_8_16"]
    assert massive["act_8_16_combined"] < 1.01 * after["act_8_16_combined"]


def test_ratios_of_sparse_decoding_are_those_measured():
    found, page = result("sparse_decode_cpu"), PAGES["docs/results/speed.md"]
    for dtype, layers in found["products"].items():
        for name, layer in layers.items():
            cells = [
                f"{row['ratio']:.2f}×"
                for kept in (0.75, 0.5, 0.25, 0.1)
                for row in layer["patterns"]
                if row["pattern"] == "threshold" and abs(row["kept"] - kept) < 0.05
            ]
            assert f"| {name}, {dtype} | {' | '.join(cells)} |" in page
    worst = max(row["error"] for own in found["products"]["bfloat16"].values() for row in own["patterns"])
    assert f"{100 * worst:.1f} % away from plain torch" in page
    for name, model in found["models"].items():
        assert f"| {name} | {ratio(model['ratio']['eager']['decode'])} |" in page


def test_promises_are_what_the_fault_suite_counted():
    """Its tables are those that benchmarks/faults.py wrote, and no promise was broken."""
    faults, page = result("faults"), PAGES["docs/results/robustness.md"]
    promises, kinds = tables("faults.md")
    assert promises in page
    assert kinds in page
    listed = {row["kind of fault"]: row for row in rows(kinds)}
    assert listed.keys() == faults["kinds"].keys()
    for name, counted in faults["kinds"].items():
        for column in ("inputs", "refused", "harmless"):
            assert listed[name][column] == f"{counted[column]:,}"
        assert listed[name]["broken"] == "0"
    for row in list(rows(promises))[:-1]:
        assert (row["tried with"], row["broken"]) == (f"{faults['all']['inputs']:,} inputs", "0")
    assert faults["all"]["inputs"] >= 400
    assert faults["all"]["inputs"] == faults["all"]["refused"] + faults["all"]["harmless"]
    assert not faults["failures"]
    assert not faults["errors"]
    cuts = faults["power_cuts"].values()
    assert f"| {sum(cut['points'] for cut in cuts):,} points of {len(cuts)} saves | 0 |" in promises
    assert all(cut["neither_old_nor_new"] == 0 for cut in cuts)
