"""channel_decoupling fused on maps hard on float32 and on 16 bits, and the inverse alone."""

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton, which has wheels for Linux only")

from intrasense_fast.functional import channel_decoupling
from intrasense_fast.kernels.channel_decoupling import configs, launch
from intrasense_fast.kernels.channel_decoupling.launch.case import case_of
from intrasense_fast.kernels.channel_decoupling.launch.forward_pass import allocated
from intrasense_fast.kernels.channel_decoupling.launch.inverse import normalised_inverse
from tests.kernels.decoupling_cases import (
    INPUTS,
    OUTPUTS,
    SQUEEZES,
    compare,
    gradients,
    mlp,
    tensors,
    three,
)
from tests.proof import budget

# Errors of a sum of order 1 over an r x r matrix that float32 may always have: eager's may be zero
# by luck.
TERM = 3e-6


def dominant(shape, rng):
    """One direction has 10^6 times the energy of the others."""
    batch, channels, height, width = shape
    direction = torch.randn(batch, channels, 1, generator=rng) @ torch.randn(
        batch, 1, height * width, generator=rng
    )
    return direction.view(shape) * 1e3 + torch.randn(shape, generator=rng)


def rank_one(shape, rng):
    batch, channels, height, width = shape
    return (
        torch.rand(batch, channels, 1, generator=rng)
        @ torch.rand(batch, 1, height * width, generator=rng)
    ).view(shape)


