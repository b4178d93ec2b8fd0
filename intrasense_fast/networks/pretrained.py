"""The folder of a network, config.json and model.safetensors: written as a pair, and read with
every fault named.
"""

import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from intrasense_fast.errors import first_line
from intrasense_fast.files import atomic_path, flush_to_disk
from intrasense_fast.kernels.runtime import DTYPES
from intrasense_fast.networks.cards import CARD_FILE, network_card, write_card
from intrasense_fast.networks.checksums import CHECKSUM_FILE, check_files
from intrasense_fast.networks.contract import config_of
from intrasense_fast.networks.selftest import SELFTEST_FILE, check_finite, check_selftest
from intrasense_fast.version import __version__

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

# What folders say that were written before networks had names.
_FORMER_NAMES = {"IntraSenseNet": "intrasense"}
_Network = TypeVar("_Network", bound=nn.Module)


def save_network(
    net: nn.Module,
    path: str | os.PathLike[str],
    extra: dict[str, Any] | None = None,
    *,
    overwrite: bool = False,
    card: bool = False,
) -> None:
    """Write `config.json` and `model.safetensors` of any network of the contract into a folder:
    both, or neither.

    Args:
        net: with `architecture` and `config`.
        path: the folder; created if missing.
        extra: more JSON values for config.json, for instance {"image_size": 256}.
        overwrite: replace a network already there.
        card: write a minimal model card beside them, README.md; one that is not ours is kept, with
            a warning.

    Raises:
        FileExistsError: the folder holds a network and `overwrite` is False.
        TypeError: `extra` holds what JSON cannot, or the network does not say how it was built.
        ValueError: a tensor of the network is of a dtype that no layer computes in, such as an
            8-bit float.
    """
    about = {
        "arguments": dict(config_of(net)),
        "architecture": net.architecture,
        "version": __version__,
    }
    write_folder(path, about, net.state_dict(), extra, overwrite=overwrite)
    if card and not write_card(path, network_card(net)):
        warnings.warn(
            f"{Path(path) / CARD_FILE}: is yours and is kept; no model card is written",
            stacklevel=3,
        )


def load_folder(
    path: str | os.PathLike[str],
    build: Callable[[dict[str, Any]], _Network],
    *,
    only: str | None = None,
) -> _Network:
    """The network of a folder, in eval mode, on the CPU, checked: its files against checksums.json,
    its weights for NaN, its logits against selftest.safetensors, where the folder has these.

    Args:
        path: the folder with config.json and model.safetensors.
        build: makes the network from the arguments in config.json.
        only: the one architecture that is taken.

    Raises:
        ValueError: the folder or a file is missing, damaged, or of another network.
    """
    # A network that is loaded where nothing is recorded must be able to train all the same.
    with torch.inference_mode(False), torch.no_grad():
        net = _read_folder(Path(path), build, only)
        check_finite(net, Path(path) / WEIGHTS_FILE)
        check_selftest(net, path)
    return net


def _read_folder(
    path: Path, build: Callable[[dict[str, Any]], _Network], only: str | None
) -> _Network:
    file = path / CONFIG_FILE
    arguments = read_config(path, only=only)["arguments"]
    try:
        check_files(path, (CONFIG_FILE, WEIGHTS_FILE, SELFTEST_FILE))
    except ValueError as error:
        raise ValueError(
            f"{error}; copy the checkpoint again, or after a change of your own remove "
            f"{CHECKSUM_FILE}"
        ) from error
    try:
        net = _unloaded(build, arguments)
    except TypeError as error:
        raise ValueError(
            f"{file}: arguments this version does not know ({first_line(error)}); update this "
            f"package or copy it again"
        ) from error
    except (ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"{file}: describes no network that can be built ({first_line(error)}); copy the "
            f"checkpoint again"
        ) from error
    weights = read_weights(path, net.state_dict())
    # Tensors inside the file are not aligned, and other alignments choose other CPU kernels with
    # other last bits.
    net.load_state_dict({key: value.clone() for key, value in weights.items()}, assign=True)
    return net.eval()


def _unloaded(build: Callable[[dict[str, Any]], _Network], arguments: dict[str, Any]) -> _Network:
    """The network before its weights: without memory, or, where it holds tensors that are not
    saved, on the CPU.
    """
    try:
        with torch.device("meta"):
            net = build(arguments)
    except NotImplementedError:
        # Its constructor reads numbers, which nothing on the meta device has.
        net = None
    if net is not None and {name for name, _ in net.named_buffers()} <= net.state_dict().keys():
        return net
    with torch.random.fork_rng(devices=[]):
        return build(arguments)


