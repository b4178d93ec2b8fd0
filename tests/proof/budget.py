"""Is a fused result as good as it must be?

Shape, dtype, layout and NaN pattern first, then the error against float64.
"""

import torch
from torch import Tensor

# Relative to the reference tensor's norm; float32 with ieee or tf32x3 products.
FORWARD, BACKWARD = 1e-5, 1e-4
# The same with TF32 products, forward and backward.
TF32 = 2e-3

# Between two float64 computations of one formula.
FLOAT64 = 1e-10


def error(
    actual: Tensor, reference: Tensor, scale: Tensor | None = None, least: float = 1e-30
) -> float:
    """||actual - reference|| / max(||scale||, least) in float64 over finite entries.

    `scale` is the reference unless given.
    """
    actual, reference = actual.detach().cpu().double(), reference.detach().cpu().double()
    scale = reference if scale is None else scale.detach().cpu().double()
    both = actual.isfinite() & reference.isfinite()
    difference = torch.where(both, actual - reference, 0.0).norm()
    return difference.item() / max(scale[scale.isfinite()].norm().item(), least, 1e-30)


def check_form(actual: Tensor, expected: Tensor, what: str, *, strides: bool = False) -> None:
    """Shape, dtype, (where asked) strides and the pattern of NaN must be `expected`'s."""
    assert actual.shape == expected.shape, (
        f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    )
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype}, expected {expected.dtype}"
    if strides and actual.numel() > 1:
        got, wanted = (
            [stride for size, stride in zip(t.shape, t.stride(), strict=True) if size > 1]
            for t in (actual, expected)
        )
        assert got == wanted, f"{what}: strides {got}, expected {wanted}"
    nan, nan_wanted = actual.isnan().cpu(), expected.isnan().cpu()
    assert torch.equal(nan, nan_wanted), (
        f"{what}: {int(nan.sum())} NaN, expected {int(nan_wanted.sum())} (or elsewhere)"
    )


def assert_close(
    actual: Tensor,
    reference: Tensor,
    bound: float,
    what: str,
    *,
    scale: Tensor | None = None,
    least: float = 1e-30,
    absolute: bool = False,
) -> None:
    """The error against the float64 reference is at most `bound`.

    It is relative to the norm of `scale` (the reference unless given), or to `least` where that
    norm is smaller: the gradient of something that has no influence is zero only up to rounding.
    With `absolute` it is the largest difference of an entry.
    """
    check_form(actual, reference.to(actual.dtype), what)
    got = error(actual, reference, scale, least)
    if absolute:
        difference = actual.detach().cpu().double() - reference.detach().cpu().double()
        got = max(difference.nan_to_num().abs().flatten().tolist(), default=0.0)
    assert got <= bound, f"{what}: error {got:.2e} > {bound:.2e}"


def assert_within_budget(
    actual: Tensor,
    eager: Tensor,
    reference: Tensor,
    what: str,
    *,
    factor: float = 2.0,
    scale: Tensor | None = None,
    least: float = 1e-30,
    enough: float = 0.0,
) -> None:
    """A 16-bit result errs at most `factor` times as much as the eager path in that dtype, in norm.

    Args:
        actual: the fused result. eager: the eager path's on the same inputs.
        reference: float64 on the same inputs.
        scale, least: as in assert_close. enough: an error that passes whatever eager's is.
    """
    check_form(actual, eager, what)
    # Half a rounding of the output: an eager path that happens to be exact must leave some budget.
    floor = torch.finfo(actual.dtype).eps / 2
    got, allowed = (
        error(actual, reference, scale, least),
        factor * error(eager, reference, scale, least) + floor,
    )
    allowed = max(allowed, enough)
    assert got <= allowed, (
        f"{what}: error {got:.2e} > {allowed:.2e} ({factor} x eager's + half a rounding)"
    )
