"""The exported inverse of Eq. 8 against float64, and its bound."""

import pytest
import torch

from intrasense_fast.kernels.channel_decoupling.plain import LEFT, factors, polynomial_inverse


def unscaled_case(positions: int, channels: int, rng: torch.Generator) -> torch.Tensor:
    """F^T (1, N, C) as after a ReLU: most of its energy in one direction."""
    shared = torch.rand(1, positions, 1, generator=rng, dtype=torch.float64)
    noise = torch.randn(1, positions, channels, generator=rng, dtype=torch.float64)
    return (shared + 0.5 * noise).relu()


@pytest.mark.parametrize("ridge", [0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize(("positions", "channels"), [(300, 64), (20, 64), (1, 5), (64, 1)])
def test_inverse_is_within_its_bound(positions, channels, ridge, rng) -> None:
    rows = unscaled_case(positions, channels, rng)
    gram = rows.transpose(1, 2) @ rows
    gram = gram / gram.diagonal(dim1=1, dim2=2).sum() * min(positions, channels)
    wanted = ridge * torch.linalg.inv(gram + ridge * torch.eye(channels, dtype=gram.dtype))
    exact = polynomial_inverse(gram, ridge, channels)
    assert torch.linalg.matrix_norm(exact - wanted, 2).item() <= LEFT
    rounded = polynomial_inverse(gram.float(), ridge, channels).double()
    condition = 1 + channels / ridge
    # Rounding grows with the condition: over 60 seeds of these cases at most 5.8 of this unit.
    limit = LEFT + 10 * condition * torch.finfo(torch.float32).eps
    assert torch.linalg.matrix_norm(rounded - wanted, 2).item() <= limit


@pytest.mark.parametrize(("ridge", "channels", "steps"), [(10.0, 512, 6), (10.0, 2048, 7)])
def test_steps_are_few_and_reach_the_bound_at_both_ends(ridge, channels, steps) -> None:
    chosen = factors(ridge, channels)
    # The first step costs no product: X_0 is a multiple of I.
    assert len(chosen) - 1 <= steps + 1
    for eigenvalue in torch.linspace(ridge, ridge + channels, 1001, dtype=torch.float64).tolist():
        start, *others = chosen
        inverse = start
        for factor in others:
            inverse = factor * inverse * (2 - eigenvalue * inverse)
        assert abs(eigenvalue * inverse - 1) <= LEFT


def test_a_map_that_is_not_finite_stays_in_its_image() -> None:
    gram = torch.eye(3).repeat(2, 1, 1)
    gram[0, 1, 1] = torch.nan
    inverse = polynomial_inverse(gram, 10.0, 3)
    assert inverse[0].isnan().all() and inverse[1].isfinite().all()
