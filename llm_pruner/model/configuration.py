"""config.json: what its fields may hold, and what transformers makes of it. Imports nothing heavy by itself."""

import contextlib
import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llm_pruner.config.limits import MOST_LAYERS, MOST_WIDTH
from llm_pruner.console import log
from llm_pruner.errors import PlanError, PrunerError, UsageError, is_out_of_memory, shown
from llm_pruner.files import read_json
from llm_pruner.model.axes import AXES, HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYER, LAYERS, MOST_HEADS, SKIPPED
from llm_pruner.model.axes.depth import PER_LAYER
from llm_pruner.model.families import FAMILIES, Family, stock_type
from llm_pruner.model.skeleton import meta_model
from llm_pruner.validation import (
    Rule,
    check,
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

# characters of a reason that transformers gives
LONGEST = 300
MOST_VOCABULARY, MOST_POSITIONS, MOST_LABELS = 2**24, 2**31 - 1, 2**20
DTYPES = ("float32", "float16", "bfloat16", "float64", "float", "half", "double")
NORMS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")
# what every machine has; a pruner needs no faster one
ATTENTION = ("eager", "sdpa")
OTHER_HEADS = re.compile(
    r"Classif|Reward|QuestionAnswering|MultipleChoice|DoubleHeads|ValueHead|ForScore|ForMaskedLM|NextSentence"
)
CAUSAL = re.compile(r"(ForCausalLM|LMHeadModel)$")

POSITIONS = whole(1, MOST_POSITIONS)
EPSILON, SHARE, POSITIVE = number(0, 0.1), number(0, 1), number(0, 1e30, above=True)
TOKEN = whole(-(2**31), 2**31)

ROPE: dict[str, Rule] = {
    **dict.fromkeys(("rope_type", "type"), text),
    **dict.fromkeys(("rope_theta", "factor", "low_freq_factor", "high_freq_factor"), POSITIVE),
    **dict.fromkeys(("attention_factor", "beta_fast", "beta_slow"), maybe(POSITIVE)),
    **dict.fromkeys(("mscale", "mscale_all_dim"), maybe(number(0))),
    **dict.fromkeys(("short_factor", "long_factor"), filled(POSITIVE)),
    "partial_rotary_factor": number(0, 1, above=True),
    "original_max_position_embeddings": whole(2, MOST_POSITIONS),
    "truncate": truth,
}


def _rope(rules: Mapping[str, Rule]) -> Rule:
    """Parameters of RoPE, or those of each kind of layer."""

    def rule(value: Any) -> str | None:
        if not isinstance(value, dict):
            return "a mapping"
        every = (value, *(inner for inner in value.values() if isinstance(inner, dict)))
        return next((legal for one in every if (legal := fields(rules)(one))), None)

    return maybe(rule)


def _labels(value: Any) -> str | None:
    right = isinstance(value, dict) and all(re.fullmatch(r"-?\d{1,9}", str(name)) for name in value)
    return None if right else "a mapping of whole numbers to names"


# What a field of this name means in every family of decoders
SHARED: dict[str, Rule] = {
    **dict.fromkeys(("model_type", "problem_type", "transformers_weights"), maybe(text)),
    "architectures": maybe(list_of(text)),
    **dict.fromkeys(("dtype", "torch_dtype"), maybe(one_of(DTYPES))),
    **dict.fromkeys(("quantization_config", "label2id", "per_layer_config", "text_config", "vision_config"),
                    maybe(mapping)),
    "auto_map": mapping,
    "id2label": maybe(_labels),
    **dict.fromkeys(("_attn_implementation", "attn_implementation"), maybe(either(text, mapping))),
    **dict.fromkeys(("_experts_implementation", "experts_implementation"), maybe(either(text, mapping))),
    **dict.fromkeys(
        ("attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout", "classifier_dropout",
         "summary_first_dropout", "resid_dropout", "embedding_dropout"), maybe(SHARE),
    ),
    **dict.fromkeys(
        ("use_cache", "use_sliding_window", "use_bidirectional_attention", "is_decoder", "is_encoder_decoder",
         "output_hidden_states", "output_attentions", "return_dict", "torchscript"), maybe(truth),
    ),
    "vocab_size": whole(1, MOST_VOCABULARY),
    **dict.fromkeys(("num_labels", "chunk_size_feed_forward"), whole(0, MOST_LABELS)),
    "layer_types": maybe(list_of(text)),
    "initializer_range": maybe(number(0, 100)),
}  # fmt: skip

# What they mean in the families that can be pruned, beside the fields of their axes
DECODERS: dict[str, Rule] = {
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), POSITIONS),
    **dict.fromkeys(NORMS, EPSILON),
    **dict.fromkeys(("hidden_act", "hidden_activation", "activation_function"), maybe(text)),
    **dict.fromkeys(("rope_parameters", "rope_scaling"), _rope(ROPE)),
    **dict.fromkeys(("rope_theta", "rotary_emb_base", "rope_local_base_freq"), maybe(POSITIVE)),
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct"), maybe(number(0, 1, above=True))),
    "sliding_window": maybe(POSITIONS),
    "original_max_position_embeddings": POSITIONS,
    "initializer_range": SHARE,
    **dict.fromkeys(("max_window_layers", "pretraining_tp"), maybe(whole(0, MOST_POSITIONS))),
    "sliding_window_pattern": maybe(whole(1, MOST_LAYERS)),
    "query_pre_attn_scalar": POSITIVE,
    **dict.fromkeys(("final_logit_softcapping", "attn_logit_softcapping"), maybe(POSITIVE)),
    **dict.fromkeys(
        ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_parallel_residual", "scale_attn_weights",
         "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "summary_use_proj", "summary_proj_to_labels"),
        truth,
    ),
    "text_config": lambda value: "left out: this is a language model's own configuration" if value else None,
    "projection_biases": list_of(text),
    **dict.fromkeys(("is_encoder_decoder", "add_cross_attention"), lambda value: "false" if value else None),
}  # fmt: skip

