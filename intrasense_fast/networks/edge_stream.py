"""The edge stream of EA-Net (its EAP): Gated-SCNN's gates beside the encoder; notes, section 1."""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate


class EdgeBlock(nn.Module):
    """ReLU(x + BN(Conv3(ReLU(BN(Conv3(x)))))) at one width, convolutions without bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.main(x)).relu()


class EdgeGate(nn.Module):
    """Gated-SCNN's gate: the edge stream (B, C, H, W), raised where a map (B, 1, H, W) agrees."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.BatchNorm2d(channels + 1),
            nn.Conv2d(channels + 1, channels + 1, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels + 1, 1, 1),
            nn.BatchNorm2d(1),
            nn.Sigmoid(),
        )
        self.out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor, side: Tensor) -> Tensor:
        return self.out(x * (1 + self.gate(torch.cat((x, side), 1))))


class EdgeStream(nn.Module):
    """EAP: logits of the edges at full resolution from the encoder's first four maps."""

    def __init__(self) -> None:
        super().__init__()
        levels = ((64, 32, 128), (32, 16, 256), (16, 8, 512))
        self.enter = nn.Conv2d(64, 64, 1)
        self.blocks = nn.ModuleList(EdgeBlock(width) for width, _, _ in levels)
        self.narrow = nn.ModuleList(nn.Conv2d(width, less, 1) for width, less, _ in levels)
        self.sides = nn.ModuleList(nn.Conv2d(side, 1, 1) for _, _, side in levels)
        self.gates = nn.ModuleList(EdgeGate(less) for _, less, _ in levels)
        self.out = nn.Conv2d(8, 1, 1, bias=False)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Edge logits (B, 1, H, W) from maps at strides 1, 2, 4 and 8."""
        x = self.enter(maps[0])
        levels = zip(self.blocks, self.narrow, self.sides, self.gates, maps[1:], strict=True)
        for block, narrow, side, gate, deeper in levels:
            side_map = interpolate(side(deeper), x.shape[-2:], mode="bilinear", align_corners=True)
            x = gate(narrow(block(x)), side_map)
        return self.out(x)
