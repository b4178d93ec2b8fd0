"""Errors that a command shows as one line and exit code 2."""


class UsageError(ValueError):
    """A command that cannot start: what came, what is needed, what to do."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not empty, or the name of its type where it has
    none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
