"""bce_dice fused, where the contract matrix does not look."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional

pytest.importorskip("triton", reason="the kernels need Triton, which has wheels for Linux only")

from intrasense_fast.functional import bce_dice
from intrasense_fast.kernels.bce_dice import configs
from intrasense_fast.kernels.bce_dice.reference import bce_dice as reference
from tests.proof import budget


def with_gradient(function, logits, target, weights=(1.0, 1.0)):
    logits = logits.detach().requires_grad_()
    bce, dice = function(logits, target)
    (grad,) = torch.autograd.grad(weights[0] * bce + weights[1] * dice, logits)
    return bce, dice, grad


def compare(logits, target, weights=(1.0, 1.0)):
    """Fused against float64: losses and the gradient, whose strides are dense logits' own."""
    bce, dice, grad = with_gradient(lambda *t: bce_dice(*t, fused=True), logits, target, weights)
    truth = with_gradient(reference, logits.double(), target, weights)
    double = logits.dtype == torch.float64
    for name, actual, expected in (("bce", bce, truth[0]), ("dice", dice, truth[1])):
        assert actual.dtype == (torch.float64 if double else torch.float32) and actual.shape == ()
        budget.assert_close(actual, expected, budget.FLOAT64 if double else 1e-6, name, least=1e-6)
    if logits.dtype.itemsize == 2:
        eager = with_gradient(lambda *t: bce_dice(*t, fused=False), logits, target, weights)[2]
        budget.assert_within_budget(grad, eager, truth[2], "d_logits")
    else:
        budget.assert_close(grad, truth[2], budget.FLOAT64 if double else 1e-6, "d_logits")
    return grad


def maps(shape, rng, device, dtype=torch.float32):
    """Logits around zero, none of them zero (where |z| has no derivative), and a hard mask."""
    logits = torch.randn(shape, generator=rng) * 3
    return torch.where(logits == 0, 1.0, logits).to(device, dtype), (
        torch.rand(shape, generator=rng) > 0.7
    ).to(device)


def nchw(t):
    return t.contiguous()


def channels_last(t):
    return t.contiguous(memory_format=torch.channels_last)


def cropped(t):
    """The upper left of a larger map: no single stride walks its positions."""
    return functional.pad(t.float(), (0, 3, 0, 2), value=9.0).to(t.dtype)[..., :-2, :-3]


def transposed(t):
    return t.transpose(2, 3).contiguous().transpose(2, 3)


LAYOUTS = (nchw, channels_last, cropped, transposed)


@pytest.mark.parametrize("of_target", LAYOUTS)
@pytest.mark.parametrize("of_logits", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 1, 9, 4)], ids=str)
def test_logits_and_target_of_any_two_layouts_are_paired_by_position(
    shape, of_logits, of_target, device, rng
):
    logits, target = maps(shape, rng, device)
    logits, target = of_logits(logits), of_target(target)
    grad = compare(logits, target)
    if of_logits is not cropped:
        assert grad.stride() == logits.stride()


@pytest.mark.parametrize("shape", [(2, 2, 9, 1), (2, 2, 1, 9)], ids=str)
def test_a_column_or_a_row_of_a_larger_map(shape, device, rng):
    """Positions lie a row of the larger map apart, whatever the stride of the axis of size 1."""
    logits, target = maps(shape, rng, device)
    compare(cropped(logits), cropped(target))


@pytest.mark.parametrize("dtype", (torch.bool, torch.uint8, torch.int32, torch.int64))
@pytest.mark.parametrize("logits_dtype", (torch.float32, torch.bfloat16))
def test_hard_targets_of_any_dtype(dtype, logits_dtype, device, rng):
    logits, target = maps((2, 2, 6, 11), rng, device, logits_dtype)
    compare(logits, target.to(dtype))


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32, torch.float64))
def test_soft_targets_of_any_dtype(dtype, device, rng):
    logits, _ = maps((2, 2, 6, 11), rng, device)
    compare(logits, torch.rand(logits.shape, generator=rng).to(device, dtype))


@pytest.mark.parametrize(
    "programs, shape", [(1, (1, 1, 50, 61)), (2, (1, 1, 50, 61)), (4, (3, 2, 30, 40))]
)
@pytest.mark.parametrize("layout", (nchw, channels_last, cropped))
def test_a_program_that_owns_several_blocks(programs, shape, layout, device, rng, monkeypatch):
    monkeypatch.setattr(configs, "PROGRAMS", programs)
    logits, target = maps(shape, rng, device)
    compare(layout(logits), layout(target))


def test_more_classes_than_a_program_owns(device, rng):
    logits, target = maps((2, 37, 4, 5), rng, device)
    for layout in (nchw, channels_last):
        compare(layout(logits), layout(target))


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (2.5, -0.5)], ids=str)
def test_gradients_of_each_loss(weights, device, rng):
    compare(*maps((2, 3, 5, 7), rng, device), weights)


@pytest.mark.parametrize("shape", [(2, 1, 1, 4), (1, 3, 2, 1), (2, 2, 1, 1)], ids=str)
def test_gradcheck(shape, device, rng):
    if device.type == "cuda":
        pytest.skip("float64 runs eager on a GPU")
    logits, _ = maps(shape, rng, device, torch.float64)
    target = torch.rand(shape, generator=rng)
    assert gradcheck(lambda z: bce_dice(z, target, fused=True), logits.requires_grad_())


