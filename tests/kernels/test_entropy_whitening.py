"""entropy_whitening fused, where the contract matrix does not look."""

import math
import os

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional

pytest.importorskip("triton", reason="the kernels need Triton, which has wheels for Linux only")

from intrasense_fast.functional import entropy_whitening
from intrasense_fast.kernels._common.precision import statistics_dtype
from intrasense_fast.kernels.entropy_whitening import configs
from intrasense_fast.kernels.entropy_whitening.reference import entropy_whitening as reference
from intrasense_fast.kernels.entropy_whitening.reference import scaled_entropy
from tests.proof import budget
from tests.proof.operators.entropy_whitening import COST

SCALES = ("score", "relative", "max", "nats")
NAMES = ("features", "channel_mean", "channel_max", "gate_weight", "gate_bias")
interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="counts in Triton's interpreter"
)


def tensors(shape, rng, device, dtype=torch.float32, side=3, spread=1.0):
    """A map, statistics and a gate; side: of the gate's convolution."""
    statistics = statistics_dtype(dtype)
    features = (torch.randn(shape, generator=rng) * spread + 0.5).to(device, dtype)
    gate = [
        0.1 * torch.randn(s, generator=rng).to(device, statistics)
        for s in ((1, 2, side, side), (1,))
    ]
    return [features, features.to(statistics).mean(1), features.to(statistics).amax(1), *gate]


def open_gate(features):
    """Statistics and a gate of exactly 1."""
    dtype = statistics_dtype(features.dtype)
    zeros = lambda *shape: torch.zeros(shape, dtype=dtype, device=features.device)
    maps = (features.shape[0], *features.shape[2:])
    return [features, zeros(*maps), zeros(*maps), zeros(1, 2, 3, 3), zeros(1) + 100]


def exact_entropy(inputs, entropy_scale):
    """Ent_s in float64, a 3 x 3 gate."""
    features, mean, top, weight, bias = (t.double() for t in inputs)
    gate = torch.sigmoid(functional.conv2d(torch.stack([mean, top], 1), weight, bias, padding=1))
    return scaled_entropy(gate * features, entropy_scale)


