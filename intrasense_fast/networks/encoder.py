"""ResNet-18, 34, 50 and 101 without their classifiers, under torchvision's names."""

from dataclasses import dataclass

from torch import Tensor, nn

STRIDES = (2, 4, 8, 16, 32)
_STEM = 64
# Width of the 3x3 convolutions of the four layers, and each layer's first stride.
_WIDTHS = (64, 128, 256, 512)
_LAYER_STRIDES = (1, 2, 2, 2)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the stride lies on the first (ResNet-18 and 34)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions beside a shortcut; the stride lies on the 3x3 (ResNet v1.5)."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


@dataclass(frozen=True)
class ResNetLayout:
    """What tells one ResNet from another.

    Attributes:
        title: its name in prose.
        block: `BasicBlock` or `Bottleneck`.
        blocks: how many the four layers have.
        weights_file: torchvision's file of its ImageNet weights.
    """

    title: str
    block: type[BasicBlock] | type[Bottleneck]
    blocks: tuple[int, int, int, int]
    weights_file: str

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the maps at strides 2, 4, 8, 16 and 32."""
        return (_STEM, *(width * self.block.expansion for width in _WIDTHS))


ENCODERS = {
    "resnet18": ResNetLayout("ResNet-18", BasicBlock, (2, 2, 2, 2), "resnet18-f37072fd.pth"),
    "resnet34": ResNetLayout("ResNet-34", BasicBlock, (3, 4, 6, 3), "resnet34-b627a593.pth"),
    "resnet50": ResNetLayout("ResNet-50", Bottleneck, (3, 4, 6, 3), "resnet50-11ad3fa6.pth"),
    "resnet101": ResNetLayout("ResNet-101", Bottleneck, (3, 4, 23, 3), "resnet101-cd907fc2.pth"),
}


class ResNetEncoder(nn.Module):
    """A ResNet without its classifier, with the keys of torchvision's network of that name without
    `fc`.

    Args:
        in_channels: 1 or 3.
        name: one of `ENCODERS`.

    Attributes:
        layout: which ResNet it is.
    """

    def __init__(self, in_channels: int = 1, name: str = "resnet50") -> None:
        super().__init__()
        self.layout = ENCODERS[name]
        self.conv1 = nn.Conv2d(in_channels, _STEM, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1, self.layer2, self.layer3, self.layer4 = _layers(self.layout)
        draw_convolutions(self)

    def stage(self, stride: int, x: Tensor) -> Tensor:
        """The map at `stride` (2, 4, 8, 16 or 32) from the map before it; at stride 2 from the
        normalised image."""
        if stride == 2:
            return self.relu(self.bn1(self.conv1(x)))
        if stride == 4:
            return self.layer1(self.maxpool(x))
        return {8: self.layer2, 16: self.layer3, 32: self.layer4}[stride](x)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps at strides 2, 4, 8, 16 and 32, with the channels of `layout`.

        Args:
            x: (B, in_channels, H, W), normalised; H and W multiples of 32.
        """
        maps = []
        for stride in STRIDES:
            x = self.stage(stride, x)
            maps.append(x)
        return maps


def draw_convolutions(module: nn.Module) -> None:
    """He's initial weights for every convolution inside `module`."""
    for part in module.modules():
        # On the meta device there is nothing to draw, and the call would import torch._dynamo for
        # seconds.
        if isinstance(part, nn.Conv2d) and not part.weight.is_meta:
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


def _layers(layout: ResNetLayout) -> list[nn.Sequential]:
    layers, incoming = [], _STEM
    for width, blocks, stride in zip(_WIDTHS, layout.blocks, _LAYER_STRIDES, strict=True):
        outgoing = width * layout.block.expansion
        first = layout.block(incoming, width, stride)
        rest = (layout.block(outgoing, width) for _ in range(blocks - 1))
        layers.append(nn.Sequential(first, *rest))
        incoming = outgoing
    return layers


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
    )
