"""The model card: base model, how the checkpoint was made, its widths and scores beside those it came from."""

from collections.abc import Sequence
from pathlib import Path

from llm_pruner.output.page.models import (
    PRUNED,
    RECOVERED,
    SPARSE,
    Model,
    is_pruning,
    is_recovery,
    models_of,
    name_of,
    role_of,
    steps_of,
)
from llm_pruner.output.page.tasks import cell, main_metric, mean, tasks_of
from llm_pruner.output.page.wording import NOT_FINITE, UNKNOWN, number, percent

CUT = "whole channels, heads and neurons removed"


def card(report: dict) -> str:
    """The card for what report.json says of a run that made a checkpoint, and of those before it."""
    from huggingface_hub import ModelCardData

    steps = steps_of([report])
    models = models_of(steps, None)
    base = steps[0].get("base_model") or steps[0]["model"]
    roles = list(dict.fromkeys(map(role_of, steps)))
    if RECOVERED in roles[:1]:  # it is pruned models that are recovered, whatever is known of how they were made
        roles = [PRUNED, *roles]
    data = ModelCardData(
        base_model=None if Path(base).exists() or base == "demo" else base,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["llm_pruner", *roles],
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {_plain(name_of(base))}, {' and '.join(roles)}",
        f"[{_plain(base)}]({_plain(base)}) with {', then '.join(_done(steps))}. {_loading(steps)}",
        _table(models, [*_widths(models), *_perplexities(models)]),
        _table(models, _zero_shot(models), "zero-shot accuracy, %"),
        "\n".join(_plain(_made(step)) for step in steps) + "\nMade by",
        "\n".join(f"    {step['command']}" for step in steps),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _done(steps: Sequence[dict]) -> list[str]:
    """What became of the dense model, in the order of the steps; what was done twice in a row is said once."""
    done = []
    for step in steps:
        if is_recovery(step):
            done += ["trained"] if done else [CUT, "trained"]
        elif is_pruning(step):
            done.append("units set to zero" if step.get("masked") else CUT)
        else:
            done.append(f"sparse {step['sparsity']['sparse']} ({step['label']})")
    return [one for place, one in enumerate(done) if one not in done[max(0, place - 1) : place]]


def _loading(steps: Sequence[dict]) -> str:
    """How the checkpoint is loaded."""
    last = steps[-1]
    if role_of(last) == SPARSE and last["sparsity"]["sparse"] == "activations":
        return (
            "`import llm_pruner`, then `AutoModelForCausalLM.from_pretrained` loads it; without that import "
            "transformers warns and loads the dense model, whose weights these are."
        )
    model_type = last["model_type"]["after"]
    if model_type.startswith("pruned_"):
        return (
            "Its layers differ from those of its class, so it brings `modeling_pruned.py`: "
            "`AutoModelForCausalLM.from_pretrained(…, trust_remote_code=True)` loads it, "
            "without that after `import llm_pruner`."
        )
    return f"An ordinary `{model_type}` checkpoint: `AutoModelForCausalLM.from_pretrained` loads it."


def _table(models: Sequence[Model], rows: Sequence[Sequence[str]], title: str = "") -> str:
    """One column for each model."""
    roles = [model.role for model in models]
    names = roles if len(set(roles)) == len(roles) else [model.label for model in models]
    lines = [(title, *names), ("---",) * (len(names) + 1), *rows]
    return "\n".join(f"| {' | '.join(map(_plain, line))} |" for line in lines) if rows else ""


def _widths(models: Sequence[Model]) -> list[tuple[str, ...]]:
    names = dict.fromkeys(name for model in models for name in model.widths)
    rows = [(name, *(_width(model.widths.get(name)) for model in models)) for name in names]
    if len({model.layers for model in models if model.layers}) > 1:
        rows.append(("layers", *(_width(model.layers) for model in models)))
    return rows + [(name, *(_width(getattr(model, name)) for model in models)) for name in ("parameters", "bytes")]


def _width(width: int | list[int] | None) -> str:
    if width is None:
        return UNKNOWN
    return f"{width:,}" if isinstance(width, int) else ", ".join(map(str, width))


def _perplexities(models: Sequence[Model]) -> list[tuple[str, ...]]:
    rows = []
    for text in dict.fromkeys(text for model in models for text in model.perplexity):
        label = f"perplexity ({text[0]}, {text[1]} windows of {text[2]} tokens)"
        values = [model.perplexity.get(text, UNKNOWN) for model in models]
        rows.append((label, *(NOT_FINITE if v is None else v if v == UNKNOWN else f"{v:.2f}" for v in values)))
    return rows


def _zero_shot(models: Sequence[Model]) -> list[tuple[str, ...]]:
    rows = []
    for task in tasks_of(models):
        metric = main_metric(models, task)
        if metric:
            rows.append((f"{task} ({metric})", *(cell(model, task, metric) for model in models)))
    scored = [model for model in models if model.zero_shot]
    means = mean(scored)
    if means:
        found = (means.get(model.label) for model in models)
        rows.append(("mean", *(UNKNOWN if value is None else f"{100 * value:.1f}" for value in found)))
    return rows


def _made(step: dict) -> str:
    """How this step was done."""
    if is_recovery(step):
        return _trained(step)
    if not is_pruning(step):
        return _sparse(step)
    made = f"Units chosen by {step['importance']} (seed {step['seed']})"
    if calibration := step.get("calibration"):
        made += f" on {calibration['nsamples']} samples of {calibration['data']}"
    return f"{made}."


def _sparse(step: dict) -> str:
    kept = f", {percent(step['kept'])} kept" if step.get("kept") else ""
    made = f"Made sparse: {step['label']}{kept} (seed {step['seed']})"
    if calibration := step.get("calibration"):
        made += f", on {calibration['nsamples']} samples of {calibration['data']}"
    return f"{made}."


def _trained(step: dict) -> str:
    told = step["training"]
    aim = f"distillation from {step.get('teacher') or UNKNOWN}" if step["method"] == "distil" else "LoRA"
    if step["method"] == "distil" and step.get("train_weights") == "lora":
        aim += " into low-rank adapters"
    made = (
        f"Trained by {aim} on {told['tokens']:,} tokens of {told['data']} (windows of {told['max_seq_len']:,} tokens): "
        f"{told['steps']:,} steps in {told['minutes']:.1f} minutes, learning rate {number(told['learning_rate'])}, "
        f"{told['trainable_parameters']:,} trained parameters, seed {step['seed']}."
    )
    if step.get("recovered_share") is not None:
        made += f" This made up for {percent(step['recovered_share'])} of the gap in log-perplexity to the dense model."
    return made


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return text.replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")
