"""Where the time of a reconstruction goes on a real model.

    python benchmarks/profiled.py     # seven minutes on two cores; needs what real.py needs

SmolLM2-135M-Instruct in float32, 20 % of its attention and MLP parameters removed by the reconstruction with widths per
layer, calibrated on 32 windows of the mixture of real.py, under Python's profiler. The search's moves between layers,
which last as long as they may, are left out.
"""

import cProfile
import pstats
import time

from measure import keep
from real import dense, prompts

from llm_pruner import Budget, Reconstruct
from llm_pruner.methods import Journal
from llm_pruner.output.conditions import Stopwatch
from llm_pruner.shape.draft import draft

RATIO, WINDOWS = 0.2, 32
# what is told of each phase: (file, function), and which function calls it where there are several
PARTS = {
    "search": {
        "survey: forward and sums": ("survey.py", "_run", None),
        "survey: which neurons go, at 32 widths": ("survey.py", "_curve", None),
        "survey: which heads go": ("survey.py", "_head_costs", None),
        "price of each layer, measured": ("allocation.py", "prices", None),
    },
    "reconstruct": {
        "dense layer": ("layer.py", "run_dense", None),
        "pruned layer, for its inputs and errors": ("layers.py", "watch", None),
        "sums of products": ("least_squares.py", "add", "output_moments"),
        "second-order selection": ("layer.py", "_choose", None),
        "least squares": ("least_squares.py", "fit", None),
        "layer as it will be, for the next one": ("layer.py", "push", None),
        "held-out errors": ("block_optimisation.py", "held_error", None),
    },
    "baseline": {"all": ("baseline.py", "baseline", None)},
    "optimise": {
        "dense model, for its logits on the rest of the text": ("end_to_end.py", "last_stream", None),
        "forward, backward and Adam": ("end_to_end.py", "_descend", None),
        "of that Adam": ("end_to_end.py", "step", None),
        "held-out text, before and behind": ("end_to_end.py", "held_out", None),
    },
}


def seconds_of(stats: dict, file: str, function: str, caller: str | None) -> float:
    """Cumulative seconds of a function, in all or as far as another one calls it."""
    total = 0.0
    for (path, _, name), (*_, cumulative, callers) in stats.items():
        if path.endswith(f"llm_pruner/reconstruction/{file}") and name == function:
            own = [each[3] for (_, _, by), each in callers.items() if by == caller]
            total += sum(own) if caller else cumulative
    return total


def main() -> None:
    model, stopwatch = dense(), Stopwatch()
    # the first WINDOWS of the mixture alternate between its texts as all of them do
    calibrated = prompts("mixture")[:WINDOWS]
    method = Reconstruct(per_layer=True, search_minutes=1e-6)
    made = draft(Budget(param_ratio=RATIO), model.config, method)
    profile, started = cProfile.Profile(), time.perf_counter()
    profile.runcall(method.prune, model, made, calibrated, Journal(print, stopwatch))
    seconds, stats = time.perf_counter() - started, pstats.Stats(profile).stats
    keep("profiled", {
        "windows": WINDOWS, "seconds": round(seconds, 1),
        "phases": {
            phase: {"seconds": round(stopwatch.seconds[phase], 1)}
            | {name: round(seconds_of(stats, *part), 1) for name, part in parts.items()}
            for phase, parts in PARTS.items()
        },
    })  # fmt: skip


if __name__ == "__main__":
    main()
