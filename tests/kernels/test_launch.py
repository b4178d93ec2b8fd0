"""`recording` hands launches to a hook: in place of starting them, in its own thread alone."""

import threading

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton, which has wheels for Linux only")

import triton
import triton.language as tl

from intrasense_fast.kernels._common.launch import launch, recording


@triton.jit
def add_one(X, Y, n, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    x = tl.load(X + i, mask=i < n, other=0.0).to(tl.float32)
    tl.store(Y + i, (x + 1.0).to(Y.dtype.element_ty), mask=i < n)


def start(x: torch.Tensor, y: torch.Tensor, programs: int = 1) -> None:
    launch(add_one, (programs,), x, y, x.numel(), SIZE=16, num_warps=1, num_stages=1)


@pytest.fixture
def tensors(device):
    return torch.arange(9.0, device=device), torch.zeros(9, device=device)


def test_a_hook_gets_the_launch_in_place_of_the_gpu(tensors):
    launches = []
    with recording(launches.append):
        start(*tensors)
        start(*tensors, programs=0)
    (call,) = launches
    assert not tensors[1].any()
    assert call.kernel is add_one and call.grid == (1,)
    assert call.args[:2] == tensors and call.args[2] == 9
    assert call.constexprs == {"SIZE": 16}
    wanted = {"num_warps": 1, "num_stages": 1, "enable_fp_fusion": True}
    assert wanted.items() <= call.options.items()
    start(*tensors)
    assert torch.equal(tensors[1], tensors[0] + 1) and len(launches) == 1


def test_a_hook_may_start_the_launch(tensors):
    with recording(lambda call: call.start()):
        start(*tensors)
    assert torch.equal(tensors[1], tensors[0] + 1)


def test_an_inner_hook_takes_the_outer_ones_place_and_an_error_ends_it(tensors):
    outer, inner = [], []
    with recording(outer.append):
        with pytest.raises(RuntimeError, match="stop"), recording(inner.append):
            start(*tensors)
            raise RuntimeError("stop")
        start(*tensors)
    start(*tensors)
    assert (len(outer), len(inner)) == (1, 1)
    assert torch.equal(tensors[1], tensors[0] + 1)


def test_another_threads_launches_do_not_meet_the_hook(tensors):
    launches = []
    with recording(launches.append):
        thread = threading.Thread(target=start, args=tensors)
        thread.start()
        thread.join()
    assert not launches and torch.equal(tensors[1], tensors[0] + 1)


def test_bfloat16_is_right_without_asking_for_the_repair(device):
    x = torch.tensor([1.0, 2.0, 257.0], device=device).bfloat16()
    y = torch.zeros_like(x)
    start(x, y)
    assert y.tolist() == [2.0, 3.0, 256.0]