def write_folder(
    path: str | os.PathLike[str],
    about: dict[str, Any],
    weights: Mapping[str, Tensor],
    extra: dict[str, Any] | None,
    *,
    overwrite: bool,
) -> None:
    """Write what a network is, with `extra` beside it, and its weights; see `save_network`."""
    folder = Path(path)
    config, tensors = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    existing = [file.name for file in (config, tensors) if file.exists()]
    if existing and not overwrite:
        raise FileExistsError(
            f"{folder} already holds {' and '.join(existing)}; choose another folder or pass "
            f"overwrite=True"
        )
    if fault := _dtype_fault(weights):
        raise ValueError(f"{folder}: not written, {fault}; convert the network with net.to(dtype)")
    try:
        text = json.dumps({**(extra or {}), **about}, indent=2) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"{folder}: not written, extra must be a dictionary of values that JSON can hold "
            f"({first_line(error)}); "
            "convert the others, for instance with int(), float() or str()"
        ) from error
    with atomic_path(config) as new_config, atomic_path(tensors) as new_tensors:
        new_config.write_text(text, encoding="utf-8")
        save_file(_apart(weights), new_tensors)
        for new in (new_config, new_tensors):
            flush_to_disk(new)
        # Whatever interrupts the two renames, the old configuration never stands beside the new
        # weights, and nothing vouches for the network before it.
        for former in (config, folder / CHECKSUM_FILE, folder / SELFTEST_FILE):
            former.unlink(missing_ok=True)


def _apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each in memory of its own: networks that register a module twice, as
    MONAI's DynUNet does, have two names for one tensor, and the format refuses that."""
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()
    for key, value in weights.items():
        tensor = value.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        tensors[key] = tensor
    return tensors


def _checkpoint_in(run: Path) -> Path | None:
    """A checkpoint of a run's folder, of a cross-validated run its first fold's."""
    folders = (run / "best", run / "last", *sorted(run.glob("fold-*/best")))
    return next((folder for folder in folders if folder.is_dir()), None)


def read_config(path: str | os.PathLike[str], *, only: str | None = None) -> dict[str, Any]:
    """config.json of a network's folder: "architecture", "version", "arguments" and what `extra`
    added.

    Args:
        path: the folder.
        only: the one architecture that is taken.

    Raises:
        ValueError: the folder or the file is missing, damaged, or of another network.
    """
    folder = Path(path)
    file = folder / CONFIG_FILE
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: no such folder; needed is one with {CONFIG_FILE} and {WEIGHTS_FILE}"
        )
    inside = _checkpoint_in(folder)
    if not file.is_file() or (inside and not (folder / WEIGHTS_FILE).exists()):
        hint = f"; did you mean {inside}?" if inside else ""
        raise ValueError(
            f"{folder}: is no checkpoint folder: it needs {CONFIG_FILE} and {WEIGHTS_FILE}{hint}"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{file}: damaged ({error}); copy the checkpoint again") from error
    architecture = content.get("architecture") if isinstance(content, dict) else None
    if not isinstance(architecture, str):
        raise ValueError(f'{file}: describes no network (its "architecture" is missing)')
    content["architecture"] = _FORMER_NAMES.get(architecture, architecture)
    if only is not None and content["architecture"] != only:
        raise ValueError(
            f'{file}: describes no {only}, its "architecture" is {architecture}; '
            "load it with intrasense_fast.networks.load_network"
        )
    if not isinstance(content.get("arguments"), dict):
        raise ValueError(f'{file}: has no "arguments" of the network')
    return content


def read_weights(path: str | os.PathLike[str], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """model.safetensors of a folder, for a network whose state dict is `own`: its keys and its
    shapes.

    Raises:
        ValueError: the file is missing, damaged, or of another network.
    """
    folder = Path(path)
    file = folder / WEIGHTS_FILE
    try:
        weights = load_file(file)
    except FileNotFoundError:
        raise ValueError(
            f"{folder}: has {CONFIG_FILE} but no {WEIGHTS_FILE}; the checkpoint is incomplete"
        ) from None
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file}: damaged or truncated ({error}); copy the checkpoint again"
        ) from error
    wrong = [f"{key} (missing)" for key in sorted(own.keys() - weights.keys())]
    wrong += [f"{key} (unknown)" for key in sorted(weights.keys() - own.keys())]
    for key in sorted(own.keys() & weights.keys()):
        given, needed = weights[key], own[key]
        alike = (
            given.is_floating_point() if needed.is_floating_point() else given.dtype == needed.dtype
        )
        if given.shape != needed.shape or not alike:
            wrong.append(f"{key} ({_shown(given)} for {_shown(needed)})")
    if wrong:
        shown = ", ".join(wrong[:8]) + (f" ... and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        raise ValueError(
            f"{folder}: {WEIGHTS_FILE} and {CONFIG_FILE} disagree on {shown}; copy both files "
            f"again, from one checkpoint"
        )
    if fault := _dtype_fault(weights):
        raise ValueError(f"{file}: {fault}; copy the checkpoint again")
    return weights


def _dtype_fault(weights: Mapping[str, Tensor]) -> str:
    """Which tensor is of a dtype that no layer computes in; several of the others may stand side by
    side, as for autocast.
    """
    odd = next(
        (
            key
            for key, value in weights.items()
            if value.is_floating_point() and value.dtype not in DTYPES
        ),
        None,
    )
    return (
        ""
        if odd is None
        else f"{odd} must be float32, float16, bfloat16 or float64, it is {weights[odd].dtype}"
    )


def _shown(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
