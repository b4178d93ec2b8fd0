"""Networks as tests need them."""

import torch
from torch import nn


def wake(net: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """Give every parameter that starts at zero random values: at the start its path is invisible."""
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.3)
    return net
