"""Errors that a command shows as one line and exit code 2."""


class UsageError(ValueError):
    """A command that cannot start: what came, what is needed, what to do."""
