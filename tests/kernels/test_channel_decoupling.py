"""channel_decoupling fused, beside the contract: gradients, tables, layouts, splits and counts."""

import os

import pytest
import torch
from torch.autograd import gradcheck

pytest.importorskip("triton", reason="the kernels need Triton, which has wheels for Linux only")

from intrasense_fast.functional import channel_decoupling
from intrasense_fast.kernels._common.configs import assume
from intrasense_fast.kernels._common.launch import recording
from intrasense_fast.kernels._common.precision import exact_precision
from intrasense_fast.kernels.channel_decoupling import configs, launch
from intrasense_fast.kernels.channel_decoupling.launch import forward_pass
from intrasense_fast.kernels.channel_decoupling.reference import channel_decoupling as reference
from tests.kernels.decoupling_cases import (
    INPUTS,
    OUTPUTS,
    SQUEEZES,
    compare,
    gradients,
    tensors,
    three,
)
from tests.proof import budget
from tests.proof.operators.channel_decoupling import (
    COMPILATION,
    launches_backward,
    launches_forward,
)

interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="counts in Triton's interpreter"
)


@pytest.mark.slow
@pytest.mark.parametrize("squeeze", SQUEEZES)
@pytest.mark.parametrize(
    "shape, fast",
    [((2, 4, 3, 2), True), ((1, 7, 2, 2), True), ((1, 3, 1, 3), True), ((1, 1, 2, 2), True)]
    + [
        pytest.param(shape, False, marks=pytest.mark.slow)
        for shape in ((1, 3, 2, 2), (1, 5, 1, 3), (2, 3, 1, 1))
    ],
    ids=str,
)
def test_gradcheck(shape, fast, squeeze, device, rng):
    if device.type == "cuda":
        pytest.skip("float64 runs eager on a GPU")
    inputs = [t.requires_grad_() for t in tensors(shape, rng, device, torch.float64, reduced=2)]
    r = min(shape[1], shape[2] * shape[3])

    def function(features, *weights):
        out, rank_gap, distance = channel_decoupling(
            features, *weights, squeeze=squeeze, fused=True
        )
        flat = features.detach().flatten(2)
        gram = flat @ flat.transpose(1, 2)
        rank = gram.diagonal(dim1=1, dim2=2).sum(-1).square() / gram.square().sum((1, 2)) / r
        # PR(F) / r carries no gradient, so it is taken out of what the numerical derivative sees.
        return out, rank_gap - rank, distance

    assert gradcheck(function, inputs, fast_mode=fast)


half, brain, single = torch.float16, torch.bfloat16, torch.float32
last, first = torch.channels_last, torch.contiguous_format


