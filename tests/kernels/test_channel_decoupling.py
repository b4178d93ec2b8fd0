"""channel_decoupling fused, where the contract matrix does not look."""

import os

import pytest
import torch
from torch.autograd import gradcheck

pytest.importorskip("triton", reason="the kernels need Triton, which has wheels for Linux only")

from intrasense_fast.functional import channel_decoupling
from intrasense_fast.kernels._common.configs import assume
from intrasense_fast.kernels._proof import budget
from intrasense_fast.kernels.channel_decoupling import configs, triton_impl
from intrasense_fast.kernels.channel_decoupling.eager import eager
from intrasense_fast.kernels.channel_decoupling.reference import channel_decoupling as reference

OUTPUTS = ("reweighted", "rank_gap", "distance")
INPUTS = ("d_features", "d_reduce_weight", "d_reduce_bias", "d_expand_weight", "d_expand_bias")
SQUEEZES = ("input", "decoupled")
interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="counts in Triton's interpreter")


def mlp(channels, reduced, rng, device, dtype=torch.float32):
    shapes = ((reduced, channels), (reduced,), (channels, reduced), (channels,))
    return [(torch.randn(shape, generator=rng) / shape[-1] ** 0.5).to(device, dtype) for shape in shapes]


def tensors(shape, rng, device, dtype=torch.float32, reduced=3, mean=0.5):
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    features = (torch.randn(shape, generator=rng) + mean).to(device, dtype)
    return [features, *mlp(shape[1], reduced, rng, device, weights)]


def gradients(inputs, rng):
    batch = inputs[0].shape[0]
    return [torch.randn(shape, generator=rng).to(inputs[0]) for shape in (inputs[0].shape, (batch,), (batch,))]


def with_gradients(function, inputs, grads, **options):
    inputs = [t.detach().requires_grad_() for t in inputs]
    outputs = function(*inputs, **options)
    return outputs, torch.autograd.grad(outputs, inputs, [g.to(o.dtype) for g, o in zip(grads, outputs, strict=True)])


def three(inputs, grads, ridge=10.0, squeeze="input"):
    """(outputs, gradients) of the kernels, of the eager path in the same dtype and of the reference in float64."""
    options = {"ridge": ridge, "squeeze": squeeze}
    return (
        with_gradients(channel_decoupling, inputs, grads, fused=True, **options),
        with_gradients(eager, inputs, grads, **options),
        with_gradients(reference, [t.double() for t in inputs], grads, **options),
    )


def compare(inputs, rng, *, grads=None, **options):
    """Fused against float64, within the budget of the dtype; a gradient is also judged beside the largest one."""
    grads = gradients(inputs, rng) if grads is None else grads
    fused, low, truth = three(inputs, grads, **options)
    dtype = inputs[0].dtype
    for name, actual, plain, expected in zip(OUTPUTS, fused[0], low[0], truth[0], strict=True):
        scale = inputs[0] if name == "reweighted" else None
        if dtype.itemsize == 2 and name == "reweighted":
            budget.assert_within_budget(actual, plain, expected, name, scale=scale)
        else:
            bound = 5e-6 if name == "reweighted" else 1e-5
            bound = 1e-10 if dtype == torch.float64 else bound
            budget.assert_close(actual, expected, bound, name, scale=scale, absolute=name != "reweighted")
    least = 1e-2 * max(g.norm().item() for g in truth[1])
    for name, actual, plain, expected in zip(INPUTS, fused[1], low[1], truth[1], strict=True):
        if actual.dtype.itemsize == 2:
            budget.assert_within_budget(actual, plain, expected, name)
        else:
            bound = 1e-9 if dtype == torch.float64 else 1e-4 if name == "d_features" else 5e-4
            budget.assert_close(actual, expected, bound, name, least=least)


