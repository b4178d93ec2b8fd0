"""Files that PyTorch reads back: exported programs (.pt2) and TorchScript (.pt, .ts)."""

import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from intrasense_fast.errors import UsageError, first_line
from intrasense_fast.export.checks import Runner
from intrasense_fast.export.model import INPUT, UNIT, ExportedModel

METADATA = "metadata.json"
_MOST_UNITS = 256


def program_of(model: ExportedModel, example: Tensor, *, any_size: bool) -> ExportedProgram:
    """The network as a program of ATen operators, of any batch.

    Args:
        model: in eval mode.
        example: (B, C, H, W), B >= 2, H and W multiples of 32 and at least 64.
        any_size: sides are open, in multiples of 32 up to 8192.

    Raises:
        UsageError: PyTorch cannot export this network.
    """
    sizes: dict[int, object] = {0: Dim("batch")}
    if any_size:
        sizes[2] = UNIT * Dim("rows", max=_MOST_UNITS)
        sizes[3] = UNIT * Dim("columns", max=_MOST_UNITS)
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(model, (example,), dynamic_shapes={INPUT: sizes})
    except Exception as error:  # whatever a network does that cannot be traced
        raise UsageError(
            f"{model.net.architecture}: cannot be exported ({first_line(error)}); "
            "take --format torchscript, or another network"
        ) from error


def write_pt2(program: ExportedProgram, path: Path, text: str) -> None:
    """Write a .pt2 file; `text` is its metadata.json."""
    with _quiet():
        torch.export.save(program, path, extra_files={METADATA: text})


def read_pt2(path: Path, device: torch.device) -> Runner:
    """A .pt2 file as a function of images on the CPU."""
    with _quiet():
        module = torch.export.load(path).module()
    return lambda images: module(images.to(device)).cpu()


def write_torchscript(model: ExportedModel, example: Tensor, path: Path, text: str) -> None:
    """Trace and write a TorchScript file; `text` is its metadata.json.

    Raises:
        UsageError: PyTorch cannot trace this network.
    """
    try:
        with torch.no_grad(), _quiet():
            traced = torch.jit.trace(model, (example,), check_trace=False)
            torch.jit.save(traced, path, _extra_files={METADATA: text.encode()})
    except (RuntimeError, TypeError, ValueError) as error:
        raise UsageError(
            f"{model.net.architecture}: cannot be traced ({first_line(error)}); "
            "take --format pt2, or another network"
        ) from error


def read_torchscript(path: Path) -> Runner:
    """A TorchScript file as a function of images on the CPU."""
    with _quiet():
        module = torch.jit.load(path, map_location="cpu")

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            return module(images)

    return run


class _quiet(warnings.catch_warnings):
    """Without what PyTorch says about its own tracing and its own plans."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
