"""The eager operators and their references against numpy in float64: equations.md with loops."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from intrasense_fast.functional import (
    bce_dice,
    channel_decoupling,
    entropy_whitening,
    nonlocal_attention,
)
from intrasense_fast.kernels.bce_dice import reference as bce_dice_reference
from intrasense_fast.kernels.channel_decoupling import reference as channel_decoupling_reference
from intrasense_fast.kernels.entropy_whitening import reference as entropy_whitening_reference
from intrasense_fast.kernels.nonlocal_attention import eager as nonlocal_attention_eager
from intrasense_fast.kernels.nonlocal_attention import reference as nonlocal_attention_reference

TOLERANCE = 1e-10


def close(actual: torch.Tensor, expected: np.ndarray, what: str) -> None:
    assert tuple(actual.shape) == expected.shape, what
    assert actual.dtype == torch.float64, what
    assert np.array_equal(np.isnan(actual.numpy()), np.isnan(expected)), what
    error = np.linalg.norm(np.nan_to_num(actual.numpy() - expected)) / max(
        np.linalg.norm(np.nan_to_num(expected)), 1e-30
    )
    assert error <= TOLERANCE, f"{what}: {error:.1e}"


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    "function", [nonlocal_attention, nonlocal_attention_reference.nonlocal_attention]
)
@pytest.mark.parametrize(
    "batch, positions, depth, channels", [(2, 37, 8, 20), (1, 1, 1, 1), (3, 5, 3, 1)]
)
def test_nonlocal_attention_follows_equations_2_and_3(
    function, batch, positions, depth, channels, rng
):
    q, k = (
        torch.randn(batch, positions, depth, dtype=torch.float64, generator=rng) for _ in range(2)
    )
    v, x = (
        torch.randn(batch, positions, channels, dtype=torch.float64, generator=rng)
        for _ in range(2)
    )
    features, mean, top = function(q, k, v, x)
    expected = np.empty((batch, positions, channels))
    for b in range(batch):
        for i in range(positions):
            scores = np.array(
                [q[b, i].numpy() @ k[b, j].numpy() for j in range(positions)]
            ) / math.sqrt(depth)
            expected[b, i] = softmax(scores) @ v[b].numpy() + x[b, i].numpy()
    close(features, expected, "features")
    close(mean, expected.mean(-1), "channel_mean")
    close(top, expected.max(-1), "channel_max")


def test_attention_in_chunks_of_queries_is_the_same_function(rng):
    q, k, v, x = (
        torch.randn(2, 23, n, dtype=torch.float64, generator=rng, requires_grad=True)
        for n in (4, 4, 9, 9)
    )
    whole = nonlocal_attention_reference.nonlocal_attention(q, k, v, x)
    grads = [torch.randn_like(y) for y in whole]
    chunked = nonlocal_attention_eager.eager(q, k, v, x, scores_at_a_time=2 * 23 * 5)
    for actual, expected in zip(chunked, whole, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-13)
    for actual, expected in zip(
        torch.autograd.grad(chunked, (q, k, v, x), grads),
        torch.autograd.grad(whole, (q, k, v, x), grads),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_maximum_sends_its_gradient_to_the_lowest_channel_that_attains_it():
    x = torch.zeros(1, 2, 4, dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros(1, 2, 3, dtype=torch.float64)
    _, _, top = nonlocal_attention(zeros, zeros, torch.zeros(1, 2, 4, dtype=torch.float64), x)
    top.sum().backward()
    assert x.grad.tolist() == [[[1, 0, 0, 0], [1, 0, 0, 0]]]


def participation(sigma: np.ndarray) -> float:
    return (sigma**2).sum() ** 2 / (sigma**4).sum() / len(sigma)


def whitening_oracle(f, mean, top, weight, bias, threshold, scale, window, eps):
    batch, channels, height, width = f.shape
    radius = weight.shape[-1] // 2
    attended = np.empty_like(f)
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                logit = bias[0]
                for dy in range(-radius, radius + 1):
                    for dx in range(-radius, radius + 1):
                        if 0 <= y + dy < height and 0 <= x + dx < width:
                            logit += (
                                weight[0, 0, dy + radius, dx + radius] * mean[b, y + dy, x + dx]
                            )
                            logit += weight[0, 1, dy + radius, dx + radius] * top[b, y + dy, x + dx]
                attended[b, :, y, x] = f[b, :, y, x] / (1 + math.exp(-logit))
    p = softmax(np.moveaxis(attended, 1, -1))
    entropy = -(p * np.log(p)).sum(-1)
    scaled = np.full_like(entropy, np.nan)
    for b in range(batch):
        e = entropy[b]
        if scale == "nats":
            scaled[b] = e
        elif scale == "max" and channels > 1:
            scaled[b] = e / math.log(channels)
        elif scale == "relative" and e.max() - e.min() > 1e-3:
            scaled[b] = (e - e.min()) / (e.max() - e.min())
        elif scale == "score" and e.std() > 1e-4:
            scaled[b] = 1 / (1 + np.exp(-(e - e.mean()) / e.std()))
    mask = scaled < threshold
    out = attended.copy()
    r = window // 2
    for b, y, x in zip(*np.nonzero(mask), strict=True):
        patch = attended[b, :, max(0, y - r) : y + r + 1, max(0, x - r) : x + r + 1].reshape(
            channels, -1
        )
        out[b, :, y, x] = (attended[b, :, y, x] - patch.mean(1)) / np.sqrt(patch.var(1) + eps)
    return out, mask


@pytest.mark.parametrize(
    "function", [entropy_whitening, entropy_whitening_reference.entropy_whitening]
)
@pytest.mark.parametrize(
    "scale, threshold", [("score", 0.5), ("relative", 0.4), ("max", 0.85), ("nats", 1.5)]
)
@pytest.mark.parametrize(
    "shape, window",
    [
        ((2, 6, 7, 5), 7),
        ((1, 6, 4, 9), 3),
        ((1, 1, 3, 3), 5),
        ((1, 6, 1, 1), 7),
        ((1, 3, 2, 3), 15),
    ],
)
def test_entropy_whitening_follows_equations_4_to_7(function, scale, threshold, shape, window, rng):
    f = torch.randn(shape, dtype=torch.float64, generator=rng) + 1
    weight = 0.05 * torch.randn(1, 2, 7, 7, dtype=torch.float64, generator=rng)
    bias = torch.randn(1, dtype=torch.float64, generator=rng)
    tensors = (f, f.mean(1), f.amax(1), weight, bias)
    whitened, mask = function(
        *tensors, threshold=threshold, entropy_scale=scale, window=window, eps=1e-3
    )
    expected, expected_mask = whitening_oracle(
        *(t.numpy() for t in tensors), threshold, scale, window, 1e-3
    )
    assert mask.dtype == torch.bool
    assert mask.numpy().tolist() == expected_mask.tolist()
    close(whitened, expected, "whitened")


def test_the_mask_of_the_default_scale_is_neither_empty_nor_full(rng):
    f = torch.randn(2, 16, 12, 12, generator=rng)
    _, mask = entropy_whitening(f, f.mean(1), f.amax(1), torch.zeros(1, 2, 7, 7), torch.zeros(1))
    assert 0.2 < mask.float().mean() < 0.8


def test_a_large_offset_costs_no_accuracy(rng):
    f = torch.randn(1, 3, 12, 12, generator=rng) + 1e3
    zeros = torch.zeros(1, 12, 12)
    arguments = (f, zeros, zeros, torch.zeros(1, 2, 7, 7), torch.full((1,), 100.0))
    whitened, mask = entropy_whitening(*arguments, threshold=10.0, entropy_scale="nats")
    expected, _ = whitening_oracle(*(t.double().numpy() for t in arguments), 10.0, "nats", 7, 1e-3)
    assert mask.all()
    assert np.linalg.norm(whitened.double().numpy() - expected) / np.linalg.norm(expected) <= 1e-3


@pytest.mark.parametrize(
    "function", [channel_decoupling, channel_decoupling_reference.channel_decoupling]
)
@pytest.mark.parametrize("squeeze", ["input", "decoupled"])
@pytest.mark.parametrize(
    "shape", [(2, 6, 7, 5), (2, 20, 3, 4), (1, 12, 3, 4), (1, 1, 3, 3), (2, 5, 1, 1)]
)
def test_channel_decoupling_follows_equations_8_to_12(function, squeeze, shape, rng):
    batch, channels, height, width = shape
    reduced, ridge = 3, 2.5
    f = torch.randn(shape, dtype=torch.float64, generator=rng).relu() + 0.1
    weights = [
        torch.randn(s, dtype=torch.float64, generator=rng)
        for s in ((reduced, channels), (reduced,), (channels, reduced), (channels,))
    ]
    out, rank_gap, distance = function(f, *weights, ridge=ridge, squeeze=squeeze)
    w1, b1, w2, b2 = (w.numpy() for w in weights)
    expected, gaps, distances = np.empty(shape), np.empty(batch), np.empty(batch)
    for b in range(batch):
        x = f[b].numpy().reshape(channels, -1)
        # A direction of energy g keeps lambda / (g + lambda) of itself.
        u, sigma, vt = np.linalg.svd(x, full_matrices=False)
        energy = sigma**2
        lam = ridge * energy.sum() / min(x.shape)
        kept = sigma * lam / (energy + lam)
        decoupled = u @ np.diag(kept) @ vt
        gaps[b] = participation(sigma) - participation(kept)
        distances[b] = ((x - decoupled) ** 2).sum() / (x**2).sum()
        mean = (x if squeeze == "input" else decoupled).mean(1)
        gate = 1 / (1 + np.exp(-(w2 @ np.maximum(w1 @ mean + b1, 0) + b2)))
        expected[b] = (gate[:, None] * decoupled).reshape(channels, height, width)
    close(out, expected, "reweighted")
    assert np.abs(rank_gap.numpy() - gaps).max() <= TOLERANCE
    assert np.abs(distance.numpy() - distances).max() <= TOLERANCE


@pytest.mark.parametrize(
    "scale, ridge",
    [(1e-20, 10.0), (1e-12, 10.0), (1e12, 10.0), (1e17, 10.0), (1.0, 1e-3), (1.0, 1e8)],
)
@pytest.mark.parametrize("shape", [(2, 12, 5, 7), (2, 30, 3, 4)])
def test_channel_decoupling_of_any_scale_and_ridge(shape, scale, ridge, rng):
    """Outputs and gradients in float32 against the specification in float64."""
    channels = shape[1]
    features = (torch.randn(shape, generator=rng).relu() + 0.1) * scale
    weights = [
        torch.randn(size, generator=rng)
        for size in ((2, channels), (2,), (channels, 2), (channels,))
    ]
    found, wanted = features.clone().requires_grad_(), features.double().requires_grad_()
    out, gap, distance = channel_decoupling(found, *weights, ridge=ridge, fused=False)
    exact = channel_decoupling_reference.channel_decoupling(
        wanted, *(t.double() for t in weights), ridge=ridge
    )
    grad = torch.randn(shape, generator=rng)
    for actual, expected, g in ((out, exact[0], grad), (gap, exact[1], torch.ones(2))):
        (got,) = torch.autograd.grad(actual, found, g, retain_graph=True)
        (truth,) = torch.autograd.grad(expected, wanted, g.double(), retain_graph=True)
        assert got.isfinite().all() and (got - truth).norm() <= 1e-4 * truth.norm()
    assert (out - exact[0]).norm() <= 5e-6 * wanted.norm()
    assert (gap - exact[1]).abs().max() <= 1e-5 and (distance - exact[2]).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "function", [channel_decoupling, channel_decoupling_reference.channel_decoupling]
)
def test_zero_and_non_finite_images_stay_apart(function, rng):
    f = torch.randn(4, 5, 3, 4, dtype=torch.float64, generator=rng)
    f[1] = 0
    f[2, 0, 0, 0] = torch.nan
    f[3, 1, 2, 2] = torch.inf
    f.requires_grad_()
    weights = [
        torch.randn(s, dtype=torch.float64, generator=rng) for s in ((2, 5), (2,), (5, 2), (5,))
    ]
    out, rank_gap, distance = function(f, *weights)
    assert out[:2].isfinite().all() and out[2:].isnan().all()
    assert rank_gap[1] == distance[1] == 0
    assert rank_gap[2:].isnan().all() and distance[2:].isnan().all()
    assert torch.equal(out[1], torch.zeros_like(out[1]))
    (out[:2].sum() + rank_gap[:2].sum() + distance[:2].sum()).backward()
    assert f.grad[:2].isfinite().all()
    expected = torch.sigmoid(weights[2] @ weights[1].relu() + weights[3])[:, None, None].expand(
        5, 3, 4
    )
    torch.testing.assert_close(f.grad[1], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("function", [bce_dice, bce_dice_reference.bce_dice])
@pytest.mark.parametrize(
    "kind", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.float64]
)
def test_bce_dice_follows_equations_14_and_15(function, kind, rng):
    z = 4 * torch.randn(3, 2, 5, 7, dtype=torch.float64, generator=rng)
    y = torch.rand(3, 2, 5, 7, generator=rng)
    y = y.to(kind) if kind.is_floating_point else (y > 0.6).to(kind)
    bce, dice = function(z, y)
    p, t = 1 / (1 + np.exp(-z.numpy())), y.double().numpy()
    close(bce, np.array(-(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()), "bce")
    classes = [
        1 - 2 * (t[:, k] * p[:, k]).sum() / (t[:, k].sum() + p[:, k].sum()) for k in range(2)
    ]
    close(dice, np.array(np.mean(classes)), "dice")


@pytest.mark.parametrize("function", [bce_dice, bce_dice_reference.bce_dice])
def test_bce_dice_at_its_edges(function):
    confident = torch.full((1, 1, 2, 2), 1e4, dtype=torch.float64, requires_grad=True)
    bce, dice = function(confident, torch.ones(1, 1, 2, 2))
    assert bce == 0 and dice == 0
    nothing = torch.full((1, 1, 2, 2), -1e4, dtype=torch.float64, requires_grad=True)
    bce, dice = function(nothing, torch.zeros(1, 1, 2, 2))
    (bce + dice).backward()
    assert bce == 0 and dice == 0 and torch.equal(nothing.grad, torch.zeros_like(nothing))
    empty_target = torch.zeros(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    _, dice = function(empty_target, torch.zeros(1, 1, 2, 2))
    dice.backward()
    assert dice == 1 and torch.equal(empty_target.grad, torch.zeros_like(empty_target))
    bce, dice = function(torch.zeros(0, 1, 2, 2), torch.zeros(0, 1, 2, 2))
    assert bce == 0 and dice == 0


def test_gradcheck_nonlocal_attention(rng):
    tensors = [
        torch.randn(2, 5, n, dtype=torch.float64, generator=rng, requires_grad=True)
        for n in (3, 3, 4, 4)
    ]
    assert gradcheck(lambda *t: nonlocal_attention(*t, fused=False), tensors)


@pytest.mark.parametrize("scale, threshold", [("score", 0.5), ("nats", 1.4)])
@pytest.mark.parametrize("window", [1, 3, 7])
def test_gradcheck_entropy_whitening(scale, threshold, window, rng):
    f = torch.randn(1, 5, 4, 3, dtype=torch.float64, generator=rng)
    # One position of the highest entropy, one of the lowest: the mask is neither empty nor full.
    f[..., 0, 0], f[..., 1, 1] = 0, torch.tensor([40.0, 0, 0, 0, 0])
    others = [
        torch.randn(s, dtype=torch.float64, generator=rng) / 4
        for s in ((1, 4, 3), (1, 4, 3), (1, 2, 3, 3), (1,))
    ]
    tensors = [t.requires_grad_() for t in (f, *others)]
    function = lambda *t: entropy_whitening(
        *t, threshold=threshold, entropy_scale=scale, window=window, fused=False
    )
    assert 0 < function(*tensors)[1].sum() < 12
    assert gradcheck(lambda *t: function(*t)[0], tensors)


@pytest.mark.parametrize("squeeze", ["input", "decoupled"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 2), (1, 7, 2, 2)])
def test_gradcheck_channel_decoupling(squeeze, shape, rng):
    f = torch.randn(shape, dtype=torch.float64, generator=rng)
    channels, positions = shape[1], shape[2] * shape[3]
    r = min(channels, positions)
    tensors = [
        t.requires_grad_()
        for t in (
            f,
            *(
                torch.randn(s, dtype=torch.float64, generator=rng)
                for s in ((2, channels), (2,), (channels, 2), (channels,))
            ),
        )
    ]

    def function(features, *weights):
        out, rank_gap, distance = channel_decoupling(
            features, *weights, squeeze=squeeze, fused=False
        )
        flat = features.reshape(features.shape[0], channels, positions)
        gram = flat @ flat.transpose(1, 2)
        rank = gram.diagonal(dim1=1, dim2=2).sum(-1).square() / gram.square().sum((1, 2)) / r
        # PR(F) / r carries no gradient, so it is taken out of what the numerical derivative sees.
        return out, rank_gap - rank.detach(), distance

    assert gradcheck(function, tensors)


def test_gradcheck_bce_dice(rng):
    z = torch.randn(2, 2, 3, 3, dtype=torch.float64, generator=rng, requires_grad=True)
    assert gradcheck(
        lambda z: bce_dice(
            z, torch.rand(2, 2, 3, 3, generator=torch.Generator().manual_seed(1)), fused=False
        ),
        z,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_and_memory_formats_of_the_outputs(dtype, rng):
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    q, k, v, x = (torch.randn(1, 6, n, generator=rng).to(dtype) for n in (2, 2, 4, 4))
    assert [t.dtype for t in nonlocal_attention(q, k, v, x)] == [dtype, statistics, statistics]
    for memory_format in (torch.contiguous_format, torch.channels_last):
        f = torch.randn(2, 4, 3, 5, generator=rng).to(dtype).contiguous(memory_format=memory_format)
        out, mask = entropy_whitening(
            f, f.float().mean(1), f.float().amax(1), torch.zeros(1, 2, 7, 7), torch.zeros(1)
        )
        assert (
            out.dtype == dtype
            and mask.dtype == torch.bool
            and out.is_contiguous(memory_format=memory_format)
        )
        out, *terms = channel_decoupling(
            f, torch.zeros(1, 4), torch.zeros(1), torch.zeros(4, 1), torch.zeros(4)
        )
        assert out.dtype == dtype and out.is_contiguous(memory_format=memory_format)
        assert [t.dtype for t in terms] == [statistics, statistics]
        assert [t.dtype for t in bce_dice(f, (f > 0))] == [statistics, statistics]
