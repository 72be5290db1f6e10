"""The fault suite: inputs and events that have broken pruners, drawn by generators into one table of what must happen.

`table.py` collects the faults of the generators beside it; `contract.py` says what holds for every one of them;
`stock.py` makes the small inputs that they damage; `process.py` is the process in which a command meets them.
`power_cut.py` records the file operations of a save and replays them up to every point.
"""