# What they mean elsewhere: some families have a list, one for each layer, or null
ELSEWHERE: dict[str, Rule] = {
    name: maybe(either(whole(0, most), list_of(maybe(whole(0, most)))))
    for most, names in (
        *((axis.most, axis.rules) for axis in AXES),
        (MOST_WIDTH, ("moe_intermediate_size",)),
        (MOST_HEADS, ("num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok")),
        (MOST_POSITIONS, ("max_position_embeddings", "n_positions", "n_ctx", "sliding_window")),
    )
    for name in names
} | {
    **dict.fromkeys(("dtype", "torch_dtype"), maybe(either(one_of(DTYPES), mapping))),
    "tie_word_embeddings": maybe(truth),
    **dict.fromkeys(NORMS, maybe(EPSILON)),
    **dict.fromkeys(("rope_parameters", "rope_scaling"), _rope({name: maybe(rule) for name, rule in ROPE.items()})),
    **dict.fromkeys(("logits_scaling", "logit_scale", "embedding_multiplier", "residual_multiplier"), maybe(number())),
}  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    """Return the content of a config.json, its fields checked one by one.

    Raises:
        UsageError: It is no JSON object, or a field holds what it cannot mean.
        PlanError: It is of a model with another head than that of a language model.
    """
    raw = read_json(path, "the file")
    where = str(path)
    if not isinstance(raw, dict):
        raise UsageError(f"{where} must be a mapping of fields to values, not {type(raw).__name__}")
    _check(raw, where)
    names = raw.get("architectures") or []
    other = next((name for name in names if OTHER_HEADS.search(name)), None)
    if other and not any(CAUSAL.search(name) and not OTHER_HEADS.search(name) for name in names):
        raise PlanError(
            f"{where}: architectures: {shown(other)} has another head than a language model's; it is refused"
        )
    return raw


