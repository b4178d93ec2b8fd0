"""The checks that the compared networks share: of options, images and targets."""

import numbers
from typing import Any

from torch import Tensor


def check_channels(network: str, in_channels: Any, num_classes: Any) -> None:
    """Raise a ValueError unless in_channels is 1 or 3 and num_classes is an integer >= 1."""
    if not _is_integer(in_channels) or in_channels not in (1, 3):
        raise ValueError(f"{network}: in_channels must be 1 or 3, got {in_channels!r}")
    if not _is_integer(num_classes) or num_classes < 1:
        raise ValueError(f"{network}: num_classes must be an integer >= 1, got {num_classes!r}")


def check_image_size(network: str, image_size: Any, stride: int) -> None:
    """Raise a ValueError unless image_size is an integer >= 32 and a multiple of `stride`."""
    if not _is_integer(image_size) or image_size < 32 or image_size % stride:
        raise ValueError(
            f"{network}: image_size must be an integer >= 32 and a multiple of {stride}, "
            f"such as 256, got {image_size!r}"
        )


def check_images(
    network: str, x: Any, in_channels: int, stride: int, *, training: bool
) -> tuple[int, int]:
    """Height and width of a batch of images that a network of this deepest stride can take.

    Args:
        network: named in the errors.
        x: (B, in_channels, H, W), floating point, H and W at least 32 and multiples of `stride`.
        in_channels: needed channels.
        stride: of the deepest map.
        training: BatchNorm must find more than one position in the deepest map.

    Raises:
        TypeError: x is no tensor.
        ValueError: another shape or dtype, or training on a single position.
    """
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
            f"{network}: needs floating-point x in [0, 1], got {x.dtype}; "
            "divide 8-bit images by 255"
        )
    batch, _, height, width = x.shape
    if min(height, width) < 32 or height % stride or width % stride:
        raise ValueError(
            f"{network}: needs H and W >= 32 and multiples of {stride}, got {height} x {width}; "
            "resize or pad the images"
        )
    if training and batch * (height // stride) * (width // stride) == 1:
        raise ValueError(
            f"{network}: training on one image of {height} x {width} leaves BatchNorm a single "
            f"position at stride {stride}; use a larger batch or larger images"
        )
    return height, width


def check_target(network: str, target: Any, logits: Tensor) -> None:
    """Raise a TypeError unless target is a tensor, a ValueError unless it has the logits' shape."""
    if not isinstance(target, Tensor):
        raise TypeError(f"{network}: target must be a tensor, got {type(target).__name__}")
    if target.shape != logits.shape:
        raise ValueError(
            f"{network}: target must have the logits' shape (B, K, H, W) = {tuple(logits.shape)}, "
            f"got {tuple(target.shape)}"
        )


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
