"""Which table of tile sizes a device uses.

Each operator keeps its own tables, keyed by shape, dtype and architecture.
"""

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")

# Shared memory a program may use, in bytes.
SHARED_LIMIT = {
    "sm_80": 166912,
    "sm_86": 101376,
    "sm_89": 101376,
    "sm_90": 232448,
    "sm_100": 232448,
    "sm_120": 101376,
    "gfx942": 65536,
}

# Whose rows an architecture uses where a table holds none of its own. sm_120 has the tensor cores'
# instructions of sm_80, not those of sm_100.
NEAREST = {"sm_86": "sm_80", "sm_89": "sm_86", "sm_100": "sm_90", "sm_120": "sm_86"}

_assumed: ContextVar[str] = ContextVar("assumed_architecture", default="sm_90")


@dataclass(frozen=True)
class KernelConfig:
    """Tile sizes by the kernel's own constexpr names, and how it is compiled."""

    blocks: dict[str, int] = field(hash=False)
    num_warps: int
    num_stages: int

    def options(self) -> dict[str, Any]:
        """Keyword arguments for `launch`."""
        return {**self.blocks, "num_warps": self.num_warps, "num_stages": self.num_stages}


def architecture(device: torch.device) -> str:
    """The name of the table for `device`, one of ARCHITECTURES.

    GPUs between two tables use the one whose shared memory they have. Where there is no GPU (the
    interpreter, meta tensors) it is the assumed one, sm_90 unless `assume` says otherwise.
    """
    if device.type != "cuda":
        return assumed_architecture()
    return _of_gpu(device)


def assumed_architecture() -> str:
    """The table's name wherever there is no GPU."""
    return _assumed.get()


@functools.cache
def _of_gpu(device: torch.device) -> str:
    if torch.version.hip is not None:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability(device)
    return _of_capability(major, minor)


def _of_capability(major: int, minor: int) -> str:
    if major == 8:
        return {0: "sm_80", 7: "sm_80", 9: "sm_89"}.get(minor, "sm_86")
    return {9: "sm_90", 10: "sm_100", 11: "sm_100", 12: "sm_120"}.get(major, "sm_86")


def rows_of(table: dict[str, Any], architecture: str) -> Any:
    """The architecture's rows of a table, or those of the nearest one that has some."""
    while architecture not in table:
        architecture = NEAREST[architecture]
    return table[architecture]


@contextlib.contextmanager
def assume(name: str) -> Iterator[None]:
    """Take architecture `name` wherever there is no GPU: for tests and compile proofs of its table.

    Raises:
        ValueError: an architecture without tables.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {name!r}")
    token = _assumed.set(name)
    try:
        yield
    finally:
        _assumed.reset(token)
