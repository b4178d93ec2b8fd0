"""Traffic, FLOP and launch bounds of every operator, counted exactly (tests/proof/traffic.py)."""

import math
import os

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton, which has wheels for Linux only")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "the traffic meter counts in Triton's interpreter: run with TRITON_INTERPRET=1",
        allow_module_level=True,
    )

from tests.proof.measure import measured
from tests.proof.registry import OPERATORS, contract_of, cost_of


@pytest.mark.extended
@pytest.mark.parametrize(
    "operator, bound",
    [
        pytest.param(
            operator,
            bound,
            id="-".join(
                map(
                    str,
                    (
                        operator,
                        bound.architecture,
                        bound.mode,
                        *bound.row.shape,
                        *bound.options.values(),
                    ),
                )
            ),
            marks=pytest.mark.slow if math.prod(bound.row.shape) > 2**19 else (),
        )
        for operator in OPERATORS
        for bound in cost_of(operator).bounds()
    ],
)
def test_bound(operator, bound):
    found = measured(contract_of(operator), bound, torch.Generator().manual_seed(0))
    assert found.launches <= bound.launches, (
        f"{found.launches} launches: {', '.join(found.kernels)}"
    )
    if bound.floor_bytes:
        assert found.passes <= bound.passes, f"{found.passes:.3f} passes over the floor"
    if bound.useful_flops:
        # A ratio below 1 would mean that the meter missed work.
        assert 1 <= found.flops <= bound.flops, f"{found.flops:.3f} x the useful FLOPs"
    if bound.requested:
        assert found.requested <= bound.requested, f"{found.requested:.2f} x the floor requested"
