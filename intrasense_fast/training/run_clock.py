"""How long a run still takes, from the time that its steps and the ends of its epochs took."""

import time


class RunClock:
    """Measures a run while it trains: call `step` after every step, `epoch` after every epoch.

    Args:
        steps: of an epoch.
        epochs: of the whole run.
    """

    def __init__(self, steps: int, epochs: int) -> None:
        self._steps, self._epochs = steps, epochs
        self._now = time.monotonic()
        self._step_seconds, self._steps_made = 0.0, 0
        self._end_seconds, self._ends_made = 0.0, 0

    def begin(self) -> None:
        """What went before, such as a pause between two calls of `fit`, is not counted."""
        self._now = time.monotonic()

    def step(self) -> None:
        """A step was made."""
        self._step_seconds += self._passed()
        self._steps_made += 1

    def epoch(self) -> None:
        """An epoch was ended: it was validated and saved."""
        self._end_seconds += self._passed()
        self._ends_made += 1

    def left(self, epoch: int, step: int) -> float | None:
        """Seconds until the run ends that stands at this epoch and step, both from 0; None before
        the first step. Until the first epoch has ended, validation is not known, nor counted."""
        if not self._steps_made:
            return None
        epochs = self._epochs - epoch
        steps = epochs * self._steps - step
        seconds = steps * self._step_seconds / self._steps_made
        if self._ends_made:
            seconds += epochs * self._end_seconds / self._ends_made
        return max(0.0, seconds)

    def _passed(self) -> float:
        before, self._now = self._now, time.monotonic()
        return self._now - before


def in_words(seconds: float) -> str:
    """About so long: "40 s", "12 min", "3.5 h" or "2.1 days"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"
