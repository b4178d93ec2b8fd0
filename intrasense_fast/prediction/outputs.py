"""What `predict` writes of one image: where its files go, and what its row says."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from intrasense_fast.data.images import ImageError, read_image, write_png
from intrasense_fast.data.listing import without_ending
from intrasense_fast.data.region import Region
from intrasense_fast.errors import UsageError
from intrasense_fast.files import legible
from intrasense_fast.inference.doubt import doubt, entropy
from intrasense_fast.inference.ensemble import Answer
from intrasense_fast.measuring.components import NO_CLEAN_UP, CleanUp
from intrasense_fast.measuring.lesion import measure
from intrasense_fast.prediction.table import DONE, Row
from intrasense_fast.report.contours import draw_outline
from intrasense_fast.report.dicom_segmentation import Algorithm, write_segmentation
from intrasense_fast.report.overlays import OverlayItem, overlay

# Of the pictures in overlays.png: all of them are in memory while it is drawn.
_LARGEST_DRAWN = 768


KINDS = ("mask", "overlay", "probability", "entropy", "disagreement", "contour")
OVERLAY_CLIP = "overlay.avi"
_SEGMENTATION = "seg.dcm"


@dataclass(frozen=True)
class Destination:
    """Where the results of a call go, and what is written of each image.

    `threshold` is the probability above which a pixel is lesion; `kinds` are some of `KINDS`, a
    file NAME_KIND.png each. `clean_up` is done to each mask; `algorithm`, where it is given, is
    named in a DICOM Segmentation NAME_seg.dcm of each mask of a DICOM file.
    """

    folder: Path
    threshold: float
    kinds: tuple[str, ...]
    clean_up: CleanUp = NO_CLEAN_UP
    algorithm: Algorithm | None = None


class Origin(NamedTuple):
    """Where an image comes from: its file where that is DICOM of one frame, else None; millimetres
    between its rows and between its columns, None where unknown; the region of it that the network
    saw, None for all of it."""

    source: Path | None = None
    spacing: tuple[float, float] | None = None
    region: Region | None = None

    def scan(self, pixels: np.ndarray) -> np.ndarray:
        """Of (H, W) values those of the region."""
        return pixels if self.region is None else self.region.crop(pixels)


_NOWHERE = Origin()


def table_name(relative: Path) -> str:
    """What predictions.csv calls an image: its place below the folder, in UTF-8."""
    return legible(relative.as_posix())


def stem_of(out: Path, relative: Path) -> Path:
    """Where the results of an image begin: its place in `out`, its name in UTF-8 as predictions.csv
    holds it.
    """
    return out / legible(without_ending(relative).as_posix())


def clip_folder(out: Path, relative: Path) -> Path:
    """Where the results of a clip's frames go."""
    return out / table_name(relative)


def output_files(
    out: Path,
    images: Sequence[Path],
    clips: Sequence[Path],
    kinds: Sequence[str],
    segmented: Collection[Path] = (),
) -> dict[str, list[Path]]:
    """The files that are written of each image, its mask first; of a clip the one that is written
    last; of `segmented` images NAME_seg.dcm too.

    Raises:
        UsageError: two images would be written to one file.
    """
    writers = defaultdict(list)
    outputs = {}
    for relative in images:
        stem = stem_of(out, relative)
        files = [stem.with_name(f"{stem.name}_{kind}.png") for kind in kinds]
        files += [_segmentation_file(stem)] if relative in segmented else []
        outputs[table_name(relative)] = files
    for relative in clips:
        outputs[table_name(relative)] = [clip_folder(out, relative) / OVERLAY_CLIP]
    for relative in (*images, *clips):
        for target in outputs[table_name(relative)]:
            # Compared without case: on many file systems a.png and A.png are one file.
            writers[str(target.relative_to(out)).casefold()].append(relative)
    for written, sources in writers.items():
        if len(sources) > 1:
            names = " and ".join(str(path) for path in sources)
            raise UsageError(
                f"{names} would both be written to {written}; rename one or put them in different "
                f"folders"
            )
    return outputs


