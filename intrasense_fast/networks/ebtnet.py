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
from intrasense_fast.networks.ebtnet_branches import (
    CHANNELS,
    SEMANTIC_CHANNELS,
    DetailBranch,
    SemanticBranch,
    conv_bn_gelu,
)

_DETAIL_STRIDE = 8
_SEMANTIC_STRIDE = 32
_MEAN, _STD = 0.22, 0.24


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
            nn.Conv2d(CHANNELS, 16 * CHANNELS, 1),
            nn.GELU(),
            nn.Conv2d(16 * CHANNELS, CHANNELS, 1),
        )
        self.position = nn.Parameter(torch.randn(1, 1, size, size))
        self.spatial_gate = nn.Conv2d(1, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 128, H, W) -> the same."""
        x = x * torch.sigmoid(self.channel_gate(x.amax((2, 3), keepdim=True)))
        size = (x.shape[-2], x.shape[-1])
        own = self.position.shape[-2:] == size
        position = self.position if own else _resize(self.position, size)
        return x * torch.sigmoid(self.spatial_gate(x.amax(1, keepdim=True) + position))


class Fusion(nn.Module):
    """Detail (B, 128, H/8, W/8) and semantics (B, 128, H/32, W/32) -> (B, 128, H/8, W/8)."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.detail_mixer = TokenMixer(image_size // _DETAIL_STRIDE)
        self.semantic_mixer = TokenMixer(image_size // _SEMANTIC_STRIDE)
        self.merge = nn.Sequential(*conv_bn_gelu(CHANNELS, CHANNELS, bias=False)[:2])

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
            *conv_bn_gelu(in_channels, CHANNELS, bias=False), nn.Conv2d(CHANNELS, num_classes, 1)
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
            *conv_bn_gelu(CHANNELS, CHANNELS, bias=False), nn.Conv2d(CHANNELS, num_classes, 1)
        )
        self.boosts = nn.ModuleList(BoostHead(width, num_classes) for width in SEMANTIC_CHANNELS)

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
        maps = (output.logits, *output.auxiliary_logits)
        return torch.stack([pixel_cross_entropy(one, target).mean() for one in maps]).sum()


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=False)