@pytest.mark.parametrize("z", (16.0, 20.0, 40.0, 80.0))
def test_a_confident_and_correct_map_keeps_its_loss(z, device):
    """log(1 + e^-20) is 2e-9, not 0: it is what is left to learn."""
    target = torch.tensor([1.0, 0.0], device=device).view(1, 1, 1, 2)
    logits = torch.where(target > 0, z, -z).requires_grad_()
    bce, _ = bce_dice(logits, target, fused=True)
    assert bce.item() == pytest.approx(math.log1p(math.exp(-z)), rel=1e-6)
    bce.backward()
    assert logits.grad[0, 0, 0, 1].item() == pytest.approx(math.exp(-z) / 2, rel=1e-5)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16))
def test_logits_of_any_size_give_finite_losses(dtype, device):
    largest = min(torch.finfo(dtype).max, 1e30)
    values = [largest, -largest, 1e4, -1e4, 100, -100, 89, -89, 1e-30, -1e-30]
    logits = torch.tensor(values, device=device).to(dtype).view(1, 1, 2, 5)
    for target in (torch.zeros_like(logits), torch.ones_like(logits)):
        bce, dice, grad = with_gradient(lambda *t: bce_dice(*t, fused=True), logits, target)
        assert bce.isfinite() and dice.isfinite() and grad.isfinite().all()
        assert bce.item() == pytest.approx(reference(logits.double(), target)[0].item(), rel=1e-6)


def test_zero_logits_have_the_gradient_of_the_smooth_function(device):
    logits = torch.zeros(1, 1, 2, 2, device=device, requires_grad=True)
    target = torch.tensor([1.0, 0.0, 1.0, 0.0], device=device).view(1, 1, 2, 2)
    bce, dice = bce_dice(logits, target, fused=True)
    assert bce.item() == pytest.approx(math.log(2)) and dice.item() == pytest.approx(0.5)
    bce.backward()
    assert logits.grad.flatten().tolist() == [-0.125, 0.125, -0.125, 0.125]


def test_a_zero_denominator_is_loss_zero_and_gradient_zero(device):
    """Class 0 has neither target nor probability; class 1 is ordinary."""
    logits = torch.full((2, 2, 2, 3), -200.0, device=device)
    logits[:, 1] = 1.0
    target = torch.zeros_like(logits)
    target[:, 1, 0] = 1
    bce, dice, grad = with_gradient(lambda *t: bce_dice(*t, fused=True), logits, target, (0.0, 1.0))
    p, pixels = 1 / (1 + math.exp(-1)), 12
    expected = 1 - 2 * (p * pixels / 2) / (pixels / 2 + p * pixels)
    assert dice.item() == pytest.approx(expected / 2, rel=1e-6)
    assert (
        grad[:, 0].eq(0).all()
        and grad[:, 1].isfinite().all()
        and grad[:, 1].ne(0).all()
        and bce.isfinite()
    )


def test_an_empty_target_with_any_probability_left_is_dice_one_without_gradient(device):
    logits = torch.full((1, 1, 2, 3), -5.0, device=device)
    _, dice, grad = with_gradient(
        lambda *t: bce_dice(*t, fused=True), logits, torch.zeros_like(logits), (0.0, 1.0)
    )
    assert dice.item() == 1 and grad.eq(0).all()


@pytest.mark.parametrize("where", ("logits", "target"))
def test_nan_reaches_the_losses_and_its_own_class(where, device, rng):
    logits, target = maps((2, 3, 4, 5), rng, device)
    target = target.float()
    (logits if where == "logits" else target)[1, 2, 3, 1] = torch.nan
    fused = with_gradient(lambda *t: bce_dice(*t, fused=True), logits, target)
    truth = with_gradient(reference, logits, target)
    for name, actual, expected in zip(("bce", "dice", "d_logits"), fused, truth, strict=True):
        budget.check_form(actual, expected, f"{name} with NaN in {where}")
    assert (
        fused[0].isnan()
        and fused[1].isnan()
        and fused[2][:, 2].isnan().all()
        and fused[2][:, :2].isfinite().all()
    )


@pytest.mark.parametrize("shape", [(0, 2, 3, 3), (0, 1, 0, 0)], ids=str)
def test_an_empty_batch_is_zero(shape, device):
    logits = torch.zeros(shape, device=device, requires_grad=True)
    bce, dice = bce_dice(logits, torch.zeros(shape, dtype=torch.bool, device=device), fused=True)
    (bce + dice).backward()
    assert bce.item() == dice.item() == 0 and logits.grad.shape == shape


def test_a_target_that_wants_a_gradient_gets_none(device, rng):
    logits, target = maps((1, 1, 3, 3), rng, device)
    target = target.float().requires_grad_()
    bce, dice = bce_dice(logits.requires_grad_(), target, fused=True)
    (bce + dice).backward()
    assert target.grad is None and logits.grad is not None


def test_the_gradient_of_a_large_map_keeps_small_targets(device, rng):
    """1 / count and 1 / S differ by three orders of magnitude; neither may be lost in the other."""
    logits = torch.full((1, 1, 64, 64), -8.0, device=device) + torch.rand(
        (1, 1, 64, 64), generator=rng
    ).to(device)
    target = torch.zeros_like(logits)
    target[..., 30:32, 30:32] = 1
    compare(logits, target)