@pytest.mark.parametrize("squeeze", SQUEEZES)
@pytest.mark.parametrize(
    "shape, fast",
    [((2, 4, 3, 2), True), ((1, 7, 2, 2), True), ((1, 3, 1, 3), True), ((1, 1, 2, 2), True)]
    + [pytest.param(shape, False, marks=pytest.mark.slow) for shape in ((1, 3, 2, 2), (1, 5, 1, 3), (2, 3, 1, 1))],
    ids=str,
)
def test_gradcheck(shape, fast, squeeze, device, rng):
    if device.type == "cuda":
        pytest.skip("float64 runs eager on a GPU")
    inputs = [t.requires_grad_() for t in tensors(shape, rng, device, torch.float64, reduced=2)]
    r = min(shape[1], shape[2] * shape[3])

    def function(features, *weights):
        out, rank_gap, distance = channel_decoupling(features, *weights, squeeze=squeeze, fused=True)
        flat = features.detach().flatten(2)
        gram = flat @ flat.transpose(1, 2)
        rank = gram.diagonal(dim1=1, dim2=2).sum(-1).square() / gram.square().sum((1, 2)) / r
        # PR(F) / r carries no gradient, so it is taken out of what the numerical derivative sees.
        return out, rank_gap - rank, distance

    assert gradcheck(function, inputs, fast_mode=fast)


@pytest.mark.parametrize("architecture", ("sm_80", "sm_86", "sm_90", "gfx942"))
@pytest.mark.parametrize(
    "shape, dtype, layout, squeeze",
    [
        ((1, 64, 16, 16), torch.bfloat16, torch.channels_last, "input"),
        ((1, 144, 16, 16), torch.float16, torch.contiguous_format, "decoupled"),
        ((1, 160, 12, 12), torch.bfloat16, torch.channels_last, "decoupled"),
        ((1, 272, 8, 8), torch.bfloat16, torch.contiguous_format, "input"),
        ((1, 80, 9, 10), torch.float32, torch.channels_last, "input"),
        ((1, 176, 8, 12), torch.float32, torch.contiguous_format, "decoupled"),
    ],
    ids=str,
)
def test_every_table(architecture, shape, dtype, layout, squeeze, device, rng):
    """The shipped tiles, with a last tile that is not full."""
    if device.type == "cuda" and architecture != "sm_90":
        pytest.skip("a GPU uses its own table")
    features, *weights = tensors(shape, rng, device, dtype)
    with assume(architecture):
        compare([features.contiguous(memory_format=layout), *weights], rng, squeeze=squeeze)


def dominant(shape, rng):
    """One direction has 10^6 times the energy of the others."""
    batch, channels, height, width = shape
    direction = torch.randn(batch, channels, 1, generator=rng) @ torch.randn(batch, 1, height * width, generator=rng)
    return direction.view(shape) * 1e3 + torch.randn(shape, generator=rng)


def rank_one(shape, rng):
    batch, channels, height, width = shape
    return (torch.rand(batch, channels, 1, generator=rng) @ torch.rand(batch, 1, height * width, generator=rng)).view(shape)


