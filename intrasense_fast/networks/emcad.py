"""EMCAD (CVPR 2024, arXiv 2405.06880): convolutional attention decoding on PVTv2; notes, section 6.

Written from the notes alone. The authors' release is under the University of Texas at Austin's
research licence (non-commercial, no redistribution) and mentions patents of one author: check both
before any use beyond research.
"""

import os
from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intrasense_fast.functional import bce_dice
from intrasense_fast.networks.arguments import check_channels, check_images, check_target
from intrasense_fast.networks.contract import NetworkOutput, check_output
from intrasense_fast.networks.pvt import WIDTHS, PVTv2Encoder, load_pvt_weights

_STRIDES = (4, 8, 16, 32)


class ChannelAttention(nn.Module):
    """CAB: sigmoid(f(average) + f(maximum)) over the positions, f shared, reduction 16.

    (B, C, H, W) -> (B, C, 1, 1).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // 16, 1, bias=False)
        self.expand = nn.Conv2d(channels // 16, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        average, maximum = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return torch.sigmoid(self._response(average) + self._response(maximum))

    def _response(self, pooled: Tensor) -> Tensor:
        return self.expand(F.relu(self.reduce(pooled)))


class SpatialAttention(nn.Module):
    """SAB: sigmoid(conv7x7([mean over C; max over C])). (B, C, H, W) -> (B, 1, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)
        return torch.sigmoid(self.conv(pooled))


class MultiScaleConvolution(nn.Module):
    """MSCB: widen to 2C, sum of depthwise 1x1, 3x3 and 5x5, channel shuffle, back to C, residual.

    ReLU6, as in the paper; the network of the release defaults to ReLU.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        widened = 2 * channels
        self.widen = nn.Sequential(
            nn.Conv2d(channels, widened, 1, bias=False), nn.BatchNorm2d(widened), nn.ReLU6()
        )
        self.scales = nn.ModuleList(_depthwise(widened, size, nn.ReLU6()) for size in (1, 3, 5))
        self.project = nn.Sequential(
            nn.Conv2d(widened, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        widened = self.widen(x)
        summed = sum(scale(widened) for scale in self.scales)
        return x + self.project(shuffle_channels(summed, groups=self.channels))


class UpConvolution(nn.Module):
    """EUCB: nearest x2, depthwise 3x3, BatchNorm, ReLU, 1x1. (B, a, H, W) -> (B, b, 2H, 2W).

    The published block also shuffles its channels with as many groups as channels, which changes
    nothing.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = _depthwise(in_channels, 3, nn.ReLU())
        self.project = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.depthwise(F.interpolate(x, scale_factor=2.0, mode="nearest")))


