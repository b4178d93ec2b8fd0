"""The U-Net decoder: five blocks from stride 32 back to the input's resolution, and a 1x1 head."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from intrasense_fast.networks.encoder import draw_convolutions


class DecoderBlock(nn.Module):
    """Nearest x2 up, concatenate the skip if there is one, then twice [3x3 convolution, BatchNorm,
    ReLU].

    Args:
        in_channels: channels of the deeper map.
        skip_channels: channels of the skip, 0 for none.
        out_channels: channels of the result.
    """

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels + skip_channels, out_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        x = interpolate(x, scale_factor=2.0, mode="nearest")
        if skip is not None:
            x = torch.cat((x, skip.to(x.dtype)), 1)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)))


class UNetDecoder(nn.Module):
    """From feature maps at strides 2, 4, 8, 16 and 32 to logits at stride 1.

    Args:
        num_classes: channels of the logits.
        widths: output channels of the five blocks, deepest first.
        encoder_channels: channels of the maps at strides 2, 4, 8, 16 and 32.
    """

    def __init__(
        self,
        num_classes: int,
        widths: Sequence[int],
        encoder_channels: Sequence[int],
    ) -> None:
        super().__init__()
        incoming = (encoder_channels[-1], *widths[:-1])
        skips = (*reversed(encoder_channels[:-1]), 0)
        self.blocks = nn.ModuleList(
            DecoderBlock(*sizes) for sizes in zip(incoming, skips, widths, strict=True)
        )
        self.head = nn.Conv2d(widths[-1], num_classes, 1)
        draw_convolutions(self.blocks)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits (B, num_classes, H, W) from maps at strides 2, 4, 8, 16 and 32 of an H x W
        image."""
        *skips, x = maps
        for block, skip in zip(self.blocks, (*reversed(skips), None), strict=True):
            x = block(x, skip)
        return self.head(x)
