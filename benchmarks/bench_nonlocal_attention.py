"""nonlocal_attention against its peers, all with the same epilogue (residual, channel mean, channel maximum).

pytest benchmarks/bench_nonlocal_attention.py --benchmark-only
"""

import math
import os

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from intrasense_fast.functional import nonlocal_attention
from intrasense_fast.kernels._proof.budget import error
from intrasense_fast.kernels.nonlocal_attention.reference import nonlocal_attention as reference

CUDA = torch.cuda.is_available()
# B, N, d, C: the model's strides at 256 and 512 pixels, an autoencoder's single head, and N that is no multiple of a tile.
SHAPES = (
    [(4, 1024, 64, 512), (4, 256, 128, 1024), (4, 64, 256, 2048), (4, 4096, 64, 512), (4, 1024, 128, 1024)]
    + [(1, 4096, 32, 256), (1, 16384, 64, 512), (1, 4096, 512, 512), (2, 3000, 64, 512)]
    if CUDA
    else [(1, 256, 8, 64), (1, 256, 32, 256)]
)
DTYPE = torch.bfloat16 if CUDA else torch.float32
SCORES = 20 << 20  # bytes of a chunk of scores that stays in L2


def epilogue(attended: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    features = attended.float() + residual.float()
    return features.to(residual.dtype), features.mean(-1), features.amax(-1)


def scaled_dot_product(query: Tensor, key: Tensor, value: Tensor, residual: Tensor):
    attended = functional.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]
    return epilogue(attended, residual)


def split_values(width: int):
    """cuDNN takes values of 128 or 256: more heads, the same queries and keys."""

    def peer(query: Tensor, key: Tensor, value: Tensor, residual: Tensor):
        batch, positions, channels = value.shape
        heads = max(1, channels // width)
        q, k = (t[:, None].expand(-1, heads, -1, -1) for t in (query, key))
        v = value.view(batch, positions, heads, -1).transpose(1, 2)
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            attended = functional.scaled_dot_product_attention(q, k, v)
        return epilogue(attended.transpose(1, 2).reshape(batch, positions, channels), residual)

    return peer


def flex(query: Tensor, key: Tensor, value: Tensor, residual: Tensor):
    from torch.nn.attention.flex_attention import flex_attention

    batch, positions, channels = value.shape
    heads = max(1, channels // 256)
    q, k = (t[:, None].expand(-1, heads, -1, -1) for t in (query, key))
    attended = flex_attention(q, k, value.view(batch, positions, heads, -1).transpose(1, 2))
    return epilogue(attended.transpose(1, 2).reshape(batch, positions, channels), residual)


def chunked(query: Tensor, key: Tensor, value: Tensor, residual: Tensor):
    """Product, softmax, product over chunks of queries whose scores stay in L2."""
    batch, positions, depth = query.shape
    rows = max(16, SCORES // (batch * positions * query.element_size()))
    keys = key.transpose(1, 2)
    parts = [
        torch.softmax((part @ keys).float() / math.sqrt(depth), -1).to(value.dtype) @ value for part in query.split(rows, 1)
    ]
    return epilogue(torch.cat(parts, 1), residual)


PEERS = {
    "fused": lambda *t: nonlocal_attention(*t, fused=True),
    "eager": lambda *t: nonlocal_attention(*t, fused=False),
    "eager compiled": torch.compile(lambda *t: nonlocal_attention(*t, fused=False)),
    "SDPA": scaled_dot_product,
    "SDPA compiled": torch.compile(scaled_dot_product),
    "cuDNN, values in 128": torch.compile(split_values(128)),
    "cuDNN, values in 256": torch.compile(split_values(256)),
    "FlexAttention": torch.compile(flex),
    "chunked compiled": torch.compile(chunked),
}
ON_CPU = ("eager", "SDPA")
QUICK = os.environ.get("INTRASENSE_BENCH_QUICK") == "1"


@pytest.mark.parametrize("shape", SHAPES[:1] if QUICK else SHAPES, ids=lambda s: "B{} N{} d{} C{}".format(*s))
@pytest.mark.parametrize("mode", ("forward", "backward", "both"))
@pytest.mark.parametrize("peer", PEERS if CUDA else ON_CPU)
def test_nonlocal_attention(timed, benchmark, device, shape, mode, peer):
    batch, positions, depth, channels = shape
    benchmark.group = f"nonlocal_attention {mode} {shape} {str(DTYPE)[6:]}"
    torch.manual_seed(0)
    projection = torch.randn(batch, positions, 2 * depth + channels, device=device, dtype=DTYPE)
    residual = torch.randn(batch, positions, channels, device=device, dtype=DTYPE)
    inputs = [*projection.split([depth, depth, channels], -1), residual]
    leaves = [t.detach().requires_grad_() for t in inputs]
    function = PEERS[peer]
    try:
        with torch.no_grad():
            outputs = function(*inputs)
        grads = [torch.randn_like(t) for t in outputs]
        gradients = torch.autograd.grad(function(*leaves), leaves, grads)
    except (RuntimeError, torch._dynamo.exc.BackendCompilerFailed) as failure:
        if peer == "fused":
            raise
        pytest.skip(f"{peer} does not take this shape: {str(failure).splitlines()[0][:120]}")
    worst = accuracy(inputs, outputs, gradients, grads)
    forward, backward = 2 * batch * positions**2 * (depth + channels), 2 * batch * positions**2 * (3 * depth + 2 * channels)
    if mode == "forward":

        def call():
            with torch.no_grad():
                return function(*inputs)

    elif mode == "backward":
        graph = function(*leaves)

        def call():
            return torch.autograd.grad(graph, leaves, grads, retain_graph=True)

    else:

        def call():
            return torch.autograd.grad(function(*leaves), leaves, grads)

    flops = {"forward": forward, "backward": backward, "both": forward + backward}[mode]
    timed(
        call, error=worst, allowed=3e-2 if DTYPE.itemsize == 2 else 1e-4, useful_flops=flops, peer=peer, mode=mode, shape=shape
    )


def accuracy(inputs: list[Tensor], outputs, gradients, grads) -> float:
    """The largest relative error against float64 of the first image's outputs and gradients; N is cut to what fits."""
    if inputs[0].shape[1] > 4096:
        return 0.0 if all(t.isfinite().all() for t in (*outputs, *gradients)) else math.inf
    exact = [t[:1].double().requires_grad_() for t in inputs]
    truth = reference(*exact)
    true_gradients = torch.autograd.grad(truth, exact, [g[:1].double() for g in grads])
    pairs = zip((*outputs, *gradients), (*truth, *true_gradients), strict=True)
    return max(error(actual[:1], expected) for actual, expected in pairs)
