"""What a run does between loading and saving, by options, on a model in memory."""

from llm_pruner import prune
from llm_pruner.cli.deciding import method_of
from llm_pruner.cli.requests import replayed, request_of, validate_pruning, wants_reconstruction
from llm_pruner.config.prune import PruneOptions


def asked(options: PruneOptions, prompts=None):
    """(options, request, method). Where no method is named it is a reconstruction if there are prompts."""
    validate_pruning(options)
    request = request_of(options)
    options = replayed(options, request)
    wanted = wants_reconstruction(options)
    return options, request, method_of(options, reconstruct=bool(wanted or wanted is None and prompts))


def prune_model(model, options: PruneOptions, prompts=None):
    """(pruned model, its plan)."""
    _, request, method = asked(options, prompts)
    return prune(model, request, method, prompts)
