"""A checkpoint as one file: written, checked against the network, then put in its place."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from intrasense_fast.errors import UsageError
from intrasense_fast.export import onnx, programs
from intrasense_fast.export.checks import (
    Checked,
    Runner,
    Shape,
    all_shapes,
    check_file,
    few_shapes,
)
from intrasense_fast.export.model import (
    PROBABILITIES,
    UNIT,
    ExportedModel,
    half_of,
    metadata_of,
    takes_any_size,
)
from intrasense_fast.export.pictures import Lost, Pictures, lost_dice, read_pictures
from intrasense_fast.export.quantize import quantize
from intrasense_fast.files import atomic_path, check_place
from intrasense_fast.inference import Segmenter
from intrasense_fast.networks import read_config
from intrasense_fast.networks.contract import config_of, set_fused

ONNX, PT2, TORCHSCRIPT = "onnx", "pt2", "torchscript"
SUFFIXES = {ONNX: (".onnx",), PT2: (".pt2",), TORCHSCRIPT: (".pt", ".ts")}
# Sides of an exported program: a map of side 1 would be another program.
_SMALLEST_EXAMPLE, _LARGEST = 64, 8192


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and how.

    Attributes:
        format: "onnx", "pt2" or "torchscript".
        output: "probabilities" or "logits".
        precision: "float32"; for ONNX also "float16" and "int8".
        calibrate: a folder of images: where int8 measures its ranges, and what a lower precision
            costs is measured.
        keep_operators: pt2 only: the Triton kernels stay custom operators of the program.
        check_all: check every size at every batch.
    """

    format: str
    output: str = PROBABILITIES
    precision: str = onnx.FLOAT32
    calibrate: str | None = None
    keep_operators: bool = False
    check_all: bool = False


class Exported(NamedTuple):
    """What was written: checks of the float32 program, the Dice of a lower precision, the sizes
    that the file takes in words, and remarks."""

    checked: Checked
    lost: Lost | None
    sizes: str
    remarks: tuple[str, ...]


def check_options(options: ExportOptions, out: Path) -> None:
    """Find out before the network is read whether these options can be served.

    Raises:
        UsageError: they cannot; the message names the flag.
        OSError: no file can be made at `out`.
    """
    suffixes = SUFFIXES[options.format]
    if out.suffix not in suffixes:
        raise UsageError(
            f"--out {out}: must end in {' or '.join(suffixes)} for --format {options.format}"
        )
    if out.exists() or out.is_symlink():
        raise UsageError(f"--out {out}: exists, and nothing is overwritten: name a new file")
    lower = options.precision != onnx.FLOAT32
    if lower and options.format != ONNX:
        raise UsageError(f"--precision {options.precision}: is for --format onnx alone")
    if lower and not options.calibrate:
        raise UsageError(
            f"--precision {options.precision}: give --calibrate FOLDER, images like those that "
            "the file will see: what it costs is measured on them"
        )
    if options.calibrate and not lower:
        raise UsageError("--calibrate: is for --precision float16 or int8")
    if options.keep_operators and options.format != PT2:
        raise UsageError("--keep-operators: is for --format pt2 alone")
    if options.format == ONNX:
        onnx.check_packages()
    check_place(out)


def export_checkpoint(
    segmenter: Segmenter, checkpoint: Path, out: Path, options: ExportOptions
) -> Exported:
    """Write a checkpoint as one file, after it was run beside the network.

    Args:
        segmenter: the network of the checkpoint, on the device where the program is made; its
            temperature goes into the file's probabilities.
        checkpoint: its folder.
        out: the new file.
        options: checked by `check_options`.

    Raises:
        UsageError: it cannot be exported, or the file is not what the network is; nothing is
            written.
    """
    net, size = segmenter.net, segmenter.size
    set_fused(net, options.keep_operators)
    about = metadata_of(segmenter, checkpoint, read_config(checkpoint), options.output)
    any_size = takes_any_size(net, size)
    about |= {"precision": options.precision, "sizes": _sizes(options.format, any_size, size)}
    shapes = _shapes(options, any_size, size)
    model = ExportedModel(net, options.output, segmenter.temperature)
    pictures = None
    if options.calibrate:
        channels = config_of(net)["in_channels"]
        pictures = read_pictures(options.calibrate, size, channels, segmenter.levels)
    with atomic_path(out) as temporary, _float32_beside(temporary, options) as plain:
        run = _written(model, plain, about, options, _example(net, size, any_size), any_size)
        checked = check_file(model, run, shapes)
        lost = None
        if pictures is not None:
            lower = _lowered(model, temporary, plain, about, options, pictures)
            # That it runs at every shape, and gives numbers: how good they are the pictures say.
            check_file(model, lower, shapes, tolerance=1)
            if options.output != PROBABILITIES:
                run, lower = _with_sigmoid(model, run), _with_sigmoid(model, lower)
            lost = lost_dice(run, lower, pictures, float(about["threshold"]))
    return Exported(checked, lost, about["sizes"], _remarks(model, pictures))


