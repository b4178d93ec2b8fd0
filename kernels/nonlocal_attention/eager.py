"""nonlocal_attention without kernels: queries in chunks, so that no N x N matrix is held."""

import math

import torch
from torch import Tensor

from intrasense_fast.kernels._common.layout import without_autocast
from intrasense_fast.kernels._common.plain import plain_steps, transforming
from intrasense_fast.kernels._common.precision import statistics_dtype

# Scores held at a time: 64 MiB of float32, whatever N.
SCORES_AT_A_TIME = 2**24


def eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    residual: Tensor,
    *,
    scores_at_a_time: int = SCORES_AT_A_TIME,
) -> tuple[Tensor, Tensor, Tensor]:
    """The path without kernels; arguments and results as nonlocal_attention's."""
    keys = key.transpose(1, 2)
    scale = 1 / math.sqrt(query.shape[-1])
    with without_autocast(query):
        chunks = [_attend(chunk, keys, value, scale) for chunk in _chunks(query, scores_at_a_time)]
        attended = torch.cat(chunks, 1) if len(chunks) > 1 else chunks[0]
        features = _sum(attended, residual.to(attended.dtype))
        # In this order: gradients are added up in the reverse of it.
        return features.to(query.dtype), features.mean(-1), _maximum(features)


def _in_place(*tensors: Tensor) -> bool:
    """Whether nothing is recorded of these: new memory would cost more than the arithmetic."""
    recorded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return not (recorded or torch.compiler.is_compiling() or plain_steps())


def _sum(attended: Tensor, residual: Tensor) -> Tensor:
    if _in_place(attended, residual):
        return attended.add_(residual)
    return attended + residual


def _chunks(query: Tensor, scores_at_a_time: int) -> list[Tensor]:
    """Queries (B, n, d) whose scores are held together: in plain steps all of them."""
    if plain_steps():
        return [query]
    batch, positions, _ = query.shape
    rows = max(1, scores_at_a_time // (max(1, batch) * positions))
    return [query[:, start : start + rows] for start in range(0, positions, rows)]


def _maximum(features: Tensor) -> Tensor:
    """Over the last axis; which channel attains it matters to its gradient alone."""
    recorded = torch.is_grad_enabled() and features.requires_grad
    return features.max(-1).values if recorded or transforming() else features.amax(-1)


def _without_subnormal(probability: Tensor) -> Tensor:
    """0 for numbers too small to be normal: they change no sum, and a CPU takes 100 cycles each."""
    if probability.device.type != "cpu" or not _in_place(probability):
        return probability
    least = torch.finfo(probability.dtype).smallest_normal
    return torch.threshold_(probability, least, 0.0)


def _attend(query: Tensor, keys: Tensor, value: Tensor, scale: float) -> Tensor:
    """softmax(scale query keys) value in the statistics' dtype; products in the inputs' dtype."""
    dtype = statistics_dtype(query.dtype)
    scores = torch.bmm(query * scale, keys)
    probability = _without_subnormal(torch.softmax(scores, -1, dtype=dtype))
    return torch.bmm(probability.to(value.dtype), value).to(dtype)
