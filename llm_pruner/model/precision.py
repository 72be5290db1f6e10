"""Where bfloat16 is quick."""

import torch


def has_quick_bfloat16(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 matrices in hardware, which makes it several times as fast.

    Args:
        device: A GPU, or the CPU: those with AMX or AVX512-BF16 do.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in names)