def duplicated(shape, rng):
    """Every channel occurs twice."""
    half = torch.randn(shape, generator=rng)[:, : (shape[1] + 1) // 2] + 1
    return torch.cat((half, half), 1)[:, : shape[1]]


def rescaled(shape, rng):
    """Channels of norms from 10^-3 to 10^3."""
    return torch.randn(shape, generator=rng) * torch.logspace(-3, 3, shape[1])[:, None, None]


@pytest.mark.parametrize("squeeze", SQUEEZES)
@pytest.mark.parametrize("shape", [(2, 24, 8, 9), (2, 96, 5, 6), (1, 130, 12, 13), (1, 200, 9, 11)], ids=str)
@pytest.mark.parametrize("make", (dominant, rank_one, duplicated, rescaled), ids=lambda make: make.__name__)
def test_ill_conditioned_maps_err_at_most_three_times_as_much_as_torch(make, shape, squeeze, device, rng):
    """Against eager float32, or half a unit of what float32 resolves where eager happens to be exact."""
    inputs = [make(shape, rng).to(device), *mlp(shape[1], 5, rng, device)]
    grads = gradients(inputs, rng)
    # Of the map's energy rank_gap sees the small eigenvalues only: its gradient has a bound of its own below.
    grads[1].zero_()
    fused, plain, truth = three(inputs, grads, squeeze=squeeze)
    for name, actual, other, expected in zip(OUTPUTS, fused[0], plain[0], truth[0], strict=True):
        budget.check_form(actual, other, name)
        if name == "reweighted":
            error, eager_error = (budget.error(t, expected, inputs[0]) for t in (actual, other))
            assert error <= max(3 * eager_error, 1e-6) and error <= 5e-6, f"{name}: {error:.1e}, eager {eager_error:.1e}"
        else:
            error, eager_error = ((t.double() - expected).abs().max().item() for t in (actual, other))
            assert error <= max(3 * eager_error, 2e-6) and error <= 3e-4, f"{name}: {error:.1e}, eager {eager_error:.1e}"
    least = 1e-2 * max(g.norm().item() for g in truth[1])
    for name, actual, other, expected in zip(INPUTS, fused[1], plain[1], truth[1], strict=True):
        error, eager_error = (budget.error(t, expected, least=least) for t in (actual, other))
        assert error <= max(3 * eager_error, 2e-6), f"{name}: {error:.1e}, eager {eager_error:.1e}"


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


@pytest.mark.parametrize("squeeze", SQUEEZES)
@pytest.mark.parametrize("shape", [(3, 6, 3, 4), (3, 20, 2, 3)], ids=str)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_a_zero_map_returns_itself(shape, squeeze, dtype, device, rng):
    """And sends diag(w) dOut and what comes through the squeeze; its neighbours do not notice."""
    inputs = tensors(shape, rng, device, dtype)
    inputs[0][1] = 0
    grads = gradients(inputs, rng)
    fused, _, truth = three(inputs, grads, squeeze=squeeze)
    assert fused[0][0][1].eq(0).all() and fused[0][1][1] == 0 and fused[0][2][1] == 0
    eps, both = torch.finfo(dtype).eps, ((fused[0][0], truth[0][0]), (fused[1][0], truth[1][0]))
    for name, (actual, expected) in zip(("reweighted", "d_features"), both, strict=True):
        budget.check_form(actual, expected.to(dtype), name)
        for image in range(3):
            assert budget.error(actual[image], expected[image], least=1e-3) <= max(4 * eps, 1e-4), f"{name}, image {image}"
    compare(inputs, rng, grads=grads, squeeze=squeeze)


@pytest.mark.parametrize("squeeze", SQUEEZES)
@pytest.mark.parametrize("shape", [(3, 6, 3, 4), (3, 20, 2, 3), (3, 70, 9, 9)], ids=str)
@pytest.mark.parametrize("value", (torch.nan, torch.inf, -torch.inf))
def test_what_is_not_finite_stays_in_its_image(value, shape, squeeze, device, rng):
    inputs = tensors(shape, rng, device)
    clean = channel_decoupling(*inputs, squeeze=squeeze, fused=True)
    inputs[0][1, -1, -1, -1] = value
    outputs = channel_decoupling(*inputs, squeeze=squeeze, fused=True)
    for name, actual, expected in zip(OUTPUTS, outputs, clean, strict=True):
        assert actual[1].isnan().all(), name
        assert torch.equal(actual[::2], expected[::2]), name


@pytest.mark.parametrize("scale", (1e-12, 1e-4, 1e4, 1e12))
@pytest.mark.parametrize("shape", [(1, 6, 3, 4), (1, 20, 2, 3)], ids=str)
def test_the_map_may_have_any_scale(scale, shape, device, rng):
    """G is normalised before anything else, so the result scales with the map and the terms do not."""
    inputs = tensors(shape, rng, device)
    base = channel_decoupling(*inputs, fused=True)
    inputs[0] = inputs[0] * scale
    inputs[1] = inputs[1] / scale
    outputs = channel_decoupling(*inputs, fused=True)
    assert budget.error(outputs[0] / scale, base[0]) <= 1e-5
    for one, other in zip(outputs[1:], base[1:], strict=True):
        assert (one - other).abs().max() <= 1e-5


@pytest.mark.parametrize("scale", (1e-3, 1.0, 300.0))
@pytest.mark.parametrize("shape", [(1, 12, 5, 6), (1, 40, 4, 5)], ids=str)
def test_float16_gradients_of_maps_of_any_scale(scale, shape, device, rng):
    """2 Gbar goes like the gradient over the map: float16 holds neither end of that without a unit of its own."""
    inputs = tensors(shape, rng, device)
    inputs[0] = (inputs[0] * scale).half()
    inputs[1] = inputs[1] / scale
    grads = gradients(inputs, rng)
    fused, low, truth = three(inputs, grads)
    budget.assert_within_budget(fused[1][0], low[1][0], truth[1][0], "d_features")
    # Of the distance alone, where nothing hides what the unit must keep.
    grads = [torch.zeros_like(grads[0]), torch.zeros_like(grads[1]), torch.full_like(grads[2], 1e3 * scale)]
    fused, low, truth = three(inputs, grads)
    budget.assert_within_budget(fused[1][0], low[1][0], truth[1][0], "d_features of distance")


@pytest.mark.parametrize("squeeze", SQUEEZES)
@pytest.mark.parametrize("shape", [(1, 64, 14, 14), (1, 160, 6, 8)], ids=str)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_low_precision_of_maps_with_a_strong_common_direction(shape, dtype, squeeze, device, rng):
    """What M suppresses must not come back through the rounding of an operand: rounding M or Gbar costs ten times the error."""
    compare(tensors(shape, rng, device, dtype, mean=4.0), rng, squeeze=squeeze)


@pytest.mark.parametrize("shape", [(1, 40, 8, 8), (1, 96, 6, 6)], ids=str)
def test_gradients_of_the_mlp_are_float32(shape, device, rng):
    """The sum over positions that reaches the gate is never rounded to the map's 16 bits, nor is the matrix in it."""
    inputs = tensors(shape, rng, device, torch.bfloat16, mean=3.0)
    fused, _, truth = three(inputs, gradients(inputs, rng))
    for name, actual, expected in zip(INPUTS[1:], fused[1][1:], truth[1][1:], strict=True):
        assert actual.dtype == torch.float32
        budget.assert_close(actual, expected, 5e-5, name)


@pytest.mark.parametrize("ridge", (1e-3, 0.1, 1.0, 100.0, 1e4))
@pytest.mark.parametrize("shape", [(1, 12, 5, 6), (1, 40, 4, 5), (1, 80, 9, 9)], ids=str)
def test_every_ridge(ridge, shape, device, rng):
    inputs = tensors(shape, rng, device)
    fused, plain, truth = three(inputs, gradients(inputs, rng), ridge=ridge)
    for name, actual, other, expected in zip(OUTPUTS, fused[0], plain[0], truth[0], strict=True):
        scale = inputs[0] if name == "reweighted" else torch.ones(1)
        error, eager_error = (budget.error(t, expected, scale) for t in (actual, other))
        assert error <= max(3 * eager_error, 1e-6), f"{name}: {error:.1e}, eager {eager_error:.1e}"


@pytest.mark.parametrize("rank", (1, 2, 15, 16, 17, 63, 64))
def test_small_inverse(rank, device, rng):
    check_inverse(rank, device, rng)


@pytest.mark.parametrize("rank", (65, 100, 128, 129, 200))
def test_blocked_inverse(rank, device, rng):
    check_inverse(rank, device, rng)


def check_inverse(rank, device, rng):
    """Matrices as the operator makes them, I + Gh / ridge, down to rank one."""
    maps = torch.randn(3, rank, 2 * rank, generator=rng, dtype=torch.float64)
    maps[1] += 5
    maps[2] = torch.rand(rank, 1, generator=rng, dtype=torch.float64)
    gram = maps @ maps.transpose(1, 2)
    gram *= rank / gram.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None]
    exact = torch.eye(rank) + gram / 0.5
    truth = torch.linalg.inv(exact)
    plain = torch.cholesky_inverse(torch.linalg.cholesky(exact.float()))
    actual = triton_impl.inverse(exact.float().to(device))
    for image in range(3):
        error, other = (budget.error(t[image], truth[image]) for t in (actual, plain))
        assert error <= max(3 * other, 1e-6), f"image {image}: {error:.1e}, cholesky {other:.1e}"
    if device.type == "cpu":
        budget.assert_close(triton_impl.inverse(exact.clone()), truth, 1e-12, "inverse in float64")


