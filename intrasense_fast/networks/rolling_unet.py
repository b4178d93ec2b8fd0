"""Rolling-Unet: a U-Net whose deep levels roll their channels; notes, section 4."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, max_pool2d

from intrasense_fast.networks.arguments import check_channels, check_images, check_target
from intrasense_fast.networks.double_conv import DoubleConv
from intrasense_fast.networks.own_losses import half_bce_and_dice

STRIDE = 16
_LINEAR_DEVIATION = 0.02


class _Size(NamedTuple):
    """Channels at strides 1, 2, 4, 8 and 16, of the last map, and the dropout of the bottleneck."""

    widths: tuple[int, int, int, int, int]
    last: int
    dropout: float


SIZES = {
    "S": _Size((16, 32, 64, 128, 256), 8, 0.1),
    "M": _Size((32, 64, 128, 256, 512), 16, 0.2),
    "L": _Size((64, 128, 256, 512, 1024), 32, 0.3),
}


def roll_rows(x: Tensor, sign: int) -> Tensor:
    """Channel i of x (B, H, W, C) shifted cyclically by sign * i rows."""
    height, channels = x.shape[1], x.shape[3]
    return x.gather(1, _sources(height, channels, sign, x)[None, :, None, :].expand_as(x))


def roll_columns(x: Tensor, sign: int) -> Tensor:
    """Channel i of x (B, H, W, C) shifted cyclically by sign * i columns."""
    width, channels = x.shape[2], x.shape[3]
    return x.gather(2, _sources(width, channels, sign, x)[None, None, :, :].expand_as(x))


def _sources(length: int, channels: int, sign: int, like: Tensor) -> Tensor:
    """Where each place (length, channels) of a rolled axis comes from."""
    place = torch.arange(length, device=like.device)
    shift = sign * torch.arange(channels, device=like.device)
    return (place[:, None] - shift) % length


class Lo2Block(nn.Module):
    """Two branches of rolled linear layers beside a depthwise convolution; no outer residual.

    Args:
        channels: C of the map (B, H, W, C), in and out; also the width inside.
        dropout: probability, after every linear layer.
    """

    def __init__(self, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels)
        self.fc2 = nn.Linear(channels, channels)
        self.fc3 = nn.Linear(channels, channels)
        self.fc4 = nn.Linear(channels, channels)
        self.fc5 = nn.Linear(2 * channels, channels)
        self.fc6 = nn.Linear(2 * channels, channels)
        self.norm = nn.LayerNorm(2 * channels)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)
        self.bn = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        rows_first = self.dropout(gelu(self.fc1(roll_rows(x, 1))))
        rows_first = self.dropout(self.fc2(roll_columns(rows_first, 1))) + x
        columns_first = self.dropout(gelu(self.fc3(roll_columns(x, -1))))
        columns_first = self.dropout(self.fc4(roll_rows(columns_first, 1))) + x
        both = torch.cat((rows_first, columns_first), -1)
        long_range = x + self.dropout(self.fc5(self.norm(both)))
        local = self._local(x)
        return self.dropout(self.fc6(torch.cat((long_range, local), -1)))

    def _local(self, x: Tensor) -> Tensor:
        local = self.pointwise(self.depthwise(x.permute(0, 3, 1, 2)))
        return self.bn(local.relu()).permute(0, 2, 3, 1)


class FeatureIncentiveBlock(nn.Module):
    """3x3 convolution with bias, GELU, LayerNorm: (B, in, H, W) to tokens (B, H, W, out)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(gelu(self.conv(x).permute(0, 2, 3, 1)))


