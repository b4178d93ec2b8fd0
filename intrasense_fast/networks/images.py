"""What the ResNet networks do to their images: check, normalise and pad them."""

from typing import Any

import torch
from torch import Tensor, nn

from intrasense_fast.kernels.runtime import exporting
from intrasense_fast.networks.encoder import STRIDES, ResNetEncoder

_SMALLEST = 32
_MEAN = {1: (0.449,), 3: (0.485, 0.456, 0.406)}
_STD = {1: (0.226,), 3: (0.229, 0.224, 0.225)}


class ResNetImages(nn.Module):
    """A network on a ResNet encoder: its images in [0, 1], normalised as ImageNet's and padded
    to a multiple of 32.

    Args:
        in_channels: 1 or 3.
    """

    # What to call so that nothing at stride 32 learns from the batch.
    freezing = "net.encoder.eval()"
    config: dict[str, Any]
    encoder: ResNetEncoder

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.register_buffer("input_mean", torch.tensor(_MEAN[in_channels]).view(1, -1, 1, 1))
        self.register_buffer("input_std", torch.tensor(_STD[in_channels]).view(1, -1, 1, 1))

    def _normalized(self, x: Tensor) -> Tensor:
        x = _padded(x.to(self.input_mean.dtype))  # type: ignore[arg-type]
        return (x - self.input_mean) / self.input_std  # type: ignore[operator]

    def _check_input(self, x: Tensor) -> tuple[int, int]:
        """H and W of the images.

        Raises:
            TypeError: x is no tensor.
            ValueError: another shape or dtype; or training on one image whose deepest map is a
                single position.
        """
        name, channels = type(self).__name__, self.config["in_channels"]
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{name}: x must be a tensor, got {type(x).__name__}; use torch.as_tensor"
            )
        if x.dim() != 4 or x.shape[1] != channels:
            raise ValueError(
                f"{name}: needs x of shape (B, {channels}, H, W), got {tuple(x.shape)}"
            )
        if not x.dtype.is_floating_point:
            raise ValueError(
                f"{name}: needs floating-point x in [0, 1], got {x.dtype}; divide 8-bit images by "
                f"255"
            )
        batch, _, height, width = x.shape
        if height < _SMALLEST or width < _SMALLEST:
            raise ValueError(
                f"{name}: needs H and W >= {_SMALLEST}, got {height} x {width}; enlarge or pad the "
                f"images"
            )
        alone = batch == 1 and max(height, width) <= STRIDES[-1]
        if alone and self._learns_at_the_deepest():
            raise ValueError(
                f"{name}: training on one image of {height} x {width} leaves BatchNorm a single "
                "position at stride 32; use a larger batch or larger images, or freeze the "
                "BatchNorms "
                f"there with {self.freezing}"
            )
        return height, width

    def _at_the_deepest(self) -> list[nn.Module]:
        """What the network has at stride 32."""
        return [self.encoder.layer4]

    def _learns_at_the_deepest(self) -> bool:
        """Does a BatchNorm at stride 32 take its statistics from the batch?"""
        parts = [part for module in self._at_the_deepest() for part in module.modules()]
        return any(part.training for part in parts if isinstance(part, nn.BatchNorm2d))


def _padded(x: Tensor) -> Tensor:
    """x (B, C, H, W) padded on the right and below to multiples of 32, by its last pixels."""
    height, width = x.shape[-2:]
    # No remainder of a negative number: torch.compile cannot take it into a graph of any size.
    tall, wide = ((side + STRIDES[-1] - 1) // STRIDES[-1] * STRIDES[-1] for side in (height, width))
    if exporting():
        # A program of any size cannot hold parts that may be empty.
        rows, columns = (
            torch.arange(padded, device=x.device).clamp(max=side - 1)
            for padded, side in ((tall, height), (wide, width))
        )
        return x.index_select(-2, rows).index_select(-1, columns)
    # Not torch's replicate padding: where algorithms must be deterministic, torch.compile of 2.11
    # cannot trace that.
    x = torch.cat((x, x[..., -1:].expand(*x.shape[:-1], wide - width)), -1)
    return torch.cat((x, x[..., -1:, :].expand(*x.shape[:-2], tall - height, x.shape[-1])), -2)


def cropped(logits: Tensor, height: int, width: int) -> Tensor:
    """The first `height` rows and `width` columns of (B, K, H, W)."""
    if exporting():
        # A slice would have to know that it stays inside.
        rows, columns = (torch.arange(side, device=logits.device) for side in (height, width))
        return logits.index_select(-2, rows).index_select(-1, columns)
    return logits[..., :height, :width]