@pytest.mark.parametrize("shape", [(1, 70, 9, 9), (1, 90, 8, 9)], ids=str)
def test_above_the_largest_inverse_the_library_factors(shape, device, rng, monkeypatch):
    """The same results and gradients, NaN for an image that is not finite."""
    monkeypatch.setattr(triton_impl, "LARGEST_INVERSE", 64)
    compare(tensors(shape, rng, device), rng)
    inputs = tensors((3, *shape[1:]), rng, device)
    clean = channel_decoupling(*inputs, fused=True)
    inputs[0][0, 0, 0, 0], inputs[0][1, 0, 0, 0] = torch.inf, torch.nan
    for actual, expected in zip(channel_decoupling(*inputs, fused=True), clean, strict=True):
        assert actual[:2].isnan().all() and torch.equal(actual[2], expected[2])


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 512, 23, 23), (1, 520, 24, 22), (1, 600, 16, 32)], ids=str)
def test_ranks_around_the_largest_inverse(shape, device, rng):
    compare(tensors(shape, rng, device, reduced=32), rng)


def cropped(t):
    """The upper left of a larger map: no single stride walks its positions."""
    return torch.nn.functional.pad(t, (0, 3, 0, 2), value=torch.nan)[..., :-2, :-3]


def between(t):
    """Every second channel of a wider channels_last map."""
    wider = torch.full((t.shape[0], 2 * t.shape[1], *t.shape[2:]), torch.nan, dtype=t.dtype, device=t.device)
    wider = wider.contiguous(memory_format=torch.channels_last)
    wider[:, ::2] = t
    return wider[:, ::2]


