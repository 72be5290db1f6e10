"""What a report.json holds, as data: the fields that pages, cards and later runs read."""

from collections.abc import Mapping
from typing import Any

from llm_pruner.errors import shown
from llm_pruner.validation import (
    Rule,
    each,
    either,
    fields,
    filled,
    list_of,
    mapping,
    maybe,
    number,
    one_of,
    text,
    truth,
    whole,
)

LAYERS = 10_000  # at most, of a model
STEPS = ("prune", "recover", "sparsify")  # that make a checkpoint
SHAPE = ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")


def sides(rule: Rule, required: bool = True) -> Rule:
    names = ("before", "after")
    return fields(dict.fromkeys(names, rule), names if required else ())


def filled_fields(rules: Mapping[str, Rule], more: Mapping[str, Rule] | None = None) -> Rule:
    """A mapping with all of these fields, and perhaps `more`, or an empty one."""
    rule = fields({**rules, **(more or {})}, tuple(rules))
    return lambda value: None if value == {} else rule(value)


def _layers(value: Any) -> str | None:
    """Numbers of layers, and which of those before are kept."""
    number_of = whole(1, LAYERS)
    if legal := fields({"before": number_of, "after": number_of}, ("before", "after"))(value):
        return legal
    kept = value.get("kept")
    if kept is None:
        return None
    wrong = list_of(whole(0, value["before"] - 1))(kept)
    if wrong or len(set(kept)) != len(kept) or len(kept) != value["after"]:
        return f"a mapping whose kept names {value['after']} of {value['before']} layers, not {shown(kept)}"
    return None


def _task(value: Any) -> str | None:
    """Scores of a zero-shot task; a standard error may be in words."""
    if not isinstance(value, dict):
        return "a mapping of metrics to numbers"
    errors = [name for name in value if "_stderr" in name]
    return each(maybe(number()))({name: one for name, one in value.items() if name not in errors})


def _quantiles(value: Any) -> str | None:
    wrong = list_of(maybe(number()))(value)
    return wrong or (None if len(value) == 7 else "a list of 7 numbers")


COUNT, LOSS, WIDTH = whole(1, 2**62), maybe(number(0)), whole(0, 2**31)
WIDTHS = fields(dict.fromkeys(SHAPE, WIDTH), SHAPE)
TRIED_FIELDS: dict[str, Rule] = {
    "widths": either(WIDTHS, filled(WIDTHS)), "expected": maybe(number()), "kl": maybe(number()), "untied": truth,
    "layers": maybe(list_of(whole(0, LAYERS))),
}  # fmt: skip
TRIED = fields(TRIED_FIELDS, tuple(TRIED_FIELDS))
TRAINING: dict[str, Rule] = {
    "data": text, "tokens": whole(), "max_seq_len": whole(1), "steps": whole(), "minutes": number(0),
    "learning_rate": number(0), "trainable_parameters": whole(),
}  # fmt: skip
RULES: dict[str, Rule] = {
    "step": one_of(STEPS),
    "model": text,
    "base_model": maybe(text),
    "teacher": maybe(text),
    "model_type": sides(text),
    "parameters": sides(COUNT),
    "decoder_parameters": sides(whole()),
    "bytes": sides(COUNT),
    "perplexity": sides(LOSS, required=False),
    "dense_perplexity": LOSS,
    "recovered_share": maybe(number()),
    "evaluation": filled_fields({"data": text, "max_seq_len": COUNT, "windows": COUNT}, {"digest": maybe(text)}),
    "calibration": filled_fields({"data": text, "nsamples": whole(), "seq_len": whole()}),
    "zero_shot": sides(maybe(each(_task)), required=False),
    "widths": sides(each(either(WIDTH, filled(WIDTH)))),
    "layers": _layers,
    "importance": text,
    "compensate": text,
    "masked": truth,
    "scores": each(filled(_quantiles)),
    "rebuild": fields(
        {
            "search": maybe(list_of(TRIED)), "finals": maybe(list_of(TRIED)),
            "kl": maybe(number()), "kl_plain": maybe(each(maybe(number()))),
            "stream_errors": maybe(list_of(maybe(number(0)))),
        }
    ),
    "method": one_of(("distil", "lora")),
    "train_weights": maybe(one_of(("full", "lora"))),
    "training": fields(TRAINING, tuple(TRAINING)),
    "history": list_of(fields({"seconds": number(0), "loss": maybe(number()), "perplexity": LOSS}, ("seconds",))),
    "label": text,
    "sparsity": fields({"sparse": one_of(("activations", "weights"))}, ("sparse",)),
    "kept": maybe(number(0, 1)),
    "seed": whole(-(2**63), 2**63),
    "seconds": each(number(0)),
    "peak_memory": each(number(0)),
    "versions": mapping,
    "command": text,
    "options": fields({"save_model": maybe(text)}),
    "files": each(text),
    "made_from": maybe(mapping),
}  # fmt: skip
ALWAYS = ("model", "model_type", "parameters", "bytes", "seed", "command")
REQUIRED = {
    "prune": (*ALWAYS, "importance", "widths", "layers"),
    "recover": (*ALWAYS, "method", "training"),
    "sparsify": (*ALWAYS, "label", "sparsity"),
}
