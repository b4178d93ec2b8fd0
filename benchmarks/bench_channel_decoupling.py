"""channel_decoupling against its specification with C x C matrices throughout, plain and compiled.

pytest benchmarks/bench_channel_decoupling.py --benchmark-only
"""

import pytest
import torch

from benchmarks.common import CUDA, DTYPE, MODES, QUICK, compare, compiled
from intrasense_fast.functional import channel_decoupling
from intrasense_fast.kernels.channel_decoupling.reference import channel_decoupling as reference

# B, C, H, W: the model's strides at 256 and 512 pixels; more channels than positions, and fewer.
SHAPES = (
    [(4, 512, 32, 32), (4, 1024, 16, 16), (4, 2048, 8, 8), (4, 512, 64, 64), (4, 1024, 32, 32), (1, 256, 128, 128)]
    if CUDA
    else [(2, 256, 32, 32), (2, 512, 8, 8)]
)

eager = lambda *inputs: channel_decoupling(*inputs, fused=False)
PEERS = {
    "fused": lambda *inputs: channel_decoupling(*inputs, fused=True),
    "eager": eager,
    "eager compiled": compiled(eager),
    "C x C throughout": reference,
    "C x C compiled": compiled(reference),
}
ON_CPU = ("eager", "C x C throughout")


@pytest.mark.parametrize("shape", SHAPES[:1] if QUICK else SHAPES, ids=lambda s: "B{} C{} {}x{}".format(*s))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("peer", PEERS if CUDA else ON_CPU)
def test_channel_decoupling(timed, benchmark, device, shape, mode, peer):
    channels = shape[1]
    torch.manual_seed(0)
    features = torch.randn(shape, device=device).to(DTYPE, memory_format=torch.channels_last)
    reduced = channels // 16
    weights = [torch.randn(*size, device=device) / 8 for size in ((reduced, channels), (reduced,), (channels, reduced))]
    inputs = [features, *weights, torch.zeros(channels, device=device)]
    size, product = features.numel() * features.element_size(), 2 * channels * features.numel()
    compare(
        timed, benchmark, operator="channel_decoupling", peer=peer, mode=mode, shape=shape, function=PEERS[peer],
        specification=reference, inputs=inputs, flops=(product * 3 // 2, 3 * product), floor=(3 * size, 5 * size),
    )  # fmt: skip
