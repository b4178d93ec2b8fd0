"""Traffic, FLOP and launch bounds of every operator, counted exactly (kernels/_proof/traffic.py)."""

import os

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton, which has wheels for Linux only")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "the traffic meter counts in Triton's interpreter: run with TRITON_INTERPRET=1",
        allow_module_level=True,
    )

from intrasense_fast.kernels._proof.measure import measured
from intrasense_fast.kernels._proof.registry import proofs


@pytest.mark.parametrize(
    "proof, bound",
    [
        pytest.param(
            p,
            b,
            id="-".join(
                map(str, (p.name, b.architecture, b.mode, *b.row.shape, *b.options.values()))
            ),
        )
        for p in proofs()
        for b in p.bounds()
    ],
)
def test_bound(proof, bound):
    found = measured(proof, bound, torch.Generator().manual_seed(0))
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
