"""LoRA (arxiv.org/abs/2106.09685) by PEFT: W + (alpha/r)·B·A on the projections of the decoder layers, then merged."""

import warnings

import torch

from llm_pruner.config.recover import RecoverOptions
from llm_pruner.errors import RunError, UsageError, did_you_mean
from llm_pruner.sparsity.targets import linear_layers


def check_installed() -> None:
    """Raise a RunError when PEFT is not there."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise RunError('LoRA needs PEFT: pip install "llm_pruner[recover]"') from error


def projections(model) -> dict[str, str]:
    """Return every linear layer (Conv1D too) inside the decoder layers: full name → its last part, such as q_proj."""
    return {name: name.rpartition(".")[2] for name in linear_layers(model)}


def with_adapters(model, options: RecoverOptions):
    """Return a model as one of PEFT's, of which only the adapters train.

    Args:
        model: A causal language model.
        options: Of the recovery: rank, alpha, dropout, targets, seed.

    Raises:
        UsageError: The model does not have one of the targets.
        RunError: PEFT is not there.
    """
    check_installed()
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    found = projections(model)
    known = sorted(set(found.values()))
    wanted = known
    if options.lora_targets:
        wanted = [name.strip() for name in options.lora_targets.split(",") if name.strip()]
        for name in wanted:
            if name not in known:
                raise UsageError(f"lora_targets: there is no {name!r} in this model; {did_you_mean(name, known)}")
    transposed = {isinstance(model.get_submodule(name), Conv1D) for name, last in found.items() if last in wanted}
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=[name for name, last in found.items() if last in wanted],
        fan_in_fan_out=transposed == {True},
    )
    # A is random
    torch.manual_seed(options.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(model, config)


def merged(model):
    """Return the model with its adapters added to the weights, without PEFT around it."""
    return model.merge_and_unload()
