"""A small network from outside to which real things happen in chosen steps."""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn

NAME = f"{__name__}:Faulty"
# What happens amid a forward pass, by its kind and number in this process, from 1.
faults: dict[tuple[str, int], Callable[[], object]] = {}
counts: Counter[str] = Counter()


def reset(**planned: Callable[[], object]) -> None:
    """Plan what happens: `reset(step3=function)` in training, `reset(eval1=function)` in
    selection."""
    counts.clear()
    faults.clear()
    faults.update({(name[:4], int(name[4:])): fault for name, fault in planned.items()})


class Faulty(nn.Module):
    """Two convolutions with BatchNorm and Dropout, whose buffers and random numbers must be put
    back after a step that failed."""

    def __init__(self, in_channels: int = 1, num_classes: int = 1) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(in_channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2)
        )
        self.last = nn.Conv2d(4, num_classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.first(x)
        # Checks of the network itself take one image.
        if len(x) > 1 and x.device.type != "meta":
            kind = "step" if self.training else "eval"
            counts[kind] += 1
            faults.pop((kind, counts[kind]), lambda: None)()
        return self.last(features)


def fill_memory() -> Tensor:
    """Ask for 4 EiB, as a network does that is too large."""
    return torch.empty(2**60)