def _check(raw: Mapping[str, Any], where: str) -> None:
    kind = stock_type(raw.get("model_type"))
    prunable = kind in FAMILIES
    schema = SHARED | (_decoder(FAMILIES.get(kind)) if prunable else ELSEWHERE)
    schema |= {name: maybe(either(TOKEN, list_of(TOKEN))) for name in raw if name.endswith("_token_id")}
    check(raw, schema, where)
    if prunable:
        _check_together(raw, where)
    elif isinstance(raw.get("text_config"), dict):
        _check(raw["text_config"], f"{where}: text_config")


def _decoder(family: Family) -> dict[str, Rule]:
    """The rules of a family that can be pruned. An axis that layers may differ in is one of `per_layer_widths` too."""
    legal = whole(1, MOST_WIDTH)
    own = {axis.field_of(family): legal for axis in family.axes if axis.prunable and axis.scope == LAYER}
    rules = {name: rule for axis in (*AXES, *family.axes) for name, rule in axis.rules.items()}
    own["skip"] = list_of(one_of(tuple(SKIPPED)))
    return rules | DECODERS | {"per_layer_widths": list_of(fields(own, others=False))}


def _check_together(raw: Mapping[str, Any], where: str) -> None:
    """Fields that contradict each other. UsageError, or PlanError for a shape that no class has."""
    layers = raw.get(LAYERS.field)
    for name in (*PER_LAYER, "per_layer_widths"):
        if layers and raw.get(name) is not None and len(raw[name]) != layers:
            raise UsageError(f"{where}: {name} is of {len(raw[name])} layers, {LAYERS.field} is {layers}")
    heads, kv_heads = (raw.get(axis.field) for axis in (HEADS, KV_HEADS))
    if heads and kv_heads and heads % kv_heads:
        raise PlanError(f"{where}: {heads} {HEADS.field} do not go evenly into {kv_heads} {KV_HEADS.field}")
    for name, rope in _ropes(raw):
        low, high = rope.get("low_freq_factor"), rope.get("high_freq_factor")
        if low is not None and high is not None and not low < high:
            raise UsageError(f"{where}: {name}: low_freq_factor {low} must be less than its high_freq_factor {high}")


