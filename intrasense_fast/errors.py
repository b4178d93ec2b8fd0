"""Errors that a command shows as one line and exit code 2."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """A command that cannot start: what came, what is needed, what to do."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not empty, or the name of its type where it has
    none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest_of(name: str, known: Iterable[str]) -> str:
    """What a message about an unknown name adds: the known one nearest to it, or nothing."""
    near = difflib.get_close_matches(name, list(known), 1, 0.4)
    return f", did you mean {near[0]!r}?" if near else ""


def pickle_fault(error: BaseException) -> str:
    """Why torch.load refused a file: PyTorch's own text advises to trust it all the same."""
    if "weights_only" in str(error) or "Weights only" in str(error):
        return "does not hold tensors and plain values alone: damaged or of another kind, not read"
    return (
        f"cannot be read, damaged or of another kind ({type(error).__name__}: {first_line(error)})"
    )
