"""The options of one pruning run: one frozen dataclass. Imports nothing heavy."""

from dataclasses import asdict, dataclass
from typing import Any

from llm_pruner.config.options import MOST_SEED, fields_of, option

MODEL, SHAPE, UNITS, CALIBRATION, OUTPUT, EVALUATION = (
    "model", "shape: how much goes", "units: which ones go", "calibration", "output", "evaluation",
)  # fmt: skip
MOST_LAYERS, MOST_WIDTH = 1024, 2**20  # of a model: beyond, a dry run takes minutes, and none is known
MOST_TOKENS = 2**24  # of a window
RATIO = "a number with 0 <= ratio < 1, such as 0.5"


@dataclass(frozen=True)
class Options:
    """Every option of `prune_llm.py`, by its flag's name."""

    model: str | None = option(None, MODEL, "local folder or hub id; `demo` is the small model that is built in")
    revision: str | None = option(None, MODEL, "branch, tag or commit of a hub model")
    dtype: str = option(
        "auto", MODEL, "dtype to load and save in; auto keeps the checkpoint's",
        choices=("auto", "float32", "bfloat16", "float16"),
    )  # fmt: skip
    device: str = option("auto", MODEL, "cpu, cuda, cuda:1 …; auto takes a GPU if there is one")
    device_map: str | None = option(
        None, MODEL, "spread the model over several devices, as in from_pretrained",
        choices=("auto", "balanced", "balanced_low_0", "sequential"),
    )  # fmt: skip
    pruning_ratio: float | None = option(
        None, SHAPE, "width ratio in [0, 1): every kind in --prune shrinks by it; 0 makes a copy", "R", legal=RATIO
    )
    param_ratio: float | None = option(
        None, SHAPE, "share of the attention and MLP parameters to remove, from heads and neurons", "R", legal=RATIO
    )
    target_params: str | None = option(None, SHAPE, "parameters of the whole model afterwards, such as 1.2B", "N")
    target_memory: str | None = option(None, SHAPE, "bytes of the checkpoint afterwards, such as 2GB", "SIZE")
    iteration: int | None = option(
        None, SHAPE, "remove as many parameters as N decoder layers have (AMP)", "N", least=1, most=MOST_LAYERS
    )
    structure: str | None = option(
        None, SHAPE, "FLAP's: uniform or adaptive over layers; heads against neurons uniform, manual or adaptive",
        choices=("UL-UM", "UL-MM", "AL-MM", "AL-AM"),
    )  # fmt: skip
    remove_heads: int | None = option(
        None, SHAPE, "query heads that UL-MM and AL-MM remove in the whole model", "N", least=0, most=MOST_WIDTH
    )
    uniform: bool = option(False, SHAPE, "round an adaptive structure to one width for all layers")
    prune: str | None = option(
        None, SHAPE, "what shrinks, of hidden, heads, kv_heads, mlp, each with its own ratio if wanted; default "
        "heads,mlp, and hidden by --pruning_ratio where the importance scores it; a search tries kv_heads, "
        "whole layers and, for a size of the whole model, hidden too",
        "KIND[=R],…",
    )  # fmt: skip
    target: str | None = option(None, SHAPE, "explicit widths by config name, instead of a ratio", "NAME=WIDTH,…")
    round_to: int = option(
        1, SHAPE, "round hidden_size and intermediate_size to a multiple of N", "N", least=1, most=MOST_WIDTH
    )
    method: str | None = option(
        None, UNITS, "best: search the shape and rebuild the model in it, on calibration text; default: best where "
        "there is such text and no other method is named, else --importance magnitude",
        
    )  # fmt: skip
    per_layer: bool = option(False, UNITS, "best: widths of its own for every layer, by what its units cost")
    search_minutes: float = option(
        1.0,
        UNITS,
        "best: how long shapes may be compared for a budget of parameters, on a part of the text; 0 takes the "
        "proportional one",
        "M",
        least=0,
        most=1_000_000,
    )
    epochs: int | None = option(
        None, UNITS, "best: passes over the text in which each layer is optimised as a whole; default: 2 to 8, "
        "fewer of more text", "N", least=0, most=10_000,
    )  # fmt: skip
    work_dir: str | None = option(
        None, UNITS, "best: keep what is finished in DIR; the same run, interrupted and started again, goes on there",
        "DIR",
    )  # fmt: skip
    importance: str | None = option(None, UNITS, "how units are scored, instead of --method best", "NAME")
    criterion: str = option(
        "standard", UNITS, "remove the lowest scores, the highest, or any", choices=("standard", "reversed", "random")
    )
    metrics: str | None = option(None, UNITS, "flap's metric (default: WIFV)", choices=("IFV", "WIFV", "WIFN"))
    taylor: str | None = option(
        None, UNITS, "taylor's aggregation (default: param_first)", choices=("param_first", "vectorize")
    )
    compensate: str | None = option(
        None, UNITS, "bias: o_proj and down_proj get what the removed units gave on average (default: none)",
        choices=("none", "bias"),
    )  # fmt: skip
    mask_only: bool = option(False, UNITS, "zeros instead of a cut; every shape stays")
    scores: str | None = option(
        None, UNITS, "keep the scores in FILE; used instead of scoring when it is there", "FILE"
    )
    plan: str | None = option(None, UNITS, "replay a saved plan instead of making one", "FILE")
    seed: int = option(0, UNITS, "seed of everything random", "N", least=0, most=MOST_SEED)
    calibration_data: str | None = option(
        None, CALIBRATION, "wikitext2, c4, alpaca, demo, a file: text, or JSON records; default: the method's",
        "NAME|FILE",
    )  # fmt: skip
    nsamples: int | None = option(
        None, CALIBRATION, "windows or prompts; default: the method's", "N", least=1, most=1_000_000
    )
    calibration_seq_len: int | None = option(
        None,
        CALIBRATION,
        "tokens of each, at most max_position_embeddings; default: the method's",
        "N",
        least=2,
        most=MOST_TOKENS,
    )
    save_plan: str | None = option(None, OUTPUT, "write the plan (kept units, new config) as JSON", "FILE")
    dry_run: bool = option(False, OUTPUT, "print the plan and stop; needs only the config.json")
    save_model: str | None = option(None, OUTPUT, "folder for the checkpoint; default pruned/<model>-r<ratio>", "DIR")
    no_save: bool = option(False, OUTPUT, "prune and score only")
    overwrite: bool = option(False, OUTPUT, "replace the checkpoint that is in the output folder")
    eval_data: str | None = option(None, EVALUATION, "wikitext2 (default), demo, a text file, or none", "NAME|FILE")
    max_seq_len: int = option(
        4096, EVALUATION, "tokens per window, at most max_position_embeddings", "N", least=2, most=MOST_TOKENS
    )
    batch_size: int | None = option(
        None, EVALUATION, "windows per forward pass; default: what fits", "N", least=1, most=1_000_000
    )
    eval_zero_shot: bool = option(
        False, EVALUATION, "lm_eval's usual tasks too, before and after; see `python -m llm_pruner evaluate` for others"
    )
    recover: str | None = option(
        None, OUTPUT, "train what was saved: distil, lora, or a YAML of recovery options; to <save_model>-recovered",
        "HOW",
    )  # fmt: skip
    config: str | None = option(None, "options file", "YAML with any of the other options; flags win over it", "FILE")
    traceback: bool = option(False, OUTPUT, "show where an error came from")

    def asdict(self) -> dict[str, Any]:
        return asdict(self)


BUDGETS = ("pruning_ratio", "param_ratio", "target_params", "target_memory", "iteration")
FIELDS = fields_of(Options)
