"""What autograd keeps for the backward pass, counted by its own hooks."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor


@contextlib.contextmanager
def saved_storages(without: Iterable[Tensor] = ()) -> Iterator[dict[int, int]]:
    """Collects {address: bytes} of every storage that is saved for backward inside the block.

    Args:
        without: tensors, such as parameters, whose storages are not counted.
    """
    known = {t.untyped_storage().data_ptr() for t in without}
    found: dict[int, int] = {}
    # The tensors stay alive until the end, so that an address stands for one storage only.
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor.detach())
        return tensor

    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield found
    finally:
        alive.clear()


def saved_bytes(function: Callable[[], object], without: Iterable[Tensor] = ()) -> int:
    """Bytes of the distinct storages that a call of `function` saves while its result is alive."""
    with saved_storages(without) as found:
        result = function()
        total = sum(found.values())
    del result
    return total
