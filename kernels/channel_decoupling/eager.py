"""channel_decoupling without kernels: factors the smaller side, folds the re-weighting into it, takes Eq. 9 from M alone."""

import torch
from torch import Tensor

from intrasense_fast.kernels._common.layout import as_rows, from_rows, without_autocast
from intrasense_fast.kernels._common.precision import statistics_dtype


class Gram(torch.autograd.Function):
    """X^T X of (B, n, r): the gradient X (g + g^T) is one product, where autograd's of a product with itself are two."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return rows.transpose(1, 2) @ rows

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (rows,) = ctx.saved_tensors
        return rows @ (grad + grad.transpose(1, 2))


class RidgeInverse(torch.autograd.Function):
    """M = ridge (Gh + ridge I)^-1 for symmetric Gh (B, r, r), with the implicit gradient -(1 / ridge) M Mbar M (Eq. 12)."""

    @staticmethod
    def forward(ctx, scaled: Tensor, ridge: float) -> Tensor:
        shifted = scaled + ridge * torch.eye(
            scaled.shape[-1], dtype=scaled.dtype, device=scaled.device
        )
        factor, info = torch.linalg.cholesky_ex(shifted, check_errors=False)
        # cholesky_ex passes an Inf on the diagonal, so finiteness is looked at as well.
        bad = (info != 0) | ~shifted.isfinite().all(-1).all(-1)
        matrix = (ridge * torch.cholesky_inverse(factor)).masked_fill(bad[:, None, None], torch.nan)
        ctx.save_for_backward(matrix)
        ctx.ridge = ridge
        return matrix

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (matrix,) = ctx.saved_tensors
        return -(matrix @ ((grad + grad.transpose(1, 2)) / 2) @ matrix) / ctx.ridge, None


def eager(
    features: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    ridge: float,
    squeeze: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The path without kernels; arguments and results as channel_decoupling's, all matrices in the statistics' dtype."""
    dtype = statistics_dtype(features.dtype)
    with without_autocast(features):
        rows = as_rows(features).to(dtype)  # (B, N, C): F^T
        _, positions, channels = rows.shape
        tall = positions >= channels
        r = min(positions, channels)
        gram = Gram.apply(rows if tall else rows.transpose(1, 2))

        trace = gram.diagonal(dim1=1, dim2=2).sum(-1)
        zero_map = trace == 0
        # Divided first: r / trace, and its gradient more so, leave float32's range for maps that are tiny or huge.
        scaled = gram / trace.masked_fill(zero_map, 1)[:, None, None] * r
        matrix = RidgeInverse.apply(scaled, ridge)
        rank_gap, distance = _terms(scaled, matrix, zero_map, r, ridge)

        mean = rows.mean(1)
        if squeeze == "decoupled":
            mean = (
                _apply(matrix, mean)
                if tall
                else _apply(rows.transpose(1, 2), matrix.sum(-1) / positions)
            )
        hidden = torch.relu(torch.addmm(reduce_bias.to(dtype), mean, reduce_weight.to(dtype).T))
        weight = torch.sigmoid(
            torch.addmm(expand_bias.to(dtype), hidden, expand_weight.to(dtype).T)
        )

        # One product writes the output: (diag(w) M F)^T = F^T (M diag(w)), or diag(w) F M' transposed where N < C.
        reweighted = (
            rows @ (matrix * weight[:, None, :]) if tall else (matrix @ rows) * weight[:, None, :]
        )
        return from_rows(reweighted.to(features.dtype), features), rank_gap, distance


def _terms(
    scaled: Tensor, matrix: Tensor, zero_map: Tensor, r: int, ridge: float
) -> tuple[Tensor, Tensor]:
    """rank_gap and distance of Eq. 9 from Gh and M: with K = I - M and S = M K, F_dec F_dec^T = lambda S."""
    # 1 - M_jj keeps few digits where the ridge is large: K's diagonal is that of M Gh / ridge, its gradient that of -M.
    own = matrix.diagonal(dim1=1, dim2=2)
    exact = (matrix * scaled).detach().sum(-1) / ridge
    shared = torch.diagonal_scatter(-matrix, exact + (own.detach() - own), dim1=1, dim2=2)
    kept = matrix @ shared
    rank = r / scaled.detach().square().sum((1, 2)).masked_fill(zero_map, 1)
    energy = kept.square().sum((1, 2)).masked_fill(zero_map, 1)
    rank_decoupled = kept.diagonal(dim1=1, dim2=2).sum(-1).square() / (r * energy)
    rank_gap = (rank - rank_decoupled).masked_fill(zero_map, 0)
    distance = ((shared - kept) * scaled).sum((1, 2)).masked_fill(zero_map, 0) / r
    return rank_gap, distance


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    """Batched matrix-vector product: (B, m, n), (B, n) -> (B, m)."""
    return torch.bmm(matrix, vector[:, :, None]).squeeze(-1)
