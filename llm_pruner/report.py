"""What a run tells afterwards: report.json, the model card, and the lines on the screen."""

import json
import math
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from llm_pruner import __version__
from llm_pruner.errors import redact

PACKAGES = ("torch", "transformers", "torch-pruning", "accelerate", "datasets", "tokenizers")


class Stopwatch:
    """Seconds by phase: `with stopwatch("load"): …`; a phase entered twice adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str):
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started


def peak_memory() -> dict[str, int]:
    """The most memory this process has held so far, in bytes: `host`, and `device` where there is a GPU."""
    import resource

    import torch

    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available():
        peak["device"] = sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
    return peak


def versions() -> dict[str, str]:
    found = {"llm_pruner": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def command(argv: Sequence[str]) -> str:
    """The command line as it can be typed again, without tokens."""
    return redact(shlex.join(["python", "prune_llm.py", *argv]))


def build(
    options, plan, new_config, model, perplexity: dict, evaluation: dict, calibration: dict, seconds: dict,
    argv: Sequence[str],
) -> dict:  # fmt: skip
    """The content of report.json. A width that differs between layers is a list with one for each."""
    parameters = [(p.numel(), p.element_size()) for p in model.parameters()]
    return {
        "model": redact(options.model),
        "model_type": {"before": plan.model_type, "after": new_config.model_type},
        "parameters": {"before": plan.parameters_before, "after": sum(n for n, _ in parameters)},
        "decoder_parameters": {"before": plan.decoder_before, "after": plan.decoder_after},
        "bytes": {"before": plan.bytes_before, "after": sum(n * size for n, size in parameters)},
        "perplexity": finite(perplexity),
        "evaluation": evaluation,
        "calibration": {name: redact(v) if isinstance(v, str) else v for name, v in calibration.items()},
        "widths": {"before": plan.before.asdict(), "after": plan.widths_after()},
        "layers": {"before": plan.num_layers_before or len(plan.after), "after": len(plan.after), "kept": plan.layers},
        "removed": {name: round(share, 6) for name, share in plan.removed().items()},
        "importance": plan.importance,
        "compensate": plan.compensate,
        "masked": options.mask_only,
        "seed": plan.seed,
        "seconds": {phase: round(value, 3) for phase, value in seconds.items()},
        "peak_memory": peak_memory(),
        "versions": versions(),
        "command": command(argv),
        "options": {k: redact(v) if isinstance(v, str) else v for k, v in options.asdict().items()},
    }


def finite(value):
    """`value`, whatever it is made of, with None for each number that JSON cannot hold."""
    if isinstance(value, dict):
        return {name: finite(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [finite(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, report: dict) -> None:
    path.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_card(path: Path, report: dict) -> None:
    """The model card: base model, how it was made, widths, perplexity."""
    from huggingface_hub import ModelCardData

    before, after = report["widths"]["before"], report["widths"]["after"]
    rows = [(name, f"{before[name]:,}", _cell(after[name])) for name in before]
    if report["layers"]["kept"]:
        rows.append(("layers", *(str(report["layers"][side]) for side in ("before", "after"))))
    rows += [(name, *(f"{report[name][side]:,}" for side in ("before", "after"))) for name in ("parameters", "bytes")]
    if report["perplexity"]:
        data = report["evaluation"]
        label = f"perplexity ({data['data']}, {data['windows']} windows of {data['max_seq_len']} tokens)"
        cells = ["not finite" if v is None else f"{v:.2f}" for v in report["perplexity"].values()]
        rows.append((label, *cells))
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    base, model_type = report["model"], report["model_type"]["after"]
    data = ModelCardData(
        base_model=None if Path(base).exists() or base == "demo" else base,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["llm_pruner", "pruned"],
    )
    how = f"An ordinary `{model_type}` checkpoint: `AutoModelForCausalLM.from_pretrained` loads it."
    if model_type.startswith("pruned_"):
        how = (
            "Its layers differ from those of its class, so it brings `modeling_pruned.py`: "
            "`AutoModelForCausalLM.from_pretrained(…, trust_remote_code=True)` loads it, "
            "without that after `import llm_pruner`."
        )
    what = "units set to zero" if report["masked"] else "whole channels, heads and neurons removed"
    made = f"Units chosen by {report['importance']} (seed {report['seed']})"
    if calibration := report["calibration"]:
        made += f" on {calibration['nsamples']} samples of {calibration['data']}"
    path.write_text(
        f"---\n{data.to_yaml()}\n---\n\n"
        f"# {Path(base).name}, pruned\n\n"
        f"[{base}]({base}) with {what}. {how}\n\n"
        f"| | before | after |\n|---|---|---|\n{table}\n\n"
        f"{made}. Made by\n\n    {report['command']}\n",
        encoding="utf-8",
    )


def _cell(width: int | list[int]) -> str:
    return f"{width:,}" if isinstance(width, int) else ", ".join(map(str, width))
