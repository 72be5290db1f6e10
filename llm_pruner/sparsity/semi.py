"""2:4 sparse weights as the semi-structured tensors of torch.

A GPU multiplies them in its sparse tensor cores: for prefill, and for 9/16 of the bytes.
"""

import logging

import torch
from torch import nn

logger = logging.getLogger(__name__)

DTYPES = (torch.float16, torch.bfloat16)


def semi_structured(model: nn.Module) -> int:
    """Store the weights of the model's nn.Linear layers that are 2:4 sparse as semi-structured tensors of torch.

    Layers whose device has no kernels for them stay as they are. This is for inference: such a model cannot be saved.

    Args:
        model: A model with sparse weights.

    Returns:
        How many layers were stored so.
    """
    from torch.sparse import to_sparse_semi_structured

    done = 0
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and usable(layer.weight) and is_2_4(layer.weight):
            try:
                packed = to_sparse_semi_structured(layer.weight.detach())
            except (RuntimeError, NotImplementedError, ValueError) as error:
                logger.warning("%s stays dense: %s", name, str(error).splitlines()[0])
                continue
            layer.weight = nn.Parameter(packed, requires_grad=False)
            done += 1
    return done


def usable(weight: torch.Tensor) -> bool:
    """Return whether torch has semi-structured kernels for such a weight where it is (a GPU from Ampere on)."""
    if not weight.is_cuda or weight.dtype not in DTYPES:
        return False
    outputs, inputs = weight.shape
    return torch.cuda.get_device_capability(weight.device) >= (8, 0) and outputs % 32 == 0 and inputs % 64 == 0


@torch.no_grad()
def is_2_4(weight: torch.Tensor) -> bool:
    """Return whether at most two of every four neighbours along the input dimension [out, in] are not zero."""
    if weight.shape[1] % 4:
        return False
    return bool((weight.unflatten(1, (-1, 4)).count_nonzero(2) <= 2).all())
