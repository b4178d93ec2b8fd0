"""channel_decoupling in plain steps, for torch.func, torch.export, ONNX and TorchScript.

Of a program for any size the side that is inverted is that of the example, and the inverse is a
fixed number of products: ONNX has no Cholesky factor.
"""

import torch
from torch import Tensor

from intrasense_fast.kernels._common.plain import example_size, exporting

# What the polynomial may leave of A X - 1, in exact arithmetic: half of what float32 tells from 1.
LEFT = 3e-8


def gram_of(rows: Tensor, tall: bool) -> Tensor:
    """X^T X of X = rows (B, N, C) where tall, else X X^T."""
    other = rows.transpose(1, 2)
    return other @ rows if tall else rows @ other


def is_tall(positions: int, channels: int) -> bool:
    """Whether C x C is the smaller matrix, of the example where sizes are open."""
    return example_size(positions) >= channels


def rank_bound(rows: Tensor) -> Tensor:
    """(B,): r = min(N, C) of rows (B, N, C), where N is open."""
    return torch.ones_like(rows[:, :, 0]).sum(1).clamp(max=rows.shape[-1])


def ridge_inverse(gram: Tensor, ridge: float, most: int) -> Tensor:
    """M = ridge (Gh + ridge I)^-1 (B, r, r); `most` bounds r, see `factors`."""
    if exporting():
        return polynomial_inverse(gram, ridge, most)
    identity = _identity(gram)
    shifted = gram + ridge * identity
    factor, info = torch.linalg.cholesky_ex(shifted, check_errors=False)
    bad = (info != 0) | ~shifted.isfinite().all(-1).all(-1)
    # Not cholesky_inverse: its forward-mode derivative is wrong in torch 2.13.
    half = torch.linalg.solve_triangular(factor, identity.expand_as(shifted), upper=False)
    return (ridge * half.transpose(1, 2) @ half).masked_fill(bad[:, None, None], torch.nan)


def polynomial_inverse(gram: Tensor, ridge: float, most: int) -> Tensor:
    """M by scaled Newton steps X <- c X (2 - A X) from a multiple of I, with A = Gh + ridge I.

    Gh is positive semidefinite with trace r, so that the eigenvalues of A lie in [ridge, ridge + r]
    whatever the image: `factors` chooses c for that interval, and the error of M is at most `LEFT`
    of its largest eigenvalue, 1, beside rounding.

    Args:
        gram: Gh (B, n, n).
        ridge: > 0.
        most: an upper bound of r.
    """
    identity = _identity(gram)
    shifted = gram + ridge * identity
    start, first, *others = factors(ridge, most)
    inverse = start * first * (2 * identity - start * shifted)
    for factor in others:
        inverse = factor * (inverse @ (2 * identity - shifted @ inverse))
    return ridge * inverse


def factors(ridge: float, most: float) -> list[float]:
    """X_0 = factors[0] I, and the c of each step, for eigenvalues in [ridge, ridge + most].

    With |A X - 1| <= e in every direction, A X (2 - A X) lies in [1 - e^2, 1]; c = 2 / (2 - e^2)
    centres that, and leaves e^2 / (2 - e^2).
    """
    chosen = [2 / (2 * ridge + most)]
    error = most / (2 * ridge + most)
    while error > LEFT or len(chosen) < 2:
        chosen.append(2 / (2 - error**2))
        error = error**2 / (2 - error**2)
    return chosen


def _identity(like: Tensor) -> Tensor:
    """(n, n) of like (B, n, n), without the scatter that ONNX lacks."""
    index = torch.arange(like.shape[-1], device=like.device)
    return (index[:, None] == index).to(like.dtype)
