"""nonlocal_attention fused, where the contract matrix does not look."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.autograd import gradcheck

pytest.importorskip("triton", reason="the kernels need Triton, which has wheels for Linux only")

from intrasense_fast.functional import nonlocal_attention
from intrasense_fast.kernels._common.configs import ARCHITECTURES, assume
from intrasense_fast.kernels.nonlocal_attention import configs, launch
from intrasense_fast.kernels.nonlocal_attention.eager import eager
from intrasense_fast.kernels.nonlocal_attention.reference import nonlocal_attention as reference
from tests.proof import budget
from tests.proof.operators.nonlocal_attention import COMPILATION, separate_maxima

NAMES = ("query", "key", "value", "residual")
OUTPUTS = ("features", "channel_mean", "channel_max")


def tensors(
    batch, positions, depth, channels, dtype, rng, device, *, query=1.0, key=0.0, residual=1.0
):
    """Views of one projection, and the residual: query and residual scaled, key shifted."""
    projection = torch.randn(batch, positions, 2 * depth + channels, generator=rng)
    projection[..., :depth] *= query
    projection[..., depth : 2 * depth] += key
    q, k, v = projection.to(device, dtype).split([depth, depth, channels], -1)
    return (
        q,
        k,
        v,
        (torch.randn(batch, positions, channels, generator=rng) * residual).to(device, dtype),
    )


def with_gradients(function, inputs, grads):
    inputs = [t.detach().requires_grad_() for t in inputs]
    outputs = function(*inputs)
    return outputs, torch.autograd.grad(
        outputs, inputs, [g.to(o.dtype) for g, o in zip(grads, outputs, strict=True)]
    )


def compare(inputs, rng, *, forward=budget.FORWARD):
    """Fused against float64, within the budget of the dtype, where no maximum is nearly a tie."""
    separate_maxima(*inputs)
    batch, positions, channels = inputs[2].shape
    shapes = ((batch, positions, channels), (batch, positions), (batch, positions))
    grads = [torch.randn(shape, generator=rng).to(inputs[0]) for shape in shapes]
    fused = with_gradients(lambda *t: nonlocal_attention(*t, fused=True), inputs, grads)
    truth = with_gradients(reference, [t.double() for t in inputs], grads)
    low = with_gradients(eager, inputs, grads) if inputs[0].dtype.itemsize == 2 else None
    for part, names in ((0, OUTPUTS), (1, [f"d_{name}" for name in NAMES])):
        for index, name in enumerate(names):
            actual, expected = fused[part][index], truth[part][index]
            if low is not None:
                budget.assert_within_budget(actual, low[part][index], expected, name)
            else:
                bound = forward if part == 0 else budget.BACKWARD
                budget.assert_close(
                    actual,
                    expected,
                    budget.FLOAT64 if actual.dtype == torch.float64 else bound,
                    name,
                )


@pytest.mark.parametrize(
    "positions, channels, dtype, scales",
    [
        (1024, 64, torch.bfloat16, {"query": 0.2, "key": 2.0, "residual": 4.0}),
        pytest.param(
            1024,
            64,
            torch.float16,
            {"query": 0.2, "key": 2.0, "residual": 4.0},
            marks=pytest.mark.extended,
        ),
        pytest.param(1024, 64, torch.bfloat16, {"query": 3.0}, marks=pytest.mark.extended),
        pytest.param(
            2048,
            64,
            torch.bfloat16,
            {"query": 0.2, "key": 2.0, "residual": 4.0},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            1024,
            256,
            torch.bfloat16,
            {"query": 0.2, "key": 2.0, "residual": 16.0},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_gradients_of_diffuse_attention_over_keys_with_a_mean(
    positions, channels, dtype, scales, device, rng
):
    """Delta from the rounded output ruins dq here, and only here: not with data around zero."""
    compare(
        tensors(1, positions, max(8, channels // 8), channels, dtype, rng, device, **scales), rng
    )


@pytest.mark.extended
@pytest.mark.parametrize(
    "architecture, depth, channels, dtype",
    [
        ("sm_90", 8, 64, torch.bfloat16),
        ("sm_90", 32, 256, torch.float16),
        ("sm_90", 64, 512, torch.bfloat16),
        ("sm_90", 128, 1024, torch.bfloat16),
        ("sm_90", 33, 77, torch.float32),
        ("sm_80", 16, 128, torch.bfloat16),
        ("sm_80", 60, 500, torch.bfloat16),
        ("sm_80", 256, 2048, torch.bfloat16),
        ("gfx942", 32, 256, torch.float32),
        ("gfx942", 33, 77, torch.float16),
        ("sm_90", 512, 512, torch.bfloat16),
        ("sm_86", 512, 64, torch.float16),
        ("sm_90", 1, 300, torch.bfloat16),
    ],
)
def test_every_table(architecture, depth, channels, dtype, device, rng):
    """The shipped tiles, with a last tile that is not full."""
    if device.type == "cuda" and architecture != "sm_90":
        pytest.skip("a GPU uses its own table")
    with assume(architecture):
        compare(
            tensors(1, 135 if architecture == "sm_90" else 70, depth, channels, dtype, rng, device),
            rng,
        )


@pytest.mark.parametrize(
    "batch, positions, depth, channels",
    [
        (2, 1, 1, 1),
        (2, 5, 3, 4),
        pytest.param(1, 3, 2, 2, marks=pytest.mark.extended),
        pytest.param(1, 35, 17, 3, marks=pytest.mark.extended),
    ],
)
def test_gradcheck(batch, positions, depth, channels, device, rng):
    """The whole Jacobian of the smallest shape, a random projection of it for the others."""
    if device.type == "cuda":
        pytest.skip("float64 runs eager on a GPU")
    inputs = [
        t.detach().requires_grad_()
        for t in tensors(batch, positions, depth, channels, torch.float64, rng, device)
    ]
    assert gradcheck(
        lambda *t: nonlocal_attention(*t, fused=True), inputs, fast_mode=positions != 3
    )


def test_many_splits_sum_to_the_same(device, rng, monkeypatch):
    """Several programs share the keys and the queries, unevenly."""
    monkeypatch.setattr(configs, "PROGRAMS", 6)
    inputs = tensors(
        1, 150, 5, 20, torch.float64 if device.type == "cpu" else torch.float32, rng, device
    )
    assert configs.splits(1, 5, 5) == (3, 2, 2, 3)
    compare(inputs, rng)


@pytest.mark.parametrize(
    "depth, channels, dtype",
    [(8, 64, torch.float16), (32, 256, torch.bfloat16), (48, 448, torch.bfloat16)],
)
def test_resident_values_of_the_table_in_uneven_splits(
    depth, channels, dtype, device, rng, monkeypatch
):
    """A program adds several tiles of keys into its dq; the tiles of queries do not end with N."""
    monkeypatch.setattr(configs, "PROGRAMS", 4)
    blocks = configs.score_gradient_config(depth, channels, dtype, "sm_90", "ieee").blocks
    row_tiles, key_tiles = -(-300 // blocks["BLOCK_M"]), -(-300 // blocks["BLOCK_N"])
    assert blocks["BLOCK_V"] >= channels and configs.splits(1, row_tiles, key_tiles)[:3] == (
        2,
        2,
        2,
    )
    inputs = tensors(1, 300, depth, channels, dtype, rng, device, key=2.0)
    assert launch.aligned(channels, *inputs)
    with assume("sm_90"):
        compare(inputs, rng)


@pytest.mark.parametrize("batch", (1, 2, 4, 16, 512))
@pytest.mark.parametrize(
    "row_tiles, key_tiles", [(1, 1), (2, 1), (7, 5), (64, 32), (1024, 512), (10**6, 10**6)]
)
def test_splits_cover_everything_and_stay_bounded(batch, row_tiles, key_tiles):
    keys, tiles, queries, rows = configs.splits(batch, row_tiles, key_tiles)
    assert (keys - 1) * tiles < key_tiles <= keys * tiles
    assert (queries - 1) * rows < row_tiles <= queries * rows
    assert keys + queries <= 32
    # 132 multiprocessors have work wherever there are tiles enough.
    assert batch * keys * queries >= min(132, batch * min(key_tiles, 16) * min(row_tiles, 16) // 4)


def test_workspace_is_bounded_whatever_n(monkeypatch, device):
    allocated = []
    start = launch.launch
    monkeypatch.setattr(
        launch, "launch", lambda kernel, grid, *args, **options: allocated.extend(args)
    )
    positions, depth, channels = 65536, 32, 256
    q, k, v, x = (
        torch.empty(1, positions, n, dtype=torch.bfloat16, device="meta")
        for n in (depth, depth, channels, channels)
    )
    features, mean, top, argmax, lse, attended = launch.forward(q, k, v, x, True)
    saved = launch.Saved(q, k, v, attended, lse, argmax)
    grads = launch.backward(saved, features, mean, top, True, True)
    given = (q, k, v, x, features, mean, top, argmax, lse, attended, *grads)
    workspace = {
        id(t): t
        for t in allocated
        if isinstance(t, torch.Tensor) and not any(t is g for g in given)
    }
    total = sum(t.numel() * t.element_size() for t in workspace.values())
    assert start is not launch.launch and len(workspace) >= 3
    assert total <= 4 * 32 * positions * depth + 2 * positions * channels + 4 * positions


@pytest.mark.parametrize(
    "architecture, depth, channels, dtype",
    [
        ("sm_90", 4, 6, torch.float32),
        ("sm_90", 8, 64, torch.bfloat16),
        ("sm_80", 8, 64, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("sign", (-1.0, 1.0))
def test_scores_far_from_zero(sign, architecture, depth, channels, dtype, device, rng):
    """2^(0 - lse) overflows for keys past the end when every score is very negative.

    Very positive ones must not overflow either.
    """
    q, k, v, x = tensors(1, 37, depth, channels, dtype, rng, device)
    q[..., 0], k[..., 0] = sign * 20, 20
    # Exponents near 288 have a spacing of 3e-5, which the forward passes on.
    with assume(architecture):
        compare((q, k, v, x), rng, forward=budget.BACKWARD)


def test_a_score_of_minus_infinity_is_a_masked_key(device, rng):
    """The first tile of keys may hold only -inf; a row of nothing else is NaN, as in softmax."""
    q, k, v, x = (t.clone() for t in tensors(1, 200, 4, 6, torch.float32, rng, device))
    q[..., 0], k[..., 0] = 1, 0
    k[:, :150, 0] = -torch.inf
    features, mean, top = nonlocal_attention(q, k, v, x, fused=True)
    expected = nonlocal_attention(
        q[:, :, 1:] * math.sqrt(3 / 4),
        k[:, 150:, 1:].repeat(1, 4, 1),
        v[:, 150:].repeat(1, 4, 1),
        x,
        fused=False,
    )
    for actual, wanted in zip((features, mean, top), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)
    k[:, :, 0] = -torch.inf
    for actual, wanted in zip(
        nonlocal_attention(q, k, v, x, fused=True), reference(q, k, v, x), strict=True
    ):
        budget.check_form(actual, wanted, "all scores -inf")
        assert actual.isnan().all()


@pytest.mark.parametrize("where", NAMES)
def test_nan_reaches_exactly_the_gradients_it_reaches_in_the_reference(where, device, rng):
    inputs = [t.clone() for t in tensors(2, 37, 4, 6, torch.float32, rng, device)]
    inputs[NAMES.index(where)][0, 3, 2] = torch.nan
    grads = [
        torch.randn(shape, generator=rng).to(device) for shape in ((2, 37, 6), (2, 37), (2, 37))
    ]
    fused = with_gradients(lambda *t: nonlocal_attention(*t, fused=True), inputs, grads)
    truth = with_gradients(reference, inputs, grads)
    for part, names in ((0, OUTPUTS), (1, NAMES)):
        for name, actual, expected in zip(names, fused[part], truth[part], strict=True):
            budget.check_form(actual, expected, f"{name} with NaN in {where}")


@pytest.mark.parametrize("channels", (4, 300))
def test_the_maximum_takes_the_lowest_channel_of_a_tie(channels, device):
    zeros = torch.zeros(1, 2, 3, device=device)
    x = torch.zeros(1, 2, channels, device=device)
    x[0, 1, channels // 2 :] = 1
    x.requires_grad_()
    _, _, top = nonlocal_attention(
        zeros, zeros, torch.zeros(1, 2, channels, device=device), x, fused=True
    )
    top.sum().backward()
    assert top.tolist() == [[0, 1]]
    assert x.grad[0].argmax(-1).tolist() == [0, channels // 2]
    assert x.grad.sum() == 2


def test_the_maximum_is_nan_at_the_first_nan(device):
    x = torch.zeros(1, 1, 600, device=device)
    x[0, 0, 10], x[0, 0, [70, 400]] = torch.inf, torch.nan
    x.requires_grad_()
    zeros = torch.zeros(1, 1, 2, device=device)
    _, _, top = nonlocal_attention(zeros, zeros, torch.zeros_like(x), x, fused=True)
    (grad,) = torch.autograd.grad(top, x, torch.ones_like(top))
    assert top.isnan().all() and grad.argmax().item() == 70 and grad.sum() == 1


def test_statistics_are_taken_before_rounding(device, rng):
    q, k, v, x = tensors(1, 40, 4, 50, torch.bfloat16, rng, device)
    _, mean, top = nonlocal_attention(q, k, v, x, fused=True)
    truth = reference(*(t.double() for t in (q, k, v, x)))
    # Rounding the features to bfloat16 first would cost the maximum 2^-9 of itself; p and its
    # products cost less.
    assert ((top.double() - truth[2]).abs() / truth[2].abs()).median() <= 2**-11
    assert mean.dtype == top.dtype == torch.float32


def test_attended_is_saved_only_for_the_gradients_that_need_it(device, rng):
    q, k, v, x = tensors(1, 20, 3, 40, torch.float32, rng, device)
    sizes = {}
    for needed in NAMES:
        inputs = [
            t.detach().requires_grad_(name == needed)
            for name, t in zip(NAMES, (q, k, v, x), strict=True)
        ]
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: kept.append(t) or t, lambda t: t
        ):
            nonlocal_attention(*inputs, fused=True)
        sizes[needed] = sum(t.numel() for t in kept)
    assert sizes["query"] == sizes["key"] == sizes["value"] + 20 * 40 == sizes["residual"] + 20 * 40


def test_nothing_is_copied_from_a_projection(device, rng, monkeypatch):
    """query, key and value of one projection reach the kernels as the views they are."""
    seen = []
    start = launch.launch

    def spy(kernel, grid, *args, **options):
        seen.extend(t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor))
        return start(kernel, grid, *args, **options)

    monkeypatch.setattr(launch, "launch", spy)
    q, k, v, x = tensors(2, 20, 3, 40, torch.float32, rng, device)
    nonlocal_attention(q, k, v, x, fused=True)
    assert seen.count(q.untyped_storage().data_ptr()) == 3


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("aligned", (True, False))
def test_every_shape_has_a_configuration(aligned, architecture, dtype):
    precision = "ieee" if architecture == "gfx942" or dtype != torch.float32 else "tf32x3"
    for depth in (1, 7, 8, 16, 17, 64, 100, 256, 300, 512, 2000):
        for channels in (1, 8, 63, 64, 65, 256, 257, 1000, 2048, 5000):
            of = (depth, channels, dtype, architecture, precision, aligned)
            forward = configs.forward_config(*of).blocks
            value = configs.value_gradient_config(*of).blocks
            score = configs.score_gradient_config(*of).blocks
            for blocks in (forward, value):
                assert 16 <= blocks["BLOCK_S"] <= blocks["BLOCK_D"] >= depth
                assert blocks["BLOCK_C"] // blocks.get("SLICES", 1) >= 16
                assert not blocks["EVEN_D"] or (blocks["BLOCK_S"] == depth)
            if "BLOCK_D" in score:
                assert score["BLOCK_D"] >= depth


@pytest.mark.parametrize("dtype", ("bfloat16", "float16", "float32"))
@pytest.mark.parametrize("target", ("sm_80", "sm_86", "sm_90"))
def test_the_full_table_holds_every_promised_shape(target, dtype):
    """What holds of the committed table (test_compiled.py) holds of these."""
    jobs = [
        job
        for job in COMPILATION.jobs("full")
        if job.target == target and job.kernel.endswith(":attention_forward")
    ]
    for depth, channels in (
        (8, 64),
        (16, 128),
        (32, 256),
        (64, 512),
        (128, 1024),
        (256, 2048),
        (512, 512),
    ):
        found = [job for job in jobs if job.label == f"d={depth} C={channels} N=4096 {dtype}"]
        assert {job.constexprs["SAVE"] for job in found} == {True, False}
        assert target != "sm_90" or all("HGMMA" in COMPILATION.instructions(job) for job in found)


@pytest.mark.extended
def test_the_example_runs():
    example = Path(__file__).parents[2] / "examples" / "vae_attention.py"
    run = subprocess.run(
        [sys.executable, example, "--size", "6"],
        cwd=example.parents[1],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert float(re.search(r"largest difference (\S+)", run.stdout).group(1)) <= 1e-4
    wrong = subprocess.run(
        [sys.executable, example, "--size", "0"],
        cwd=example.parents[1],
        capture_output=True,
        text=True,
    )
    assert wrong.returncode == 2 and "--size must be at least 1, got 0" in wrong.stderr
