"""The options of `prune`. Imports nothing heavy."""

from llm_pruner.config.groups import (
    CALIBRATION,
    EVALUATION,
    OUTPUT,
    SHAPE,
    UNITS,
    CalibrationOptions,
    EvaluationOptions,
    LoadingOptions,
    MethodOptions,
    ModelOptions,
    RevisionOptions,
    RunOptions,
    SavingOptions,
    WorkOptions,
)
from llm_pruner.config.limits import COMPENSATE, MOST_LAYERS, MOST_WIDTH, ORDERS, STRUCTURES
from llm_pruner.config.options import command_options, fields_of, option
from llm_pruner.config.quantities import RATIO

PROGRAM = "llm-pruner prune"


@command_options(
    method={
        "help": "reconstruct: search for a shape and reconstruct the model in it, from calibration text; shortgpt: "
        "remove whole layers; slicegpt: rotate and narrow the residual stream; 2ssp, putri, blockpruner: remove what "
        "perplexity misses least; default: reconstruct where there is such text and no other method is named, else "
        "--importance magnitude",
        "group": UNITS,
    },
    epochs={
        "help": "reconstruct: passes over the calibration text that optimise each layer as a whole; default: 2 to 8, "
        "fewer for more text, and 0 beside --global_epochs for more than 16 million parameters",
        "group": UNITS,
    },
    save_model={"help": "folder for the checkpoint; default: pruned/<model>-r<ratio>"},
    work_dir={"help": "reconstruct: folder for finished layers and shapes, to continue from after an interruption"},
)
class PruneOptions(
    RunOptions,
    WorkOptions,
    SavingOptions,
    EvaluationOptions,
    CalibrationOptions,
    MethodOptions,
    LoadingOptions,
    RevisionOptions,
    ModelOptions,
):
    """Every option of `prune`, by its flag's name."""

    pruning_ratio: float | None = option(
        None, SHAPE, "width ratio in [0, 1): every axis in --prune shrinks by it; 0 makes a copy", "R", kind=float,
        legal=RATIO, common=True,
    )  # fmt: skip
    param_ratio: float | None = option(
        None, SHAPE, "share of the attention and MLP parameters to remove, from heads and neurons", "R", kind=float,
        legal=RATIO, common=True,
    )  # fmt: skip
    further_ratios: str | None = option(
        None, SHAPE, "reconstruct: larger ratios behind --param_ratio, each made of the model of the one before in a "
        "part of the time, and saved to <save_model>-param_ratio<R>", "R,…", legal="text such as '0.3,0.5'",
    )  # fmt: skip
    target_params: str | None = option(
        None, SHAPE, "parameters of the whole model after pruning, such as 1.2B", "N", common=True
    )
    target_memory: str | None = option(None, SHAPE, "bytes of the checkpoint after pruning, such as 2GB", "SIZE")
    iteration: int | None = option(
        None, SHAPE, "remove as many parameters as N decoder layers have (AMP)", "N", kind=int, least=1,
        most=MOST_LAYERS,
    )  # fmt: skip
    structure: str | None = option(
        None, SHAPE, "FLAP's division of the budget: layers uniform (UL) or adaptive (AL); heads and neurons "
        "uniform (UM), by --remove_heads (MM) or adaptive (AM)",
        choices=STRUCTURES,
    )  # fmt: skip
    remove_heads: int | None = option(
        None, SHAPE, "query heads that UL-MM and AL-MM remove in the whole model", "N", kind=int, least=0,
        most=MOST_WIDTH,
    )  # fmt: skip
    uniform: bool = option(False, SHAPE, "round an adaptive structure to one width for all layers", kind=bool)
    prune: str | None = option(
        None, SHAPE, "axes that shrink: hidden, heads, kv_heads and mlp, each with a ratio of its own if wanted; "
        "default: heads,mlp, with --pruning_ratio also hidden where the importance scores it; a search also tries "
        "kv_heads, whole layers and, for a size of the whole model, hidden; vocab beside them, or alone, removes "
        "tokens, without a ratio all that the text does not use",
        "AXIS[=R],…",
    )  # fmt: skip
    target: str | None = option(None, SHAPE, "widths by their names in the config, instead of a ratio", "NAME=WIDTH,…")
    round_to: int = option(
        1, SHAPE, "round hidden_size and intermediate_size to a multiple of N", "N", kind=int, least=1, most=MOST_WIDTH
    )
    per_layer: bool = option(
        False, UNITS, "reconstruct: give every layer widths of its own, by the costs of its units", kind=bool
    )
    search_minutes: float | None = option(
        None, UNITS, "reconstruct: minutes for comparing shapes of the same size, on a part of the text; "
        "0 takes the proportional shape; default: 1", "M", kind=float, least=0, most=1_000_000,
    )  # fmt: skip
    global_epochs: int | None = option(
        None, UNITS, "reconstruct: passes over the calibration text that optimise all layers together, towards the "
        "dense model's logits; default: 1, or 0 for more than a billion parameters", "N", kind=int, least=0,
        most=10_000,
    )  # fmt: skip
    importance: str | None = option(
        None, UNITS, "criterion that scores the units, instead of a reconstruction", "NAME", common=True
    )
    order: str = option(
        "standard", UNITS, "which units go: those of the lowest scores, of the highest, or any", choices=ORDERS
    )
    metrics: str | None = option(None, UNITS, "flap's metric: IFV, WIFV (default) or WIFN", "NAME")
    taylor: str | None = option(None, UNITS, "taylor's aggregation: param_first (default) or vectorize", "NAME")
    compensate: str | None = option(
        None, UNITS, "bias: add the average output of the removed units to o_proj and down_proj as a bias "
        "(default: none)",
        choices=COMPENSATE,
    )  # fmt: skip
    mask_only: bool = option(
        False, UNITS, "set the removed units to zero instead of cutting them; every shape stays", kind=bool
    )
    scores: str | None = option(
        None, UNITS, "file of scores: written where it does not exist yet, else read instead of scoring", "FILE"
    )
    plan: str | None = option(None, UNITS, "saved plan to replay, instead of making one", "FILE")
    vocab_data: str | None = option(
        None, CALIBRATION, "text whose tokens --prune vocab counts: wikitext2, c4, alpaca, instructions, demo, mix, "
        "or a file; default: --calibration_data, or wikitext2", "NAME|FILE",
    )  # fmt: skip
    save_plan: str | None = option(None, OUTPUT, "write the plan (kept units, new config) as JSON", "FILE")
    dry_run: bool = option(False, OUTPUT, "print the plan and stop; needs only the config.json", kind=bool, common=True)
    no_save: bool = option(False, OUTPUT, "prune and score, without saving", kind=bool)
    eval_zero_shot: bool = option(
        False, EVALUATION, "score lm_eval's usual tasks too, before and after; `evaluate` takes other tasks", kind=bool
    )
    recover: str | None = option(
        None, OUTPUT, "train the result: distil, lora, or a YAML of recovery options; saved to <save_model>-recovered",
        "HOW",
    )  # fmt: skip


BUDGETS = ("pruning_ratio", "param_ratio", "target_params", "target_memory", "iteration")
FIELDS = fields_of(PruneOptions)