def _segmentation_file(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}_{_SEGMENTATION}")


def write_outputs(
    destination: Destination,
    name: str,
    stem: Path,
    image: np.ndarray,
    answer: Answer,
    origin: Origin = _NOWHERE,
) -> tuple[Row, np.ndarray]:
    """Write the files of an image and return its row and its mask, uint8 (H, W).

    Args:
        destination: what is written.
        name: what the table calls the image.
        stem: where its files' names begin.
        image: float32 (H, W) in [0, 1].
        answer: what the networks say of it.
        origin: its file, and the size of its pixels.

    Raises:
        SegmentationError: a DICOM Segmentation is asked for and cannot be written.
    """
    probability = answer.probability
    mask = destination.clean_up((probability > destination.threshold).astype(np.uint8))
    stem.parent.mkdir(parents=True, exist_ok=True)
    for kind in destination.kinds:
        picture = _picture(kind, image, answer, mask)
        write_png(stem.with_name(f"{stem.name}_{kind}.png"), picture)
    if destination.algorithm and origin.source is not None:
        segmentation = _segmentation_file(stem)
        write_segmentation(segmentation, origin.source, mask, destination.algorithm)
    row: dict[str, Any] = {
        "image": name,
        "status": DONE,
        "mask": stem.with_name(f"{stem.name}_mask.png").relative_to(destination.folder).as_posix(),
        "area": int(np.count_nonzero(mask)),
        "doubt": doubt(origin.scan(probability), destination.threshold),
        "threshold": destination.threshold,
        **_measured(mask, origin.spacing),
    }
    if not row["area"]:
        return row, mask
    ys, xs = np.nonzero(mask)
    box = {
        "left": xs.min(),
        "top": ys.min(),
        "width": xs.max() - xs.min() + 1,
        "height": ys.max() - ys.min() + 1,
        "mean_probability": float(probability[mask == 1].mean()),
    }
    return row | box, mask


def _measured(mask: np.ndarray, spacing: tuple[float, float] | None) -> Row:
    """The columns of `MEASUREMENTS`."""
    values = asdict(measure(mask, spacing))
    row: Row = {"lesion_area": values.pop("area"), **values}
    return {key: "" if value != value else value for key, value in row.items()}


def _picture(kind: str, image: np.ndarray, answer: Answer, mask: np.ndarray) -> np.ndarray:
    """What is written of one of `KINDS`: maps in [0, 1] with 65535 for 1."""
    if kind == "mask":
        return mask * np.uint8(255)
    if kind == "overlay":
        return overlay(image, None, mask)
    if kind == "contour":
        return draw_outline(image, mask)
    maps = {"probability": answer.probability, "disagreement": answer.disagreement}
    values = entropy(answer.probability) if kind == "entropy" else maps[kind]
    if values is None:
        values = np.zeros_like(answer.probability)
    return np.rint(values * 65535).astype(np.uint16)


def drawn_items(
    images: Sequence[tuple[str, Path]],
    outputs: Mapping[str, Sequence[Path]],
    levels: int | None,
    max_pixels: int,
) -> Iterator[OverlayItem]:
    """The images and their masks as they lie on the disk, made small; without those that are no
    longer there."""
    for name, path in images:
        try:
            image = read_image(path, levels, max_pixels)
            mask = read_image(outputs[name][0], max_pixels=max_pixels)
        except ImageError:
            continue
        times = _LARGEST_DRAWN / max(image.shape)
        if times < 1:
            size = (max(1, round(image.shape[1] * times)), max(1, round(image.shape[0] * times)))
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            mask = cv2.resize(mask, size, interpolation=cv2.INTER_AREA)
        yield OverlayItem(name, image, None, mask > 0.5)