class LargeKernelGate(nn.Module):
    """LGAG: the skip times a gate, from grouped 3x3 convolutions of the gating map and the skip.

    Args:
        channels: C of both maps; half of it inside, in C / 2 groups.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.gating = _grouped(channels, inner)
        self.skip = _grouped(channels, inner)
        self.weight = nn.Sequential(nn.Conv2d(inner, 1, 1), nn.BatchNorm2d(1))

    def forward(self, gating: Tensor, skip: Tensor) -> Tensor:
        """(B, C, H, W) twice -> the same shape."""
        agreed = F.relu(self.gating(gating) + self.skip(skip))
        return skip * torch.sigmoid(self.weight(agreed))


class EMCADDecoder(nn.Module):
    """The decoder: MSCAM on the deepest map, then three times EUCB, LGAG of the skip, sum, MSCAM.

    One spatial attention is shared by all four stages. Convolutions start from a normal of 0.02,
    their biases from zero.

    Args:
        widths: channels of the maps at strides 4, 8, 16 and 32.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        deepest_first = tuple(reversed(widths))
        self.spatial_attention = SpatialAttention()
        self.channel_attentions = nn.ModuleList(ChannelAttention(width) for width in deepest_first)
        self.convolutions = nn.ModuleList(MultiScaleConvolution(width) for width in deepest_first)
        self.ups = nn.ModuleList(UpConvolution(*widths) for widths in pairwise(deepest_first))
        self.gates = nn.ModuleList(LargeKernelGate(width) for width in deepest_first[1:])
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps d4, d3, d2, d1 at strides 32, 16, 8 and 4.

        Args:
            maps: the encoder's, at strides 4, 8, 16 and 32; the results have their shapes.
        """
        *skips, deepest = maps
        decoded = [self._attended(0, deepest)]
        for index, skip in enumerate(reversed(skips)):
            up = self.ups[index](decoded[-1])
            decoded.append(self._attended(index + 1, up + self.gates[index](up, skip)))
        return decoded

    def _attended(self, stage: int, x: Tensor) -> Tensor:
        x = x * self.channel_attentions[stage](x)
        x = x * self.spatial_attention(x)
        return self.convolutions[stage](x)


class EMCAD(nn.Module):
    """EMCAD on PVTv2, for images (B, in_channels, H, W) in [0, 1], H and W multiples of 32.

    No normalisation of the input: the notes name none. A grey image passes a learned 1x1
    convolution to three channels with BatchNorm and ReLU (12 parameters), which three-channel
    networks do not have. In training mode a `NetworkOutput`: logits of stride 4's head, auxiliary
    logits of the heads of strides 8, 16 and 32, all (B, num_classes, H, W). In eval mode the
    logits.

    Args:
        in_channels: 1 or 3.
        num_classes: channels of the logits, one sigmoid each.
        encoder: "pvtv2_b2" or "pvtv2_b0".
        encoder_weights: None = from scratch, or a local .pth / .safetensors of the encoder's
            ImageNet-1k weights.

    Raises:
        ValueError: an option outside what is named above.
        EncoderWeightsError: encoder weights that cannot be found, read or matched.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 1,
        *,
        encoder: str = "pvtv2_b2",
        encoder_weights: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        check_channels("EMCAD", in_channels, num_classes)
        if not isinstance(encoder, str) or encoder not in WIDTHS:
            raise ValueError(f"EMCAD: encoder must be one of {tuple(WIDTHS)}, got {encoder!r}")
        self.config: dict[str, Any] = {
            "in_channels": int(in_channels),
            "num_classes": int(num_classes),
            "encoder": encoder,
        }
        self.stem: nn.Sequential | None = None
        if in_channels == 1:
            self.stem = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.ReLU())
        self.encoder = PVTv2Encoder(encoder)
        self.decoder = EMCADDecoder(WIDTHS[encoder])
        self.heads = nn.ModuleList(
            nn.Conv2d(width, num_classes, 1) for width in reversed(WIDTHS[encoder])
        )
        if encoder_weights is not None:
            load_pvt_weights(self.encoder, encoder_weights, encoder)

    def forward(self, x: Tensor) -> NetworkOutput | Tensor:
        """Segment a batch (B, in_channels, H, W).

        Raises:
            TypeError: x is no tensor.
            ValueError: another shape, dtype or size, or training on a single position of the
                deepest map.
        """
        check_images("EMCAD", x, self.config["in_channels"], _STRIDES[-1], training=self.training)
        if self.stem is not None:
            x = self.stem(x)
        decoded = self.decoder(self.encoder(x))
        if not self.training:
            return self._logits(len(_STRIDES) - 1, decoded[-1])
        *auxiliary, logits = (self._logits(stage, one) for stage, one in enumerate(decoded))
        return NetworkOutput(logits, tuple(reversed(auxiliary)))

    def own_loss(self, output: NetworkOutput, target: Tensor) -> Tensor:
        """The "mutation" loss, over all 15 non-empty subsets of the four maps, weight 1 each.

        Of a subset: 0.3 cross-entropy + 0.7 Dice of the sum of its logits.

        The weights are those of the authors' training script for Synapse; cross-entropy is one
        sigmoid a class, Dice is the package's `bce_dice`. The boundary-weighted loss that the paper
        is said to use on binary sets is not confirmed.

        Args:
            output: of training mode.
            target: (B, num_classes, H, W), values in [0, 1].

        Raises:
            TypeError: an output of eval mode, or no tensor as target.
            ValueError: a target of another shape.
        """
        check_output("EMCAD", output)
        check_target("EMCAD", target, output.logits)
        dtype = torch.promote_types(output.logits.dtype, torch.float32)
        maps = [logits.to(dtype) for logits in (output.logits, *output.auxiliary_logits)]
        loss = torch.zeros((), dtype=dtype, device=output.logits.device)
        for count in range(1, len(maps) + 1):
            for subset in combinations(maps, count):
                bce, dice = bce_dice(torch.stack(subset).sum(0), target)
                loss = loss + 0.3 * bce + 0.7 * dice
        return loss

    def _logits(self, stage: int, decoded: Tensor) -> Tensor:
        logits = self.heads[stage](decoded)
        scale = float(_STRIDES[-1 - stage])
        return F.interpolate(logits, scale_factor=scale, mode="bilinear", align_corners=False)


def shuffle_channels(x: Tensor, groups: int) -> Tensor:
    """Channel g (C / groups) + i of (B, C, H, W) becomes channel i groups + g."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def _depthwise(channels: int, kernel_size: int, activation: nn.Module) -> nn.Sequential:
    convolution = nn.Conv2d(
        channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=False
    )
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), activation)


def _grouped(in_channels: int, out_channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, groups=out_channels)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))
