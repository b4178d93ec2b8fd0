"""DICOM files as tests need them: pydicom's own, and small ones made here."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

_REASON = "the extra dicom is not installed"
pydicom = pytest.importorskip("pydicom", reason=_REASON)
data_files = pytest.importorskip("pydicom.data", reason=_REASON)
uid = pytest.importorskip("pydicom.uid", reason=_REASON)
highdicom = pytest.importorskip("highdicom", reason=_REASON)

# What must be found nowhere but in the file.
PATIENT = "Mustermann^Erika"
PATIENT_ID = "MRN-4711-0815"


def shipped(name: str) -> Path:
    """A file that lies in pydicom's own package; nothing is downloaded."""
    path = Path(str(data_files.get_testdata_file(name, download=False)))
    assert path.is_file(), name
    return path


def scan_region(
    box: tuple[int, int, int, int], delta: tuple[float, float] = (0.01, 0.01), **more: Any
) -> Any:
    """An item of the ultrasound regions: left, top, right, bottom; centimetres down and across."""
    item = pydicom.Dataset()
    item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = 1, 1, 2
    item.RegionLocationMinX0, item.RegionLocationMinY0 = box[:2]
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = box[2:]
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3
    item.PhysicalDeltaY, item.PhysicalDeltaX = delta
    for keyword, value in more.items():
        setattr(item, keyword, value)
    return item


def write_dicom(
    path: Path, pixels: np.ndarray, regions: list[Any] | None = None, **tags: Any
) -> Path:
    """An ultrasound picture, uncompressed, with a patient; `tags` replace or add attributes.

    Args:
        pixels: uint8 or uint16, (H, W), (H, W, 3), or with frames before.
    """
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = uid.UltrasoundImageStorage
    meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    data = pydicom.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = (
        uid.UltrasoundImageStorage,
        meta.MediaStorageSOPInstanceUID,
    )
    data.StudyInstanceUID, data.SeriesInstanceUID = uid.generate_uid(), uid.generate_uid()
    data.PatientName, data.PatientID = PATIENT, PATIENT_ID
    data.Modality, data.SeriesNumber, data.InstanceNumber = "US", 1, 1
    colour = pixels.shape[-1] == 3 and pixels.ndim > 2
    data.SamplesPerPixel = 3 if colour else 1
    data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        data.PlanarConfiguration = 0
    grid = pixels.shape[:-1] if colour else pixels.shape
    data.Rows, data.Columns = grid[-2:]
    if len(grid) == 3:
        data.NumberOfFrames = grid[0]
    bits = pixels.dtype.itemsize * 8
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.PixelRepresentation = 0
    if regions:
        data.SequenceOfUltrasoundRegions = pydicom.Sequence(regions)
    for keyword, value in tags.items():
        setattr(data, keyword, value)
    raw = pixels.tobytes()
    data.PixelData = raw + b"\0" * (len(raw) % 2)
    data["PixelData"].VR = "OW" if bits == 16 else "OB"
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path
