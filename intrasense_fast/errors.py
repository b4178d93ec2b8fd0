"""Errors that a command shows as one line and exit code 2."""


class UsageError(ValueError):
    """A command that cannot start: what came, what is needed, what to do."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type where it has none."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