class RollingUNet(nn.Module):
    """Rolling-Unet (AAAI 2024); notes, section 4.

    Input (B, in_channels, H, W) in [0, 1], used as it is (no normalisation inside); H and W
    multiples of 16. Logits (B, num_classes, H, W) in both modes. No pretraining. It is not
    translation-equivariant by design: which channel sees which row depends on the map's size. The
    authors train with Adam 1e-4, weight decay 1e-4, cosine to 1e-5 over 400 epochs, batch 8.

    Args:
        in_channels: channels of the image.
        num_classes: channels of the logits, one sigmoid each.
        size: "S", "M" or "L".

    Raises:
        ValueError: an argument of another type or outside its range.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 1, *, size: str = "M") -> None:
        super().__init__()
        check_channels("RollingUNet", in_channels, num_classes)
        if not isinstance(size, str) or size not in SIZES:
            raise ValueError(f"RollingUNet: size must be one of {tuple(SIZES)}, got {size!r}")
        self.in_channels = int(in_channels)
        self.num_classes = int(num_classes)
        self.size = size
        (c1, c2, c3, c4, c5), last, dropout = SIZES[size]
        self.conv1 = DoubleConv(self.in_channels, c1)
        self.conv2 = DoubleConv(c1, c2)
        self.conv3 = DoubleConv(c2, c3)
        self.fi1 = FeatureIncentiveBlock(c3, c4)
        self.lo2_encoder = Lo2Block(c4)
        self.norm_encoder = nn.LayerNorm(c4)
        self.fi2 = FeatureIncentiveBlock(c4, c5)
        self.lo2_bottleneck = Lo2Block(c5, dropout)
        self.norm_bottleneck = nn.LayerNorm(c5)
        self.fi3 = FeatureIncentiveBlock(c5, c4)
        self.lo2_decoder = Lo2Block(c4)
        self.norm_decoder = nn.LayerNorm(c4)
        self.narrow = nn.Sequential(
            nn.Conv2d(c4, c3, 3, padding=1), nn.BatchNorm2d(c3), nn.ReLU(inplace=True)
        )
        self.decode3 = DoubleConv(c3, c2, middle_channels=c3)
        self.decode2 = DoubleConv(c2, c1, middle_channels=c2)
        self.decode1 = DoubleConv(c1, last, middle_channels=c1)
        self.head = nn.Conv2d(last, self.num_classes, 1)
        for block in self.modules():
            if isinstance(block, (Lo2Block, FeatureIncentiveBlock)):
                _draw(block)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON can hold them."""
        return {
            "in_channels": self.in_channels,
            "num_classes": self.num_classes,
            "size": self.size,
        }

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W) of x (B, in_channels, H, W).

        Raises:
            TypeError: x is no tensor.
            ValueError: another shape or dtype, or a size that is no multiple of 16.
        """
        check_images("RollingUNet", x, self.in_channels, STRIDE, training=self.training)
        t1 = self.conv1(x.to(self.head.weight.dtype))
        t2 = self.conv2(max_pool2d(t1, 2))
        t3 = self.conv3(max_pool2d(t2, 2))
        t4 = self.norm_encoder(self.lo2_encoder(self.fi1(max_pool2d(t3, 2))))
        t4 = t4.permute(0, 3, 1, 2)
        deepest = self.norm_bottleneck(self.lo2_bottleneck(self.fi2(max_pool2d(t4, 2))))
        y = self.fi3(deepest.permute(0, 3, 1, 2)).permute(0, 3, 1, 2)
        y = (_doubled(y) + t4).permute(0, 2, 3, 1)
        y = self.norm_decoder(self.lo2_decoder(y)).permute(0, 3, 1, 2)
        y = _doubled(self.narrow(y)) + t3
        y = _doubled(self.decode3(y)) + t2
        y = _doubled(self.decode2(y)) + t1
        return self.head(self.decode1(y))

    def own_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """0.5 BCE + Dice per image (notes, section 4).

        Args:
            output: logits (B, K, H, W).
            target: (B, K, H, W), values in [0, 1].

        Returns:
            Scalar: float64 for float64 logits, float32 otherwise.

        Raises:
            TypeError: target is no tensor.
            ValueError: shapes that differ.
        """
        check_target("RollingUNet", target, output)
        return half_bce_and_dice(output, target)


def _doubled(x: Tensor) -> Tensor:
    return interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def _draw(block: nn.Module) -> None:
    """Initial values inside FI and Lo2 blocks; biases are zero, where the notes are silent."""
    for layer in block.modules():
        # On the meta device there is nothing to draw, and the calls would import torch._dynamo for
        # seconds.
        if not isinstance(layer, (nn.Linear, nn.Conv2d)) or layer.weight.is_meta:
            continue
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=_LINEAR_DEVIATION)
        else:
            rows, columns = layer.kernel_size
            fan_out = rows * columns * layer.out_channels // layer.groups
            nn.init.normal_(layer.weight, 0.0, (2 / fan_out) ** 0.5)