def middle(inputs, entropy_scale):
    """A threshold that masks some positions, in the widest gap of the entropies' middle half."""
    values = exact_entropy(inputs, entropy_scale)
    values = values[values.isfinite()].sort().values
    count = len(values)
    inner = values[count // 4 : max(count // 4 + 2, count - count // 4)]
    if len(inner) < 2:
        return 10.0
    widest = inner.diff().argmax()
    return (inner[widest] + inner[widest + 1]).item() / 2


def with_gradients(function, inputs, grad, **options):
    inputs = [t.detach().requires_grad_() for t in inputs]
    whitened, mask = function(*inputs, **options)
    return (
        whitened,
        mask,
        torch.autograd.grad(whitened, inputs, grad.to(whitened.dtype), allow_unused=True),
    )


@torch.no_grad()
def forward(inputs, **options):
    """Fused against float64 in float32, whose mask must be that of float64; returns it."""
    whitened, mask = entropy_whitening(*inputs, fused=True, **options)
    truth, exact = reference(*(t.double() for t in inputs), **options)
    assert torch.equal(mask, exact)
    budget.assert_close(whitened, truth, budget.FORWARD, "whitened", least=1e-3)
    return mask


def compare(inputs, rng, *, grad=None, bound=None, **options):
    """Fused against float64 with the same mask, within the dtype's budget; returns the mask."""
    grad = torch.randn(inputs[0].shape, generator=rng).to(inputs[0]) if grad is None else grad
    whitened, mask, grads = with_gradients(entropy_whitening, inputs, grad, fused=True, **options)
    truth, _, true_grads = with_gradients(
        reference, [t.double() for t in inputs], grad, mask=mask, **options
    )
    double = inputs[0].dtype == torch.float64
    if inputs[0].dtype.itemsize == 2:
        low, _, low_grads = with_gradients(entropy_whitening, inputs, grad, fused=False, **options)
        budget.assert_within_budget(whitened, low, truth, "whitened")
        budget.assert_within_budget(grads[0], low_grads[0], true_grads[0], "d_features")
    else:
        budget.assert_close(
            whitened,
            truth,
            bound or (budget.FLOAT64 if double else budget.FORWARD),
            "whitened",
            least=1e-3,
        )
    least = 1e-2 * max((g.norm().item() for g in true_grads), default=0.0)
    for name, actual, expected in zip(NAMES, grads, true_grads, strict=True):
        if actual.dtype.itemsize > 2:
            limit = budget.FLOAT64 if double else budget.BACKWARD
            budget.assert_close(actual, expected, bound or limit, f"d_{name}", least=least)
    return mask


@pytest.mark.extended
@pytest.mark.parametrize(
    "shape, window, entropy_scale",
    [((1, 3, 3, 4), 3, "nats"), ((2, 4, 3, 2), 5, "score"), ((1, 4, 1, 5), 5, "relative")],
    ids=str,
)
@pytest.mark.parametrize(
    "fast", (True, pytest.param(False, marks=pytest.mark.slow)), ids=("fast", "full")
)
def test_gradcheck(shape, window, entropy_scale, fast, device, rng):
    if device.type == "cuda":
        pytest.skip("float64 runs eager on a GPU")
    inputs = tensors(shape, rng, device, torch.float64)
    options = {
        "threshold": middle(inputs, entropy_scale),
        "entropy_scale": entropy_scale,
        "window": window,
        "fused": True,
    }
    assert entropy_whitening(*inputs, **options)[1].any()
    inputs = [t.requires_grad_() for t in inputs]
    assert gradcheck(lambda *t: entropy_whitening(*t, **options)[0], inputs, fast_mode=fast)


@pytest.mark.parametrize("window", (1, 3, 5, 15))
@pytest.mark.parametrize(
    "shape",
    [(1, 3, 5, 4), (1, 2, 6, 1), pytest.param((1, 2, 2, 7), marks=pytest.mark.extended)],
    ids=str,
)
def test_every_window_on_maps_of_any_size(window, shape, device, rng):
    dtype = torch.float32 if device.type == "cuda" else torch.float64
    inputs = tensors(shape, rng, device, dtype)
    mask = compare(
        inputs, rng, window=window, entropy_scale="nats", threshold=middle(inputs, "nats")
    )
    assert mask.any() and not mask.all()


@pytest.mark.parametrize("channels", (17, 33, 96, 130))
def test_every_number_of_channels(channels, device, rng):
    inputs = tensors((1, channels, 2, 3), rng, device)
    compare(inputs, rng, window=3)
    forward(inputs, window=3, entropy_scale="nats", threshold=middle(inputs, "nats"))


@pytest.mark.parametrize("entropy_scale", ("score", "max"))
def test_channels_by_the_thousand(entropy_scale, device, rng):
    inputs = tensors((1, 2090, 1, 3), rng, device)
    mask = forward(
        inputs, window=3, entropy_scale=entropy_scale, threshold=middle(inputs, entropy_scale)
    )
    assert mask.any() and not mask.all()


@pytest.mark.parametrize(
    "dtype, channels",
    [(torch.float32, 64), pytest.param(torch.bfloat16, 128, marks=pytest.mark.extended)],
    ids=str,
)
@pytest.mark.parametrize("window", (3, 5))
def test_several_tiles_in_every_direction(window, dtype, channels, device, rng):
    """Two tiles of rows, of columns and of channels, the last ones short; windows cross them."""
    compare(tensors((1, channels, 5, 17), rng, device, dtype), rng, window=window)


@pytest.mark.parametrize("entropy_scale", SCALES)
@pytest.mark.parametrize(
    "dtype",
    (
        torch.bfloat16,
        *(pytest.param(t, marks=pytest.mark.extended) for t in (torch.float32, torch.float16)),
    ),
    ids=str,
)
def test_masks_agree_wherever_it_is_not_a_tie(entropy_scale, dtype, device, rng):
    inputs = tensors((2, 24, 12, 17), rng, device, dtype, spread=2.0)
    inputs[4] += 3.0  # a gate that is nearly shut would leave all entropies as good as equal
    options = {
        "entropy_scale": entropy_scale,
        "threshold": middle(inputs, entropy_scale),
        "window": 1,
    }
    _, mask = entropy_whitening(*inputs, fused=True, **options)
    scaled = exact_entropy(inputs, entropy_scale)
    clear = (scaled - options["threshold"]).abs() >= 1e-3
    assert torch.equal(mask[clear], (scaled < options["threshold"])[clear])
    assert clear.float().mean() > 0.95 and 0.2 < mask.float().mean() < 0.8


def test_images_that_leave_the_mask_empty(device, rng):
    """Entropies equal or as good as equal, and one channel: each scale as equations.md says."""
    flat = torch.randn(1, 32, 1, 1, generator=rng).expand(1, 32, 2, 3).to(device)
    nearly = flat * (1 + 1e-6 * torch.randn(1, 32, 2, 3, generator=rng).to(device))
    for entropy_scale, masked in (
        ("score", False),
        ("relative", False),
        ("max", True),
        ("nats", True),
    ):
        for features in (flat.contiguous(), nearly):
            options = {"entropy_scale": entropy_scale, "threshold": 10.0, "window": 3}
            whitened, mask = entropy_whitening(*open_gate(features), **options, fused=True)
            assert mask.all() == masked and mask.any() == masked
            assert whitened.abs().max() < 1e-3 if masked else torch.equal(whitened, features)
        inputs = open_gate(torch.randn(1, 1, 2, 3, generator=rng).to(device))
        _, mask = entropy_whitening(*inputs, entropy_scale=entropy_scale, fused=True)
        assert mask.all() if entropy_scale == "nats" else not mask.any()


def test_a_threshold_is_exclusive(device):
    """Equal channels: an entropy of exactly log C, here log 1 = 0."""
    inputs = open_gate(torch.ones(1, 1, 2, 3, device=device))
    assert not entropy_whitening(*inputs, entropy_scale="nats", threshold=0.0, fused=True)[1].any()
    assert entropy_whitening(*inputs, entropy_scale="nats", threshold=1e-30, fused=True)[1].all()


@pytest.mark.parametrize("window", (pytest.param(3, marks=pytest.mark.extended), 7))
@pytest.mark.parametrize("step", (0.0, 2e3), ids=("offset", "step edge"))
def test_an_offset_costs_no_accuracy(window, step, device, rng):
    """1e3 with unit spread, also beside values far away: gradients to 1e-3 as well."""
    features = torch.randn(1, 32, 5, 8, generator=rng) + 1e3
    features[..., 4:] += step
    compare(
        open_gate(features.to(device)),
        rng,
        window=window,
        entropy_scale="nats",
        threshold=10.0,
        bound=1e-3,
    )


def test_variance_in_dead_channels(device, rng):
    """A constant window gives exactly 0; beside it, gradients grow by 1 / sqrt(eps), accurate."""
    features = torch.randn(1, 32, 5, 6, generator=rng).relu()
    features[:, 2] = 0.7
    features[:, 3] = 0
    features[:, 3, 2, 2] = 1e-3
    inputs = open_gate(features.to(device))
    options = {"entropy_scale": "nats", "threshold": 10.0}
    whitened, _ = entropy_whitening(*inputs, **options, fused=True)
    assert whitened[:, 2].eq(0).all()
    for window in (3, 5):
        compare(inputs, rng, window=window, **options)


def around(mask, window):
    """Positions whose window holds one of `mask` (B, H, W)."""
    return functional.max_pool2d(mask.float()[:, None], window, 1, window // 2)[:, 0] > 0


@pytest.mark.parametrize(
    "value, window",
    [
        (torch.nan, 3),
        (torch.inf, 5),
        pytest.param(torch.inf, 3, marks=pytest.mark.extended),
        pytest.param(-torch.inf, 3, marks=pytest.mark.extended),
        pytest.param(torch.nan, 5, marks=pytest.mark.extended),
        pytest.param(-torch.inf, 5, marks=pytest.mark.extended),
    ],
)
def test_what_is_not_finite_stays_in_the_windows_that_hold_it(value, window, device, rng):
    """Forward in its channel alone; backward wherever a position shares a masked window."""
    inputs = tensors((2, 32, 7, 8), rng, device)
    entropy = exact_entropy(inputs, "nats")[1]
    # Beside the lowest entropy, which is masked.
    row, column = divmod(int(entropy.argmin()), 8)
    column += 1 if column < 7 else -1
    inputs[0][1, 2, row, column] = value
    options = {"entropy_scale": "nats", "threshold": entropy.median().item(), "window": window}
    grad = torch.randn(inputs[0].shape, generator=rng).to(device)
    whitened, mask, grads = with_gradients(entropy_whitening, inputs, grad, fused=True, **options)
    hit = torch.zeros_like(mask)
    hit[1, row, column] = True
    assert not (mask & hit).any()
    bad = around(hit, window) & mask
    assert bad.any()
    expected = torch.zeros_like(whitened, dtype=torch.bool)
    expected[:, 2] = bad | hit
    assert torch.equal(~whitened.isfinite(), expected)
    assert math.isnan(value) == bool(whitened[1, 2, row, column].isnan())
    expected[:, 2] = around(bad, window)
    assert torch.equal(~grads[0].isfinite(), expected)


@pytest.mark.parametrize("fused", (True, False))
def test_a_nan_at_a_position_that_no_masked_window_holds_touches_no_gradient(fused, device, rng):
    inputs = tensors((1, 32, 4, 5), rng, device)
    grad = torch.randn(inputs[0].shape, generator=rng).to(device)
    inputs[0][:, :, 2] = torch.nan
    for window in (3, 5):
        _, mask, grads = with_gradients(
            entropy_whitening,
            inputs,
            grad,
            entropy_scale="nats",
            threshold=0.0,
            window=window,
            fused=fused,
        )
        assert not mask.any() and grads[0].isfinite().all()


@pytest.mark.parametrize("side", (1, 5, 9))
def test_gates_of_any_side(side, device, rng):
    compare(tensors((2, 32, 4, 5), rng, device, side=side), rng, window=1)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float64), ids=str)
