"""Segment the images of a folder: what is written for each, and what is refused before anything
is."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intrasense_fast.console import progress, show
from intrasense_fast.data.images import (
    ImageError,
    decode_image,
    low_range,
    to_grey,
)
from intrasense_fast.data.inputs import chunks, list_inputs
from intrasense_fast.data.joining import few
from intrasense_fast.data.opening import sha256_of
from intrasense_fast.data.reading import DEFAULT, ReadingOptions
from intrasense_fast.errors import UsageError
from intrasense_fast.inference import NOT_FINITE, Segmenter, probability_maps
from intrasense_fast.networks.contract import config_of
from intrasense_fast.prediction_outputs import (
    Destination,
    drawn_items,
    output_files,
    table_name,
    write_outputs,
)
from intrasense_fast.prediction_table import (
    DONE,
    FAILED,
    Kept,
    PredictionTable,
    Row,
    claimed,
    open_table,
    take_up,
)
from intrasense_fast.report.figures import MAX_ROWS
from intrasense_fast.report.overlays import save_overlays
from intrasense_fast.signals import Stopped, StopRequest, collected

_AT_A_TIME = 8


@dataclass(frozen=True)
class Predicted:
    """What `predict_files` did.

    Attributes:
        images: images asked for.
        written: images segmented by this call.
        kept: images that an earlier call had segmented.
        failures: files that could not be segmented, each with its reason.
        low: images that use less than a tenth of their range, each with what mends it.
    """

    images: int
    written: int
    kept: int
    failures: tuple[str, ...]
    low: tuple[str, ...]


@dataclass(frozen=True)
class _Work:
    """How every image of a call is segmented, and where it goes."""

    destination: Destination
    segmenter: Segmenter
    levels: int | None
    max_pixels: int


def predict_files(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    open_network: Callable[[], Segmenter],
    *,
    threshold: float = 0.5,
    probabilities: bool = False,
    options: ReadingOptions = DEFAULT,
    go_on: bool = False,
) -> Predicted:
    """Segment an image, or every image of a folder, each on its own grid, and write masks, overlays
    and predictions.csv.

    The table grows by a row as each image is done. SIGINT and SIGTERM stop after the images that
    are in work.

    Args:
        source: an image or a folder.
        out: a new or empty folder.
        open_network: called once the images are known.
        threshold: probability above which a pixel is lesion.
        probabilities: also write NAME_probability.png, 16-bit.
        options: how files are read; levels are the checkpoint's where none are given.
        go_on: `out` is the folder of an earlier call; only what it lacks is done.

    Raises:
        UsageError: nothing could start; nothing was written.
        Stopped: a signal stopped it; what is written is whole.
    """
    check_threshold(threshold)
    inputs = list_inputs(Path(source), options.pairs)
    outputs = output_files(Path(out), [relative for relative, _ in inputs.images], probabilities)
    segmenter = open_network()
    levels = options.levels or segmenter.levels
    settings = {
        "weights_sha256": segmenter.weights_sha256,
        "arguments": config_of(segmenter.net),
        "size": segmenter.size,
        "levels": levels,
        "threshold": threshold,
        "probabilities": probabilities,
        "amp": segmenter.amp,
    }
    destination = Destination(Path(out), threshold, probabilities)
    work = _Work(destination, segmenter, levels, options.max_pixels)
    with claimed(destination.folder, settings, go_on=go_on) as begun:
        if inputs.masks:
            names = few([path.name for path in inputs.masks])
            show(f"{len(inputs.masks)} masks are left out: {names}")
        paths = {table_name(relative): path for relative, path in inputs.images}
        kept = take_up(destination.folder, paths, outputs) if begun else Kept(frozenset(), 0)
        failures = [f"{problem.file}: {problem.message}" for problem in inputs.problems]
        with open_table(destination.folder) as table:
            rows, low = _segment(inputs.images, kept.images, work, table, failures)
        done = [name for name in paths if name in rows or name in kept.images]
        if done and (rows or not (destination.folder / "overlays.png").exists()):
            shown = [(name, paths[name]) for name in done[:MAX_ROWS]]
            if items := list(drawn_items(shown, outputs, levels, options.max_pixels)):
                save_overlays(destination.folder / "overlays.png", items)
    return Predicted(len(paths), len(rows), len(kept.images), tuple(failures), tuple(low))


def check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise UsageError(f"--threshold must lie in [0, 1], got {threshold}")


def _segment(
    images: Sequence[tuple[Path, Path]],
    done: frozenset[str],
    work: _Work,
    table: PredictionTable,
    failures: list[str],
) -> tuple[set[str], list[str]]:
    """Segment what is not `done`: names of the images written, and what is said of low levels.

    `failures` grows by the images that cannot be segmented.
    """
    written: set[str] = set()
    low: list[str] = []
    stop = StopRequest()
    with collected(stop), progress(len(images), "predict", "image") as bar:
        for chunk in chunks(images, _AT_A_TIME, work.max_pixels):
            # A chunk of which a part is missing is computed whole: in batches of another size the
            # last bits of the same image may differ.
            if any(table_name(relative) not in done for relative, _ in chunk):
                for row in _rows(chunk, done, work):
                    table.append(row)
                    if row["status"] == DONE:
                        written.add(row["image"])
                        low += [f"{row['image']}: {row['message']}"] if row["message"] else []
                    else:
                        failures.append(f"{row['image']}: {row['message']}")
            bar.update(len(chunk))
            if stop:
                raise Stopped(stop.signal_number)
    return written, low


def _rows(chunk: Sequence[tuple[Path, Path]], done: frozenset[str], work: _Work) -> Iterator[Row]:
    """Segment a few images together, and write what belongs to each before its row comes."""
    images: dict[Path, np.ndarray] = {}
    digests: dict[Path, str] = {}
    remarks: dict[Path, str] = {}
    for relative, path in chunk:
        try:
            digests[relative] = sha256_of(path)
            decoded = decode_image(path, work.max_pixels)
            images[relative] = to_grey(decoded.pixels, path, work.levels)
            remarks[relative] = low_range(decoded.pixels, work.levels) or ""
        except (ImageError, OSError) as error:
            yield _failed(relative, digests.get(relative, ""), _reason(error, path))
    segmenter = work.segmenter
    maps = probability_maps(segmenter.net, list(images.values()), segmenter.size, segmenter.amp)
    for (relative, image), probability in zip(images.items(), maps, strict=True):
        if table_name(relative) in done:
            continue
        if probability is None:
            yield _failed(relative, digests[relative], NOT_FINITE)
            continue
        row = write_outputs(work.destination, relative, image, probability)
        yield row | {"sha256": digests[relative], "message": remarks[relative]}


def _failed(relative: Path, digest: str, reason: str) -> Row:
    return {"image": table_name(relative), "status": FAILED, "sha256": digest, "message": reason}


def _reason(error: ImageError | OSError, path: Path) -> str:
    """What is wrong with a file, without its name, which has a column of its own."""
    text = error.strerror if isinstance(error, OSError) else None
    return (text or str(error)).removeprefix(f"{path}: ")
