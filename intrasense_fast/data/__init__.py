"""Ultrasound data sets as they lie on disk: `open_dataset(path)` reads them without a conversion
step."""

from intrasense_fast.data.images import ImageError, read_image, write_png
from intrasense_fast.data.layouts import LAYOUTS, open_dataset, read_dataset
from intrasense_fast.data.masks import read_mask
from intrasense_fast.data.order import natural_key
from intrasense_fast.data.reading import ReadingOptions
from intrasense_fast.data.records import DataError, Problem, Record, Sample, SegmentationData

__all__ = [
    "LAYOUTS",
    "DataError",
    "ImageError",
    "Problem",
    "ReadingOptions",
    "Record",
    "Sample",
    "SegmentationData",
    "natural_key",
    "open_dataset",
    "read_dataset",
    "read_image",
    "read_mask",
    "write_png",
]
