"""ONNX files: written from the traced network, whose sizes stay open, and read by onnxruntime."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from intrasense_fast.errors import UsageError, first_line
from intrasense_fast.export.checks import Runner
from intrasense_fast.export.model import INPUT, ExportedModel
from intrasense_fast.export.packages import needed

OPSET = 18
FLOAT32, FLOAT16, INT8 = "float32", "float16", "int8"
PRECISIONS = (FLOAT32, FLOAT16, INT8)


def check_packages() -> None:
    """Raise a UsageError, before long work, where a package is missing."""
    for name in ("onnx", "onnxruntime"):
        needed(name)


def write_onnx(
    model: ExportedModel, example: Tensor, path: Path, about: Mapping[str, str], *, any_size: bool
) -> None:
    """Write an ONNX file with `about` as its metadata_props.

    The exporter of traced programs: that of exported programs cannot leave sides open that are no
    multiple of 32.

    Args:
        model: on the CPU, in the precision that the file is to have.
        example: (B, C, H, W), B >= 2.
        path: where.
        about: metadata.
        any_size: H and W are open.

    Raises:
        UsageError: PyTorch cannot export this network.
    """
    onnx = needed("onnx")
    axes = {0: "batch", **({2: "height", 3: "width"} if any_size else {})}
    options = {
        "input_names": [INPUT],
        "output_names": [model.output],
        "dynamic_axes": {INPUT: axes, model.output: axes},
        "opset_version": OPSET,
        "dynamo": False,
    }
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(model, (example,), str(path), **options)  # type: ignore[arg-type]
    except Exception as error:  # its errors have no common type
        raise UsageError(
            f"{model.net.architecture}: cannot be exported to ONNX ({first_line(error)}); "
            "take --format torchscript, or another network"
        ) from error
    content = onnx.load(str(path))
    content.producer_name = "intrasense-fast"
    set_metadata(content, about)
    onnx.checker.check_model(content)
    onnx.save(content, str(path))


def set_metadata(content: object, about: Mapping[str, str]) -> None:
    """Put names and values into metadata_props, in place of what is there."""
    needed("onnx").helper.set_model_props(content, dict(about))


def read_onnx(path: Path) -> Runner:
    """An ONNX file in onnxruntime on the CPU, as a function of images.

    Raises:
        UsageError: onnxruntime does not take it.
    """
    runtime = needed("onnxruntime")
    options = runtime.SessionOptions()
    # Its own lines are left out: what goes wrong is raised as well.
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common type
        raise UsageError(f"onnxruntime does not take the file ({first_line(error)})") from error

    def run(images: Tensor) -> Tensor:
        (result,) = session.run(None, {INPUT: images.numpy().astype(np.float32)})
        return torch.from_numpy(result)

    return run
