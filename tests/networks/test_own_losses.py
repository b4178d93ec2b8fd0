"""The losses of the compared networks against numpy in float64."""

import numpy as np
import pytest
import torch

from intrasense_fast.networks.own_losses import half_bce_and_dice


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.float32])
def test_half_bce_and_dice(kind, rng):
    logits = torch.randn(3, 2, 9, 7, generator=rng, dtype=torch.float64)
    target = (torch.rand(3, 2, 9, 7, generator=rng) > 0.6).to(kind)
    z, y = logits.numpy(), target.double().numpy()
    p = 1 / (1 + np.exp(-z))
    bce = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    dice = [
        1 - (2 * (a * b).sum() + 1e-5) / (a.sum() + b.sum() + 1e-5)
        for a, b in zip(p, y, strict=True)
    ]
    loss = half_bce_and_dice(logits, target)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(0.5 * bce + np.mean(dice), rel=1e-12)


def test_sixteen_bit_logits_are_summed_in_float32(rng):
    logits = 4 * torch.randn(2, 1, 64, 64, generator=rng)
    target = (torch.rand(2, 1, 64, 64, generator=rng) > 0.5).float()
    rounded = logits.bfloat16()
    loss = half_bce_and_dice(rounded, target)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(
        half_bce_and_dice(rounded.double(), target).item(), rel=1e-5
    )


def test_an_empty_mask_that_is_predicted_empty_costs_nothing():
    loss = half_bce_and_dice(torch.full((1, 1, 8, 8), -40.0), torch.zeros(1, 1, 8, 8))
    assert loss.item() == pytest.approx(0, abs=1e-6)
