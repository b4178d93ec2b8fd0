"""entropy_whitening against its eager path compiled and average pooling, at windows 3 and 7.

pytest benchmarks/bench_entropy_whitening.py --benchmark-only
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.common import CUDA, DTYPE, MODES, Compiled, choose, choose_paths, compare
from intrasense_fast.functional import entropy_whitening
from intrasense_fast.kernels.entropy_whitening.eager import gated, scaled_entropy
from intrasense_fast.kernels.entropy_whitening.reference import entropy_whitening as reference

# B, C, H, W: the model's strides at 256 and 512 pixels, and sides that are no multiple of a tile.
SHAPES = choose(
    [
        (4, 512, 32, 32),
        (4, 512, 64, 64),
        (4, 1024, 16, 16),
        (4, 2048, 8, 8),
        (2, 512, 50, 38),
        (1, 256, 128, 128),
    ],
    [(1, 64, 32, 32)],
    [(1, 16, 8, 8)],
)
# The check in float64 holds one map a tap of the window.
SCORED = 1 << (23 if CUDA else 21)


def pooled(window: int):
    """The same by torch's average pooling: sums of squares, one library call each."""

    def path(
        features: Tensor, mean: Tensor, top: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor]:
        attended = gated(features, mean, top, weight, bias, torch.float32)
        mask = scaled_entropy(attended.detach(), "score") < 0.5
        pool = lambda t: functional.avg_pool2d(t, window, 1, window // 2, count_include_pad=False)
        centre = pool(attended)
        variance = pool(attended.square()) - centre.square()
        whitened = (attended - centre) * torch.rsqrt(variance.clamp(min=0) + 1e-3)
        return (torch.where(mask[:, None], whitened, attended).to(features.dtype),)

    return path


def ours(fused: bool, window: int):
    return lambda *inputs: entropy_whitening(*inputs, window=window, fused=fused)[:1]


PATHS = {
    window: {
        "fused": ours(True, window),
        "eager": ours(False, window),
        "eager compiled": Compiled(ours(False, window)),
        "avg_pool2d": pooled(window),
        "avg_pool2d compiled": Compiled(pooled(window)),
    }
    for window in (3, 7)
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("path", choose_paths(PATHS[7], ("eager", "avg_pool2d")))
@pytest.mark.parametrize("window", (7, 3))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{} C{} {}x{}".format(*s))
def test_entropy_whitening(timed, device, shape, window, mode, path):
    torch.manual_seed(0)
    features = torch.randn(shape, device=device).mul(2).to(DTYPE, memory_format=torch.channels_last)
    weight, bias = torch.randn(1, 2, 7, 7, device=device) / 10, torch.zeros(1, device=device)
    statistics = lambda maps: (maps.float().mean(1), maps.float().amax(1))
    inputs = [features, *statistics(features), weight, bias]
    small = features[: max(1, SCORED // features[0].numel())]

    def specification(*exact: Tensor) -> tuple[Tensor]:
        # The mask of the inputs as they are: a tie decided otherwise in float64 is no error.
        with torch.no_grad():
            mask = entropy_whitening(
                small, *statistics(small), weight, bias, window=window, fused=False
            )[1]
        return reference(*exact, window=window, mask=mask)[:1]

    size = features.numel() * features.element_size()
    compare(
        timed,
        operator=f"entropy_whitening window {window}",
        paths=PATHS[window],
        path=path,
        mode=mode,
        shape=shape,
        specification=specification,
        inputs=inputs,
        floor=(2 * size, 3 * size),
        scored=[small, *statistics(small), weight, bias],
    )
