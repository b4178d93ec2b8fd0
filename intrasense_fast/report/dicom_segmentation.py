"""Predicted masks as DICOM Segmentation objects that refer to the picture they are of (highdicom).

Such an object belongs to the patient's study: it repeats the patient, study and frame of reference
of its source, as the standard demands. Nothing else that is written holds them.
"""

import os
from typing import Any, NamedTuple

import numpy as np

from intrasense_fast.data.dicom.package import needed, quiet
from intrasense_fast.data.header import HeaderError
from intrasense_fast.data.opening import open_regular
from intrasense_fast.files import atomic_path
from intrasense_fast.version import __version__

LABEL = "Lesion"
_SERIES = 1000
_MODEL = "IntraSense-Net"
# What a segmentation repeats of its source, and may leave empty.
_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
# Of a digest, in a field of 64 characters.
_SERIAL_LENGTH = 64


class SegmentationError(ValueError):
    """A DICOM Segmentation that cannot be written; the message does not name the file."""


class Algorithm(NamedTuple):
    """What made a mask: the network's name, the SHA-256 of its weights and the threshold."""

    network: str
    weights_sha256: str
    threshold: float


def check_packages() -> None:
    """Find out before long work whether segmentations can be written.

    Raises:
        SegmentationError: a package is missing.
    """
    try:
        for package in ("pydicom", "highdicom"):
            needed(package, "--dicom-seg")
    except HeaderError as error:
        raise SegmentationError(str(error)) from None


def write_segmentation(
    path: str | os.PathLike[str],
    source: str | os.PathLike[str],
    mask: np.ndarray,
    algorithm: Algorithm,
) -> None:
    """Write a mask as a binary DICOM Segmentation with one segment, "Lesion", atomically.

    Args:
        path: the file to write.
        source: the DICOM file of one frame that the mask is of.
        mask: (H, W), of which 0 is background, on the grid of the whole frame.
        algorithm: what made it.

    Raises:
        SegmentationError: the source is gone, is no DICOM file of one frame of this size, or lacks
            what a segmentation must repeat; a package is missing.
        OSError: it cannot be written.
    """
    check_packages()
    try:
        with quiet("its header lacks what a DICOM Segmentation repeats, or is damaged"):
            data = _segmentation(source, mask, algorithm)
    except HeaderError as error:
        raise SegmentationError(f"no DICOM Segmentation: {error}") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SegmentationError(
            f"no DICOM Segmentation: its source cannot be read ({reason}): put the file back"
        ) from None
    with atomic_path(path, flush=False) as temporary, quiet("it cannot be encoded"):
        data.save_as(temporary)


def _segmentation(source: Any, mask: np.ndarray, algorithm: Algorithm) -> Any:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import (
        SegmentAlgorithmTypeValues,
        Segmentation,
        SegmentationTypeValues,
        SegmentDescription,
    )
    from pydicom import dcmread
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, generate_uid

    with open_regular(source) as stream:
        picture = dcmread(stream, stop_before_pixels=True)
    size = (picture.Rows, picture.Columns)
    if size != mask.shape or int(picture.get("NumberOfFrames") or 1) != 1:
        raise HeaderError(f"its source is no single frame of {mask.shape[1]} x {mask.shape[0]}")
    for keyword in ("SOPInstanceUID", "SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID"):
        if not picture.get(keyword):
            raise HeaderError(f"its source has no {keyword}, to which it would refer")
    if picture.file_meta.get("TransferSyntaxUID") == ExplicitVRBigEndian:
        # Its bytes are read; only the name of their order stands in the way.
        picture.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword in _MAY_BE_EMPTY:
        if keyword not in picture:
            setattr(picture, keyword, None)
    _leave_out_bad_times(picture)
    if "SliceThickness" not in picture and "PixelSpacing" in picture:
        # Readers refuse one without the other; the source has it on the same grid.
        del picture.PixelSpacing
    segment = SegmentDescription(
        segment_number=1,
        segment_label=LABEL,
        segmented_property_category=Code("49755003", "SCT", "Morphologically Altered Structure"),
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=algorithm.network,
            version=__version__,
            family=codes.cid7162.ArtificialIntelligence,
            source="intrasense-fast",
            parameters={
                "weights_sha256": algorithm.weights_sha256,
                "threshold": f"{algorithm.threshold:g}",
            },
        ),
    )
    return Segmentation(
        source_images=[picture],
        pixel_array=(mask != 0).astype(np.uint8)[None],
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[segment],
        series_instance_uid=generate_uid(),
        series_number=_SERIES,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="intrasense-fast",
        manufacturer_model_name=_MODEL,
        software_versions=__version__,
        device_serial_number=algorithm.weights_sha256[:_SERIAL_LENGTH] or "unknown",
        # A mask without a pixel is stored, too.
        omit_empty_frames=bool(mask.any()),
        series_description=f"{LABEL} segmentation",
    )


def _leave_out_bad_times(picture: Any) -> None:
    """Empty the dates and times of a study that are written as DICOM does not write them."""
    from pydicom.valuerep import DA, TM

    for keyword, kind in (("StudyDate", DA), ("PatientBirthDate", DA), ("StudyTime", TM)):
        try:
            kind(picture.get(keyword))
        except ValueError:
            setattr(picture, keyword, None)