def _remarks(model: ExportedModel, pictures: Pictures | None) -> tuple[str, ...]:
    remarks = []
    if model.temperature != 1 and model.output == PROBABILITIES:
        remarks.append(
            f"the probabilities are calibrated, temperature {model.temperature:.3f}; "
            "--no-calibration leaves it out"
        )
    if pictures is not None and pictures.remark:
        remarks.append(f"no ground truth: {pictures.remark}")
    return tuple(remarks)


def _written(
    model: ExportedModel,
    path: Path,
    about: dict[str, str],
    options: ExportOptions,
    example: Tensor,
    any_size: bool,
) -> Runner:
    """Write the float32 program and read it back."""
    text = json.dumps(about, indent=1)
    if options.format == ONNX:
        onnx.write_onnx(model, example, path, about, any_size=any_size)
        return onnx.read_onnx(path)
    if options.format == TORCHSCRIPT:
        programs.write_torchscript(model, example, path, text)
        return programs.read_torchscript(path)
    program = programs.program_of(model, example, any_size=any_size)
    programs.write_pt2(program, path, text)
    return programs.read_pt2(path, example.device)


def _lowered(
    model: ExportedModel,
    target: Path,
    plain: Path,
    about: dict[str, str],
    options: ExportOptions,
    pictures: Pictures,
) -> Runner:
    """Write the file in a lower precision, and read it back."""
    if options.precision == onnx.INT8:
        quantize(plain, target, pictures.images, about)
    else:
        half = ExportedModel(half_of(model.net), options.output, model.temperature)
        size = pictures.images[0].shape[-1]
        any_size = takes_any_size(model.net, size)
        example = _example(model.net, size, any_size)
        onnx.write_onnx(half, example, target, about, any_size=any_size)
    return onnx.read_onnx(target)


def _with_sigmoid(model: ExportedModel, run: Runner) -> Runner:
    return lambda images: model.probabilities(run(images))


def _example(net: torch.nn.Module, size: int, any_size: bool) -> Tensor:
    """Two images of the trained size; of a program of any size, of the next that has no side 1 on
    any of its maps."""
    side = max(_SMALLEST_EXAMPLE, -(-size // UNIT) * UNIT) if any_size else size
    device = next(net.parameters()).device
    return torch.rand(2, config_of(net)["in_channels"], side, side, device=device)


def _shapes(options: ExportOptions, any_size: bool, size: int) -> list[Shape]:
    if not any_size:
        return [Shape(batch, size, size) for batch in (1, 3)]
    return all_shapes() if options.check_all else few_shapes()


def _sizes(format_: str, any_size: bool, size: int) -> str:
    if not any_size:
        return f"{size} x {size} alone, as the network"
    if format_ == PT2:
        return f"multiples of {UNIT} from {_SMALLEST_EXAMPLE} to {_LARGEST}"
    return f"from {UNIT} x {UNIT} up"


@contextlib.contextmanager
def _float32_beside(temporary: Path, options: ExportOptions) -> Iterator[Path]:
    """Where the float32 program is written: the file itself, or one beside a file in a lower
    precision, for as long as both are compared."""
    if options.precision == onnx.FLOAT32:
        yield temporary
        return
    plain = temporary.with_name(f"{temporary.stem}.float32{temporary.suffix}")
    try:
        yield plain
    finally:
        plain.unlink(missing_ok=True)
