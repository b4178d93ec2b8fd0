"""bce_dice against the eager formula, plain and compiled.

pytest benchmarks/bench_bce_dice.py --benchmark-only
"""

import pytest
import torch

from benchmarks.common import CUDA, DTYPE, MODES, QUICK, compare, compiled
from intrasense_fast.functional import bce_dice
from intrasense_fast.kernels.bce_dice.reference import bce_dice as reference

# B, K, H, W: training batches of images, and several classes.
SHAPES = [(4, 1, 256, 256), (16, 1, 512, 512), (4, 1, 2048, 2048), (4, 8, 512, 512)] if CUDA else [(4, 1, 256, 256)]

eager = lambda *inputs: bce_dice(*inputs, fused=False)
PEERS = {
    "fused": lambda *inputs: bce_dice(*inputs, fused=True),
    "eager": eager,
    "eager compiled": compiled(eager),
    "as written": reference,
    "as written compiled": compiled(reference),
}
ON_CPU = ("eager", "as written")


@pytest.mark.parametrize("shape", SHAPES[:1] if QUICK else SHAPES, ids=lambda s: "B{} K{} {}x{}".format(*s))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("peer", PEERS if CUDA else ON_CPU)
def test_bce_dice(timed, benchmark, device, shape, mode, peer):
    torch.manual_seed(0)
    logits = torch.randn(shape, device=device, dtype=DTYPE)
    target = torch.rand(shape, device=device) > 0.5
    size, masks = logits.numel() * logits.element_size(), target.numel()
    compare(
        timed, benchmark, operator="bce_dice", peer=peer, mode=mode, shape=shape, function=PEERS[peer],
        specification=reference, inputs=[logits, target], floor=(size + masks, 2 * size + masks),
    )  # fmt: skip
