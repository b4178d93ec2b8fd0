"""The convolutional half of TransUNet's encoder, "ResNetV2" (notes, section 3)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = (64, 256, 512, 1024)

_GROUPS = 32
_BLOCKS = ((256, 3), (512, 4), (1024, 9))


class StandardizedConv2d(nn.Conv2d):
    """A convolution with (w - mean) / sqrt(var + 1e-5), per output filter, population variance."""

    def standardized(self) -> Tensor:
        """The weights that the convolution uses, of `weight`'s shape."""
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        return (self.weight - mean) / torch.sqrt(variance + 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.standardized(), self.bias)


class Unit(nn.Module):
    """A bottleneck: 1x1, 3x3 (with the stride), 1x1, each with GroupNorm; shortcut; ReLU.

    The first unit of a block has a shortcut of 1x1 and GroupNorm with one channel a group.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        width = out_channels // 4
        self.conv1 = StandardizedConv2d(in_channels, width, 1, bias=False)
        self.gn1 = nn.GroupNorm(_GROUPS, width, eps=1e-6)
        self.conv2 = StandardizedConv2d(width, width, 3, stride, 1, bias=False)
        self.gn2 = nn.GroupNorm(_GROUPS, width, eps=1e-6)
        self.conv3 = StandardizedConv2d(width, out_channels, 1, bias=False)
        self.gn3 = nn.GroupNorm(_GROUPS, out_channels, eps=1e-6)
        self.conv_proj: StandardizedConv2d | None = None
        self.gn_proj: nn.GroupNorm | None = None
        if in_channels != out_channels:
            self.conv_proj = StandardizedConv2d(in_channels, out_channels, 1, stride, bias=False)
            self.gn_proj = nn.GroupNorm(out_channels, out_channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.conv_proj is not None and self.gn_proj is not None:
            shortcut = self.gn_proj(self.conv_proj(x))
        x = F.relu(self.gn1(self.conv1(x)))
        x = F.relu(self.gn2(self.conv2(x)))
        return F.relu(self.gn3(self.conv3(x)) + shortcut)


class HybridEncoder(nn.Module):
    """Root and three blocks of 3, 4 and 9 units; 11,894,848 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_root = StandardizedConv2d(3, CHANNELS[0], 7, 2, 3, bias=False)
        self.gn_root = nn.GroupNorm(_GROUPS, CHANNELS[0], eps=1e-6)
        self.blocks = nn.ModuleList()
        in_channels = CHANNELS[0]
        for index, (channels, units) in enumerate(_BLOCKS):
            first = Unit(in_channels, channels, 2 if index else 1)
            rest = (Unit(channels, channels, 1) for _ in range(units - 1))
            self.blocks.append(nn.Sequential(first, *rest))
            in_channels = channels

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The map at 1/16 with 1024 channels, and the skips at 1/8, 1/4, 1/2 with 512, 256 and 64.

        The max-pool without padding loses a row and a column (128 -> 63). The skips are padded with
        zeros below and at the right; the running map stays as it is.

        Args:
            x: (B, 3, H, W), H and W multiples of 16.
        """
        height, width = x.shape[-2:]
        root = F.relu(self.gn_root(self.conv_root(x)))
        running = F.max_pool2d(root, 3, 2)
        skips = [root]
        for block, stride in zip(self.blocks, (4, 8, 16), strict=True):
            running = block(running)
            below, right = height // stride - running.shape[-2], width // stride - running.shape[-1]
            skips.append(F.pad(running, (0, right, 0, below)))
        return running, skips[-2::-1]
