"""Memory formats and autocast: an operator keeps the format it was given, and never casts."""

import contextlib

import torch
from torch import Tensor

from intrasense_fast.kernels._common.plain import exporting


def memory_format(features: Tensor) -> torch.memory_format:
    """channels_last where the channels of a (B, C, H, W) map are dense, else contiguous."""
    if features.shape[1] > 1 and features.stride(1) == 1 and not features.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format


def as_rows(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C): a view of a channels_last map."""
    batch, channels, height, width = features.shape
    return features.permute(0, 2, 3, 1).reshape(batch, height * width, channels)


def contiguous_rows(tensor: Tensor) -> Tensor:
    """The tensor itself where its last axis is dense, else a contiguous copy."""
    dense = tensor.shape[-1] == 1 or tensor.stride(-1) == 1
    return tensor if dense else tensor.contiguous()


def from_rows(rows: Tensor, features: Tensor) -> Tensor:
    """(B, H * W, C) -> (B, C, H, W) in the memory format of `features`."""
    batch, channels, height, width = features.shape
    maps = rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
    if exporting():
        # Strides of an open size cannot be asked.
        return maps.contiguous()
    return maps.contiguous(memory_format=memory_format(features))


# Asked once: torch.compile of 2.11 cannot trace the question.
_AUTOCAST = frozenset(
    device
    for device in ("cpu", "cuda", "mps", "xpu", "hpu")
    if torch.amp.is_autocast_available(device)
)


def without_autocast(tensor: Tensor) -> contextlib.AbstractContextManager:
    """A context in which the operator's own products keep the dtypes it chose."""
    device = tensor.device.type
    if device not in _AUTOCAST or (exporting() and not torch.is_autocast_enabled(device)):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)
