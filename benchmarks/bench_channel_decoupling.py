"""channel_decoupling against its specification with C x C matrices throughout, plain and compiled.

pytest benchmarks/bench_channel_decoupling.py --benchmark-only
"""

import pytest
import torch

from benchmarks.common import DTYPE, MODES, Compiled, choose, choose_paths, compare
from intrasense_fast.functional import channel_decoupling
from intrasense_fast.kernels.channel_decoupling.reference import channel_decoupling as reference

# B, C, H, W: the model's strides at 256 and 512 pixels; more channels than positions, and fewer.
SHAPES = choose(
    [
        (4, 512, 32, 32),
        (4, 1024, 16, 16),
        (4, 2048, 8, 8),
        (16, 512, 64, 64),
        (4, 1024, 32, 32),
        (1, 256, 128, 128),
    ],
    [(2, 256, 32, 32), (2, 512, 8, 8)],
    [(1, 16, 8, 8)],
)

eager = lambda *inputs: channel_decoupling(*inputs, fused=False)
PATHS = {
    "fused": lambda *inputs: channel_decoupling(*inputs, fused=True),
    "eager": eager,
    "eager compiled": Compiled(eager),
    "C x C throughout": reference,
    "C x C compiled": Compiled(reference),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("path", choose_paths(PATHS, ("eager", "C x C throughout")))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{} C{} {}x{}".format(*s))
def test_channel_decoupling(timed, device, shape, mode, path):
    channels = shape[1]
    torch.manual_seed(0)
    features = torch.randn(shape, device=device).to(DTYPE, memory_format=torch.channels_last)
    reduced = max(1, channels // 16)
    weights = [
        torch.randn(*size, device=device) / 8
        for size in ((reduced, channels), (reduced,), (channels, reduced))
    ]
    inputs = [features, *weights, torch.zeros(channels, device=device)]
    size, product = features.numel() * features.element_size(), 2 * channels * features.numel()
    compare(
        timed,
        operator="channel_decoupling",
        paths=PATHS,
        path=path,
        mode=mode,
        shape=shape,
        specification=reference,
        inputs=inputs,
        flops=(product * 3 // 2, 3 * product),
        floor=(3 * size, 5 * size),
    )
