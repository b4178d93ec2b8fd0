"""nonlocal_attention against its peers, all with the same epilogue.

The epilogue: residual, channel mean, channel maximum.

pytest benchmarks/bench_nonlocal_attention.py --benchmark-only
"""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.common import DTYPE, MODES, Compiled, choose, choose_paths, compare
from intrasense_fast.functional import nonlocal_attention
from intrasense_fast.kernels.nonlocal_attention.reference import nonlocal_attention as reference

# B, N, d, C: the model's strides at 256 and 512 pixels, an autoencoder's single head, an odd N.
SHAPES = choose(
    [
        (4, 4096, 64, 512),
        (4, 1024, 64, 512),
        (4, 256, 128, 1024),
        (4, 64, 256, 2048),
        (1, 4096, 32, 256),
    ]
    + [(4, 1024, 128, 1024), (1, 16384, 64, 512), (2, 3000, 64, 512), (1, 4096, 512, 512)],
    [(1, 256, 8, 64), (1, 256, 32, 256)],
    [(1, 32, 8, 64)],
)
SCORES = 20 << 20  # bytes of a chunk of scores that stays in L2


def epilogue(attended: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    features = attended.float() + residual.float()
    return features.to(residual.dtype), features.mean(-1), features.amax(-1)


def scaled_dot_product(query: Tensor, key: Tensor, value: Tensor, residual: Tensor):
    attended = functional.scaled_dot_product_attention(
        query[:, None], key[:, None], value[:, None]
    )[:, 0]
    return epilogue(attended, residual)


def in_heads(value: Tensor, width: int, *narrow: Tensor) -> list[Tensor]:
    """[the narrow tensors repeated over the heads, value in heads of `width`].

    Libraries limit a head's width.
    """
    batch, positions, channels = value.shape
    heads = max(1, channels // width)
    repeated = [t[:, None].expand(-1, heads, -1, -1) for t in narrow]
    return [*repeated, value.reshape(batch, positions, heads, -1).transpose(1, 2)]


def out_of_heads(attended: Tensor) -> Tensor:
    return attended.transpose(1, 2).flatten(2)


def split_values(width: int):
    """cuDNN takes values of 128 or 256: more heads, the same queries and keys."""

    def path(query: Tensor, key: Tensor, value: Tensor, residual: Tensor):
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            attended = functional.scaled_dot_product_attention(*in_heads(value, width, query, key))
        return epilogue(out_of_heads(attended), residual)

    return path


def flex(query: Tensor, key: Tensor, value: Tensor, residual: Tensor):
    from torch.nn.attention.flex_attention import flex_attention

    return epilogue(out_of_heads(flex_attention(*in_heads(value, 256, query, key))), residual)


def chunked(query: Tensor, key: Tensor, value: Tensor, residual: Tensor):
    """Product, softmax, product over chunks of queries whose scores stay in L2."""
    batch, positions, depth = query.shape
    rows = max(16, SCORES // (batch * positions * query.element_size()))
    keys = key.transpose(1, 2)
    parts = [
        torch.softmax((part @ keys).float() / math.sqrt(depth), -1).to(value.dtype) @ value
        for part in query.split(rows, 1)
    ]
    return epilogue(torch.cat(parts, 1), residual)


def ours(fused: bool):
    return lambda *inputs: nonlocal_attention(*inputs, fused=fused)


PATHS = {
    "fused": ours(True),
    "eager": ours(False),
    "SDPA": scaled_dot_product,
    "cuDNN, values in 128": split_values(128),
    "cuDNN, values in 256": split_values(256),
    "chunked": chunked,
    "eager compiled": Compiled(ours(False)),
    "SDPA compiled": Compiled(scaled_dot_product),
    "chunked compiled": Compiled(chunked),
    "FlexAttention": Compiled(flex),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("path", choose_paths(PATHS, ("eager", "SDPA", "chunked")))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{} N{} d{} C{}".format(*s))
def test_nonlocal_attention(timed, device, shape, mode, path):
    batch, positions, depth, channels = shape
    torch.manual_seed(0)
    projection = torch.randn(batch, positions, 2 * depth + channels, device=device, dtype=DTYPE)
    residual = torch.randn(batch, positions, channels, device=device, dtype=DTYPE)
    inputs = [*projection.split([depth, depth, channels], -1), residual]
    pairs, elements = 2 * batch * positions**2, batch * positions * DTYPE.itemsize
    # Backward: read query, key, value, A V and the output's gradient; write four gradients.
    floor = elements * (2 * depth + 3 * channels), elements * (4 * depth + 5 * channels)
    compare(
        timed,
        operator="nonlocal_attention",
        paths=PATHS,
        path=path,
        mode=mode,
        shape=shape,
        specification=reference,
        inputs=inputs,
        flops=(pairs * (depth + channels), pairs * (3 * depth + 2 * channels)),
        floor=floor,
        sdpa=backend(mode, inputs) if path.startswith("SDPA") else None,
    )


def backend(mode: str, inputs: list[Tensor]) -> str:
    """Which implementation scaled_dot_product_attention dispatches to for these tensors."""
    query, key, value = (t[:, None].detach().requires_grad_(mode != "forward") for t in inputs[:3])
    return SDPBackend(torch._fused_sdp_choice(query, key, value)).name
