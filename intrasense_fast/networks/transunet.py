"""TransUNet: R50+ViT-B/16 and a cascaded decoder (notes, section 3, without the three heads)."""

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intrasense_fast.networks.arguments import (
    check_channels,
    check_image_size,
    check_images,
    check_target,
)
from intrasense_fast.networks.cross_entropy import pixel_cross_entropy
from intrasense_fast.networks.resnetv2 import HybridEncoder
from intrasense_fast.networks.vit import WIDTH, VisionTransformer
from intrasense_fast.networks.vit_weights import load_r50_vit_weights

DECODER_WIDTHS = (256, 128, 64, 16)

_STRIDE = 16
_BRIDGE = 512
_SKIPS = (512, 256, 64, 0)


class DecoderBlock(nn.Module):
    """Bilinear x2 (corners aligned), concatenate the skip if any, twice [3x3, BatchNorm, ReLU]."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_conv_bn_relu(in_channels + skip_channels, out_channels),
            *_conv_bn_relu(out_channels, out_channels),
        )

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """(B, in, H, W) and (B, skip, 2H, 2W) -> (B, out, 2H, 2W)."""
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
        return self.layers(x if skip is None else torch.cat((x, skip), 1))


class TransUNet(nn.Module):
    """TransUNet, for images (B, in_channels, image_size, image_size) in [0, 1].

    No other normalisation: the published one divides by 255 and no more.

    A grey image is repeated to three channels. Training and eval mode return logits (B,
    num_classes, H, W).

    Args:
        in_channels: 1 or 3.
        num_classes: channels of the logits, one sigmoid each.
        image_size: side of the images in pixels, a multiple of 16; the learned positions are of
            this size.
        encoder_weights: None = from scratch, or the local path of Google's ImageNet-21k
            R50+ViT-B_16.npz.

    Raises:
        ValueError: an option outside what is named above.
        EncoderWeightsError: encoder weights that cannot be found, read or matched.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 1,
        *,
        image_size: int = 256,
        encoder_weights: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        network = type(self).__name__
        check_channels(network, in_channels, num_classes)
        check_image_size(network, image_size, _STRIDE)
        self.config = {
            "in_channels": int(in_channels),
            "num_classes": int(num_classes),
            "image_size": int(image_size),
        }
        self.encoder = HybridEncoder()
        self.transformer = VisionTransformer(int(image_size) // _STRIDE)
        self.bridge = nn.Sequential(*_conv_bn_relu(WIDTH, _BRIDGE))
        sizes = zip((_BRIDGE, *DECODER_WIDTHS[:-1]), _SKIPS, DECODER_WIDTHS, strict=True)
        self.decoder = nn.ModuleList(DecoderBlock(*size) for size in sizes)
        self.head = nn.Conv2d(DECODER_WIDTHS[-1], num_classes, 3, padding=1)
        if encoder_weights is not None:
            load_r50_vit_weights(self.encoder, self.transformer, encoder_weights)

    def forward(self, x: Tensor) -> Tensor:
        """Segment a batch (B, in_channels, image_size, image_size).

        Raises:
            TypeError: x is no tensor.
            ValueError: another shape, dtype or size.
        """
        return self.head(self.decoded(x)[-1])

    def decoded(self, x: Tensor) -> Sequence[Tensor]:
        """The decoder's maps at 1/8, 1/4, 1/2, 1/1 of 256, 128, 64, 16 channels; see `forward`."""
        network = type(self).__name__
        channels, side = self.config["in_channels"], self.config["image_size"]
        size = check_images(network, x, channels, _STRIDE, training=self.training)
        if size != (side, side):
            raise ValueError(
                f"{network}: was built for images of {side} x {side}, got "
                f"{size[0]} x {size[1]}; resize them, or build it with another image_size"
            )
        deepest, skips = self.encoder(x.expand(-1, 3, -1, -1))
        running = self.bridge(self.transformer(deepest))
        maps = []
        for block, skip in zip(self.decoder, (*skips, None), strict=True):
            running = block(running, skip)
            maps.append(running)
        return maps

    def own_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean binary cross-entropy: MicroSegNet's at one scale, as the notes name none.

        Args:
            output: logits (B, num_classes, H, W).
            target: of the same shape, values in [0, 1].

        Raises:
            TypeError: no tensor as target.
            ValueError: a target of another shape.
        """
        check_target("TransUNet", target, output)
        return pixel_cross_entropy(output, target).mean()


def _conv_bn_relu(in_channels: int, out_channels: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(out_channels), nn.ReLU()
