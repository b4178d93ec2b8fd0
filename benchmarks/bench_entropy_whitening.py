"""entropy_whitening against its specification compiled, and against average pooling, at windows 3 and 7.

pytest benchmarks/bench_entropy_whitening.py --benchmark-only
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.common import CUDA, DTYPE, MODES, QUICK, compare, compiled
from intrasense_fast.functional import entropy_whitening
from intrasense_fast.kernels.entropy_whitening.eager import gated, scaled_entropy
from intrasense_fast.kernels.entropy_whitening.reference import entropy_whitening as reference

# B, C, H, W: the model's strides at 256 and 512 pixels, and sides that are no multiple of a tile.
SHAPES = (
    [(4, 512, 32, 32), (4, 1024, 16, 16), (4, 2048, 8, 8), (4, 512, 64, 64), (1, 256, 128, 128), (2, 512, 50, 38)]
    if CUDA
    else [(1, 64, 32, 32)]
)
# The check in float64 holds one map a tap of the window.
SCORED = 1 << 21


def pooled(window: int):
    """The same by torch's average pooling: sums of squares, one library call each."""

    def peer(features: Tensor, mean: Tensor, top: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor]:
        attended = gated(features, mean, top, weight, bias, torch.float32)
        mask = scaled_entropy(attended.detach(), "score") < 0.5
        pool = lambda t: functional.avg_pool2d(t, window, 1, window // 2, count_include_pad=False)
        centre = pool(attended)
        variance = pool(attended.square()) - centre.square()
        whitened = (attended - centre) * torch.rsqrt(variance.clamp(min=0) + 1e-3)
        return (torch.where(mask[:, None], whitened, attended).to(features.dtype),)

    return peer


def path(fused: bool, window: int):
    return lambda *inputs: entropy_whitening(*inputs, window=window, fused=fused)[:1]


PEERS = {
    "fused": lambda window: path(True, window),
    "eager": lambda window: path(False, window),
    "eager compiled": lambda window: compiled(path(False, window)),
    "avg_pool2d": pooled,
    "avg_pool2d compiled": lambda window: compiled(pooled(window)),
}
ON_CPU = ("eager", "avg_pool2d")


@pytest.mark.parametrize("shape", SHAPES[:1] if QUICK else SHAPES, ids=lambda s: "B{} C{} {}x{}".format(*s))
@pytest.mark.parametrize("window", (3, 7))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("peer", PEERS if CUDA else ON_CPU)
def test_entropy_whitening(timed, benchmark, device, shape, window, mode, peer):
    _, channels, height, width = shape
    torch.manual_seed(0)
    features = torch.randn(shape, device=device).mul(2).to(DTYPE, memory_format=torch.channels_last)
    weight, bias = torch.randn(1, 2, 7, 7, device=device) / 10, torch.zeros(1, device=device)
    statistics = lambda maps: (maps.float().mean(1), maps.float().amax(1))
    inputs = [features, *statistics(features), weight, bias]
    small = features[: max(1, SCORED // (channels * height * width))]

    def specification(*exact: Tensor) -> tuple[Tensor]:
        # The mask of the inputs as they are: a tie decided otherwise in float64 is no error.
        with torch.no_grad():
            mask = entropy_whitening(small, *statistics(small), weight, bias, window=window, fused=False)[1]
        return reference(*exact, window=window, mask=mask)[:1]

    size = features.numel() * features.element_size()
    compare(
        timed, benchmark, operator=f"entropy_whitening window {window}", peer=peer, mode=mode, shape=shape,
        function=PEERS[peer](window), specification=specification, inputs=inputs,
        floor=(2 * size, 3 * size), scored=[small, *statistics(small), weight, bias],
    )  # fmt: skip
