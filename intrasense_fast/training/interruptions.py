"""What may end a run from outside, in words: other processes, and memory."""

import contextlib
import errno
from collections.abc import Iterator

import torch

from intrasense_fast.errors import UsageError, first_line
from intrasense_fast.signals import is_dead_loader
from intrasense_fast.training.distributed import LostProcess

_NO_MEMORY = ("can't allocate memory", "not enough memory", "std::bad_alloc", "Cannot allocate")


class InterruptedRun(UsageError):
    """A run that something from outside ended; the message says what, and what is saved."""


class Wholeness:
    """Whether the state of a run is one to save."""

    def __init__(self) -> None:
        self.holds = True

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """What an error in the block leaves behind is no state to save."""
        self.holds = False
        yield
        self.holds = True


def interruption(error: Exception) -> str | None:
    """What ended a run, and what helps; None for errors that come from within."""
    text = str(error)
    if isinstance(error, LostProcess):
        return text
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"the GPU's memory is full ({first_line(error)}): end what else runs on it; a smaller "
            "--batch-size or --size needs a new run"
        )
    if (
        isinstance(error, MemoryError)
        or any(words in text for words in _NO_MEMORY)
        or (isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.EAGAIN))
    ):
        return (
            f"this machine's memory is full ({first_line(error)}): end what else runs, or give "
            "fewer --workers; a smaller --batch-size or --size needs a new run"
        )
    if is_dead_loader(error):
        return (
            f"a process that loads images died ({first_line(error)}): often for lack of memory; "
            "give fewer --workers"
        )
    return None
