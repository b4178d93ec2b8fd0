"""Networks of one weight, whose answers can be worked out by hand."""

from pathlib import Path

import torch
from torch import Tensor, nn

from intrasense_fast.networks import register_network, save_network


class Bright(nn.Module):
    """Says that pixels brighter than `level` are lesion, each for itself: its answer for a mirror
    image is the mirror image of its answer, bit by bit."""

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 1,
        gain: float = 8.0,
        level: float = 0.5,
        limit: float = 2.0,
    ) -> None:
        super().__init__()
        self.limit = limit
        self.gain = nn.Parameter(torch.tensor(gain))
        self.level = nn.Parameter(torch.tensor(level))
        self.config = {"in_channels": in_channels, "num_classes": num_classes}
        self.architecture = NAME

    def forward(self, x: Tensor) -> Tensor:
        too_bright = x.mean((1, 2, 3), keepdim=True) > self.limit
        logits = (x[:, :1] - self.level) * self.gain
        return torch.where(too_bright, torch.nan, logits)


class Lopsided(Bright):
    """The same, and surer the farther to the right and down."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        right, down = torch.linspace(0, 1, width), torch.linspace(0, 2, height)[:, None]
        return super().forward(x) + right + down


NAME = f"{__name__}:Bright"


def bright_checkpoint(folder: Path, gain: float = 8.0, level: float = 0.5, **about: object) -> Path:
    """A checkpoint of `Bright`, which is registered; `about` is added to its config.json."""
    register_network(NAME)
    save_network(Bright(gain=gain, level=level), folder, {"image_size": 32, **about})
    return folder
