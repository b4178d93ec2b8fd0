"""int8: convolutions in 8 bits, with ranges measured on the user's own images."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from intrasense_fast.errors import UsageError, first_line
from intrasense_fast.export.model import INPUT
from intrasense_fast.export.onnx import set_metadata
from intrasense_fast.export.packages import needed


def quantize(
    source: Path, target: Path, images: Sequence[np.ndarray], about: Mapping[str, str]
) -> None:
    """Write a statically quantised copy of an ONNX file: weights a channel, activations a tensor.

    Convolutions alone: attention, entropies and the inverse of Eq. 8 stay in float32.

    Args:
        source: the float32 file; a file beside it holds the folded graph for a moment.
        target: where.
        images: float32 (1, C, size, size) in [0, 1], what ranges are measured on.
        about: metadata.

    Raises:
        UsageError: onnxruntime cannot quantise it.
    """
    onnx, quantization = needed("onnx"), needed("onnxruntime.quantization")
    folded = source.with_name(f"{source.name}.folded.onnx")
    try:
        # BatchNorms go into their convolutions first: their ranges are then one.
        needed("onnxruntime.quantization.shape_inference").quant_pre_process(
            str(source), str(folded), skip_symbolic_shape=True
        )
        quantization.quantize_static(
            str(folded),
            str(target),
            _Reader(images),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    except Exception as error:  # its errors have no common type
        raise UsageError(f"--precision int8: cannot be quantised ({first_line(error)})") from error
    finally:
        folded.unlink(missing_ok=True)
    content = onnx.load(str(target))
    set_metadata(content, about)
    onnx.save(content, str(target))


class _Reader:
    """Images one by one, as onnxruntime's CalibrationDataReader gives them."""

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        self._images: Iterator[np.ndarray] = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._images, None)
        return None if image is None else {INPUT: image}

    def set_range(self, start_index: int, end_index: int) -> None:
        """All images are read in one go."""
