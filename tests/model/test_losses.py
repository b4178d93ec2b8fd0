"""IntraSenseLoss against a float64 computation in numpy, under autocast, and with bad arguments."""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from intrasense_fast.losses import IntraSenseLoss


class Output(NamedTuple):
    logits: Tensor
    whitening_loss: Tensor


def by_hand(logits: Tensor, target: Tensor) -> tuple[float, float]:
    """Eq. 14-15 to the letter, in float64, one class after the other."""
    z, y = logits.detach().double().numpy(), target.double().numpy()
    p = 1 / (1 + np.exp(-z))
    bce = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
    dice = [
        1 - 2 * (y[:, k] * p[:, k]).sum() / (y[:, k].sum() + p[:, k].sum())
        for k in range(z.shape[1])
    ]
    return float(bce), float(np.mean(dice))


@pytest.fixture
def case(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    logits = 3 * torch.randn(3, 2, 9, 7, generator=rng)
    return logits, torch.rand(3, 2, 9, 7, generator=rng) > 0.6


def test_weighted_sum_and_terms(case: tuple[Tensor, Tensor]) -> None:
    logits, target = case
    loss = IntraSenseLoss(weights=(0.5, 2, 3), fused=False)
    total = loss(Output(logits.requires_grad_(), torch.tensor(-0.25)), target)
    bce, dice = by_hand(logits, target)
    assert total.shape == () and total.dtype == torch.float32
    assert total.item() == pytest.approx(0.5 * bce + 2 * dice - 3 * 0.25, rel=1e-5)
    assert {name: term.item() for name, term in loss.terms.items()} == pytest.approx(
        {"bce": bce, "dice": dice, "whitening": -0.25}, rel=1e-5
    )
    assert not any(term.requires_grad for term in loss.terms.values())


def test_tensor_has_no_whitening(case: tuple[Tensor, Tensor]) -> None:
    logits, target = case
    loss = IntraSenseLoss(fused=False)
    assert loss(logits, target).item() == pytest.approx(sum(by_hand(logits, target)), rel=1e-5)
    assert loss.terms["whitening"].item() == 0


def test_gradient_reaches_logits_and_whitening(case: tuple[Tensor, Tensor]) -> None:
    logits, target = (case[0].double().requires_grad_(), case[1])
    whitening = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    loss = IntraSenseLoss(weights=(1, 0.5, 0.25), fused=False)
    assert torch.autograd.gradcheck(lambda z, w: loss(Output(z, w), target), (logits, whitening))
    loss(Output(logits, whitening), target).backward()
    assert whitening.grad is not None and whitening.grad.item() == 0.25


INTEGERS = [torch.bool, torch.uint8, torch.int64, torch.uint16, torch.uint32, torch.uint64]


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.float8_e4m3fn, torch.float16, torch.float32])
def test_target_dtypes_agree(case: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    logits, target = case
    loss = IntraSenseLoss(fused=False)
    assert torch.equal(loss(logits, target.to(dtype)), loss(logits, target))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_under_autocast(case: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    logits, target = case[0].to(dtype), case[1]
    loss = IntraSenseLoss(fused=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = loss(Output(logits, torch.tensor(0.0)), target)
    assert total.dtype == torch.float32 and all(
        term.dtype == torch.float32 for term in loss.terms.values()
    )
    assert total.item() == pytest.approx(sum(by_hand(logits, target)), rel=1e-5)


def test_values_outside_the_unit_interval(case: tuple[Tensor, Tensor]) -> None:
    logits, target = case
    loss = IntraSenseLoss()
    with pytest.raises(ValueError, match=r"from 0 to 255; masks hold 0\.\.255: divide by 255"):
        loss(logits, target.to(torch.uint8) * 255)
    with pytest.raises(ValueError, match=r"from 0 to 65535$"):
        loss(logits, target.to(torch.uint16) * 65535)
    with pytest.raises(ValueError, match=r"from -1 to 0\.5$"):
        loss(logits, 0.5 - 1.5 * target.float())
    holed = target.float()
    holed[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="from nan to nan"):
        loss(logits, holed)


def test_shapes_and_types(case: tuple[Tensor, Tensor]) -> None:
    logits, target = case
    loss = IntraSenseLoss()
    with pytest.raises(ValueError, match=r"\(3, 2, 9, 7\), got \(3, 9, 7\); add the class axis"):
        loss(logits, target[:, 0])
    with pytest.raises(ValueError, match=r"got \(2, 2, 9, 7\)$"):
        loss(logits, target[:2])
    with pytest.raises(TypeError, match="target must be a tensor, got ndarray"):
        loss(logits, target.numpy())
    with pytest.raises(TypeError, match="got tuple"):
        loss((logits, torch.tensor(0.0)), target)
    for output in (SimpleNamespace(logits=logits), Output(logits, 0.0)):  # type: ignore[arg-type]
        with pytest.raises(
            TypeError, match=r"tensors logits and whitening_loss, got \w+; .*pass its logits"
        ):
            loss(output, target)


@pytest.mark.parametrize(
    "weights",
    [
        (1, 1),
        (1, 1, 1, 1),
        (1, 1, -0.1),
        (1, float("nan"), 1),
        (float("inf"), 1, 1),
        1.0,
        ("a", 1, 1),
        None,
    ],
)
def test_weights_must_be_three_numbers(weights: object) -> None:
    with pytest.raises(ValueError, match="weights must be"):
        IntraSenseLoss(weights=weights)  # type: ignore[arg-type]


def test_empty_batch_is_zero() -> None:
    logits = torch.zeros(0, 1, 8, 8, requires_grad=True)
    total = IntraSenseLoss(fused=False)(logits, torch.zeros(0, 1, 8, 8))
    assert total.item() == 0
    total.backward()
