"""Inference on large maps: the eager attention never holds a matrix of all positions by all
positions."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from intrasense_fast.functional import nonlocal_attention
from intrasense_fast.kernels.nonlocal_attention.eager import SCORES_AT_A_TIME


class Largest(TorchDispatchMode):
    """The most elements of any tensor an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


def test_no_matrix_of_all_positions(rng: torch.Generator) -> None:
    positions = 96 * 96
    query, key = (torch.randn(1, positions, 8, generator=rng) for _ in range(2))
    value, residual = (torch.randn(1, positions, 16, generator=rng) for _ in range(2))
    with torch.inference_mode(), Largest() as largest:
        features, _, _ = nonlocal_attention(query, key, value, residual, fused=False)
    assert positions * 16 <= largest.elements <= SCORES_AT_A_TIME < positions**2
    row = 5000
    weights = torch.softmax((key[0].double() @ query[0, row].double()) / 8**0.5, 0)
    torch.testing.assert_close(
        features[0, row].double(),
        weights @ value[0].double() + residual[0, row],
        rtol=1e-5,
        atol=1e-5,
    )
