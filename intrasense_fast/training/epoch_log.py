"""What the logs of a run hold: the values of a step, their means over an epoch, and the line that
is printed.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from intrasense_fast.networks.health import StrideHealth
from intrasense_fast.training.position import Position
from intrasense_fast.training.run_clock import in_words

TERMS = ("bce", "dice", "whitening")
GRADIENT_NORM = "gradient_norm"
# What a step has of every network; the rest is what a network offered.
_COMMON = ("loss", *TERMS, GRADIENT_NORM, "learning_rate", "skipped", "steps")
_LOSS = "_loss"


def step_numbers(
    loss: Tensor, terms: Mapping[str, Tensor], scalars: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The numbers of a step, scalars in the order of the history; auxiliary losses other than L_IW
    are called NAME_loss. The gradient's norm is 0 until it is known.
    """
    return {
        "loss": loss.detach(),
        **{name if name in TERMS else f"{name}{_LOSS}": term for name, term in terms.items()},
        GRADIENT_NORM: loss.new_zeros(()),
        **scalars,
    }


def step_values(numbers: Mapping[str, Tensor]) -> dict[str, float]:
    """The numbers of a step on the host."""
    # One transfer: every float() of its own would wait for the device.
    values = torch.stack([tensor.double() for tensor in numbers.values()]).tolist()
    return dict(zip(numbers, values, strict=True))


def add_step(position: Position, values: Mapping[str, float]) -> None:
    """Count a step into the sums of its epoch."""
    for name, value in values.items():
        position.sums[name] = position.sums.get(name, 0.0) + value
    position.sums["steps"] = position.sums.get("steps", 0.0) + 1


class EpochLog:
    """One epoch: its row of metrics.csv and its line on the screen.

    Args:
        position: with the sums of the epoch, which is the one it stands at.
        val_loss: mean loss of the selection images.
        val_dice: their mean Dice.
        health: of the network's parts, by stride.
    """

    def __init__(
        self,
        position: Position,
        val_loss: float,
        val_dice: float,
        health: Mapping[int, StrideHealth],
    ) -> None:
        self.epoch, self.skipped = position.epoch + 1, position.skipped
        self.val_loss, self.val_dice, self.health = val_loss, val_dice, health
        steps = position.sums.get("steps", 0.0)
        self.means = {name: value / steps for name, value in position.sums.items()}

    def row(self) -> dict[str, Any]:
        """The row of metrics.csv."""
        common = {f"train_{name}": self.means.get(name, math.nan) for name in ("loss", *TERMS)}
        others = {
            f"train_{name}": mean for name, mean in self.means.items() if name.endswith(_LOSS)
        }
        health = {
            f"{name}_{stride}": value
            for stride, record in self.health.items()
            for name, value in record._asdict().items()
            if not math.isnan(value)
        }
        return {
            "epoch": self.epoch,
            **common,
            **others,
            "val_loss": self.val_loss,
            "val_dice": self.val_dice,
            **self._scalars(),
            **health,
            "learning_rate": self.means.get("learning_rate", math.nan),
            "skipped_steps": self.skipped,
        }

    def line(self, epochs: int, *, best: bool, left: float | None = None) -> str:
        """What is printed: `epochs` is the run's number of them, `left` how many seconds it still
        takes."""
        loss = self.means.get("loss", math.nan)
        note = " (best)" if best else ""
        if self.skipped:
            note += f", {self.skipped} steps skipped"
        return (
            f"epoch {self.epoch}/{epochs}: loss {loss:.3f}, selection loss {self.val_loss:.3f}, "
            f"selection Dice {self.val_dice:.4f}{note}{self._scalars_in_words()}"
            f"{'' if left is None else f'; about {in_words(left)} left'}"
        )

    def _scalars(self) -> dict[str, float]:
        return {
            name: mean
            for name, mean in self.means.items()
            if name not in _COMMON and not name.endswith(_LOSS)
        }

    def _scalars_in_words(self) -> str:
        """Scalars that differ in their last number stand together: ", masked fraction 0.41 /
        0.38"."""
        together: dict[str, list[str]] = {}
        for name, value in self._scalars().items():
            stem = name.rstrip("0123456789").strip("_").replace("_", " ")
            together.setdefault(stem, []).append(f"{value:.2f}")
        return "".join(f", {stem} {' / '.join(values)}" for stem, values in together.items())