def test_statistics_and_gates_of_another_dtype(dtype, device, rng):
    features, *others = tensors((2, 6, 3, 4), rng, device)
    inputs = [features, *(t.to(dtype) for t in others)]
    grad = torch.randn(features.shape, generator=rng).to(device)
    fused, plain = (
        with_gradients(entropy_whitening, inputs, grad, fused=fused, window=3)
        for fused in (True, False)
    )
    assert torch.equal(fused[1], plain[1])
    assert budget.error(fused[0], plain[0]) <= 1e-5
    # The bias has one number, a sum that may cancel.
    least = 1e-2 * max(gradient.norm().item() for gradient in plain[2])
    for name, actual, other in zip(NAMES, fused[2], plain[2], strict=True):
        assert actual.dtype == other.dtype and actual.shape == other.shape, name
        bound = max(1e-4, torch.finfo(actual.dtype).eps)
        assert budget.error(actual, other, least=least) <= bound, name


def cropped(t):
    """The upper left of a larger map: no single stride walks its positions."""
    return functional.pad(t, (0, 3, 0, 2), value=torch.nan)[..., :-2, :-3]


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
def test_map_and_gradient_of_any_two_layouts(of_map, of_grad, device, rng):
    features, mean, top, weight, bias = tensors((2, 6, 3, 4), rng, device)
    grad = of_grad(torch.randn(features.shape, generator=rng).to(device))
    inputs = [of_map(features), cropped(mean), mean.mT.contiguous().mT + top, weight.mT, bias]
    compare(inputs, rng, grad=grad, window=3)


