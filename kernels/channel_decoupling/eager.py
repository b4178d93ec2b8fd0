"""channel_decoupling without kernels.

Factors the smaller side, folds the re-weighting into it, takes Eq. 9 from M alone (README.md).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from intrasense_fast.kernels._common.layout import as_rows, from_rows, without_autocast
from intrasense_fast.kernels._common.plain import plain_steps
from intrasense_fast.kernels._common.precision import statistics_dtype
from intrasense_fast.kernels.channel_decoupling import plain


class Gram(torch.autograd.Function):
    """X^T X of (B, n, r).

    The gradient X (g + g^T) is one product, where autograd's of a product with itself are two.
    """

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return rows.transpose(1, 2) @ rows

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (rows,) = ctx.saved_tensors
        return rows @ (grad + grad.transpose(1, 2))


class RidgeInverse(torch.autograd.Function):
    """M = ridge (Gh + ridge I)^-1 for symmetric Gh (B, r, r).

    The gradient is implicit: -(1 / ridge) M Mbar M.
    """

    @staticmethod
    def forward(ctx, gram: Tensor, ridge: float) -> Tensor:
        identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        shifted = torch.add(gram, identity, alpha=ridge)
        factor, info = torch.linalg.cholesky_ex(shifted, check_errors=False)
        # cholesky_ex passes an Inf on the diagonal, so finiteness is looked at as well; no element
        # is larger than r, the trace, and a sum of finite ones is finite.
        bad = (info != 0) | ~shifted.sum((1, 2)).isfinite()
        scale = torch.full_like(info, ridge, dtype=gram.dtype).masked_fill(bad, torch.nan)
        # Symmetric, and by columns: transposed it lies by rows without a copy.
        inverse = torch.cholesky_inverse(factor).transpose(1, 2)
        matrix = (inverse * scale[:, None, None]).contiguous()
        ctx.save_for_backward(matrix)
        ctx.ridge = ridge
        return matrix

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (matrix,) = ctx.saved_tensors
        twice = matrix @ (grad + grad.transpose(1, 2)) @ matrix
        return twice / (-2 * ctx.ridge), None


def eager(
    features: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    ridge: float,
    squeeze: str,
    terms: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments and results as channel_decoupling's, all matrices in the statistics' dtype."""
    dtype = statistics_dtype(features.dtype)
    with without_autocast(features):
        rows = as_rows(features).to(dtype)  # (B, N, C): F^T
        tall, gram, matrix, zero_map, r = (_decomposed_plainly if plain_steps() else _decomposed)(
            rows, ridge
        )
        rank_gap = distance = torch.zeros_like(rows[:, 0, 0])
        if terms:
            rank_gap, distance = _terms(gram, matrix, zero_map, r, ridge)

        if squeeze == "input":
            squeezed = rows.mean(1)
        elif tall:
            squeezed = _apply(matrix, rows.mean(1))
        else:
            row_mean = matrix.sum(-1) / rows.shape[1]
            squeezed = _apply(rows.transpose(1, 2), row_mean)
        reduced = torch.addmm(reduce_bias.to(dtype), squeezed, reduce_weight.to(dtype).T)
        hidden = torch.relu(reduced)
        logit = torch.addmm(expand_bias.to(dtype), hidden, expand_weight.to(dtype).T)
        weight = torch.sigmoid(logit)[:, None, :]

        # One product writes the output: (diag(w) M F)^T = F^T (M diag(w)), or diag(w) F M'
        # transposed where N < C.
        reweighted = rows @ (matrix * weight) if tall else (matrix @ rows) * weight
        return from_rows(reweighted.to(features.dtype), features), rank_gap, distance


class _Decomposed(NamedTuple):
    """Which side is inverted (True: C x C), Gh and M (B, n, n), tr G == 0 (B,), and r."""

    tall: bool
    gram: Tensor
    matrix: Tensor
    zero_map: Tensor
    r: int | Tensor


def _decomposed(rows: Tensor, ridge: float) -> _Decomposed:
    """Eq. 8 of F^T (B, N, C)."""
    _, positions, channels = rows.shape
    tall = positions >= channels
    r = min(positions, channels)
    unscaled = Gram.apply(rows if tall else rows.transpose(1, 2))
    trace = unscaled.diagonal(dim1=1, dim2=2).sum(-1)
    gram, zero_map = _scaled(unscaled, trace, r)
    return _Decomposed(tall, gram, RidgeInverse.apply(gram, ridge), zero_map, r)


def _decomposed_plainly(rows: Tensor, ridge: float) -> _Decomposed:
    """The same in plain steps; r is (B,), its upper bound C."""
    _, positions, channels = rows.shape
    tall = plain.is_tall(positions, channels)
    r = plain.rank_bound(rows)
    gram, zero_map = _scaled(plain.gram_of(rows, tall), rows.square().sum((1, 2)), r[:, None, None])
    return _Decomposed(tall, gram, plain.ridge_inverse(gram, ridge, channels), zero_map, r)


def _scaled(unscaled: Tensor, trace: Tensor, r: int | Tensor) -> tuple[Tensor, Tensor]:
    """Gh = (r / tr G) G, and tr G == 0."""
    zero_map = trace == 0
    # Divided first: r / trace, and its gradient more so, leave float32's range for maps that are
    # tiny or huge.
    return unscaled / trace.masked_fill(zero_map, 1)[:, None, None] * r, zero_map


def _terms(
    gram: Tensor, matrix: Tensor, zero_map: Tensor, r: int | Tensor, ridge: float
) -> tuple[Tensor, Tensor]:
    """rank_gap and distance of Eq. 9 from Gh and M.

    With K = I - M and S = M K, F_dec F_dec^T = lambda S.
    """
    # 1 - M_jj keeps few digits where the ridge is large: K's diagonal is that of M Gh / ridge, its
    # gradient that of -M.
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    exact = (matrix * gram).detach().sum(-1) / ridge
    shared = torch.diagonal_scatter(-matrix, exact + (diagonal.detach() - diagonal), dim1=1, dim2=2)
    decoupled_gram = matrix @ shared
    rank = r / gram.detach().square().sum((1, 2)).masked_fill(zero_map, 1)
    energy = decoupled_gram.square().sum((1, 2)).masked_fill(zero_map, 1)
    decoupled_trace = decoupled_gram.diagonal(dim1=1, dim2=2).sum(-1)
    rank_decoupled = decoupled_trace.square() / (r * energy)
    rank_gap = (rank - rank_decoupled).masked_fill(zero_map, 0)
    distance = ((shared - decoupled_gram) * gram).sum((1, 2)).masked_fill(zero_map, 0) / r
    return rank_gap, distance


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    """Batched matrix-vector product: (B, m, n), (B, n) -> (B, m)."""
    return torch.bmm(matrix, vector[:, :, None]).squeeze(-1)
