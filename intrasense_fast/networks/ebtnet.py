"""EBT-Net, a bilateral token mixer (Pan et al., IEEE Access 2024); notes, section 5.

Written from the notes alone; the repository they describe has no licence and is not confirmed to be
the authors'.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intrasense_fast.networks.arguments import (
    check_channels,
    check_image_size,
    check_images,
    check_target,
)
from intrasense_fast.networks.contract import NetworkOutput, check_output
from intrasense_fast.networks.cross_entropy import pixel_cross_entropy

_CHANNELS = 128
_SEMANTIC_CHANNELS = (16, 32, 64, 128)
_DETAIL_STRIDE = 8
_SEMANTIC_STRIDE = 32
_MEAN, _STD = 0.22, 0.24


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
        stages = ((in_channels, 64, 1), (64, 64, 2), (64, _CHANNELS, 2))
        super().__init__(*(self._stage(*stage) for stage in stages))

    @staticmethod
    def _stage(in_channels: int, out_channels: int, blocks: int) -> nn.Sequential:
        down = _conv_bn_gelu(in_channels, out_channels, stride=2)
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
            *_conv_bn_gelu(channels, channels, bias=False),
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
            *_conv_bn_gelu(in_channels, out_channels, stride=2, bias=False),
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
        self.first = nn.Sequential(*_conv_bn_gelu(in_channels, 16, stride=2))
        squeeze = (nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8), nn.GELU())
        self.left = nn.Sequential(*squeeze, *_conv_bn_gelu(8, 16, stride=2))
        self.right = nn.Conv2d(16, 16, 3, 2, 1)
        self.last = nn.Sequential(*_conv_bn_gelu(32, 16))

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
        widths = zip(_SEMANTIC_CHANNELS[:-1], _SEMANTIC_CHANNELS[1:], (3, 3, 5), strict=True)
        self.stages = nn.ModuleList(
            nn.Sequential(SemanticDown(a, b), *(SemanticBlock(b) for _ in range(blocks)))
            for a, b, blocks in widths
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.stem(x)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps


class TokenMixer(nn.Module):
    """A channel gate from the global maximum, then a spatial one from the channels' maximum.

    To that maximum a learned map is added, the same for every image.

    Args:
        size: side of the learned map (1, 1, size, size); it is resized bilinearly for maps of
            another size.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.channel_gate = nn.Sequential(
            nn.Conv2d(_CHANNELS, 16 * _CHANNELS, 1),
            nn.GELU(),
            nn.Conv2d(16 * _CHANNELS, _CHANNELS, 1),
        )
        self.position = nn.Parameter(torch.randn(1, 1, size, size))
        self.spatial_gate = nn.Conv2d(1, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 128, H, W) -> the same."""
        x = x * torch.sigmoid(self.channel_gate(x.amax((2, 3), keepdim=True)))
        position: Tensor = self.position
        if position.shape[-2:] != x.shape[-2:]:
            position = _resize(position, (x.shape[-2], x.shape[-1]))
        return x * torch.sigmoid(self.spatial_gate(x.amax(1, keepdim=True) + position))


class Fusion(nn.Module):
    """Detail (B, 128, H/8, W/8) and semantics (B, 128, H/32, W/32) -> (B, 128, H/8, W/8)."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.detail_mixer = TokenMixer(image_size // _DETAIL_STRIDE)
        self.semantic_mixer = TokenMixer(image_size // _SEMANTIC_STRIDE)
        self.merge = nn.Sequential(*_conv_bn_gelu(_CHANNELS, _CHANNELS, bias=False)[:2])

    def forward(self, detail: Tensor, semantics: Tensor) -> Tensor:
        size = (detail.shape[-2], detail.shape[-1])
        left = detail + _resize(self.semantic_mixer(semantics), size)
        right = _resize(semantics + F.avg_pool2d(self.detail_mixer(detail), 4), size)
        return self.merge(left + right)


class BoostHead(nn.Module):
    """Logits at the input's resolution from one semantic map, in training only."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_conv_bn_gelu(in_channels, _CHANNELS, bias=False), nn.Conv2d(_CHANNELS, num_classes, 1)
        )

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return _resize(self.layers(F.interpolate(x, scale_factor=2.0, mode="nearest")), size)


class EBTNet(nn.Module):
    """EBT-Net, for images (B, in_channels, H, W) in [0, 1], H and W multiples of 32.

    The normalisation (x - 0.22) / 0.24, of the published training, happens inside.

    In training mode a `NetworkOutput` with four auxiliary logits from the semantic branch, all (B,
    num_classes, H, W); in eval mode the logits.

    Args:
        in_channels: 1 or 3.
        num_classes: channels of the logits, one sigmoid each.
        image_size: side, in pixels and a multiple of 32, of the images whose position maps are
            learned as they stand; for other sizes they are resized bilinearly. The published
            network has 640 and runs at no other size.

    Raises:
        ValueError: an option outside what is named above.
    """

    def __init__(
        self, in_channels: int = 1, num_classes: int = 1, *, image_size: int = 256
    ) -> None:
        super().__init__()
        check_channels("EBTNet", in_channels, num_classes)
        check_image_size("EBTNet", image_size, _SEMANTIC_STRIDE)
        self.config = {
            "in_channels": int(in_channels),
            "num_classes": int(num_classes),
            "image_size": int(image_size),
        }
        self.detail = DetailBranch(in_channels)
        self.semantics = SemanticBranch(in_channels)
        self.fusion = Fusion(image_size)
        self.head = nn.Sequential(
            *_conv_bn_gelu(_CHANNELS, _CHANNELS, bias=False), nn.Conv2d(_CHANNELS, num_classes, 1)
        )
        self.boosts = nn.ModuleList(BoostHead(width, num_classes) for width in _SEMANTIC_CHANNELS)

    def forward(self, x: Tensor) -> NetworkOutput | Tensor:
        """Segment a batch (B, in_channels, H, W).

        Raises:
            TypeError: x is no tensor.
            ValueError: another shape, dtype or size, or training on a single position of the
                deepest map.
        """
        size = check_images(
            "EBTNet", x, self.config["in_channels"], _SEMANTIC_STRIDE, training=self.training
        )
        x = (x - _MEAN) / _STD
        maps = self.semantics(x)
        logits = _resize(self.head(self.fusion(self.detail(x), maps[-1])), size)
        if not self.training:
            return logits
        boosts = (boost(one, size) for boost, one in zip(self.boosts, maps, strict=True))
        return NetworkOutput(logits, tuple(boosts))

    def own_loss(self, output: NetworkOutput, target: Tensor) -> Tensor:
        """Binary cross-entropy of the main logits and of each of the four boost heads, weights 1.

        An interpretation: the loss that the published script imports is not in its repository. One
        sigmoid a class.

        Args:
            output: of training mode.
            target: (B, num_classes, H, W), values in [0, 1].

        Raises:
            TypeError: an output of eval mode, or no tensor as target.
            ValueError: a target of another shape.
        """
        check_output("EBTNet", output)
        check_target("EBTNet", target, output.logits)
        loss = pixel_cross_entropy(output.logits, target).mean()
        for boost in output.auxiliary_logits:
            loss = loss + pixel_cross_entropy(boost, target).mean()
        return loss


def _conv_bn_gelu(
    in_channels: int, out_channels: int, *, stride: int = 1, bias: bool = True
) -> tuple[nn.Module, nn.Module, nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=bias)
    return convolution, nn.BatchNorm2d(out_channels), nn.GELU()


def _conv1_bn(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels)


def _eds_bn(in_channels: int, out_channels: int) -> tuple[nn.Module, nn.Module]:
    return DepthwiseBlock(in_channels, out_channels), nn.BatchNorm2d(out_channels)


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=False)
