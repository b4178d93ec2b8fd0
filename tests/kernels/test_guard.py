"""The guard and the repaired interpreter find planted faults."""

import os

import pytest
import torch

triton = pytest.importorskip(
    "triton", reason="the kernels need Triton, which has wheels for Linux only"
)
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "the guard works in Triton's interpreter: run with TRITON_INTERPRET=1",
        allow_module_level=True,
    )

tl = pytest.importorskip("triton.language")
InterpreterError = pytest.importorskip("triton.runtime.errors").InterpreterError

from tests.proof.guard import guard  # noqa: E402
from tests.proof.traffic import device_bytes, dot_flops, meter, requested_bytes  # noqa: E402


@triton.jit
def copy(X, OUT, n, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(X + i, mask=i < n, other=0.0)
    if MASKED:
        tl.store(OUT + i, x, mask=i < n)
    else:
        tl.store(OUT + i, x)


@triton.jit
def total_without_other(X, OUT, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(OUT, tl.sum(tl.load(X + i, mask=i < n).to(tl.float32), 0))


@triton.jit
def total_into_one_place(X, OUT, n, BLOCK: tl.constexpr, ATOMIC: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.sum(tl.load(X + i, mask=i < n, other=0.0), 0)
    if ATOMIC:
        tl.atomic_add(OUT, total)
    else:
        tl.store(OUT, tl.load(OUT) + total)


@triton.jit
def add_neighbour(X, OUT, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pair = tl.load(X + i, mask=i < n, other=0.0) + tl.load(X + i + 1, mask=i + 1 < n, other=0.0)
    tl.store(OUT + i, pair, mask=i < n)


@triton.jit
def first_program_wins(OUT):
    if tl.load(OUT) == 0:
        tl.store(OUT, tl.program_id(0) + 1)


@triton.jit
def product(A, B, OUT, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    at = i[:, None] * SIZE + i[None, :]
    tl.store(OUT + at, tl.dot(tl.load(A + at), tl.load(B + at)).to(OUT.dtype.element_ty))


@triton.jit
def combine(X, Y, OUT, OPERATION: tl.constexpr):
    x, y = tl.load(X), tl.load(Y)
    if OPERATION == "add":
        tl.store(OUT, x + y)
    elif OPERATION == "sub":
        tl.store(OUT, x - y)
    else:
        tl.store(OUT, x * y)


@triton.jit
def double(X, OUT, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    x = tl.load(X + i)
    tl.store(OUT + i, x + x)


@triton.jit
def largest(X, OUT, SIZE: tl.constexpr):
    tl.store(OUT, tl.max(tl.load(X + tl.arange(0, SIZE)), 0))


@triton.jit
def cast(X, OUT, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(OUT + i, tl.load(X + i).to(OUT.dtype.element_ty))


def test_a_correct_kernel_passes(rng):
    x, out = torch.randn(100, generator=rng), torch.empty(100)
    copy[(4,)](x, out, 100, BLOCK=32, MASKED=True)
    assert torch.equal(out, x)


def test_a_store_past_the_end_is_found_even_inside_the_allocation(rng):
    out = torch.empty(128)[:100]
    with pytest.raises(InterpreterError, match="out-of-bounds store"):
        copy[(4,)](torch.randn(100, generator=rng), out, 100, BLOCK=32, MASKED=False)


def test_a_load_past_the_end_is_found(rng):
    with pytest.raises(InterpreterError, match="out-of-bounds load"):
        copy[(4,)](torch.randn(99, generator=rng), torch.empty(100), 100, BLOCK=32, MASKED=True)


def test_a_view_with_gaps_belongs_to_its_tensor(rng):
    joined = torch.randn(4, 40, generator=rng)
    copy[(1,)](joined[:, 8:], torch.empty(152), 152, BLOCK=256, MASKED=True)
    with pytest.raises(InterpreterError, match="out-of-bounds load"):
        copy[(1,)](joined[:, 8:], torch.empty(153), 153, BLOCK=256, MASKED=True)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16))
def test_masked_lanes_without_other_are_nan(dtype, rng):
    out = torch.zeros(1)
    total_without_other[(1,)](torch.randn(100, generator=rng).to(dtype), out, 100, BLOCK=128)
    assert out.isnan().all()


def test_races_are_found_and_atomics_are_not_races(rng):
    x = torch.randn(100, generator=rng)
    with pytest.raises(RuntimeError, match="race"):
        total_into_one_place[(4,)](x, torch.zeros(1), 100, BLOCK=32, ATOMIC=False)
    out = torch.zeros(1)
    total_into_one_place[(4,)](x, out, 100, BLOCK=32, ATOMIC=True)
    torch.testing.assert_close(out, x.sum()[None])


def test_a_stencil_in_place_is_a_race_out_of_place_it_is_none(rng):
    x = torch.randn(100, generator=rng)
    add_neighbour[(4,)](x, torch.empty(100), 100, BLOCK=32)
    with pytest.raises(RuntimeError, match="store/load race"):
        add_neighbour[(4,)](x, x, 100, BLOCK=32)


def test_programs_run_in_a_shuffled_order():
    winners = set()
    for seed in range(8):
        out = torch.zeros(1, dtype=torch.int32)
        with guard(seed, races=False):
            first_program_wins[(16,)](out)
        winners.add(int(out))
    assert len(winners) > 1


def test_a_grid_too_tall_for_cuda_is_refused():
    with pytest.raises(ValueError, match="65535"):
        copy[(1, 65536)](torch.zeros(1), torch.empty(1), 1, BLOCK=16, MASKED=True)


def test_fresh_memory_is_nan():
    assert torch.empty(64).isnan().all()


def test_bfloat16_products_and_casts(rng):
    a, b = (torch.randn(32, 32, generator=rng).bfloat16() for _ in range(2))
    out = torch.empty(32, 32)
    product[(1,)](a, b, out, 32)
    torch.testing.assert_close(out, a.float() @ b.float(), rtol=1e-5, atol=1e-5)
    x = torch.cat(
        [torch.randn(1020, generator=rng), torch.tensor([torch.inf, -torch.inf, torch.nan, 1.9999])]
    )
    low, back = torch.empty(1024, dtype=torch.bfloat16), torch.empty(1024)
    cast[(1,)](x, low, 1024)
    torch.testing.assert_close(low, x.bfloat16(), rtol=0, atol=0, equal_nan=True)
    cast[(1,)](low, back, 1024)
    torch.testing.assert_close(back, x.bfloat16().float(), rtol=0, atol=0, equal_nan=True)


def test_arithmetic_on_bfloat16_is_refused(rng):
    x = torch.randn(32, generator=rng).bfloat16()
    with pytest.raises(InterpreterError, match=r"cast to tl\.float32"):
        double[(1,)](x, torch.empty_like(x), 32)
    # Reductions widen by themselves.
    out = torch.empty(1)
    largest[(1,)](x, out, 32)
    assert out.item() == x.max().item()


@pytest.mark.parametrize(
    ("operation", "x", "y", "result"),
    [
        ("add", 2**31 - 2, 1, 2**31 - 1),
        ("sub", 2 - 2**31, 2, -(2**31)),
        ("mul", 2**15, -(2**16), -(2**31)),
    ],
)
def test_integers_that_overflow_are_found(operation, x, y, result):
    x, y = torch.tensor([x], dtype=torch.int32), torch.tensor([y], dtype=torch.int32)
    out = torch.empty_like(x)
    combine[(1,)](x, y, out, operation)
    assert out.item() == result
    with pytest.raises(InterpreterError, match=f"int32 overflow in {operation}"):
        combine[(1,)](x, y + y.sign(), out, operation)


def test_the_meter_counts_exactly(rng):
    x, out = torch.randn(128, generator=rng), torch.empty(128)
    with meter() as launches:
        add_neighbour[(4,)](x, out, 128, BLOCK=32)
        product[(1,)](torch.zeros(16, 16), torch.zeros(16, 16), torch.empty(16, 16), 16)
    assert [launch.kernel for launch in launches] == ["add_neighbour", "product"]
    assert [launch.programs for launch in launches] == [4, 1]
    # Aligned storage: 512 bytes read once although every element but one is asked for twice, 512
    # written.
    assert x.data_ptr() % 32 == out.data_ptr() % 32 == 0
    assert device_bytes(launches[:1]) == 1024
    assert requested_bytes(launches[:1]) == 4 * (128 + 127 + 128)
    assert dot_flops(launches) == 2 * 16**3
