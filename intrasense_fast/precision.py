"""Automatic mixed precision by its name, in training and in inference."""

import torch

OFF, BF16, FP16 = "off", "bf16", "fp16"
_DTYPES = {BF16: torch.bfloat16, FP16: torch.float16}


def autocast(amp: str, device: torch.device, *, cache: bool = True) -> torch.autocast:
    """The precision of a forward pass.

    Args:
        amp: OFF, BF16 or FP16.
        device: where it runs.
        cache: keep weights that were converted until the block ends.
    """
    dtype = _DTYPES.get(amp)
    return torch.autocast(device.type, dtype, enabled=amp != OFF, cache_enabled=cache)
