"""The training state of a checkpoint: what a run needs beside its network, written and taken up."""

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from intrasense_fast.training.position import Position


class Optimisation(NamedTuple):
    """What changes the weights: the optimizer, the schedule of its learning rate or None, and the
    scaler of fp16."""

    optimizer: torch.optim.Optimizer
    schedule: Any
    scaler: torch.amp.GradScaler

    def state(self) -> dict[str, Any]:
        """Its part of a checkpoint, the same whether steps are CUDA graphs or not."""
        return {
            "optimizer": _capturable(self.optimizer.state_dict(), False),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def take(self, state: Mapping[str, Any]) -> None:
        """Go on from its part of a checkpoint.

        Raises:
            ValueError, TypeError, KeyError or another: it is of something else.
        """
        fresh = [dict(group) for group in self.optimizer.param_groups]
        # Where torch keeps the count of steps hangs on it.
        capturable = self.optimizer.defaults["capturable"]
        self.optimizer.load_state_dict(_capturable(state["optimizer"], capturable))
        for before, group in zip(fresh, self.optimizer.param_groups, strict=True):
            _check_numbers(before, group)
        for parameter, values in self.optimizer.state.items():
            for name, value in values.items():
                if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                    raise ValueError(f"{name} is {tuple(value.shape)}, not as its weights")
        if self.schedule is not None:
            _check_numbers(self.schedule.state_dict(), state["schedule"])
            self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])


def position_of(state: Mapping[str, Any], steps: int) -> Position:
    """The position of a checkpoint in epochs of `steps` steps.

    Raises:
        ValueError, TypeError, KeyError: it is none.
    """
    position = Position(**state["position"])
    for item in fields(Position):
        value = getattr(position, item.name)
        if type(value) is not type(getattr(Position(), item.name)) and item.name != "best_dice":
            raise TypeError(f"{item.name} is {type(value).__name__}")
    counts = (position.epoch, position.step, position.total, position.skipped)
    if min(counts) < 0 or position.skipped_in_a_row < 0 or position.best_epoch < -1:
        raise ValueError(f"no position is {asdict(position)}")
    if not math.isfinite(position.best_dice) or not all(map(math.isfinite, position.sums.values())):
        raise ValueError("its sums are not finite")
    # Images that are gone may have made the epoch shorter.
    position.step = min(position.step, steps)
    return position


def _capturable(state: Mapping[str, Any], capturable: bool) -> dict[str, Any]:
    """An optimizer's state, whose steps a CUDA graph can hold, or not."""
    groups = [{**group, "capturable": capturable} for group in state["param_groups"]]
    return {**state, "param_groups": groups}


def _check_numbers(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Raise a TypeError where a number has become something else."""
    for name, value in before.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        found = after.get(name, value)
        if is_number and (not isinstance(found, (int, float)) or found != found):
            raise TypeError(f"{name} is {type(found).__name__}, a number is needed")