def _ropes(raw: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(the field, parameters of RoPE in it)."""
    for name in ("rope_parameters", "rope_scaling"):
        rope = raw.get(name) or {}
        yield from ((name, one) for one in (rope, *rope.values()) if isinstance(one, dict))


def build(raw: Mapping[str, Any], where: str, load: Callable[[], Any]) -> Any:
    """Return the configuration object that `load` makes, once a model of it can be built.

    Args:
        raw: What `read` returned.
        where: The file, for messages.
        load: Makes the object, without arguments.

    Raises:
        UsageError: A field holds what its class does not take.
        PlanError: No class holds the shape, or there is none for a language model of this type.
    """
    _check_names(raw, where)
    with _refused(raw, where):
        config = load()
    # or a model returns tuples, or cannot be saved
    config.return_dict, config.output_attentions = True, False
    _offline(config, where)
    _check_built(raw, config, where)
    with _refused(raw, where, config):
        meta_model(config)
    return config


def _check_names(raw: Mapping[str, Any], where: str) -> None:
    """Names that transformers has to know: of the type, activations, kinds of RoPE."""
    from transformers import CONFIG_MAPPING
    from transformers.activations import ACT2FN
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = raw.get("model_type")
    if not kind:
        raise UsageError(f"{where} has no model_type")
    if kind not in CONFIG_MAPPING:
        close = difflib.get_close_matches(kind[:64], list(CONFIG_MAPPING.keys()), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise PlanError(f"{where}: transformers has no model_type {shown(kind)}{hint}")
    for name in raw:
        own = getattr(CONFIG_MAPPING[kind], name, None)
        if callable(own) or isinstance(own, property) and own.fset is None:
            raise UsageError(f"{where}: {name} is no field but something that transformers works out; take it out")
    if stock_type(kind) not in FAMILIES:
        return
    fields_of_activation = ("hidden_act", "hidden_activation", "activation_function")
    activations = [name for name in fields_of_activation if raw.get(name) is not None]
    check(raw, dict.fromkeys(activations, one_of(list(ACT2FN))), where)
    known = ["default", "su", *ROPE_INIT_FUNCTIONS]
    for name, rope in _ropes(raw):
        check(rope, dict.fromkeys(("rope_type", "type"), one_of(known)), f"{where}: {name}")


def _offline(config: Any, where: str) -> None:
    """Takes the implementations that every machine has, whatever the file would like: none is ever downloaded."""
    wanted = config._attn_implementation
    if wanted not in (None, *ATTENTION):
        log(f"note: {where} asks for the attention implementation {shown(wanted)}; sdpa computes the same")
        config._attn_implementation = "sdpa"
    for inner in (config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))):
        if getattr(inner, "_attn_implementation", None) not in (None, *ATTENTION):
            inner._attn_implementation = "sdpa"
        if getattr(inner, "_experts_implementation", None) not in (None, "eager"):
            inner._experts_implementation = None
        if getattr(inner, "fusion_config", None) is not None:
            inner.fusion_config = None


def _check_built(raw: Mapping[str, Any], config: Any, where: str) -> None:
    """Check fields that may contradict each other, defaults included.

    RoPE turns pairs of channels, and its lists have one factor for each; layers that slide need a window.
    """
    parameters = getattr(config, "rope_parameters", None)
    kind = stock_type(config.model_type)
    if kind not in FAMILIES:
        return
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    if sliding and getattr(config, "sliding_window", None) is None:
        raise UsageError(f"{where}: sliding_window: null must be a whole number: layer_types has sliding_attention")
    if not parameters:
        return
    if any(isinstance(one, dict) for one in parameters.values()):
        for name, one in parameters.items():
            if one is not None and not isinstance(one, dict):
                raise UsageError(f"{where}: rope_parameters: {shown(name)}: {shown(one)} must be a mapping, or null")
    head_dim = HEAD_DIM.read(config, FAMILIES.get(kind))
    for _, rope in _ropes({"rope_parameters": parameters}):
        rotated = int(head_dim * rope.get("partial_rotary_factor", 1.0))
        if rotated == head_dim and head_dim % 2:
            error = UsageError if raw.get("head_dim") else PlanError
            raise error(f"{where}: head_dim {head_dim} must be even: RoPE turns pairs of channels")
        for name in ("short_factor", "long_factor"):
            if name in rope and len(rope[name]) != rotated // 2:
                raise UsageError(
                    f"{where}: RoPE's {name} has {len(rope[name])} factors, a head has {rotated // 2} pairs of channels"
                )


@contextlib.contextmanager
def _refused(raw: Mapping[str, Any], where: str, config: Any = None) -> Iterator[None]:
    """Turns whatever transformers raises about a configuration into one line that names the file."""
    try:
        yield
    except PrunerError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise _refusal(error, raw, where, config) from error


def _refusal(error: Exception, raw: Mapping[str, Any], where: str, config: Any) -> PrunerError:
    def value(*names: str) -> Any:
        return next(filter(None, (getattr(config, name, raw.get(name)) for name in names)), None)

    hidden, heads = (value(*axis.also, axis.field) for axis in (HIDDEN, HEADS))
    reason = " ".join(str(error.__cause__ or error).split())[:LONGEST] or "no reason is given"
    if "padding_idx" in reason.lower():
        return UsageError(
            f"{where}: pad_token_id: {value('pad_token_id')} must be within the vocabulary: a whole number from 0 to "
            f"{value('vocab_size') - 1}, or null"
        )
    if reason.startswith("Unrecognized configuration class"):
        return PlanError(f"{where}: transformers has no language model of the model_type {raw['model_type']!r}")
    if isinstance(hidden, int) and isinstance(heads, int) and hidden % heads:
        names = [name for name in (*HIDDEN.also, *HEADS.also, HIDDEN.field, HEADS.field) if name in raw]
        return PlanError(f"{where}: {' and '.join(names)}: {hidden} is not a multiple of {heads}: {reason}")
    if isinstance(error, KeyError):
        reason = f"{reason} is not known, or missing"
    return UsageError(f"{where} is not a legal {raw['model_type']} configuration: {reason}")
