"""Pretrained weights from a local file: every key and every shape must fit."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from intrasense_fast.errors import pickle_fault
from intrasense_fast.networks.encoder_weights import EncoderWeightsError

_SHOWN = 8
_CONTAINERS = ("state_dict", "model_state_dict", "model")


def weights_path(source: Any, needed: str) -> Path:
    """The path of an existing weights file.

    Args:
        source: what the caller named.
        needed: what the file must be and where it comes from, for the error.

    Raises:
        TypeError: source is no path.
        EncoderWeightsError: there is no such file.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"encoder_weights must be None or the path of a file, got {source!r}")
    path = Path(source)
    if not path.is_file():
        raise EncoderWeightsError(
            f"{path}: no such file; needed is {needed}; "
            "or pass encoder_weights=None to train from scratch"
        )
    return path


def read_state_dict(path: Path, needed: str) -> dict[str, Tensor]:
    """The tensors of a .pth, .pt or .safetensors file; they may lie in a "state_dict" or "model".

    Raises:
        EncoderWeightsError: damaged, or no state dict.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged pickle does is anyone's guess
        raise _unreadable(path, needed, error) from error
    for name in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        raise EncoderWeightsError(f"{path}: holds {type(content).__name__}; needed is {needed}")
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def read_arrays(path: Path, needed: str) -> dict[str, Tensor]:
    """The arrays of an .npz file as tensors.

    Raises:
        EncoderWeightsError: damaged, or no .npz.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    except (OSError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise _unreadable(path, needed, error) from error


def load_checked(module: nn.Module, weights: Mapping[str, Tensor], path: Path, needed: str) -> None:
    """Load a state dict whose keys and shapes must be the module's, all of them.

    Raises:
        EncoderWeightsError: a key is missing, unknown or of another shape or kind; the module is as
            it was.
    """
    own = module.state_dict()
    wrong = [f"{key} (missing)" for key in own if key not in weights]
    wrong += [f"{key} (unknown)" for key in weights if key not in own]
    for key in own.keys() & weights.keys():
        given, wanted = weights[key], own[key]
        alike = given.is_floating_point() == wanted.is_floating_point()
        if given.shape != wanted.shape or not alike:
            wrong.append(f"{key} ({tuple(given.shape)} for {tuple(wanted.shape)})")
    if wrong:
        more = f" ... and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise EncoderWeightsError(
            f"{path}: does not fit, {', '.join(wrong[:_SHOWN])}{more}; needed is {needed}"
        )
    module.load_state_dict(dict(weights))


def _unreadable(path: Path, needed: str, error: Exception) -> EncoderWeightsError:
    return EncoderWeightsError(f"{path}: {pickle_fault(error)}; needed is {needed}: copy it again")
