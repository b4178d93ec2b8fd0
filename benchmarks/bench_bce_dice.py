"""bce_dice against the eager formula, plain and compiled.

pytest benchmarks/bench_bce_dice.py --benchmark-only
"""

import pytest
import torch

from benchmarks.common import DTYPE, MODES, Compiled, choose, choose_paths, compare
from intrasense_fast.functional import bce_dice
from intrasense_fast.kernels.bce_dice.reference import bce_dice as reference

# B, K, H, W: training batches of images, and several classes.
SHAPES = choose(
    [(4, 1, 256, 256), (16, 1, 512, 512), (4, 1, 2048, 2048), (4, 8, 512, 512)],
    [(4, 1, 256, 256)],
    [(2, 1, 16, 16)],
)

eager = lambda *inputs: bce_dice(*inputs, fused=False)
PATHS = {
    "fused": lambda *inputs: bce_dice(*inputs, fused=True),
    "eager": eager,
    "eager compiled": Compiled(eager),
    "as written": reference,
    "as written compiled": Compiled(reference),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("path", choose_paths(PATHS, ("eager", "as written")))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{} K{} {}x{}".format(*s))
def test_bce_dice(timed, device, shape, mode, path):
    torch.manual_seed(0)
    logits = torch.randn(shape, device=device, dtype=DTYPE)
    target = torch.rand(shape, device=device) > 0.5
    size, masks = logits.numel() * logits.element_size(), target.numel()
    compare(
        timed,
        operator="bce_dice",
        paths=PATHS,
        path=path,
        mode=mode,
        shape=shape,
        specification=reference,
        inputs=[logits, target],
        floor=(size + masks, 2 * size + masks),
    )
