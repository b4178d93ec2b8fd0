"""Every operator through its launch plans: the bits of the path without them, and who is served."""

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton, which has wheels for Linux only")

from intrasense_fast.kernels.runtime import launch_plan_status, use_launch_plans
from tests.contract.test_contract import FORMATS, call, every_operator, grads_for, name, run
from tests.proof.records import Contract, Row
from tests.proof.registry import contracts


def check(contract: Contract, row: Row, rng: torch.Generator) -> None:
    """A plan recorded with other numbers, at other addresses, against no plan at all."""
    options = {"fused": True, **contract.option_sets[0]}
    first, second = (contract.make_inputs(row, rng) for _ in range(2))
    grads = grads_for(contract, call(contract, contract.public, first, **options), rng)
    with use_launch_plans(False):
        expected = run(contract, contract.public, second, grads, **options)
    with use_launch_plans(True):
        run(contract, contract.public, first, grads, **options)
        before = launch_plan_status()
        actual = run(contract, contract.public, second, grads, **options)
        after = launch_plan_status()
    for one, other in zip(expected, actual, strict=True):
        for key in one:
            assert one[key].stride() == other[key].stride() and one[key].dtype == other[key].dtype
            assert torch.equal(one[key].nan_to_num(7.0), other[key].nan_to_num(7.0)), key
    if all(row.shape):
        for way in (f"{contract.name}_forward", f"{contract.name}_backward"):
            assert after[way].replayed == before[way].replayed + 1, after[way].reason


@every_operator
def test_a_replay_gives_the_same_bits(contract, device, rng):
    # One program a launch: the other shapes are slow.
    check(contract, Row((1, 4, 2, 3), torch.float32, torch.channels_last, device), rng)


@pytest.mark.slow
@pytest.mark.parametrize("memory_format", FORMATS, ids=name)
@pytest.mark.parametrize(
    "contract, shape",
    [pytest.param(p, s, id=f"{p.name}-{w}") for p in contracts() for w, s in p.shapes.items()],
)
def test_a_replay_gives_the_same_bits_on_every_shape(contract, shape, memory_format, device, rng):
    check(contract, Row(shape, torch.bfloat16, memory_format, device), rng)


@every_operator
def test_arguments_are_checked_whatever_was_called_before(contract, device, rng):
    """A signature that passed says nothing of another one."""
    inputs = contract.make_inputs(Row(contract.shapes["odd"], torch.float32, device=device), rng)
    call(contract, contract.public, inputs, fused=False, **contract.option_sets[0])
    for bad in contract.bad_inputs:
        for _ in range(2):
            with pytest.raises(bad.error, match=bad.match):
                contract.public(**bad.change(inputs), fused=False, **contract.option_sets[0])
