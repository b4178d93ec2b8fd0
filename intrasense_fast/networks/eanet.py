"""EA-Net: VGG-19, dilated context, an edge stream, a closed loop; notes, section 1.

Written from the notes alone: the authors' repository has no licence file, and its gate's file names
a non-commercial one.
"""

import os
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, conv2d, interpolate

from intrasense_fast.networks.arguments import check_channels, check_images, check_target
from intrasense_fast.networks.canny import canny, to_bytes
from intrasense_fast.networks.double_conv import DoubleConv
from intrasense_fast.networks.edge_stream import EdgeStream
from intrasense_fast.networks.own_losses import (
    boundary_weighted_bce,
    dice_per_image,
    loss_precision,
)
from intrasense_fast.networks.vgg import VGG19Encoder, load_vgg19_weights

STRIDE = 16
_IMAGE_THRESHOLDS = (10.0, 100.0)
_MASK_THRESHOLDS = (30.0, 100.0)
_EDGE_WIDTHS = (64, 64, 128, 256, 512)


class EANetOutput(NamedTuple):
    """Output in training mode: the fields of the contract, and the logits of the edges.

    Fields:
        logits: (B, num_classes, H, W), the prediction p0.
        auxiliary_logits: p1 to p4, each (B, num_classes, H, W).
        auxiliary_loss: None.
        edge_logits: (B, 1, H, W), trained by `EANet.own_loss` only.
    """

    logits: Tensor
    auxiliary_logits: tuple[Tensor, ...]
    auxiliary_loss: Tensor | None
    edge_logits: Tensor


class DilatedContext(nn.Module):
    """The DSC module: one 3x3 weight at dilations 1, 2 and 4, fused in pairs with shared weights.

    The pixel gate is never below 0.5 (ReLU before sigmoid), as published. At gamma = 0, its start,
    the branches do not reach the output.

    Args:
        channels: C of the map (B, C, H, W), in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shared = nn.Conv2d(channels, channels, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(3))
        self.pixel_gate = nn.Conv2d(2 * channels, 1, 1)
        self.mix = nn.Conv2d(2 * channels, channels, 1)
        self.attention = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels // 2, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels // 2, 2, 3, padding=1),
        )
        self.gamma = nn.Parameter(torch.zeros(()))
        self.out = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        weight = self.shared.weight
        narrow = self.norms[0](self.shared(x))
        middle = self.norms[1](conv2d(x, weight, padding=2, dilation=2))
        wide = self.norms[2](conv2d(x, weight, padding=4, dilation=4))
        fused = self._fuse(self._fuse(narrow, middle), wide)
        return self.out((self.gamma * fused + (1 - self.gamma) * x).relu())

    def _fuse(self, first: Tensor, second: Tensor) -> Tensor:
        both = torch.cat((first, second), 1)
        mixed = self.mix(both * torch.sigmoid(self.pixel_gate(both).relu()))
        share = self.attention(both).softmax(1)
        return share[:, :1] * first + share[:, 1:] * second + mixed


class ResidualDoubleConv(nn.Module):
    """DoubleConv(x) + BN(1x1 convolution of x), without an activation after the sum."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.main = DoubleConv(in_channels, out_channels)
        self.shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + self.shortcut(x)


