"""What the eager operators do to be fast changes no bit."""

import pytest
import torch

from intrasense_fast.functional import channel_decoupling, nonlocal_attention
from intrasense_fast.kernels.channel_decoupling import eager as decoupling
from intrasense_fast.kernels.entropy_whitening import eager as whitening
from intrasense_fast.kernels.nonlocal_attention import eager as attention


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", [(2, 40, 6, 5), (3, 33, 3, 9)], ids=str)
def test_windows_of_groups_of_channels_are_those_of_all(
    shape: tuple[int, ...],
    layout: torch.memory_format,
    rng: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = torch.randn(shape, generator=rng).contiguous(memory_format=layout)
    mask = torch.rand(shape[0], *shape[2:], generator=rng) < 0.5
    grad = torch.randn(shape, generator=rng).contiguous(memory_format=layout)

    def results() -> tuple[torch.Tensor, torch.Tensor]:
        leaf = values.clone().requires_grad_()
        result = whitening.MaskedWhitening.apply(leaf, mask, 5, 1e-3)
        return result, torch.autograd.grad(result, leaf, grad)[0]

    whole = results()
    monkeypatch.setattr(whitening, "ELEMENTS_AT_A_TIME", 1)  # as few channels as there may be
    groups = results()
    monkeypatch.setattr(whitening, "_LEAST_CHANNELS", 10**6)  # as the values lie, all at once
    as_they_lie = results()
    for one, other, third in zip(whole, groups, as_they_lie, strict=True):
        assert one.shape == values.shape and one.isfinite().all()
        assert torch.equal(one, other) and torch.equal(one, third)
        assert one.is_contiguous(memory_format=layout)
        assert one.stride() == other.stride() == third.stride()


@pytest.mark.parametrize("shape", [(2, 12, 5, 7), (2, 30, 3, 4)])
def test_decoupling_without_its_terms_gives_the_same_map(
    shape: tuple[int, ...], rng: torch.Generator
) -> None:
    channels = shape[1]
    sizes = ((2, channels), (2,), (channels, 2), (channels,))
    x, *weights = (torch.randn(size, generator=rng) for size in (shape, *sizes))
    wanted, rank_gap, distance = channel_decoupling(x, *weights, fused=False)
    found, *terms = channel_decoupling(x, *weights, fused=False, terms=False)
    assert torch.equal(found, wanted) and rank_gap.all() and distance.all()
    assert all(term.shape == (shape[0],) and not term.any() for term in terms)


def test_attention_without_gradients_has_the_same_maximum(rng: torch.Generator) -> None:
    """NaN stays NaN, ties are the same number."""
    q, k = (torch.randn(2, 9, 4, generator=rng) for _ in range(2))
    v, x = (torch.randn(2, 9, 6, generator=rng).round() for _ in range(2))
    x[0, 3, 2] = torch.nan
    found = nonlocal_attention(q, k, v, x, fused=False)
    wanted = nonlocal_attention(q, k, v, x.requires_grad_(), fused=False)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one.nan_to_num(nan=9.0), other.detach().nan_to_num(nan=9.0))
    assert found[2].isnan().sum() == 1


def test_attention_without_gradients_holds_no_subnormal_probability(rng: torch.Generator) -> None:
    """A CPU multiplies them a hundred times slower, and the sums are the same to the bit."""
    q, k = (torch.randn(2, 40, 4, generator=rng) for _ in range(2))
    v, x = (torch.randn(2, 40, 6, generator=rng) for _ in range(2))
    q *= 60
    probability = torch.softmax(q / 2 @ k.transpose(1, 2), -1)
    tiny = torch.finfo(torch.float32).smallest_normal
    assert ((probability > 0) & (probability < tiny)).any()
    cleaned = attention._without_subnormal(probability.clone())
    assert torch.equal(cleaned, torch.where(probability <= tiny, 0, probability))
    found = nonlocal_attention(q, k, v, x, fused=False)
    wanted = nonlocal_attention(q, k, v, x.requires_grad_(), fused=False)
    for one, other in zip(found, wanted, strict=True):
        assert one.isfinite().all() and torch.equal(one, other.detach())


@pytest.mark.parametrize("ridge", [0.5, 10.0])
def test_an_inverse_of_a_matrix_that_is_not_finite_is_nan_alone(
    ridge: float, rng: torch.Generator
) -> None:
    rows = torch.randn(5, 30, 6, generator=rng)
    gram = rows.transpose(1, 2) @ rows / 30
    for image, number in enumerate((torch.nan, torch.inf, -torch.inf)):
        gram[image, 2, 2] = number
    gram[3, 1, 4] = gram[3, 4, 1] = torch.nan
    matrix = decoupling.RidgeInverse.apply(gram, ridge)
    assert matrix[:4].isnan().all()
    wanted = ridge * torch.linalg.inv(gram[4].double() + ridge * torch.eye(6))
    torch.testing.assert_close(matrix[4].double(), wanted, rtol=1e-5, atol=1e-6)