def transposed(t):
    return t.transpose(2, 3).contiguous().transpose(2, 3)


@pytest.mark.parametrize("of_grad", (cropped, between, transposed), ids=lambda f: f.__name__)
@pytest.mark.parametrize("of_map", (cropped, between, transposed), ids=lambda f: f.__name__)
@pytest.mark.parametrize("shape", [(2, 6, 3, 4), (2, 20, 2, 3)], ids=str)
def test_map_and_gradient_of_any_two_layouts(shape, of_map, of_grad, device, rng):
    inputs = tensors(shape, rng, device)
    grads = gradients(inputs, rng)
    compare([of_map(inputs[0]), *inputs[1:]], rng, grads=[of_grad(grads[0]), *grads[1:]])


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float64))
def test_weights_of_another_dtype(dtype, device, rng):
    features, *weights = tensors((2, 12, 4, 5), rng, device)
    inputs = [features, *(w.to(dtype) for w in weights)]
    fused, plain, _ = three(inputs, gradients([features], rng))
    for name, actual, other in zip((*OUTPUTS, *INPUTS), (*fused[0], *fused[1]), (*plain[0], *plain[1]), strict=True):
        assert actual.dtype == other.dtype, name
        assert budget.error(actual, other) <= max(1e-4, torch.finfo(actual.dtype).eps), name


def test_transposed_weights_are_read_as_they_are(device, rng):
    features, w1, b1, w2, b2 = tensors((2, 12, 4, 5), rng, device)
    compare([features, w1.T.contiguous().T, b1, w2.T.contiguous().T, b2], rng)


