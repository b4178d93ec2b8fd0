"""The plain U-Net of the comparisons (notes, section 7), and the two halves that CMU-Net shares."""

import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from intrasense_fast.networks.arguments import check_channels, check_images, check_target
from intrasense_fast.networks.double_conv import DoubleConv
from intrasense_fast.networks.own_losses import half_bce_and_dice

STRIDE = 16
WIDTHS = (64, 128, 256, 512, 1024)


def checked_widths(network: str, widths: Any) -> tuple[int, ...]:
    """`widths` as five Python integers.

    Raises:
        ValueError: not five integers >= 1.
    """
    proper = isinstance(widths, Sequence) and len(widths) == len(WIDTHS)
    if not proper or not all(_is_count(width) for width in widths):
        raise ValueError(
            f"{network}: widths must be {len(WIDTHS)} integers >= 1, such as {WIDTHS}, "
            f"got {widths!r}"
        )
    return tuple(int(width) for width in widths)


def _is_count(value: Any) -> bool:
    integral = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return integral and int(value) >= 1


class PooledEncoder(nn.Module):
    """DoubleConv stages with 2x2 max-pooling between them.

    Args:
        in_channels: channels of the image.
        widths: output channels of the stages, shallowest first.
    """

    def __init__(self, in_channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        incoming = (in_channels, *widths[:-1])
        self.stages = nn.ModuleList(
            DoubleConv(*pair) for pair in zip(incoming, widths, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps (B, widths[i], H / 2**i, W / 2**i) of the stages, from (B, in_channels, H, W)."""
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(max_pool2d(x, 2) if maps else x)
            maps.append(x)
        return maps


class UpConvolution(nn.Sequential):
    """Nearest x2, 3x3 convolution with bias, BatchNorm, ReLU: (B, in, H, W) to (B, out, 2H, 2W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class ConcatDecoder(nn.Module):
    """At each level an up-convolution, the skip concatenated before it, and a DoubleConv.

    Args:
        widths: channels of the encoder's maps, shallowest first.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        levels = [(widths[i + 1], widths[i]) for i in reversed(range(len(widths) - 1))]
        self.up = nn.ModuleList(UpConvolution(deep, shallow) for deep, shallow in levels)
        self.merge = nn.ModuleList(DoubleConv(2 * shallow, shallow) for _, shallow in levels)

    def forward(self, skips: Sequence[Tensor], x: Tensor) -> Tensor:
        """The map (B, widths[0], H, W).

        Args:
            skips: maps of all stages but the last, shallowest first.
            x: the deepest map.
        """
        for up, merge, skip in zip(self.up, self.merge, reversed(skips), strict=True):
            x = merge(torch.cat((skip, up(x)), 1))
        return x


class UNet(nn.Module):
    """U-Net (Ronneberger et al., MICCAI 2015), with padding and BatchNorm; notes, section 7.

    Input (B, in_channels, H, W) in [0, 1], used as it is (no normalisation inside); H and W
    multiples of 16. Logits (B, num_classes, H, W) in both modes. PyTorch's default initialisation,
    no pretraining.

    Args:
        in_channels: channels of the image.
        num_classes: channels of the logits, one sigmoid each.
        widths: output channels of the five stages.

    Raises:
        ValueError: an argument of another type or outside its range.
    """

    def __init__(
        self, in_channels: int = 1, num_classes: int = 1, *, widths: Sequence[int] = WIDTHS
    ) -> None:
        super().__init__()
        check_channels("UNet", in_channels, num_classes)
        self.in_channels = int(in_channels)
        self.num_classes = int(num_classes)
        self.widths = checked_widths("UNet", widths)
        self.encoder = PooledEncoder(self.in_channels, self.widths)
        self.decoder = ConcatDecoder(self.widths)
        self.head = nn.Conv2d(self.widths[0], self.num_classes, 1)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON can hold them."""
        return {
            "in_channels": self.in_channels,
            "num_classes": self.num_classes,
            "widths": list(self.widths),
        }

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W) of x (B, in_channels, H, W).

        Raises:
            TypeError: x is no tensor.
            ValueError: another shape or dtype, or a size that is no multiple of 16.
        """
        check_images("UNet", x, self.in_channels, STRIDE, training=self.training)
        *skips, x = self.encoder(x.to(self.head.weight.dtype))
        return self.head(self.decoder(skips, x))

    def own_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """0.5 BCE + Dice, as for CMU-Net: the notes name no loss for U-Net.

        Args:
            output: logits (B, K, H, W).
            target: (B, K, H, W), values in [0, 1].

        Returns:
            Scalar: float64 for float64 logits, float32 otherwise.

        Raises:
            TypeError: target is no tensor.
            ValueError: shapes that differ.
        """
        check_target("UNet", target, output)
        return half_bce_and_dice(output, target)
