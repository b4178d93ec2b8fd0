"""Steps whose loss or gradient is not finite: they leave no trace, and too many in a row end the
run.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from intrasense_fast.errors import UsageError
from intrasense_fast.training.position import Position

NON_FINITE_IN_A_ROW = 20
# By these words a log tells that its run diverged.
DIVERGED = "steps in a row had a loss or a gradient that was not finite"


class DivergedError(UsageError):
    """Training that no longer gives finite numbers."""


class StepGuard:
    """Watches the steps of one network, and counts those skipped in the run's position.

    Args:
        net: its buffers are put back after a step that was not finite: a single NaN would stay in
            BatchNorm's averages for ever.
    """

    def __init__(self, net: nn.Module) -> None:
        self._buffers = list(net.buffers())
        self._before: list[Tensor] = []
        self._random = torch.get_rng_state()

    def begin(self) -> None:
        """Before a step's forward."""
        self._before = [buffer.clone() for buffer in self._buffers]
        self._random = torch.get_rng_state()

    @contextlib.contextmanager
    def undone(self) -> Iterator[None]:
        """After an error in the block, the forward and the backward pass, all is as `begin` met
        it."""
        try:
            yield
        except Exception:
            self._put_back()
            torch.set_rng_state(self._random)
            raise

    def accept(self, loss: Tensor, gradient_norm: Tensor, position: Position) -> bool:
        """Is the step finite? If not, the buffers are as `begin` met them, and the step counts as
        skipped.
        """
        finite = bool(torch.isfinite(loss.detach()) & torch.isfinite(gradient_norm))
        return self.judge(finite, position)

    def judge(self, finite: bool, position: Position) -> bool:
        """`accept` of a step that was already found finite or not; returns `finite`."""
        if finite:
            position.skipped_in_a_row = 0
            return True
        self._put_back()
        position.skipped += 1
        position.skipped_in_a_row += 1
        return False

    @torch.no_grad()
    def _put_back(self) -> None:
        for buffer, value in zip(self._buffers, self._before, strict=True):
            buffer.copy_(value)


def has_diverged(position: Position) -> bool:
    return position.skipped_in_a_row >= NON_FINITE_IN_A_ROW


def diverged(run: object, position: Position) -> DivergedError:
    """The error of a run that is saved and cannot go on."""
    return DivergedError(
        f"{NON_FINITE_IN_A_ROW} {DIVERGED} (the last at step "
        f"{position.total}); lower --lr, set --clip 1, or use --amp off. {run} is saved"
    )
