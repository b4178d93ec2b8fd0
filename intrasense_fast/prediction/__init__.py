"""Segment the images of a folder: what is written for each, and what is refused before anything
is."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intrasense_fast.console import progress, show
from intrasense_fast.data.inputs import Inputs, chunks, list_inputs
from intrasense_fast.data.joining import few
from intrasense_fast.data.reading import DEFAULT, ReadingOptions
from intrasense_fast.errors import UsageError
from intrasense_fast.inference import Segmenter
from intrasense_fast.inference.ensemble import Ensemble, ensemble_of
from intrasense_fast.inference.opening import check_threshold, chosen_threshold
from intrasense_fast.measuring.components import NO_CLEAN_UP, CleanUp
from intrasense_fast.networks.contract import config_of
from intrasense_fast.prediction.clips import frames_done, rows_of_clip
from intrasense_fast.prediction.contours import write_contours
from intrasense_fast.prediction.kept import Kept, take_up
from intrasense_fast.prediction.outputs import (
    KINDS,
    Destination,
    drawn_items,
    output_files,
    table_name,
)
from intrasense_fast.prediction.segmentations import algorithm_of, segmented
from intrasense_fast.prediction.table import (
    DONE,
    PredictionTable,
    Row,
    claimed,
    most_doubted,
    open_table,
)
from intrasense_fast.prediction.work import Chunk, Work, read_chunks, rows_of
from intrasense_fast.report.figures import MAX_ROWS
from intrasense_fast.report.overlays import save_overlays
from intrasense_fast.signals import Stopped, StopRequest, collected

MOST_WORKERS = 256
_DOUBTED = 5


@dataclass(frozen=True)
class Predicted:
    """What `predict_files` did.

    Attributes:
        images: images and clips asked for.
        written: images and clips segmented by this call.
        kept: images and clips that an earlier call had segmented.
        failures: files that could not be segmented, each with its reason.
        remarks: on images and clips that were segmented, each with what mends it: levels that use
            less than a tenth of their range, a scan region that does not fit.
        frames: frames of clips segmented by this call.
        answered: images and frames that the network answered for in this call.
        seconds: that it took to segment and write them.
        doubted: of all images and frames in the table, the most doubted and how much.
    """

    images: int
    written: int
    kept: int
    failures: tuple[str, ...]
    remarks: tuple[str, ...]
    frames: int = 0
    answered: int = 0
    seconds: float = 0.0
    doubted: tuple[tuple[str, float], ...] = ()


@dataclass
class _Progress:
    """What was done so far."""

    failures: list[str]
    written: set[str] = field(default_factory=set)
    remarks: list[str] = field(default_factory=list)
    frames: int = 0
    images: int = 0

    def take(self, row: Row) -> None:
        """Count an image."""
        if row["status"] != DONE:
            self.failures.append(f"{row['image']}: {row['message']}")
            return
        self.images += 1
        self.written.add(row["image"])
        self.remark(row["image"], row["message"])

    def remark(self, name: str, text: str) -> None:
        """Note what is to be said of an image or a clip; nothing where the text is empty."""
        self.remarks += [f"{name}: {text}"] if text else []


def predict_files(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    open_network: Callable[[], Segmenter | Ensemble],
    *,
    threshold: float | str = 0.5,
    probabilities: bool = False,
    maps: bool = False,
    options: ReadingOptions = DEFAULT,
    go_on: bool = False,
    workers: int = 0,
    contours: bool = False,
    dicom_seg: bool = False,
    clean_up: CleanUp = NO_CLEAN_UP,
) -> Predicted:
    """Segment an image or a clip, or every one of a folder, each on its own grid, and write masks,
    overlays and predictions.csv.

    The table grows by a row as each image or frame is done. SIGINT and SIGTERM stop after the
    images that are in work.

    Args:
        source: an image, a clip or a folder.
        out: a new or empty folder.
        open_network: called once the images are known.
        threshold: probability above which a pixel is lesion, or "tuned".
        probabilities: also write NAME_probability.png, 16-bit.
        maps: also write NAME_entropy.png and, of several opinions, NAME_disagreement.png, 16-bit.
        options: how files are read; levels are the checkpoint's where none are given.
        go_on: `out` is the folder of an earlier call; only what it lacks is done.
        workers: threads that read images ahead.
        contours: also write contours.json, of all images, and NAME_contour.png.
        dicom_seg: also write NAME_seg.dcm of each DICOM file.
        clean_up: what is done to each mask.

    Raises:
        UsageError: nothing could start; nothing was written.
        Stopped: a signal stopped it; what is written is whole.
    """
    check_threshold(threshold)
    if not 0 <= workers <= MOST_WORKERS:
        raise UsageError(f"--workers must lie between 0 and {MOST_WORKERS}, got {workers}")
    inputs, folder = list_inputs(Path(source), options.pairs), Path(out)
    images, clips = ([relative for relative, _ in some] for some in (inputs.images, inputs.clips))
    chosen = segmented(inputs) if dicom_seg else frozenset()
    output_files(folder, images, clips, KINDS, chosen)
    ensemble = ensemble_of(open_network())
    cut = chosen_threshold(threshold, ensemble)
    kinds = _kinds(probabilities, maps, contours, ensemble)
    algorithm = algorithm_of(ensemble, cut) if dicom_seg else None
    destination = Destination(folder, cut, kinds, clean_up, algorithm)
    outputs = output_files(folder, images, clips, kinds, chosen)
    levels = options.levels or ensemble.levels
    work = Work(destination, ensemble, levels, options.max_pixels, workers, options.spacing)
    settings = _settings(work, probabilities, maps, contours)
    with claimed(folder, settings, go_on=go_on) as begun:
        if inputs.masks:
            names = few([path.name for path in inputs.masks])
            show(f"{len(inputs.masks)} masks are left out: {names}")
        paths = {table_name(relative): path for relative, path in inputs.images}
        every = paths | {table_name(relative): path for relative, path in inputs.clips}
        kept = take_up(folder, every, outputs) if begun else Kept(frozenset(), 0)
        state = _Progress([f"{problem.file}: {problem.message}" for problem in inputs.problems])
        start = time.monotonic()
        with open_table(folder) as table:
            _segment(inputs, kept.images, work, table, state)
        seconds = time.monotonic() - start
        done = [name for name in paths if name in state.written or name in kept.images]
        if done and (state.images or not (folder / "overlays.png").exists()):
            shown = [(name, paths[name]) for name in done[:MAX_ROWS]]
            if items := list(drawn_items(shown, outputs, levels, options.max_pixels)):
                save_overlays(folder / "overlays.png", items)
        if contours:
            write_contours(folder)
        doubted = most_doubted(folder, _DOUBTED)
    return Predicted(
        images=len(every),
        written=len(state.written),
        kept=len(kept.images),
        failures=tuple(state.failures),
        remarks=tuple(state.remarks),
        frames=state.frames,
        answered=state.images + state.frames,
        seconds=seconds,
        doubted=tuple(doubted),
    )


def _kinds(probabilities: bool, maps: bool, contours: bool, ensemble: Ensemble) -> tuple[str, ...]:
    """What is written of each image, the mask first."""
    kinds = ["mask", "overlay"]
    kinds += ["probability"] if probabilities else []
    kinds += ["entropy"] if maps else []
    kinds += ["disagreement"] if maps and ensemble.opinions > 1 else []
    kinds += ["contour"] if contours else []
    return tuple(kinds)


def _settings(work: Work, probabilities: bool, maps: bool, contours: bool) -> dict[str, Any]:
    """What masks were made with, and must be made with where --continue goes on."""
    ensemble = work.ensemble
    weights = [member.weights_sha256 for member in ensemble.members]
    arguments = [config_of(member.net) for member in ensemble.members]
    return {
        "weights_sha256": weights if len(weights) > 1 else weights[0],
        "arguments": arguments if len(arguments) > 1 else arguments[0],
        "size": ensemble.size,
        "levels": work.levels,
        "threshold": work.destination.threshold,
        "probabilities": probabilities,
        "amp": ensemble.members[0].amp,
        "maps": maps,
        "temperatures": ensemble.temperatures,
        "tta": [list(flip) for flip in ensemble.flips],
        "tile": ensemble.tile,
        "batch": ensemble.batch,
        "spacing": work.spacing,
        "contours": contours,
        "dicom-seg": work.destination.algorithm is not None,
        "keep-largest": work.destination.clean_up.keep_largest,
        "fill-holes": work.destination.clean_up.fill_holes,
        "min-area": work.destination.clean_up.min_area,
    }


def _segment(
    inputs: Inputs,
    done: frozenset[str],
    work: Work,
    table: PredictionTable,
    state: _Progress,
) -> None:
    """Segment what is not `done`."""
    stop = StopRequest()
    total = len(inputs.images) + len(inputs.clips)
    with collected(stop), progress(total, "predict", "image") as bar:

        def missing() -> Iterator[Chunk]:
            for chunk in chunks(inputs.images, work.ensemble.batch, work.max_pixels):
                # A chunk of which a part is missing is computed whole: in batches of another size
                # the last bits of the same image may differ.
                if any(table_name(relative) not in done for relative, _ in chunk):
                    yield chunk
                else:
                    bar.update(len(chunk))

        for read in read_chunks(missing(), work):
            for row in rows_of(read, done, work):
                table.append(row)
                state.take(row)
            bar.update(len(read))
            if stop:
                raise Stopped(stop.signal_number)
        for relative, path in inputs.clips:
            if table_name(relative) not in done:
                _segment_clip(relative, path, work, table, state, stop)
            bar.update()


def _segment_clip(
    relative: Path,
    path: Path,
    work: Work,
    table: PredictionTable,
    state: _Progress,
    stop: StopRequest,
) -> None:
    before, remark = len(state.failures), ""
    with closing(rows_of_clip(relative, path, work)) as some:
        for rows in some:
            for row in rows:
                table.append(row)
                if row["status"] != DONE:
                    state.failures.append(f"{row['image']}: {row['message']}")
                else:
                    # All frames have that of their clip.
                    remark = row["message"]
            state.frames += frames_done(rows)
            if stop:
                raise Stopped(stop.signal_number)
    state.remark(table_name(relative), remark)
    if len(state.failures) == before:
        state.written.add(table_name(relative))
