"""What autograd keeps for the backward pass, counted by its own hooks."""

from collections.abc import Callable

import torch
from torch import Tensor


def saved_bytes(function: Callable[[], object], without: tuple[Tensor, ...] | list[Tensor] = ()) -> int:
    """Bytes of the distinct storages that `function` saves for backward while its result is alive.

    Args:
        function: a forward pass; it is run once.
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

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    total = sum(found.values())
    del result
    alive.clear()
    return total
