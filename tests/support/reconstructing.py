"""Small reconstructions: a tiny model, some hundred random tokens, and a shape."""

import torch

from llm_pruner.config.prune import PruneOptions
from llm_pruner.methods import Journal, Pruned
from llm_pruner.model.axes import Widths
from llm_pruner.model.families import family_of, widths_of
from llm_pruner.model.layers import decoder_layers
from llm_pruner.model.trace import trace_groups
from llm_pruner.reconstruction.embeddings_and_head import outside
from llm_pruner.reconstruction.layer import Settings
from llm_pruner.reconstruction.layers import affine, parts_of, set_affine
from llm_pruner.reconstruction.reconstruct import Reconstructed, reconstruct
from llm_pruner.reconstruction.tokens import Tokens
from llm_pruner.shape.draft import draft
from llm_pruner.shape.plan import make_plan
from llm_pruner.shape.request import axis_of
from llm_pruner.shape.widths import widths_by_ratio
from tests.support import tiny
from tests.support.in_memory import asked

PLAIN = Settings(least_squares=False, epochs=0)
FITTED = Settings(epochs=0)
BRIEF = Settings(epochs=1)


def calibration(prompts: int = 32, length: int = 24, seed: int = 0, batches: int = 1) -> Tokens:
    """Every eighth prompt is held out; `batches` of the others."""
    held = prompts // 8
    fitted = tiny.tokens(prompts - held, length, seed).chunk(batches)
    return Tokens([*fitted, tiny.tokens(held, length, seed + 100)], [False] * batches + [True])


def planned(model, after: Widths | tuple[Widths, ...] | dict):
    """(groups, plan without kept units, new config). after: of every layer, of each one, or ratios."""
    groups, before = trace_groups(model), widths_of(model.config)
    if isinstance(after, dict):
        ratios = {axis_of(name): ratio for name, ratio in after.items()}
        after = widths_by_ratio(before, ratios, family_of(model.config.model_type).derived_head_dim)
    if isinstance(after, Widths):
        after = (after,) * model.config.num_hidden_layers
    return groups, *make_plan(model, groups, after)


def reconstructed(
    model, after, settings: Settings = FITTED, tokens: Tokens | None = None, folder=None
) -> Reconstructed:
    groups, plan, config = planned(model, after)
    return reconstruct(model, groups, plan.after, config, tokens or calibration(), settings, folder)


@torch.no_grad()
def divergence(dense, pruned, batches) -> float:
    """Mean KL(dense ‖ pruned) per token, in nats, from the models as they run."""
    logits = [torch.cat([model(batch).logits.flatten(0, 1) for batch in batches]) for model in (dense, pruned)]
    wanted, found = (own.double().log_softmax(-1) for own in logits)
    return (wanted.exp() * (wanted - found)).sum(-1).mean().item()


def ratios_of(ratios: dict) -> str:
    """As the value of --prune."""
    return ",".join(f"{kind}={ratio}" for kind, ratio in ratios.items())


def prompts() -> list[torch.Tensor]:
    return list(tiny.tokens(32, 24, seed=0))


def fitted_and_held(tokens: Tokens) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """(prompts to fit on, batches that are held out)."""
    batches = list(zip(tokens.batches, tokens.held, strict=True))
    return [row for batch, held in batches if not held for row in batch], [batch for batch, held in batches if held]


def method_of(model, said: list[str] | None = None, **options) -> Pruned:
    """A reconstruction on `prompts`; `said` gets what it says."""
    options = PruneOptions(model="tiny", method="reconstruct", **{"epochs": 0, **options})
    _, request, method = asked(options)
    log = (said if said is not None else []).append
    return method.prune(model, draft(request, model.config, method), prompts(), Journal(log))


def subspace(width: int, size: int, centred: bool) -> torch.Tensor:
    """A projection [width, width] on `size` random directions, of centred streams if asked for."""
    directions = torch.randn(width, size, dtype=torch.double)
    basis = torch.linalg.qr(directions - directions.mean(0) if centred else directions).Q
    return (basis @ basis.T).float()


@torch.no_grad()
def confine(model, projection: torch.Tensor) -> None:
    """Everything that writes to the residual stream writes into the subspace."""
    groups = trace_groups(model)
    for name in outside(groups)[0]:
        model.get_parameter(name).copy_(model.get_parameter(name) @ projection)
    for layer, module in enumerate(decoder_layers(model)):
        for part in parts_of(groups, layer):
            writer = module.get_submodule(part.output_projection)
            set_affine(writer, projection @ affine(writer))
