"""CMU-Net: a U-Net with a ConvMixer below and multi-scale gates on the skips; notes, section 2."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from intrasense_fast.networks.arguments import check_channels, check_images, check_target
from intrasense_fast.networks.own_losses import half_bce_and_dice
from intrasense_fast.networks.unet import (
    STRIDE,
    WIDTHS,
    ConcatDecoder,
    PooledEncoder,
    checked_widths,
)

DEPTH = 7
KERNEL = 7


class ConvMixerLayer(nn.Module):
    """x + BN(GELU(depthwise k x k (x))), then BN(GELU(1x1 convolution)): GELU before BatchNorm.

    Args:
        channels: of the map (B, channels, H, W), in and out.
        kernel: side of the depthwise kernel, odd.
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = nn.Sequential(
            nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels),
            nn.GELU(),
            nn.BatchNorm2d(channels),
        )
        self.pointwise = nn.Sequential(
            nn.Conv2d(channels, channels, 1), nn.GELU(), nn.BatchNorm2d(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(x + self.depthwise(x))


class MultiScaleAttentionGate(nn.Module):
    """MSAG: x + x sigmoid(BN(vote(ReLU([point; ordinary; dilated])))), a gate of x's own shape.

    Args:
        channels: of the map (B, channels, H, W), in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.point = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels))
        self.ordinary = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        )
        self.dilated = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=2, dilation=2), nn.BatchNorm2d(channels)
        )
        self.vote = nn.Sequential(nn.Conv2d(3 * channels, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        scales = torch.cat((self.point(x), self.ordinary(x), self.dilated(x)), 1).relu()
        return x + x * torch.sigmoid(self.vote(scales))


class CMUNet(nn.Module):
    """CMU-Net (ISBI 2023, arXiv 2210.13012); notes, section 2.

    Input (B, in_channels, H, W) in [0, 1], used as it is (no normalisation inside); H and W
    multiples of 16. Logits (B, num_classes, H, W) in both modes. PyTorch's default initialisation,
    no pretraining. The authors train with Adam 1e-4, weight decay 1e-4, cosine to 1e-5 over 300
    epochs, batch 8.

    Args:
        in_channels: channels of the image.
        num_classes: channels of the logits, one sigmoid each.
        widths: output channels of the five stages.

    Raises:
        ValueError: an argument of another type or outside its range.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 1,
        *,
        widths: Sequence[int] = WIDTHS,
    ) -> None:
        super().__init__()
        check_channels("CMUNet", in_channels, num_classes)
        self.in_channels = int(in_channels)
        self.num_classes = int(num_classes)
        self.widths = checked_widths("CMUNet", widths)
        self.encoder = PooledEncoder(self.in_channels, self.widths)
        self.mixer = nn.Sequential(*(ConvMixerLayer(self.widths[-1], KERNEL) for _ in range(DEPTH)))
        self.gates = nn.ModuleList(MultiScaleAttentionGate(width) for width in self.widths[:-1])
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
        check_images("CMUNet", x, self.in_channels, STRIDE, training=self.training)
        *maps, x = self.encoder(x.to(self.head.weight.dtype))
        skips = [gate(skip) for gate, skip in zip(self.gates, maps, strict=True)]
        return self.head(self.decoder(skips, self.mixer(x)))

    def own_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """0.5 BCE + Dice per image (notes, section 2).

        Args:
            output: logits (B, K, H, W).
            target: (B, K, H, W), values in [0, 1].

        Returns:
            Scalar: float64 for float64 logits, float32 otherwise.

        Raises:
            TypeError: target is no tensor.
            ValueError: shapes that differ.
        """
        check_target("CMUNet", target, output)
        return half_bce_and_dice(output, target)