def test_images_apart_in_memory_are_read_where_they_lie(device, rng):
    """Every second image of a larger batch, in map and gradient by turns."""
    features, *others = tensors((2, 32, 2, 3), rng, device)
    last = lambda t: t.contiguous(memory_format=torch.channels_last)
    apart = lambda t: last(torch.stack([t, torch.full_like(t, torch.nan)], 1).flatten(0, 1))[::2]
    grad = torch.randn(features.shape, generator=rng).to(device)
    compare([apart(features), *others], rng, grad=last(grad), window=3)
    compare([last(features), *others], rng, grad=apart(grad), window=3)


def test_statistics_of_images_of_many_blocks(device, rng, monkeypatch):
    """More partial results than a program reads at once, the last block short."""
    monkeypatch.setattr(configs, "PARTIALS", 1)
    monkeypatch.setattr(configs, "MAP_BLOCK", 8)
    inputs = tensors((2, 32, 7, 11), rng, device)
    # Blocks of different means: what separates them decides the deviation.
    inputs[0] = inputs[0] * torch.linspace(0.3, 3, 7, device=device)[:, None]
    for entropy_scale, threshold in (("score", 0.3), ("relative", 0.6)):
        options = {"entropy_scale": entropy_scale, "threshold": threshold, "window": 1}
        mask = compare(inputs, rng, **options)
        assert torch.equal(mask, reference(*(t.double() for t in inputs), **options)[1])


