"""Launch plans: a replay gives what the launcher gives, and serves no call but its key's."""

import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="the kernels need Triton, which has wheels for Linux only")

import triton
import triton.language as tl

from intrasense_fast.kernels import runtime
from intrasense_fast.kernels._common import plan, tuned
from intrasense_fast.kernels._common.configs import architecture, assume
from intrasense_fast.kernels._common.launch import launch, recording


@triton.jit
def scaled_sum(X, Y, OUT, n, x_step, scale, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    x = tl.load(X + i * x_step, mask=i < n, other=0.0).to(tl.float32)
    y = tl.load(Y + i, mask=i < n, other=0.0).to(tl.float32)
    tl.store(OUT + i, (x + y * scale).to(OUT.dtype.element_ty), mask=i < n)


def start(x: Tensor, y: Tensor, out: Tensor, scale: float) -> None:
    sizes = (out.numel(), x.stride(0), scale)
    launch(scaled_sum, (1,), x, y, out, *sizes, SIZE=16, num_warps=1, num_stages=1)


SETTINGS = {"sm_80": 3.0, "sm_90": 1.0}


def launcher(x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(x + scale y, x + 2 scale y + x) by way of two temporaries; settings change the scale."""
    scale *= SETTINGS.get(architecture(x.device), 1.0)
    scale *= 5.0 if torch.get_float32_matmul_precision() == "high" else 1.0
    scale *= 7.0 if tuned.version() % 2 else 1.0
    first, second = torch.empty_like(y), torch.empty_like(y)
    both, other = y.new_empty(2, y.numel()), torch.empty_like(y)
    start(x, y, first, scale)
    start(x, first, both[0], 1.0)
    start(x, y, both[1], 0.0)
    start(both[1], both[0], other, 1.0)
    start(other, both[0], second, 0.0)
    return first, second


def wanted(x: Tensor, y: Tensor, scale: float) -> list[Tensor]:
    first = x + scale * y
    return [first, x + (x + first)]


@pytest.fixture
def planner() -> plan.Planner:
    return plan.Planner(launcher, launcher)


def vectors(device: torch.device, rng: torch.Generator, size: int = 9) -> tuple[Tensor, Tensor]:
    return tuple(torch.randn(size, generator=rng).to(device) for _ in range(2))


def check(planner: plan.Planner, x: Tensor, y: Tensor, scale: float, factor: float = 1.0) -> None:
    actual, expected = planner(x, y, scale), wanted(x, y, scale * factor)
    torch.testing.assert_close(list(actual), expected)
    # Not the same memory as another call's.
    again = planner(x, y, scale)
    addresses = {t.data_ptr() for t in (*actual, *again, x, y)}
    assert len(addresses) == len({*map(id, (*actual, *again, x, y))})
    torch.testing.assert_close(list(actual), expected)


def test_a_second_call_is_replayed_with_its_own_values(planner, device, rng):
    for _ in range(3):
        check(planner, *vectors(device, rng), 2.0)
    status = planner.status()
    assert (status.plans, status.recorded, status.replayed, status.passed) == (1, 1, 5, 0)


CHANGES = {
    "shape": lambda x, y, scale: (x[:5].clone(), y[:5].clone(), scale),
    "strides": lambda x, y, scale: (torch.stack((x, y), -1)[:, 0], y, scale),
    "dtype": lambda x, y, scale: (x.half().float().half(), y.half(), scale),
    "dtype of one": lambda x, y, scale: (x.half(), y, scale),
    "alignment": lambda x, y, scale: (torch.cat((y[:1], x))[1:], y, scale),
    "option": lambda x, y, scale: (x, y, scale + 1),
    "one tensor twice": lambda x, y, scale: (y, y, scale),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_key_is_another_plan(change, planner, device, rng):
    x, y = vectors(device, rng)
    other = change(x, y, 2.0)
    for arguments in ((x, y, 2.0), other, (x, y, 2.0), other):
        actual = planner(*arguments)
        single = [t.float() for t in arguments[:2]]
        expected = [t.to(actual[0].dtype) for t in wanted(*single, arguments[2])]
        torch.testing.assert_close(list(actual), expected, rtol=2e-3, atol=4e-3)
    assert planner.status().recorded == 2 and planner.status().replayed == 2


def test_a_plan_of_one_tensor_twice_does_not_serve_two(planner, device, rng):
    x, y = vectors(device, rng)
    check(planner, y, y, 2.0)
    check(planner, x, y, 2.0)


def test_settings_that_launchers_read_are_part_of_the_key(planner, device, rng):
    x, y = vectors(device, rng)
    if device.type == "cuda":
        pytest.skip("tables are assumed only where there is no GPU")
    check(planner, x, y, 1.0)
    with assume("sm_80"):
        check(planner, x, y, 1.0, factor=3.0)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        check(planner, x, y, 1.0, factor=5.0)
    finally:
        torch.set_float32_matmul_precision(before)
    check(planner, x, y, 1.0)
    factor = 1.0 if tuned.version() % 2 else 7.0
    tuned.use_tuned_configs(None)
    try:
        check(planner, x, y, 1.0, factor=factor)
    finally:
        tuned.use_tuned_configs(None)


class _Seeing(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class _Own(Tensor):
    pass


def hooked(call) -> list[Tensor]:
    with recording(lambda launched: launched.start()):
        return call()


def seen(call) -> list[Tensor]:
    with _Seeing():
        return call()


def off(call) -> list[Tensor]:
    with runtime.use_launch_plans(False):
        return call()


@pytest.mark.parametrize(
    "how, reason",
    [(hooked, "a hook on launches"), (seen, "a dispatch mode"), (off, "turned off")],
    ids=("hook", "dispatch mode", "off"),
)
def test_what_must_see_every_launch_does(how, reason, planner, device, rng):
    x, y = vectors(device, rng)
    planner(x, y, 2.0)
    actual = how(lambda: planner(x, y, 2.0))
    torch.testing.assert_close(list(actual), wanted(x, y, 2.0))
    status = planner.status()
    assert status.replayed == 0 and status.passed == 1 and reason in status.reason


def test_a_subclass_and_the_tuner_go_through_the_operator(planner, device, rng, monkeypatch):
    x, y = vectors(device, rng)
    planner(x, y, 2.0)
    planner(x.as_subclass(_Own), y, 2.0)
    assert planner.status().reason == "a subclass of Tensor"
    monkeypatch.setattr(tuned, "override", lambda asked: None)
    planner(x, y, 2.0)
    assert "tuner" in planner.status().reason and planner.status().replayed == 0


def test_hooks_of_triton_see_every_launch(planner, device, rng, monkeypatch):
    x, y = vectors(device, rng)
    planner(x, y, 2.0)
    knobs = triton.knobs.runtime
    for name in ("launch_enter_hook", "launch_exit_hook", "add_stages_inspection_hook"):
        with monkeypatch.context() as patch:
            patch.setattr(knobs, name, lambda *_: ("none", "none"), raising=False)
            planner(x, y, 2.0)
    assert (planner.status().replayed, planner.status().passed) == (0, 3)
    planner(x, y, 2.0)
    assert planner.status().replayed == 1


def arithmetic(x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    first, _ = launcher(x, y, scale)
    return first, torch.empty_like(y).zero_()


def an_input(x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return launcher(x, y, scale)[0], x


def one_memory(x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    both = torch.empty(2, y.numel(), device=y.device)
    start(x, y, both[0], scale)
    start(x, y, both[1], scale)
    return both[0], both[1]


def one_output_twice(x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    first, _ = launcher(x, y, scale)
    return first, first


def inside_an_input(x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    first, second = torch.empty_like(y), torch.empty_like(y)
    start(x, y, first, scale)
    start(x[1:], y, second[1:], scale)
    return first, second


_KEPT: list[Tensor] = []


def memory_of_another_call(x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    first, second = torch.empty_like(y), torch.empty_like(y)
    start(x, _KEPT[0], first, scale)
    start(x, y, second, scale)
    return first, second


@pytest.mark.parametrize(
    "wrong, reason",
    [
        (arithmetic, "aten::zero_ between"),
        (an_input, "no memory of its own"),
        (one_memory, "no memory of its own"),
        (one_output_twice, "no memory of its own"),
        (inside_an_input, "neither an input's start"),
        (memory_of_another_call, "neither an input's start"),
    ],
)
def test_what_no_plan_can_repeat_is_refused(wrong, reason, device, rng):
    x, y = vectors(device, rng)
    _KEPT[:] = [y.clone()]
    calls = []

    def registered(*args):
        calls.append(args)
        return wrong(*args)

    planner = plan.Planner(wrong, registered)
    first, second = planner(x, y, 2.0), planner(x, y, 2.0)
    torch.testing.assert_close(first[0], second[0])
    assert len(calls) == 1 and reason in planner.status().reason
    assert planner.status().plans == 0 and planner.status().passed == 2


def test_a_negated_view_is_not_served(planner, device, rng):
    x, y = vectors(device, rng)
    complex_numbers = torch.view_as_complex(torch.stack((x, y), -1))
    plain = complex_numbers.imag
    negated = complex_numbers.conj().imag
    assert negated.is_neg() and negated.stride() == plain.stride()
    planner(plain, y, 2.0)
    planner(negated, y, 2.0)
    planner(negated, y, 2.0)
    assert planner.status().replayed == 0 and "negated" in planner.status().reason


def copying(x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return launcher(x.contiguous(), y, scale)


def test_a_copy_between_the_launches_is_repeated(device, rng):
    planner = plan.Planner(copying, copying)
    for _ in range(2):
        x, y = vectors(device, rng)
        strided = torch.stack((x, y), -1)[:, 0]
        torch.testing.assert_close(list(planner(strided, y, 2.0)), wanted(x, y, 2.0))
    assert planner.status().replayed == 1


def test_the_least_recently_used_plan_is_dropped(planner, device, rng, monkeypatch):
    monkeypatch.setattr(plan, "MOST_PLANS", 2)
    x, y = vectors(device, rng)
    for scale in (1.0, 2.0, 1.0, 3.0, 1.0, 2.0):
        torch.testing.assert_close(list(planner(x, y, scale)), wanted(x, y, scale))
    assert planner.status()[:3] == (2, 4, 2)


def test_nothing_of_a_call_is_kept_alive(planner, device, rng):
    x, y = vectors(device, rng)
    results = (*planner(x, y, 2.0), *planner(x, y, 2.0))
    watched = [weakref.ref(t) for t in (x, y, *results)]
    del x, y, results
    assert not any(ref() is not None for ref in watched)


def test_threads_share_plans(planner, device, rng):
    inputs = [vectors(device, rng, size) for size in (5, 9, 12)]
    ready = threading.Barrier(4)

    def work(number: int) -> None:
        ready.wait(timeout=60)
        for turn in range(6):
            x, y = inputs[(number + turn) % 3]
            torch.testing.assert_close(list(planner(x, y, 2.0)), wanted(x, y, 2.0))

    # The interpreter patches triton.language while it runs: one launch at a time.
    lock, one = threading.Lock(), planner.launcher

    def locked(*args):
        with lock:
            return one(*args)

    planner.launcher = locked
    replay = plan.Plan.replay
    with pytest.MonkeyPatch.context() as patch:

        def locked_replay(self, *args):
            with lock:
                return replay(self, *args)

        patch.setattr(plan.Plan, "replay", locked_replay)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_the_plans(planner, device, rng):
    if device.type == "cuda":
        pytest.skip("CUDA does not outlive a fork")
    x, y = vectors(device, rng)
    planner(x, y, 2.0)
    child = os.fork()
    if child == 0:
        right = all(map(torch.equal, planner(x, y, 2.0), launcher(x, y, 2.0)))
        os._exit(0 if right and planner.status().replayed == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_switch_is_for_the_process_and_a_block():
    assert plan.enabled()
    with runtime.use_launch_plans(False):
        assert not plan.enabled()
        with runtime.use_launch_plans(True):
            assert plan.enabled()
        assert not plan.enabled()
    assert plan.enabled()
    runtime.use_launch_plans(False)
    assert not plan.enabled()
    runtime.use_launch_plans(True)
    with pytest.raises(TypeError, match="must be True or False, got 'off'"):
        runtime.use_launch_plans("off")
    assert plan.enabled()
