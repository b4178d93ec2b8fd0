"""Which inputs of `predict --dicom-seg` get a DICOM Segmentation, and what made their masks."""

from pathlib import Path

from intrasense_fast.console import show
from intrasense_fast.data.dicom.package import is_dicom
from intrasense_fast.data.inputs import Inputs
from intrasense_fast.data.joining import few
from intrasense_fast.errors import UsageError
from intrasense_fast.inference.ensemble import Ensemble
from intrasense_fast.report.dicom_segmentation import (
    Algorithm,
    SegmentationError,
    check_packages,
)


def segmented(inputs: Inputs) -> frozenset[Path]:
    """The images that get a DICOM Segmentation; the others are named.

    Raises:
        UsageError: there are none, or a package is missing.
    """
    try:
        check_packages()
    except SegmentationError as error:
        raise UsageError(str(error)) from error
    chosen = frozenset(relative for relative, path in inputs.images if is_dicom(path))
    others = [str(relative) for relative, _ in inputs.images if relative not in chosen]
    others += [str(relative) for relative, _ in inputs.clips]
    if not chosen:
        raise UsageError(
            "--dicom-seg: none of the inputs is a DICOM file of one frame, to which a segmentation "
            "would refer; leave --dicom-seg out"
        )
    if others:
        show(
            f"--dicom-seg: {len(others)} inputs are no DICOM files of one frame and get no "
            f"NAME_seg.dcm: {few(others)}"
        )
    return chosen


def algorithm_of(ensemble: Ensemble, threshold: float) -> Algorithm:
    """What made the masks, as a DICOM Segmentation names it."""
    networks = dict.fromkeys(
        str(getattr(member.net, "architecture", "")) for member in ensemble.members
    )
    weights = [member.weights_sha256 for member in ensemble.members]
    return Algorithm(", ".join(networks), " ".join(weights), threshold)
