"""The detail and the semantic branch of EBT-Net; notes, section 5."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = 128
SEMANTIC_CHANNELS = (16, 32, 64, 128)


class StripBlock(nn.Module):
    """GSPB: 1x3 and 3x1 convolutions of dilation 1, 6, 12, 18 in sequence, and a residual.

    (B, C, H, W) -> the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for dilation in (1, 6, 12, 18):
            layers += [
                nn.Conv2d(channels, channels, (1, 3), padding=(0, dilation), dilation=dilation),
                nn.Conv2d(channels, channels, (3, 1), padding=(dilation, 0), dilation=dilation),
                nn.GELU() if dilation in (1, 12) else nn.BatchNorm2d(channels),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class DetailBranch(nn.Sequential):
    """Three stages of stride 2, with 1, 2, 2 strip blocks. (B, c, H, W) -> (B, 128, H/8, W/8)."""

    def __init__(self, in_channels: int) -> None:
        stages = ((in_channels, 64, 1), (64, 64, 2), (64, CHANNELS, 2))
        super().__init__(*(self._stage(*stage) for stage in stages))

    @staticmethod
    def _stage(in_channels: int, out_channels: int, blocks: int) -> nn.Sequential:
        down = conv_bn_gelu(in_channels, out_channels, stride=2)
        return nn.Sequential(*down, *(StripBlock(out_channels) for _ in range(blocks)))


class DepthwiseBlock(nn.Module):
    """EDS: depthwise 7x7 with BatchNorm, 1x1 to four times the width, GELU, 1x1.

    (B, a, H, W) -> (B, b, H/2, W/2) where it widens, b > a; else a residual, and the same shape.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.down = out_channels > in_channels
        stride = 2 if self.down else 1
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 7, stride, 3, groups=in_channels),
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, 4 * in_channels, 1),
            nn.GELU(),
            nn.Conv2d(4 * in_channels, out_channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) if self.down else x + self.layers(x)


class SemanticBlock(nn.Module):
    """LHPB at one width: GELU(x + B(x)). (B, C, H, W) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *conv_bn_gelu(channels, channels, bias=False),
            *_eds_bn(channels, channels),
            *_conv1_bn(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.layers(x))


class SemanticDown(nn.Module):
    """LHPB with stride 2: GELU(main + branch). (B, a, H, W) -> (B, b, H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            *conv_bn_gelu(in_channels, out_channels, stride=2, bias=False),
            *_eds_bn(out_channels, out_channels),
            *_eds_bn(out_channels, out_channels),
            *_conv1_bn(out_channels),
        )
        self.branch = nn.Sequential(*_eds_bn(in_channels, out_channels), *_conv1_bn(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.main(x) + self.branch(x))


class Stem(nn.Module):
    """(B, c, H, W) -> (B, 16, H/4, W/4)."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(*conv_bn_gelu(in_channels, 16, stride=2))
        squeeze = (nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8), nn.GELU())
        self.left = nn.Sequential(*squeeze, *conv_bn_gelu(8, 16, stride=2))
        self.right = nn.Conv2d(16, 16, 3, 2, 1)
        self.last = nn.Sequential(*conv_bn_gelu(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(torch.cat((self.left(x), self.right(x)), 1))


class SemanticBranch(nn.Module):
    """Maps of 16, 32, 64 and 128 channels at strides 4, 8, 16 and 32 of (B, c, H, W).

    The published one holds one more block of 303,104 parameters that it never calls; it is not
    built.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.stem = Stem(in_channels)
        widths = zip(SEMANTIC_CHANNELS[:-1], SEMANTIC_CHANNELS[1:], (3, 3, 5), strict=True)
        self.stages = nn.ModuleList(
            nn.Sequential(SemanticDown(a, b), *(SemanticBlock(b) for _ in range(blocks)))
            for a, b, blocks in widths
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.stem(x)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps


def conv_bn_gelu(
    in_channels: int, out_channels: int, *, stride: int = 1, bias: bool = True
) -> tuple[nn.Module, nn.Module, nn.Module]:
    """A 3x3 convolution, BatchNorm and GELU."""
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=bias)
    return convolution, nn.BatchNorm2d(out_channels), nn.GELU()


def _conv1_bn(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels)


def _eds_bn(in_channels: int, out_channels: int) -> tuple[nn.Module, nn.Module]:
    return DepthwiseBlock(in_channels, out_channels), nn.BatchNorm2d(out_channels)
