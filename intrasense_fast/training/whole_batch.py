"""What a loss sees: the output of a network as of the batch of all processes."""

from typing import Any

import torch
from torch import Tensor

from intrasense_fast.training.distributed import Ranks


def whole(output: Any, ranks: Ranks) -> Any:
    """A network's output, or a target, as of the batch of all processes; all call it together.

    Tensors (m, ...) become (world * m, ...), scalars their mean; in tuples each by itself.
    Gradients flow to this process's part: added over the processes they are those of one.
    """
    if ranks.world == 1:
        return output
    if isinstance(output, Tensor):
        return (_Rows if output.dim() else _Mean).apply(output, ranks)
    if isinstance(output, tuple):
        parts = [whole(part, ranks) for part in output]
        return type(output)(*parts) if hasattr(output, "_fields") else tuple(parts)
    return output


class _Rows(torch.autograd.Function):
    """`Ranks.gathered`; the gradient is this process's rows of it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: Ranks) -> Tensor:
        ctx.first, ctx.count = ranks.rank * rows.shape[0], rows.shape[0]
        return ranks.gathered(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].narrow(0, ctx.first, ctx.count), None


class _Mean(torch.autograd.Function):
    """The mean of a scalar over the processes; each has its share of the gradient."""

    @staticmethod
    def forward(ctx: Any, scalar: Tensor, ranks: Ranks) -> Tensor:
        ctx.world = ranks.world
        return ranks.added(scalar.reshape(1)).reshape(()) / ranks.world

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] / ctx.world, None
