"""Segment the images of a folder: what is written for each, and what is refused before anything
is."""

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intrasense_fast.console import progress, show
from intrasense_fast.data.images import ImageError, read_image, write_png
from intrasense_fast.data.inputs import chunks, list_inputs
from intrasense_fast.data.joining import few
from intrasense_fast.data.reading import DEFAULT, ReadingOptions
from intrasense_fast.errors import UsageError
from intrasense_fast.files import legible
from intrasense_fast.inference import Segmenter, predict_probabilities
from intrasense_fast.report.figures import MAX_ROWS
from intrasense_fast.report.overlays import OverlayItem, overlay, save_overlays
from intrasense_fast.report.tables import write_csv

COLUMNS = (
    "image",
    "mask",
    "area",
    "left",
    "top",
    "width",
    "height",
    "mean_probability",
    "threshold",
)
_AT_A_TIME = 8


@dataclass(frozen=True)
class Predicted:
    """What `predict_files` did: images asked for, images written, and the failures, each with its
    reason.
    """

    images: int
    written: int
    failures: tuple[str, ...]


def predict_files(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    open_network: Callable[[], Segmenter],
    *,
    threshold: float = 0.5,
    probabilities: bool = False,
    options: ReadingOptions = DEFAULT,
) -> Predicted:
    """Segment an image, or every image of a folder, each on its own grid, and write masks, overlays
    and predictions.csv.

    Args:
        source: an image or a folder.
        out: a new or empty folder.
        open_network: called once the images are known.
        threshold: probability above which a pixel is lesion.
        probabilities: also write NAME_probability.png, 16-bit.
        options: how files are read; levels are the checkpoint's where none are given.

    Raises:
        UsageError: nothing could start; nothing was written.
    """
    check_threshold(threshold)
    files, left_out, unread = list_inputs(Path(source), options.pairs)
    _check_targets(files, probabilities)
    segmenter = open_network()
    folder = new_folder(out)
    levels = options.levels or segmenter.levels
    if left_out:
        show(f"{len(left_out)} masks are left out: {few([path.name for path in left_out])}")
    rows: list[dict[str, Any]] = []
    failures = [f"{problem.file}: {problem.message}" for problem in unread]
    drawn: list[OverlayItem] = []
    with progress(len(files), "predict", "image") as bar:
        for chunk in chunks(files, _AT_A_TIME, options.max_pixels):
            images: dict[Path, np.ndarray] = {}
            for relative, path in chunk:
                try:
                    images[relative] = read_image(path, levels, options.max_pixels)
                except ImageError as error:
                    failures.append(str(error))
            maps = predict_probabilities(segmenter.net, list(images.values()), segmenter.size)
            for (relative, image), probability in zip(images.items(), maps, strict=True):
                mask = (probability > threshold).astype(np.uint8)
                row = _write(folder, relative, image, probability, mask, probabilities)
                rows.append(row | {"threshold": threshold})
                if len(drawn) < MAX_ROWS:
                    drawn.append(OverlayItem(relative.as_posix(), image, None, mask))
            bar.update(len(chunk))
    write_csv(folder / "predictions.csv", rows, COLUMNS)
    if drawn:
        save_overlays(folder / "overlays.png", drawn)
    return Predicted(len(files), len(rows), tuple(failures))


def check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise UsageError(f"--threshold must lie in [0, 1], got {threshold}")


def new_folder(out: str | os.PathLike[str]) -> Path:
    """The folder for results, made.

    Raises:
        UsageError: it is in use or cannot be made.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--out {folder} is in use; nothing is overwritten: choose a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {folder}: cannot be made ({error.strerror})") from error
    return folder


def _write(
    out: Path,
    relative: Path,
    image: np.ndarray,
    probability: np.ndarray,
    mask: np.ndarray,
    probabilities: bool,
) -> dict[str, Any]:
    stem = _target(out, relative)
    target = stem.with_name(f"{stem.name}_mask.png")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_png(target, mask * np.uint8(255))
    write_png(stem.with_name(f"{stem.name}_overlay.png"), overlay(image, None, mask))
    if probabilities:
        write_png(
            stem.with_name(f"{stem.name}_probability.png"),
            np.rint(probability * 65535).astype(np.uint16),
        )
    ys, xs = np.nonzero(mask)
    box = (
        (xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1)
        if len(xs)
        else ("", "", "", "")
    )
    inside = float(probability[mask == 1].mean()) if len(xs) else ""
    values = (
        relative.as_posix(),
        target.relative_to(out).as_posix(),
        len(xs),
        *box,
        inside,
    )
    return dict(zip(COLUMNS[:-1], values, strict=True))


def _target(out: Path, relative: Path) -> Path:
    """Where the results of an image begin: its place in `out`, its name in UTF-8 as predictions.csv
    holds it.
    """
    return out / legible(relative.with_suffix("").as_posix())


def _check_targets(files: Sequence[tuple[Path, Path]], probabilities: bool) -> None:
    kinds = ("mask", "overlay", "probability") if probabilities else ("mask", "overlay")
    writers = defaultdict(list)
    for relative, _ in files:
        for kind in kinds:
            # Compared without case: on many file systems a.png and A.png are one file.
            writers[f"{_target(Path(), relative)}_{kind}".casefold()].append(relative)
    for target, sources in writers.items():
        if len(sources) > 1:
            names = " and ".join(str(path) for path in sources)
            raise UsageError(
                f"{names} would both be written to {target}.png; rename one or put them in "
                f"different folders"
            )
