"""How many pixels may be in memory at once, however many pictures are wanted."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class PixelBudget:
    """How many pixels may be in memory at once, over all threads; a larger picture comes alone."""

    def __init__(self, pixels: int) -> None:
        self._limit = pixels
        self._used = 0
        self._freed = threading.Condition()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for a picture, and keep it for the length of the block."""
        wanted = min(pixels, self._limit)
        with self._freed:
            self._freed.wait_for(lambda: self._used + wanted <= self._limit)
            self._used += wanted
        try:
            yield
        finally:
            with self._freed:
                self._used -= wanted
                self._freed.notify_all()