@pytest.mark.parametrize("rank, long", [(1, 1), (16, 16), (64, 4096), (64, 2**20), (256, 1024), (512, 600), (2048, 4096)])
@pytest.mark.parametrize("block", (16, 32, 64))
def test_splits_cover_everything_and_stay_below_the_map(rank, long, block):
    tiles = -(-rank // 128)
    for programs in (tiles * (tiles + 1) // 2, tiles * tiles):
        count, share = triton_impl.splits(programs, rank, long, block)
        assert share % block == 0 and (count - 1) * share < long <= count * share
        assert count <= triton_impl.MAX_SPLITS and (count == 1 or 2 * count * rank <= long)


def test_several_splits_with_a_last_one_that_is_short(device, rng):
    assert triton_impl.splits(1, 8, 330, 64)[0] > 1
    for shape in ((2, 8, 15, 22), (2, 330, 2, 4)):
        for squeeze in SQUEEZES:
            compare(tensors(shape, rng, device, torch.bfloat16), rng, squeeze=squeeze)
            compare(tensors(shape, rng, device), rng, squeeze=squeeze)


@interpreted
def test_gram_computes_one_triangle(device, rng):
    from intrasense_fast.kernels._proof.traffic import meter

    inputs = tensors((1, 320, 20, 20), rng, device, torch.bfloat16)
    with torch.no_grad(), meter() as launches:
        channel_decoupling(*inputs, fused=True)
    (gram,) = (launch for launch in launches if launch.kernel == "decoupling_gram")
    tiles, block = 5, 64
    assert configs.gram_config(320, 400, torch.bfloat16, "sm_90", "ieee").blocks["BLOCK_R"] == 128
    tiles, block = 3, 128
    assert gram.programs == tiles * (tiles + 1) // 2 * triton_impl.splits(6, 320, 400, 64)[0]
    assert gram.dot_flops <= tiles * (tiles + 1) // 2 * 2 * block**2 * 448


@interpreted
@pytest.mark.parametrize("squeeze", SQUEEZES)
@pytest.mark.parametrize("shape", [(2, 16, 6, 6), (2, 70, 9, 9), (2, 80, 5, 6), (2, 200, 9, 15)], ids=str)
def test_launches_do_not_grow_with_the_batch(shape, squeeze, device, rng):
    from intrasense_fast.kernels._proof.traffic import meter

    rank = min(shape[1], shape[2] * shape[3])
    for batch in (1, shape[0]):
        inputs = tensors((batch, *shape[1:]), rng, device)
        with meter() as launches:
            channel_decoupling(*inputs, squeeze=squeeze, fused=True)
        assert len(launches) <= 2 * -(-rank // 64) + 8, [launch.kernel for launch in launches]


def test_an_empty_batch_has_zero_gradients(device, rng):
    inputs = [t.requires_grad_() for t in tensors((0, 6, 3, 4), rng, device)]
    out, rank_gap, distance = channel_decoupling(*inputs, fused=True)
    (out.sum() + rank_gap.sum() + distance.sum()).backward()
    assert out.shape == (0, 6, 3, 4) and rank_gap.shape == distance.shape == (0,)
    assert inputs[0].grad.shape == (0, 6, 3, 4) and all(t.grad.eq(0).all() for t in inputs[1:])


@pytest.mark.parametrize("precision, bound", [("highest", 5e-6), ("high", 5e-4)])
def test_the_user_chooses_the_precision_of_the_map_but_not_of_the_inverse(precision, bound, device, rng):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        inputs = tensors((1, 70, 9, 9), rng, device)
        out, *_ = channel_decoupling(*inputs, fused=True)
        assert triton_impl._matrix_precision(torch.float32, device) == "tf32x3"
    finally:
        torch.set_float32_matmul_precision(before)
    expected, *_ = reference(*(t.double() for t in inputs))
    budget.assert_close(out, expected, bound, "reweighted", scale=inputs[0])
