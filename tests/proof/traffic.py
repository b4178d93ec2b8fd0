"""Exact bytes and dot FLOPs of every kernel launch, counted under Triton's interpreter.

    with meter() as launches:
        operator(...)
    passes = device_bytes(launches) / floor_bytes

Counts do not jitter, so tests assert them. tf32x3 products count once; tensor-descriptor loads are
not seen.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from triton.runtime import interpreter

from intrasense_fast.kernels.runtime import use_launch_plans

SECTOR = 32  # bytes: the unit in which device memory is read and written

_Builder = interpreter.InterpreterBuilder
_current: "Launch | None" = None


@dataclass
class Launch:
    """What one launch asked for.

    Distinct sectors are what crosses device memory if caches were perfect.
    """

    kernel: str
    programs: int = 0
    requested_read: int = 0
    requested_write: int = 0
    dot_flops: int = 0
    read: set[int] = field(default_factory=set, repr=False)
    written: set[int] = field(default_factory=set, repr=False)
    tensors: list[torch.Tensor] = field(default_factory=list, repr=False)

    @property
    def device_bytes(self) -> int:
        return (len(self.read) + len(self.written)) * SECTOR

    def bytes_of(self, *tensors) -> int:
        """Distinct bytes read from or written to the given tensors alone."""
        spans = [
            (t.data_ptr() // SECTOR, (t.data_ptr() + t.untyped_storage().nbytes()) // SECTOR)
            for t in tensors
        ]
        return (
            sum(any(lo <= s <= hi for lo, hi in spans) for s in (*self.read, *self.written))
            * SECTOR
        )


def device_bytes(launches: Iterable[Launch], smallest: int = 0) -> int:
    """Distinct bytes of every launch, summed.

    Only those of tensors with at least `smallest` elements, if given.
    """
    if not smallest:
        return sum(launch.device_bytes for launch in launches)
    return sum(
        launch.bytes_of(*(t for t in launch.tensors if t.numel() >= smallest))
        for launch in launches
    )


def requested_bytes(launches: Iterable[Launch]) -> int:
    """Bytes of every lane of every load and store, before any cache."""
    return sum(launch.requested_read + launch.requested_write for launch in launches)


def dot_flops(launches: Iterable[Launch]) -> int:
    """Floating-point operations of all tl.dot calls."""
    return sum(launch.dot_flops for launch in launches)


def _note(pointers, mask, write: bool) -> None:
    if _current is None:
        return
    addresses, active = np.broadcast_arrays(
        np.asarray(pointers.data), np.asarray(mask.data).astype(bool)
    )
    addresses = addresses[active].ravel()
    size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
    sectors = np.unique(addresses // SECTOR).tolist()
    if write:
        _current.requested_write += addresses.size * size
        _current.written.update(sectors)
    else:
        _current.requested_read += addresses.size * size
        _current.read.update(sectors)


@contextlib.contextmanager
def meter() -> Iterator[list[Launch]]:
    """Collect one `Launch` for every kernel started inside the block.

    Without launch plans: bytes are counted by tensors, and a plan's temporaries share one.
    """
    launches: list[Launch] = []
    original = {
        name: getattr(_Builder, name)
        for name in ("create_masked_load", "create_masked_store", "create_dot")
    }
    run = interpreter.GridExecutor.__call__

    def load(self, pointers, mask, *rest, **options):
        _note(pointers, mask, write=False)
        return original["create_masked_load"](self, pointers, mask, *rest, **options)

    def store(self, pointers, value, mask, *rest, **options):
        _note(pointers, mask, write=True)
        return original["create_masked_store"](self, pointers, value, mask, *rest, **options)

    def dot(self, a, b, *rest, **options):
        if _current is not None:
            *batch, rows, inner = a.data.shape
            _current.dot_flops += 2 * int(np.prod(batch or [1])) * rows * inner * b.data.shape[-1]
        return original["create_dot"](self, a, b, *rest, **options)

    def call(self, *args, **kwargs):
        global _current
        grid = self.grid(kwargs) if callable(self.grid) else self.grid
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        outer, _current = (
            _current,
            Launch(self.fn.__name__, programs=int(np.prod(grid)), tensors=tensors),
        )
        launches.append(_current)
        try:
            return run(self, *args, **kwargs)
        finally:
            _current = outer

    _Builder.create_masked_load, _Builder.create_masked_store, _Builder.create_dot = (
        load,
        store,
        dot,
    )
    interpreter.GridExecutor.__call__ = call
    try:
        with use_launch_plans(False):
            yield launches
    finally:
        for name, method in original.items():
            setattr(_Builder, name, method)
        interpreter.GridExecutor.__call__ = run
