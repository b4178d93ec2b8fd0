"""The weights of a ResNet encoder, from a file or a local cache of torchvision's."""

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from safetensors.torch import load_file
from torch import Tensor

from intrasense_fast.errors import pickle_fault
from intrasense_fast.networks.encoder import ENCODERS, Bottleneck, ResNetEncoder, ResNetLayout

_IMAGENET_URL = "https://download.pytorch.org/models/"
# Names under which trainers wrap a ResNet; stripped from the front of every key, outermost first.
_PREFIXES = (
    "module.",
    "_orig_mod.",
    "state_dict.",
    "model.",
    "encoder.",
    "backbone.",
    "resnet.",
    "net.",
)
_CONTAINERS = ("state_dict", "model_state_dict", "model", "encoder", "backbone", "net")
_MATCHED_AT_LEAST = 0.95


class EncoderWeightsError(ValueError):
    """Encoder weights that cannot be found, read or matched: the message says which and what to
    do."""


def load_encoder_weights(encoder: ResNetEncoder, source: str | os.PathLike[str]) -> None:
    """Load the weights of a ResNet into `encoder`.

    Prefixes such as "module." or "encoder." are stripped and `fc.*` is dropped. A one-channel
    encoder takes the sum of a three-channel `conv1.weight` over RGB, so that a grey image gives
    what its three equal channels would.

    Args:
        encoder: its parameters and buffers are replaced.
        source: a .pth / .pt / .safetensors file with torchvision's or timm's keys, or "imagenet":
            torchvision's file (IMAGENET1K_V1 of 18 and 34, V2 of 50 and 101) from the local torch
            hub cache, downloaded only if it is missing there.

    Raises:
        EncoderWeightsError: the file is missing, damaged, no state dict or of another ResNet; the
            download failed; or fewer than 95 % of the keys other than `num_batches_tracked` match
            in name, shape and kind. Fewer mismatches are a warning that names them.
        TypeError: `source` is no path.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f'encoder_weights must be None, "imagenet" or the path of a file, got {source!r}'
        )
    layout = encoder.layout
    path = _imagenet_file(layout) if source == "imagenet" else Path(source)
    weights = _torchvision_keys(_read(path, layout))
    _check_layout(path, weights, layout)
    own = encoder.state_dict()
    conv1, own_conv1 = weights.get("conv1.weight"), own["conv1.weight"]
    if (
        conv1 is not None
        and own_conv1.shape[1] == 1
        and _fits(conv1, own_conv1.expand(-1, 3, -1, -1))
    ):
        weights["conv1.weight"] = conv1.to(own_conv1.dtype).sum(1, keepdim=True)
    counted = [key for key in own if not key.endswith("num_batches_tracked")]
    missing = [key for key in counted if key not in weights]
    misfits = [key for key in own if key in weights and not _fits(weights[key], own[key])]
    unmatched = {*missing, *misfits}.intersection(counted)
    if len(counted) - len(unmatched) < _MATCHED_AT_LEAST * len(counted):
        raise EncoderWeightsError(
            f"{path}: only {len(counted) - len(unmatched)} of {layout.title}'s {len(counted)} keys "
            f"match; needed are torchvision's "
            f"names and shapes (conv1.weight, layer1.0.conv1.weight ...). "
            f"{_mismatch(missing, misfits, weights, own)}. "
            f"The file begins with: {_shortened(list(weights)[:5])}"
        )
    if missing or misfits:
        found = _mismatch(missing, misfits, weights, own)
        warnings.warn(
            f"{path}: some of the encoder stays at its initial values. {found}", stacklevel=2
        )
    encoder.load_state_dict(
        {key: weights[key] for key in own if key in weights and key not in misfits}, strict=False
    )


def _fits(given: Tensor, own: Tensor) -> bool:
    plain = given.layout == torch.strided and not (
        given.is_meta or given.is_quantized or given.is_complex()
    )
    return (
        plain and given.shape == own.shape and given.is_floating_point() == own.is_floating_point()
    )


def _mismatch(
    missing: list[str], misfits: list[str], weights: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> str:
    """What `load_state_dict` would say: the keys that are not in the file, and those that are there
    but do not fit."""
    shown = [f"{key} ({_described(weights[key])} for {_described(own[key])})" for key in misfits]
    parts = {"Not in the file": missing, "Of another shape or kind": shown}
    return ". ".join(f"{title}: {_shortened(keys)}" for title, keys in parts.items() if keys)


def _described(tensor: Tensor) -> str:
    layout = "" if tensor.layout == torch.strided else f" {tensor.layout}"
    return f"{tuple(tensor.shape)} {tensor.dtype}{layout}".replace("torch.", "")


def _imagenet_file(layout: ResNetLayout) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / layout.weights_file
    if path.exists():
        return path
    try:
        torch.hub.load_state_dict_from_url(
            _IMAGENET_URL + layout.weights_file,
            str(path.parent),
            "cpu",
            check_hash=True,
            weights_only=True,
        )
    except (URLError, OSError, RuntimeError) as error:
        raise EncoderWeightsError(
            f'encoder_weights="imagenet": {path} does not exist and could not be downloaded '
            f"({error}). Offline: put "
            f"torchvision's {path.name} there, set TORCH_HOME to a cache that has it, pass "
            f"encoder_weights=FILE (.pth or .safetensors with {layout.title}'s keys), or "
            "encoder_weights=None for random weights"
        ) from error
    return path


def _read(path: Path, layout: ResNetLayout) -> Mapping[str, Any]:
    if not path.is_file():
        raise EncoderWeightsError(
            f"{path}: no such file; needed is a .pth or .safetensors of {layout.title}, or "
            '"imagenet"'
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    # What a damaged pickle does is anyone's guess: IndexError, KeyError, struct.error ...
    except Exception as error:
        raise EncoderWeightsError(
            f"{path}: {pickle_fault(error)}; needed is a .pth or .safetensors of "
            f"{layout.title}: download or copy it again"
        ) from error
    for name in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise EncoderWeightsError(
            f"{path}: holds {type(content).__name__}, needed is a state dict {{name: tensor}}"
        )
    return content


def _check_layout(path: Path, weights: Mapping[str, Tensor], layout: ResNetLayout) -> None:
    """Refuse a deeper or shallower ResNet's file: its first blocks may fit, and mean nothing."""
    blocks = [0, 0, 0, 0]
    for key in weights:
        if match := re.match(r"layer([1-4])\.(\d+)\.", key):
            layer = int(match[1]) - 1
            blocks[layer] = max(blocks[layer], int(match[2]) + 1)
    is_bottleneck = "layer1.0.conv3.weight" in weights
    for name, other in ENCODERS.items():
        alike = is_bottleneck == (other.block is Bottleneck) and other.blocks == tuple(blocks)
        if alike and other is not layout:
            raise EncoderWeightsError(
                f"{path}: holds {other.title}'s weights and the encoder is {layout.title}; give "
                f'a file of {layout.title}, or choose encoder="{name}"'
            )


def _torchvision_keys(content: Mapping[str, Any]) -> dict[str, Tensor]:
    weights = {}
    for key, value in content.items():
        while prefix := next((prefix for prefix in _PREFIXES if key.startswith(prefix)), None):
            key = key[len(prefix) :]
        if isinstance(value, Tensor) and not key.startswith("fc."):
            weights[key] = value
    return weights


def _shortened(keys: list[str]) -> str:
    more = f" ... and {len(keys) - 20} more" if len(keys) > 20 else ""
    return ", ".join(keys[:20]) + more