def test_stored_and_recomputed_moments_give_the_same_gradients(device, rng, monkeypatch):
    inputs = tensors((1, 32, 4, 5), rng, device)
    grad = torch.randn(inputs[0].shape, generator=rng).to(device)
    run = lambda: with_gradients(entropy_whitening, inputs, grad, window=3, fused=True)[2]
    recomputed = run()
    monkeypatch.setattr(configs, "WIDEST_RECOMPUTED", 1)
    # The bias is a lone sum that may cancel: it is measured by the gate's whole gradient.
    gate = recomputed[NAMES.index("gate_weight")].norm().item()
    for name, actual, expected in zip(NAMES, run(), recomputed, strict=True):
        least = gate if name == "gate_bias" else 1e-30
        assert budget.error(actual, expected, least=least) <= 1e-5, name


def test_an_empty_batch_has_zero_gradients(device, rng):
    inputs = [t.requires_grad_() for t in tensors((0, 6, 3, 4), rng, device)]
    whitened, mask = entropy_whitening(*inputs, fused=True)
    whitened.sum().backward()
    assert whitened.shape == (0, 6, 3, 4) and mask.shape == (0, 3, 4) and mask.dtype == torch.bool
    assert all(t.grad.shape == t.shape and t.grad.eq(0).all() for t in inputs)


@pytest.mark.parametrize(
    "options", ({}, {"window": 3, "entropy_scale": "nats"}, {"normalize": False}), ids=str
)
def test_saves_its_inputs_and_maps_of_one_number_a_position(options, device, rng):
    inputs = tensors((2, 8, 4, 5), rng, device, torch.bfloat16)
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t
    ):
        entropy_whitening(*(t.requires_grad_() for t in inputs), fused=True, **options)
    assert sum(t.numel() * t.element_size() for t in kept.values()) == COST.saved_bytes(
        dict(zip(NAMES, inputs, strict=True))
    )


@interpreted
@pytest.mark.parametrize(
    "window, launches", [(3, ["whiten_gather"]), (5, ["whiten_moments", "whiten_gather"])]
)
def test_launches_of_the_backward(window, launches, device, rng):
    """The gate's three only where something beside the map asks; none depends on the batch."""
    from tests.proof.traffic import meter

    for batch, gate in ((1, False), (3, True)):
        inputs = tensors((batch, 32, 2, 3), rng, device)
        inputs[0].requires_grad_()
        inputs[4].requires_grad_(gate)
        whitened, _ = entropy_whitening(*inputs, window=window, fused=True)
        with meter() as found:
            whitened.sum().backward()
        assert [launch.kernel for launch in found[: len(launches)]] == launches
        assert len(found) == len(launches) + (3 if gate else 0)
        # A gradient that nothing wrote would be NaN: fresh memory holds it here.
        assert inputs[4].grad.isfinite().all() if gate else inputs[4].grad is None


@interpreted
@pytest.mark.parametrize("window", (3, 7))
def test_taps_grow_with_the_window_and_not_with_its_square(window, device, rng):
    """A strip's halo, read once, over the strip; a pivot a strip and the entropy's pass."""
    from tests.proof.traffic import meter, requested_bytes

    inputs = tensors((1, 32, 12, 16), rng, device)
    inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), meter() as launches:
        entropy_whitening(*inputs, window=window, entropy_scale="nats", threshold=10.0, fused=True)
    (whiten,) = (launch for launch in launches if launch.kernel == "entropy_whiten")
    side, floor = min(4, window), 2 * inputs[0].numel() * 4
    # The centre of each position, its entropy, and a pivot.
    reads = ((side + window - 1) / side) ** 2 + 2 + side**-2
    # Strips that stick out over the map read what is inside.
    rows, strips = -(-12 // side), 1 << (-(-16 // side) - 1).bit_length()
    whole = rows * strips * side**2 / (12 * 16)
    assert requested_bytes([whiten]) <= 1.1 * (reads * whole + 1) / 2 * floor
