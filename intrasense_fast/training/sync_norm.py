"""Layers that take statistics over a batch, of the whole batch while several processes share it.

Only the class of a layer changes: its weights, its buffers and their names in a checkpoint stay.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from intrasense_fast.networks.refine import RunningStandardization
from intrasense_fast.training.distributed import Ranks


def synchronise(net: nn.Module, ranks: Ranks, *, batchnorm: bool) -> list[str]:
    """Let the layers of a network see the batch of all processes.

    `RunningStandardization`, which has no gradient, does so always.

    Args:
        net: changed in place; alone it stays as it is.
        batchnorm: whether BatchNorm does so too.

    Returns:
        The names of kinds of BatchNorm that stay with the images of one process.
    """
    if ranks.world == 1:
        return []
    left: set[str] = set()
    for module in net.modules():
        shared = _SHARED.get(type(module))
        if shared is not None and (batchnorm or shared is _SharedStandardization):
            # torch's SyncBatchNorm needs a GPU, and a copy in every parent of the layer.
            module.__class__ = shared
            module.ranks = ranks  # type: ignore[assignment]
        elif isinstance(module, _BatchNorm):
            left.add(type(module).__name__)
    return sorted(left) if batchnorm else []


class _SharedStandardization(RunningStandardization):
    ranks: Ranks

    def learn(self, squeezed: Tensor) -> None:
        super().learn(self.ranks.gathered(squeezed.detach()))


class _SharedBatchNorm(_BatchNorm):
    """The forward of every BatchNorm below, which follow it in the order of their bases."""

    ranks: Ranks

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        y, mean, variance = _Normalise.apply(input, self.weight, self.bias, self.eps, self.ranks)
        if self.running_mean is not None and self.running_var is not None:
            self._learn(mean, variance, input.numel() // input.shape[1] * self.ranks.world)
        return y

    @torch.no_grad()
    def _learn(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics, as F.batch_norm does."""
        assert self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        share = self.momentum
        if share is None:
            share = 1 / float(self.num_batches_tracked)  # type: ignore[arg-type]
        unbiased = variance * (count / max(1, count - 1))
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(unbiased.to(self.running_var), share)


class _SharedBatchNorm1d(_SharedBatchNorm, nn.BatchNorm1d):
    pass


class _SharedBatchNorm2d(_SharedBatchNorm, nn.BatchNorm2d):
    pass


class _SharedBatchNorm3d(_SharedBatchNorm, nn.BatchNorm3d):
    pass


_SHARED: dict[type, type] = {
    RunningStandardization: _SharedStandardization,
    nn.BatchNorm1d: _SharedBatchNorm1d,
    nn.BatchNorm2d: _SharedBatchNorm2d,
    nn.BatchNorm3d: _SharedBatchNorm3d,
}


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias, with mean and var over the batch of all
    processes; also gives both, without gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, ranks: Ranks
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(wide, _axes(x), correction=0)
        # All processes have as many values: (processes, 2, C).
        both = ranks.gathered(torch.stack([mean, variance])[None])
        mean = both[:, 0].mean(0)
        variance = both[:, 1].mean(0) + (both[:, 0] - mean).square().mean(0)
        inverse = (variance + eps).rsqrt()
        y = (wide - _wide(mean, x)) * _wide(inverse, x)
        if weight is not None and bias is not None:
            y = y * _wide(weight.to(y.dtype), x) + _wide(bias.to(y.dtype), x)
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.ranks = ranks
        ctx.mark_non_differentiable(mean, variance)
        return y.to(x.dtype), mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        gradient = gradients[0].to(mean.dtype)
        standard = (x.to(mean.dtype) - _wide(mean, x)) * _wide(inverse, x)
        own = torch.stack([gradient.sum(_axes(x)), (gradient * standard).sum(_axes(x))])
        values = x.numel() // x.shape[1] * ctx.ranks.world
        of_bias, of_weight = ctx.ranks.added(own) / values
        scale = inverse if weight is None else inverse * weight.to(inverse.dtype)
        moved = gradient - _wide(of_bias, x) - standard * _wide(of_weight, x)
        of_x = (moved * _wide(scale, x)).to(x.dtype)
        if weight is None:
            return of_x, None, None, None, None
        return of_x, own[1].to(weight.dtype), own[0].to(weight.dtype), None, None


def _axes(x: Tensor) -> list[int]:
    """All axes but the channels'."""
    return [axis for axis in range(x.dim()) if axis != 1]


def _wide(values: Tensor, x: Tensor) -> Tensor:
    """(C,) as (1, C, 1, ...), to meet x."""
    return values.view(1, -1, *[1] * (x.dim() - 2))