class EANet(nn.Module):
    """EA-Net (Wang et al., Pattern Recognition 127, 2022); notes, section 1.

    Input (B, in_channels, H, W) in [0, 1], used as it is (no normalisation inside; the first
    convolution is new); H and W multiples of 16. For Canny's map the mean of the channels is taken
    times 255, so that it is not empty; it is not scaled and has no gradient. Training mode returns
    an `EANetOutput`, eval mode logits (B, num_classes, H, W). The authors' second copy of the
    attention and their 64 -> 1 head are never used there and not built. The authors train with
    RMSprop 1e-5, momentum 0.9, weight decay 1e-8, batch 8.

    The notes describe one class. With more, the loop's reverse attention is one minus the most
    probable class, and the edges are those of the classes' union.

    Args:
        in_channels: channels of the image.
        num_classes: channels of the logits, one sigmoid each.
        encoder_weights: None = from scratch, "imagenet", or a file of VGG-19 weights; see
            `load_vgg19_weights`.

    Raises:
        ValueError: an argument of another type or outside its range.
        EncoderWeightsError: encoder weights that cannot be found, read or matched.
    """

    host_work = "the edges of its images are OpenCV's"

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 1,
        *,
        encoder_weights: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        check_channels("EANet", in_channels, num_classes)
        self.in_channels = int(in_channels)
        self.num_classes = int(num_classes)
        self.encoder = VGG19Encoder(self.in_channels)
        self.context = DilatedContext(512)
        self.decode4 = ResidualDoubleConv(1024, 256)
        self.decode3 = ResidualDoubleConv(512, 128)
        self.decode2 = ResidualDoubleConv(256, 64)
        self.decode1 = ResidualDoubleConv(128, 64)
        self.edge_stream = EdgeStream()
        self.edge_mix = nn.Conv2d(2, 1, 1, bias=False)
        self.edge_maps = nn.ModuleList(
            nn.Sequential(nn.Conv2d(1, width, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
            for width in _EDGE_WIDTHS
        )
        self.heads = nn.ModuleList(
            nn.Conv2d(2 * width, self.num_classes, 1) for width in _EDGE_WIDTHS
        )
        if encoder_weights is not None:
            load_vgg19_weights(self.encoder, encoder_weights)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments without `encoder_weights`, as JSON can hold them."""
        return {"in_channels": self.in_channels, "num_classes": self.num_classes}

    def forward(self, x: Tensor) -> EANetOutput | Tensor:
        """Segment a batch.

        Args:
            x: (B, in_channels, H, W), floating point, values in [0, 1].

        Returns:
            EANetOutput in training mode, logits (B, num_classes, H, W) in eval mode.

        Raises:
            TypeError: x is no tensor.
            ValueError: another shape or dtype, or a size that is no multiple of 16.
        """
        check_images("EANet", x, self.in_channels, STRIDE, training=self.training)
        maps = self.encoder(x.to(self.edge_mix.weight.dtype))
        context = self.context(maps[4])
        d4 = self.decode4(_joined(maps[3], context))
        d3 = self.decode3(_joined(maps[2], d4))
        d2 = self.decode2(_joined(maps[1], d3))
        d1 = self.decode1(_joined(maps[0], d2))
        edge_logits = self.edge_stream(maps[:4])
        edges = self._mixed_edges(edge_logits, x)
        logits = self.heads[0](torch.cat((d1, self.edge_maps[0](edges)), 1))
        if not self.training:
            return logits
        loop = self._loop(logits, edges, [d2, d3, d4, context])
        return EANetOutput(logits, loop, None, edge_logits)

    def own_loss(
        self, output: EANetOutput, target: Tensor, *, boundary_weighted: bool = True
    ) -> Tensor:
        """BCE + Dice per image, summed over p0 to p4, and the BCE of the edges (notes, section 1).

        The edges' target is Canny's map of the mask with thresholds 30 and 100.

        Args:
            output: of training mode.
            target: (B, num_classes, H, W), values in [0, 1].
            boundary_weighted: True = the BCE of the masks is weighted by 1 + 5 |average over 31 x
                31 - mask|, the paper's intent; False = plain, as the authors' code runs.

        Returns:
            Scalar: float64 for float64 logits, float32 otherwise.

        Raises:
            TypeError: output is not that of training mode, or target is no tensor.
            ValueError: shapes that differ.
        """
        if not isinstance(output, EANetOutput):
            raise TypeError(
                "EANet: own_loss needs the EANetOutput of training mode, "
                f"got {type(output).__name__}; call net.train()"
            )
        check_target("EANet", target, output.logits)
        bce = boundary_weighted_bce if boundary_weighted else binary_cross_entropy_with_logits
        edge_logits, edges = loss_precision(output.edge_logits, mask_edges(target))
        loss = binary_cross_entropy_with_logits(edge_logits, edges)
        for logits in (output.logits, *output.auxiliary_logits):
            pair = loss_precision(logits, target)
            loss = loss + bce(*pair) + dice_per_image(*pair)
        return loss

    def _mixed_edges(self, edge_logits: Tensor, x: Tensor) -> Tensor:
        borders = canny(to_bytes(x.mean(1)), *_IMAGE_THRESHOLDS).unsqueeze(1)
        both = torch.cat((torch.sigmoid(edge_logits), borders.to(edge_logits.dtype)), 1)
        return torch.sigmoid(self.edge_mix(both))

    def _loop(self, logits: Tensor, edges: Tensor, features: list[Tensor]) -> tuple[Tensor, ...]:
        """MPR: p1 to p4 at full resolution, each from the one before it at half the size."""
        predictions = []
        for level, feature in enumerate(features, start=1):
            size = feature.shape[-2:]
            logits = interpolate(logits, size, mode="bilinear", align_corners=False)
            background = 1 - torch.sigmoid(logits).amax(1, keepdim=True)
            edge = interpolate(
                self.edge_maps[level](edges), size, mode="bilinear", align_corners=False
            )
            logits = self.heads[level](torch.cat((feature * background, edge), 1)) + logits
            predictions.append(_resized(logits, edges, align_corners=False))
        return tuple(predictions)


def mask_edges(target: Tensor) -> Tensor:
    """Canny's edges of the union of the classes' masks.

    Args:
        target: (B, K, H, W), values in [0, 1].

    Returns:
        (B, 1, H, W), float32, 1 on edges and 0 elsewhere.
    """
    union = to_bytes(target.float().amax(1))
    return canny(union, *_MASK_THRESHOLDS).unsqueeze(1).float() / 255


def _joined(skip: Tensor, deeper: Tensor) -> Tensor:
    return torch.cat((skip, _resized(deeper, skip, align_corners=True)), 1)


def _resized(x: Tensor, like: Tensor, *, align_corners: bool) -> Tensor:
    return interpolate(x, like.shape[-2:], mode="bilinear", align_corners=align_corners)