def duplicated(shape, rng):
    """Every channel occurs twice."""
    half = torch.randn(shape, generator=rng)[:, : (shape[1] + 1) // 2] + 1
    return torch.cat((half, half), 1)[:, : shape[1]]


def rescaled(shape, rng):
    """Channels of norms from 10^-3 to 10^3."""
    return torch.randn(shape, generator=rng) * torch.logspace(-3, 3, shape[1])[:, None, None]


def errors(actual, expected, scale):
    """Of every image, relative to its `scale`."""
    return torch.tensor(
        [budget.error(*image) for image in zip(actual, expected, scale, strict=True)]
    )


@pytest.mark.extended
@pytest.mark.parametrize(
    "shape",
    [(25, 24, 8, 9)]
    + [
        pytest.param(s, marks=pytest.mark.slow)
        for s in ((25, 40, 5, 6), (9, 130, 12, 13), (9, 200, 9, 11))
    ],
    ids=str,
)
@pytest.mark.parametrize("squeeze", SQUEEZES)
@pytest.mark.parametrize(
    "make", (dominant, rank_one, duplicated, rescaled), ids=lambda make: make.__name__
)
def test_ill_conditioned_maps_err_at_most_three_times_as_much_as_torch(
    make, shape, squeeze, device, rng
):
    """Float32 against eager float32: the median of the ratio, as one image is a matter of luck."""
    inputs = [make(shape, rng).to(device), *mlp(shape[1], 5, rng, device)]
    grads = gradients(inputs, rng)
    # Of the map's energy rank_gap sees the small eigenvalues only: its gradient has a bound of its
    # own below.
    grads[1].zero_()
    fused, plain, truth = three(inputs, grads, squeeze=squeeze)
    for name, actual, expected in zip(
        (*OUTPUTS, *INPUTS), (*fused[0], *fused[1]), (*truth[0], *truth[1]), strict=True
    ):
        budget.check_form(actual, expected.float(), name)
    pairs = (("reweighted", 0, inputs[0]), ("d_features", 1, truth[1][0]))
    for name, part, scale in pairs:
        ratios = errors(fused[part][0], truth[part][0], scale) / errors(
            plain[part][0], truth[part][0], scale
        )
        assert ratios.median() <= 3, f"{name}: {ratios.median():.2f} times eager's"
    budget.assert_close(fused[0][0], truth[0][0], 5e-6, "reweighted", scale=inputs[0])
    for name, actual, other, expected in zip(
        OUTPUTS[1:], fused[0][1:], plain[0][1:], truth[0][1:], strict=True
    ):
        error, eager_error = ((t.double() - expected).abs().max().item() for t in (actual, other))
        assert error <= max(3 * eager_error, TERM), f"{name}: {error:.1e}, eager {eager_error:.1e}"
    least = 1e-2 * max(g.norm().item() for g in truth[1])
    for name, actual, other, expected in zip(
        INPUTS[1:], fused[1][1:], plain[1][1:], truth[1][1:], strict=True
    ):
        error, eager_error = (budget.error(t, expected, least=least) for t in (actual, other))
        assert error <= max(3 * eager_error, 5e-4), f"{name}: {error:.1e}, eager {eager_error:.1e}"


@pytest.mark.slow
@pytest.mark.parametrize("squeeze", SQUEEZES)
@pytest.mark.parametrize(
    "make", (dominant, rank_one, duplicated, rescaled), ids=lambda make: make.__name__
)
def test_gradients_of_the_mlp_err_at_most_three_times_as_much_as_torch(make, squeeze, device, rng):
    """The median over maps: what reaches the gate cancels, by how much depends on the map."""
    found = []
    for _ in range(15):
        inputs = [make((1, 24, 8, 9), rng).to(device), *mlp(24, 5, rng, device)]
        grads = gradients(inputs, rng)
        grads[1].zero_()
        fused, plain, truth = three(inputs, grads, squeeze=squeeze)
        found.append(
            [
                [budget.error(t, e) for t, e in zip(p[1][1:], truth[1][1:], strict=True)]
                for p in (fused, plain)
            ]
        )
    error, eager_error = torch.tensor(found).median(0).values
    assert (error <= 3 * eager_error + 2e-6).all(), f"{error}, eager {eager_error}"


@pytest.mark.parametrize("shape", [(1, 24, 8, 9), (1, 96, 5, 6)], ids=str)
@pytest.mark.parametrize("make", (dominant, rank_one), ids=lambda make: make.__name__)
@pytest.mark.parametrize("source", (1, 2), ids=("rank_gap", "distance"))
def test_gradients_of_the_terms_on_maps_of_low_rank(make, shape, source, device, rng):
    inputs = [make(shape, rng).to(device), *mlp(shape[1], 5, rng, device)]
    grads = [torch.zeros_like(inputs[0]), *(torch.zeros(1, device=device) for _ in range(2))]
    grads[source].fill_(1)
    fused, _, truth = three(inputs, grads)
    actual, expected = fused[1][0].double(), truth[1][0]
    assert actual.isfinite().all()
    assert (actual - expected).norm() <= 5e-3 / inputs[0].double().norm()


@pytest.mark.parametrize("scale", (1e-12, 1e-4, 1e4, 1e12))
@pytest.mark.parametrize("shape", [(1, 6, 3, 4), (1, 20, 2, 3)], ids=str)
def test_the_map_may_have_any_scale(scale, shape, device, rng):
    """G is normalised first, so the result scales with the map and the terms do not."""
    inputs = tensors(shape, rng, device)
    base = channel_decoupling(*inputs, fused=True)
    inputs[0] = inputs[0] * scale
    inputs[1] = inputs[1] / scale
    outputs = channel_decoupling(*inputs, fused=True)
    assert budget.error(outputs[0] / scale, base[0]) <= 1e-5
    for one, other in zip(outputs[1:], base[1:], strict=True):
        assert (one - other).abs().max() <= 1e-5


@pytest.mark.parametrize("scale, slope", [(1e-3, 1e3), (300.0, 300.0)])
@pytest.mark.parametrize("shape", [(1, 12, 5, 6), (1, 40, 4, 5)], ids=str)
def test_float16_gradients_of_maps_of_any_scale(scale, slope, shape, device, rng):
    """2 Gbar goes like the gradient over the map: float16 holds its ends with a unit of its own."""
    inputs = tensors(shape, rng, device)
    inputs[0] = (inputs[0] * scale).half()
    inputs[1] = inputs[1] / scale
    grads = gradients(inputs, rng)
    fused, low, truth = three(inputs, grads)
    budget.assert_within_budget(fused[1][0], low[1][0], truth[1][0], "d_features")
    # Of the distance alone, where nothing hides what the unit must keep: Gbar lies beyond 65504,
    # and among the subnormal.
    grads = [
        torch.zeros_like(grads[0]),
        torch.zeros_like(grads[1]),
        torch.full_like(grads[2], slope),
    ]
    fused, low, truth = three(inputs, grads)
    budget.assert_within_budget(fused[1][0], low[1][0], truth[1][0], "d_features of distance")


@pytest.mark.parametrize(
    "shape, squeeze", [((1, 64, 12, 12), "input"), ((1, 100, 6, 8), "decoupled")], ids=str
)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_low_precision_of_maps_with_a_strong_common_direction(shape, squeeze, dtype, device, rng):
    """What M suppresses must not come back through the rounding of an operand.

    Rounding M or Gbar costs ten times the error.
    """
    compare(tensors(shape, rng, device, dtype, mean=4.0), rng, squeeze=squeeze)


@pytest.mark.parametrize("shape", [(1, 64, 12, 12), (1, 100, 6, 8)], ids=str)
def test_low_precision_gradients_of_the_terms_alone(shape, device, rng):
    """Beside the output's gradient 2 Gbar F is small; alone it shows how Gbar is rounded.

    Alone it is nearly orthogonal to F.
    """
    inputs = tensors(shape, rng, device, torch.bfloat16, mean=16.0)
    grads = gradients(inputs, rng)
    grads[0].zero_()
    compare(inputs, rng, grads=grads)


@pytest.mark.parametrize("shape", [(1, 40, 8, 8), (1, 96, 6, 6)], ids=str)
def test_gradients_of_the_mlp_are_float32(shape, device, rng):
    """Neither the sum over positions that reaches the gate nor its matrix is rounded to 16 bits."""
    inputs = tensors(shape, rng, device, torch.bfloat16, mean=3.0)
    fused, _, truth = three(inputs, gradients(inputs, rng))
    least = 1e-2 * max(g.norm().item() for g in truth[1][1:])
    for name, actual, expected in zip(INPUTS[1:], fused[1][1:], truth[1][1:], strict=True):
        assert actual.dtype == torch.float32
        budget.assert_close(actual, expected, 1e-4, name, least=least)


@pytest.mark.parametrize(
    "shape, ridge",
    [((1, 12, 5, 6), ridge) for ridge in (1e-3, 0.1, 1.0, 100.0, 1e4)]
    + [((1, 40, 4, 5), 0.1), ((1, 70, 9, 9), 0.1)],
    ids=str,
)
def test_every_ridge(shape, ridge, device, rng):
    inputs = tensors(shape, rng, device)
    fused, plain, truth = three(inputs, gradients(inputs, rng), ridge=ridge)
    error, eager_error = (budget.error(t[0][0], truth[0][0], inputs[0]) for t in (fused, plain))
    assert error <= max(3 * eager_error, 1e-6), f"reweighted: {error:.1e}, eager {eager_error:.1e}"
    for name, actual, other, expected in zip(
        OUTPUTS[1:], fused[0][1:], plain[0][1:], truth[0][1:], strict=True
    ):
        error, eager_error = ((t.double() - expected).abs().max().item() for t in (actual, other))
        assert error <= max(3 * eager_error, 1e-5), f"{name}: {error:.1e}, eager {eager_error:.1e}"


def inverse(gram, ridge):
    """(Gh, M) of a Gram matrix (r, r)."""
    rank = gram.shape[0]
    features = gram.new_empty(1, rank, rank, 2)
    weights = launch.Mlp(*mlp(rank, 1, torch.Generator(), gram.device, gram.dtype))
    case = case_of(features)
    _, saved = allocated(features, case, weights, decoupled=True)
    normalised = normalised_inverse(
        gram[None, None],
        gram.trace().view(1, 1),
        gram.new_zeros(1, 1, rank),
        weights,
        saved,
        ridge=ridge,
        scale=1.0,
        with_hidden=False,
    )
    return normalised[0], saved.matrix[0]


@pytest.mark.parametrize("ridge", (0.1, 1.0, 10.0))
@pytest.mark.parametrize(
    "rank",
    [
        1,
        2,
        17,
        64,
        129,
        *(pytest.param(r, marks=pytest.mark.extended) for r in (16, 65)),
        *(pytest.param(r, marks=pytest.mark.slow) for r in (63, 100, 128, 200, 256, 640, 1100)),
    ],
)
def test_inverse(rank, ridge, device, rng):
    """M = (I + Gh / ridge)^-1 of maps with one dominant direction, and M F, relative to ||F||."""
    if rank > 100 and ridge != (0.1 if rank > configs.HALVES else 1.0):
        pytest.skip("one ridge shows it for a large matrix, the smallest where halves are inverted")
    maps = dominant((1, rank, rank, 2), rng)[0].flatten(1).double()
    gram = (maps @ maps.T).float().to(device)
    normalised, actual = (t.cpu() for t in inverse(gram, ridge))
    # The matrix as the kernel has it: how it is rounded is no error of the inverse.
    exact = (torch.eye(rank) + normalised / ridge).double()
    truth = torch.linalg.inv(exact)
    plain = torch.cholesky_inverse(torch.linalg.cholesky(exact.float())).double()
    error, other = (budget.error(t, truth) for t in (actual.double(), plain))
    assert error <= max(3 * other, 5e-7), f"M: {error:.1e}, cholesky {other:.1e}"
    error, other = (budget.error(t @ maps, truth @ maps, maps) for t in (actual.double(), plain))
    assert error <= max(3 * other, 2e-7), f"M F: {error:.1e}, cholesky {other:.1e}"
    if device.type == "cpu" and rank in (17, 65, 129):
        normalised, actual = inverse(maps @ maps.T, ridge)
        truth = torch.linalg.inv(torch.eye(rank, dtype=torch.float64) + normalised / ridge)
        budget.assert_close(actual, truth, 1e-12, "inverse in float64")


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 520, 24, 22), (1, 600, 16, 32)], ids=str)
def test_large_ranks(shape, device, rng):
    compare(tensors(shape, rng, device, reduced=32), rng)
