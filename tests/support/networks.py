"""Networks as tests need them."""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from intrasense_fast import IntraSenseOutput
from intrasense_fast.networks.refine import ChannelDecoupling, GlobalLocalPerception


def wake(net: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """Give every parameter that starts at zero random values: at the start its path is
    invisible."""
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.copy_(
                    torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.3
                )
    return net


def set_fused(net: nn.Module, fused: bool | None) -> nn.Module:
    """Choose the path of every operator of a network that exists."""
    for module in net.modules():
        if hasattr(module, "fused"):
            module.fused = fused
    return net


class TinyRefinedNet(nn.Module):
    """Three 16-wide stages at strides 2, 4 and 8, GCP at the second, CDR at the last two, a decoder
    of one convolution a level.

    Input (B, 1, 16, 12): maps of 8 x 6, 4 x 3 and 2 x 2. Returns (logits (B, 1, 16, 12), L_IW).
    """

    def __init__(self, fused: bool | None) -> None:
        super().__init__()
        self.stages = nn.ModuleList(_conv(channels, 16, stride=2) for channels in (1, 16, 16))
        self.gcp = nn.ModuleDict({i: GlobalLocalPerception(16, window=3, fused=fused) for i in "1"})
        self.cdr = nn.ModuleDict(
            {i: ChannelDecoupling(16, alpha=0.5, beta=0.5, fused=fused) for i in "01"}
        )
        self.up = nn.ModuleList(_conv(32, 16) for _ in range(2))
        self.head = nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> IntraSenseOutput:
        maps, losses = [], []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if str(index) in self.gcp:
                x, _ = self.gcp[str(index)](x)
            if str(index) in self.cdr:
                x, loss = self.cdr[str(index)](x)
                losses.append(loss)
            maps.append(x)
        for up, skip in zip(self.up, maps[1::-1], strict=True):
            x = up(torch.cat((interpolate(x, size=skip.shape[-2:]), skip), 1))
        return IntraSenseOutput(
            self.head(interpolate(x, scale_factor=2.0)), sum(losses) / len(losses)
        )


def _conv(incoming: int, outgoing: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(incoming, outgoing, 3, stride, 1, bias=False), nn.BatchNorm2d(outgoing), nn.ReLU()
    )
