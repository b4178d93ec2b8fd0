"""The specification of channel_decoupling, Eq. 8-12: plain PyTorch, any float dtype, any device."""

import torch
from torch import Tensor


def channel_decoupling(
    features: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    *,
    ridge: float = 10.0,
    squeeze: str = "input",
) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. 8 to 12 with C x C matrices throughout, and Eq. 9's terms from the maps themselves.

    Args:
        features: (B, C, H, W).
        reduce_weight: (C_r, C), reduce_bias: (C_r,), expand_weight: (C, C_r), expand_bias: (C,).
        ridge: lambda in units of the mean energy of a direction, > 0.
        squeeze: "input" = Eq. 10 from F, "decoupled" = from F_dec.

    Returns:
        reweighted (B, C, H, W) in the features' dtype; rank_gap, distance (B,), float64 for float64
        and float32 otherwise.
    """
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    batch, channels, height, width = features.shape
    f = features.to(dtype).reshape(batch, channels, height * width)
    r = min(channels, height * width)

    # Eq. 8: F_dec = M F, M = lambda (G + lambda I)^-1, G = F F^T, lambda = ridge tr(G) / r; with G
    # scaled to trace r.
    unscaled = f @ f.transpose(1, 2)
    trace = unscaled.diagonal(dim1=1, dim2=2).sum(-1)
    zero_map = trace == 0
    gram = r * unscaled / torch.where(zero_map, torch.ones_like(trace), trace)[:, None, None]
    matrix = ridge * _inverse(gram + ridge * torch.eye(channels, dtype=dtype, device=f.device))
    decoupled = matrix @ f

    # Eq. 9: rank = participation ratio / r, rank(F) being a constant;
    # dist = ||F - F_dec||^2 / ||F||^2.
    rank_gap = _rank(f, r).detach() - _rank(decoupled, r)
    distance = _ratio((f - decoupled).square().sum((1, 2)), f.square().sum((1, 2)))

    # Eq. 10-11: w = sigmoid(MLP(mean over positions)).
    squeezed = (f if squeeze == "input" else decoupled).mean(-1)
    hidden = torch.relu(squeezed @ reduce_weight.to(dtype).T + reduce_bias.to(dtype))
    weight = torch.sigmoid(hidden @ expand_weight.to(dtype).T + expand_bias.to(dtype))

    # Eq. 12: F_out = diag(w) F_dec.
    reweighted = (weight[:, :, None] * decoupled).reshape(batch, channels, height, width)
    return reweighted.to(features.dtype), rank_gap, distance


def _inverse(matrix: Tensor) -> Tensor:
    """Inverse by Cholesky; NaN for an image whose matrix is not finite or not positive definite."""
    factor, info = torch.linalg.cholesky_ex(matrix, check_errors=False)
    bad = (info != 0) | ~matrix.isfinite().all(-1).all(-1)
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device).expand_as(
        matrix
    )
    safe = torch.where(bad[:, None, None], identity, factor)
    return torch.where(
        bad[:, None, None], torch.full_like(matrix, torch.nan), torch.cholesky_inverse(safe)
    )


def _rank(maps: Tensor, r: int) -> Tensor:
    """tr(G)^2 / ||G||_F^2 / r with G = maps maps^T."""
    gram = maps @ maps.transpose(1, 2)
    return _ratio(gram.diagonal(dim1=1, dim2=2).sum(-1).square(), gram.square().sum((1, 2))) / r


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, 0 with no gradient where the denominator is 0."""
    zero = denominator == 0
    return torch.where(
        zero,
        torch.zeros_like(numerator),
        numerator / torch.where(zero, torch.ones_like(denominator), denominator),
    )
