"""Checks of options and inputs that the compared networks share."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def checked_count(network: str, name: str, value: Any) -> int:
    """`value` if it is an integer >= 1.

    Raises:
        ValueError: it is something else, True and False included.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{network}: {name} must be an integer >= 1, got {value!r}")
    return value


def checked_widths(network: str, widths: Any, length: int) -> tuple[int, ...]:
    """`widths` as a tuple if it is a sequence of `length` integers >= 1.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(widths, Sequence) or isinstance(widths, str) or len(widths) != length:
        raise ValueError(f"{network}: widths must be {length} integers >= 1, got {widths!r}")
    return tuple(checked_count(network, "every width", width) for width in widths)


def checked_input(net: nn.Module, x: Any, in_channels: int, multiple: int) -> Tensor:
    """The input, cast to the dtype of the network's parameters.

    Args:
        net: the network; its class names it in errors.
        x: (B, in_channels, H, W), floating point in [0, 1], H and W positive multiples of `multiple`.
        in_channels: channels that the network was built for.
        multiple: stride of the deepest map.

    Raises:
        TypeError: x is no tensor.
        ValueError: another shape or dtype, a size that the network cannot take, or training on one image whose deepest map
            is a single position.
    """
    network = type(net).__name__
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{network}: x must be a tensor, got {type(x).__name__}; use torch.as_tensor"
        )
    if x.dim() != 4 or x.shape[1] != in_channels:
        raise ValueError(
            f"{network}: needs x of shape (B, {in_channels}, H, W), got {tuple(x.shape)}"
        )
    if not x.dtype.is_floating_point:
        raise ValueError(
            f"{network}: needs floating-point x in [0, 1], got {x.dtype}; divide 8-bit images by 255"
        )
    batch, _, height, width = x.shape
    if height < multiple or width < multiple or height % multiple or width % multiple:
        raise ValueError(
            f"{network}: needs H and W that are multiples of {multiple}, got {height} x {width}; "
            "resize or pad the images"
        )
    if net.training and batch == 1 and max(height, width) == multiple:
        raise ValueError(
            f"{network}: training on one image of {height} x {width} leaves BatchNorm a single position at stride "
            f"{multiple}; use a larger batch or larger images"
        )
    parameter = next(net.parameters())
    return x if torch.is_autocast_enabled(x.device.type) else x.to(parameter.dtype)