@pytest.mark.extended
@pytest.mark.parametrize(
    "architecture, shape, dtype, layout, squeeze",
    [
        ("sm_90", (1, 64, 16, 16), brain, last, "input"),
        ("sm_90", (1, 144, 16, 16), half, first, "decoupled"),
        ("sm_90", (1, 160, 12, 12), brain, last, "decoupled"),
        ("sm_90", (1, 96, 8, 10), single, first, "decoupled"),
        ("sm_80", (1, 144, 8, 8), brain, first, "input"),
        ("sm_86", (1, 80, 9, 10), single, last, "input"),
        ("gfx942", (1, 80, 9, 10), brain, last, "decoupled"),
        ("gfx942", (1, 80, 8, 8), single, last, "input"),
        pytest.param("sm_80", (1, 160, 12, 12), brain, last, "decoupled", marks=pytest.mark.slow),
        pytest.param("sm_86", (1, 144, 16, 16), half, first, "decoupled", marks=pytest.mark.slow),
        pytest.param("gfx942", (1, 272, 12, 12), brain, first, "input", marks=pytest.mark.slow),
        pytest.param("sm_90", (1, 176, 8, 12), single, first, "decoupled", marks=pytest.mark.slow),
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


@pytest.mark.parametrize("squeeze", SQUEEZES)
@pytest.mark.parametrize("shape", [(3, 6, 3, 4), (3, 20, 2, 3)], ids=str)
@pytest.mark.parametrize(
    "dtype", (torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.extended))
)
def test_a_zero_map_returns_itself(shape, squeeze, dtype, device, rng):
    """And sends diag(w) dOut and what comes through the squeeze; its neighbours do not notice."""
    inputs = tensors(shape, rng, device, dtype)
    inputs[0][1] = 0
    fused, _, truth = three(inputs, gradients(inputs, rng), squeeze=squeeze)
    assert fused[0][0][1].eq(0).all() and fused[0][1][1] == 0 and fused[0][2][1] == 0
    bound = max(4 * torch.finfo(dtype).eps, 1e-4)
    for name, actual, expected in zip(
        (*OUTPUTS, INPUTS[0]), (*fused[0], fused[1][0]), (*truth[0], truth[1][0]), strict=True
    ):
        budget.check_form(actual, expected.to(actual.dtype), name)
        for image in range(3):
            assert budget.error(actual[image], expected[image], least=1e-3) <= bound, (
                f"{name}, image {image}"
            )
    least = 1e-2 * max(g.norm().item() for g in truth[1])
    for name, actual, expected in zip(INPUTS[1:], fused[1][1:], truth[1][1:], strict=True):
        budget.assert_close(actual, expected, 5e-4, name, least=least)


@pytest.mark.parametrize(
    "shape",
    [
        (3, 6, 3, 4),
        *(pytest.param(s, marks=pytest.mark.extended) for s in ((3, 20, 2, 3), (3, 66, 9, 9))),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "value, squeeze", [(torch.nan, "input"), (torch.inf, "decoupled"), (-torch.inf, "input")]
)
def test_what_is_not_finite_stays_in_its_image(value, squeeze, shape, device, rng):
    if shape[1] > 64 and value != torch.inf:
        pytest.skip("one value shows it for the blocked inverse")
    inputs = tensors(shape, rng, device)
    grads = gradients(inputs, rng)

    def results():
        features = inputs[0].clone().requires_grad_()
        outputs = channel_decoupling(features, *inputs[1:], squeeze=squeeze, fused=True)
        return *outputs, *torch.autograd.grad(outputs, features, grads)

    clean = results()
    inputs[0][1, -1, -1, -1] = value
    for name, actual, expected in zip((*OUTPUTS, INPUTS[0]), results(), clean, strict=True):
        assert actual[1].isnan().all(), name
        assert torch.equal(actual[::2], expected[::2]), name


def cropped(t):
    """The upper left of a larger map: no single stride walks its positions."""
    return torch.nn.functional.pad(t, (0, 3, 0, 2), value=torch.nan)[..., :-2, :-3]


def between(t):
    """Every second channel of a wider channels_last map."""
    wider = torch.full(
        (t.shape[0], 2 * t.shape[1], *t.shape[2:]), torch.nan, dtype=t.dtype, device=t.device
    )
    wider = wider.contiguous(memory_format=torch.channels_last)
    wider[:, ::2] = t
    return wider[:, ::2]


def transposed(t):
    return t.transpose(2, 3).contiguous().transpose(2, 3)


@pytest.mark.parametrize(
    "of_map, of_grad",
    [(cropped, between), (between, transposed), (transposed, cropped)],
    ids=lambda f: f.__name__,
)
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
    for name, actual, other in zip(
        (*OUTPUTS, *INPUTS), (*fused[0], *fused[1]), (*plain[0], *plain[1]), strict=True
    ):
        assert actual.dtype == other.dtype, name
        assert budget.error(actual, other) <= max(1e-4, torch.finfo(actual.dtype).eps), name


def test_transposed_weights_are_read_as_they_are(device, rng):
    features, w1, b1, w2, b2 = tensors((2, 12, 4, 5), rng, device)
    compare([features, w1.T.contiguous().T, b1, w2.T.contiguous().T, b2], rng)


@pytest.mark.parametrize(
    "rank, long", [(1, 1), (16, 16), (64, 4096), (64, 2**20), (256, 1024), (512, 600), (2048, 4096)]
)
@pytest.mark.parametrize("block", (16, 32, 64))
def test_splits_cover_everything_and_stay_below_the_map(rank, long, block):
    tiles = -(-rank // 128)
    for programs in (tiles * (tiles + 1) // 2, tiles * tiles):
        count, share = configs.splits(programs, rank, long, block)
        assert share % block == 0 and (count - 1) * share < long <= count * share
        assert count <= configs.MAX_SPLITS and (count == 1 or 2 * count * rank <= long)


@pytest.mark.parametrize("squeeze", SQUEEZES)
@pytest.mark.parametrize(
    "dtype", (torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.extended))
)
def test_several_splits_with_a_last_one_that_is_short(dtype, squeeze, device, rng):
    assert configs.splits(1, 8, 330, 64)[0] > 1
    # The second one's channels are ten tiles: more parts of a sum than are added at once.
    for shape in ((2, 8, 15, 22), (2, 580, 2, 4)):
        compare(tensors(shape, rng, device, dtype), rng, squeeze=squeeze)


@interpreted
def test_gram_computes_one_triangle(device, rng):
    from tests.proof.traffic import meter

    inputs = tensors((1, 320, 20, 20), rng, device, torch.bfloat16)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad(), meter() as launches:
        # Only the first launch is looked at: the rest of the forward would take most of the time.
        patch.setattr(forward_pass, "normalised_inverse", None)
        with pytest.raises(TypeError):
            channel_decoupling(*inputs, fused=True)
    (gram,) = launches
    block, columns = configs.gram_config(320, 400, torch.bfloat16, "sm_90", "ieee").blocks.values()
    tiles = -(-320 // block)
    pairs = tiles * (tiles + 1) // 2
    assert gram.kernel == "decoupling_gram" and tiles > 1
    # A program a tile of the triangle, and one a tile of rows for the squeeze.
    assert gram.programs == (pairs + tiles) * configs.splits(pairs, 320, 400, columns)[0]
    assert gram.dot_flops <= pairs * 2 * block**2 * -(-400 // columns) * columns


@pytest.mark.parametrize("decoupled", (False, True))
@pytest.mark.parametrize(
    "channels, positions",
    [(1, 9), (64, 65), (65, 64), (200, 144), (512, 900), (2048, 512), (600, 4096)],
)
def test_launches(channels, positions, decoupled):
    """As many for any batch; at R = 512, both ways, at most 20."""
    started = []
    rank, wide = min(channels, positions), positions < channels
    with recording(started.append):
        for batch in (1, 4):
            features = torch.empty(
                batch, channels, 1, positions, dtype=torch.bfloat16, device="meta"
            )
            reduced = max(1, channels // 16)
            shapes = ((reduced, channels), (reduced,), (channels, reduced), (channels,))
            mlp = launch.Mlp(*(torch.empty(shape, device="meta") for shape in shapes))
            outputs, saved = launch.forward(features, mlp, 10.0, decoupled)
            assert len(started) == launches_forward(rank, wide, decoupled)
            started.clear()
            launch.backward(features, mlp, saved, outputs, 10.0, decoupled, True, True)
            assert len(started) == launches_backward(wide, decoupled)
            started.clear()


def test_an_empty_batch_has_zero_gradients(device, rng):
    inputs = [t.requires_grad_() for t in tensors((0, 6, 3, 4), rng, device)]
    out, rank_gap, distance = channel_decoupling(*inputs, fused=True)
    (out.sum() + rank_gap.sum() + distance.sum()).backward()
    assert out.shape == (0, 6, 3, 4) and rank_gap.shape == distance.shape == (0,)
    assert inputs[0].grad.shape == (0, 6, 3, 4) and all(t.grad.eq(0).all() for t in inputs[1:])


@pytest.mark.parametrize("precision, bound", [("highest", 5e-6), ("high", 5e-4)])
def test_the_user_chooses_the_precision_of_the_map_but_not_of_the_inverse(
    precision, bound, device, rng
):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        inputs = tensors((1, 66, 9, 9), rng, device)
        out, *_ = channel_decoupling(*inputs, fused=True)
        assert exact_precision(torch.float32, device) == "tf32x3"
    finally:
        torch.set_float32_matmul_precision(before)
    expected, *_ = reference(*(t.double() for t in inputs))
    budget.assert_close(out, expected, bound, "reweighted", scale=inputs[0])


def test_every_tile_of_the_tables_is_in_the_full_table():
    """distinct() must not drop a configuration that a shape of the network uses."""
    jobs = COMPILATION.jobs("full")
    for target in ("sm_80", "sm_86", "sm_90"):
        for channels, side in ((64, 64), (256, 64), (512, 32), (1024, 16)):
            config = configs.gram_config(
                min(channels, side**2), max(channels, side**2), torch.bfloat16, target, "ieee"
            )
            wanted = {
                **config.blocks,
                "num_warps": config.num_warps,
                "num_stages": config.num_stages,
            }
            assert any(
                job.target == target
                and job.kernel.endswith("decoupling_gram")
                and wanted.items() <= {**job.constexprs, **job.options}.items()
                for job in jobs
            ), (target, channels)
