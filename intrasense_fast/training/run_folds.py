"""Trains what a run holds, one split or folds, and says what is left when something ends it."""

import contextlib
import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from intrasense_fast import provenance
from intrasense_fast.console import command_line, show, show_next
from intrasense_fast.data.records import DataError, SegmentationData
from intrasense_fast.data.splits import Fold, Splits
from intrasense_fast.data.torch_dataset import SegmentationDataset
from intrasense_fast.errors import UsageError
from intrasense_fast.files import exclusive
from intrasense_fast.metrics import summarize
from intrasense_fast.provenance import FileDigests
from intrasense_fast.signals import Stopped
from intrasense_fast.training import checkpoint, logs, run_folder
from intrasense_fast.training.attempts import Attempt
from intrasense_fast.training.build import network_of
from intrasense_fast.training.checkpoint import BEST, LAST, PREVIOUS, CheckpointError
from intrasense_fast.training.config import TrainConfig
from intrasense_fast.training.crossval import write_summary
from intrasense_fast.training.distributed import ALONE, LostProcess, Ranks
from intrasense_fast.training.fold_jobs import train_apart
from intrasense_fast.training.grid import FAILED
from intrasense_fast.training.interruptions import InterruptedRun, interruption
from intrasense_fast.training.loggers import LoggerFactory
from intrasense_fast.training.place import ONE_BY_ONE, Place
from intrasense_fast.training.results import write_results
from intrasense_fast.training.trainer import Trainer


@dataclass(frozen=True)
class Work:
    """What a run trains.

    Attributes:
        whole: the splits as they were written; `splits` are without images that are gone.
        digests: of each image's files.
        record: what its config.json must hold.
        attempt: what attempts.jsonl will say of it.
        resumed: whether it began earlier.
        root: the folder of the run, also where one of its folds is trained alone.
        place: where folds are trained.
        loggers: make loggers beside those of the config.
        ranks: the processes that train it together.
    """

    config: TrainConfig
    data: SegmentationData
    splits: Splits
    whole: Splits
    digests: dict[str, FileDigests]
    device: torch.device
    record: dict[str, Any]
    attempt: Attempt
    resumed: bool
    root: Path
    loggers: Sequence[LoggerFactory] = ()
    place: Place = ONE_BY_ONE
    ranks: Ranks = ALONE

    def show(self, text: str) -> None:
        """Print it, in the first process."""
        self.ranks.on_first(show, text)


def train_all(run: Path, work: Work, fold: int | None = None) -> None:
    """Train to the end, and record why the attempt ended.

    Args:
        fold: train this fold alone, in its folder, beside other processes in those of others.

    Raises:
        Stopped: a signal stopped it, and it is saved.
        UsageError, DataError: something else did; the message says what is left and how to go on.
    """
    again = command_line(
        "train",
        "--resume",
        run,
        *([] if fold is None else ["--fold", fold]),
        *work.place.flags(),
    )
    if work.ranks.world > 1:
        work.ranks.advice = partial(_advice, run, again)
    try:
        with work.attempt.ended():
            if fold is None:
                _train_folds(run, work)
            else:
                _train_one(run, work, fold, {})
    except Stopped:
        # The folder of a fold is no run of its own.
        work.show(f"go on with: {again}")
        raise
    except LostProcess as error:
        raise UsageError(f"{error}. {_advice(run, again)}") from error
    except DataError as error:
        # A worker's error carries its traceback; the last line is the message.
        raise DataError(str(error).splitlines()[-1]) from error
    except InterruptedRun as error:
        raise UsageError(f"{error}; go on with: {again}") from error
    except (MemoryError, RuntimeError, OSError) as error:
        reason = interruption(error)
        if reason is None and isinstance(error, OSError):
            reason = f"{error.filename or run}: {error.strerror or error}"
        if reason is None:
            raise
        raise UsageError(f"{reason}. {_advice(run, again)}") from error
    except KeyboardInterrupt:
        show(f"\nstopped at once. {_advice(run, again)}", sys.stderr)
        raise


def _train_folds(run: Path, work: Work) -> None:
    work.ranks.on_first(checkpoint.tidy, run)
    work.ranks.on_first((run / run_folder.BEGINNING).unlink, missing_ok=True)
    if not work.config.folds:
        _train_fold(run, work, 0, {run: work.record}, work.show)
        work.ranks.on_first(_show_next, run)
        return
    folds = len(work.splits.folds)
    numbers = range(folds) if work.config.fold is None else [work.config.fold]
    failures: dict[str, str] = {}
    if work.place.is_default:
        for number in numbers:
            _train_one(run, work, number, {run: work.record})
    else:
        work.attempt.begin()
        _write_images(work, show)
        failures = train_apart(run, work.record, work.config, numbers, work.place, show)
    work.ranks.on_first(_summarise_folds, run, work, failures)


def _summarise_folds(run: Path, work: Work, failures: Mapping[str, str]) -> None:
    folds = len(work.splits.folds)
    done = {
        number: _rows(run / f"fold-{number}")
        for number in range(folds)
        if (run / f"fold-{number}" / run_folder.DONE).exists()
    }
    if done:
        show(write_summary(run, done, work.config.subset, len(work.data)))
    if failures:
        again = command_line("train", "--resume", run, *work.place.flags())
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failures.items())
        raise UsageError(f"{len(failures)} of {folds} folds failed: {reasons}. Try again: {again}")
    if len(done) < folds:
        show(f"{len(done)} of {folds} folds are trained")
    _show_next(run / f"fold-{min(done)}")


def _train_one(run: Path, work: Work, number: int, records: Mapping[Path, dict[str, Any]]) -> None:
    """Train a fold in its folder, and keep others out of that."""
    folder = run / f"fold-{number}"
    begun = replace(work, resumed=(folder / run_folder.CONFIG).exists())
    work.ranks.on_first(folder.mkdir, exist_ok=True)
    # A fold that is trained alone holds the lock of its folder already, other processes none.
    is_locked = bool(records) and work.ranks.is_first
    with exclusive(folder) if is_locked else contextlib.nullcontext():
        work.ranks.on_first(checkpoint.tidy, folder)
        work.ranks.on_first((folder / FAILED).unlink, missing_ok=True)
        every = {**records, folder: work.record | {"fold": number}}
        _train_fold(folder, begun, number, every, partial(_show_of_fold, work, number))


def _show_next(folder: Path) -> None:
    show_next("predict", "IMAGES", "--checkpoint", folder / BEST, "--out", "DIR")


def _train_fold(
    run: Path,
    work: Work,
    number: int,
    records: Mapping[Path, dict[str, Any]],
    say: Callable[[str], None],
) -> None:
    """Train in the folder `run`; `records` are written once a checkpoint was taken up, or the
    network made."""
    config, data, fold = work.config, work.data, work.splits.folds[number]
    places = {record.name: index for index, record in enumerate(data.records)}
    roles = {
        role: [places[name] for name in names]
        for role, names in zip(Fold._fields, fold, strict=True)
    }
    options: dict[str, Any] = {
        "size": config.size,
        "cache": config.cache,
        "cache_dir": config.cache_dir,
        "in_channels": config.in_channels,
    }
    train = SegmentationDataset(
        data,
        roles["train"],
        augment=config.augment,  # type: ignore[arg-type]
        seed=config.seed,
        **options,
    )
    val = SegmentationDataset(data, roles["val"], **options)
    extra: dict[str, Any] = {"image_size": config.size, "splits": work.whole.digest}
    extra |= {"fold": number, "layout": data.layout, "augment": config.augment}
    if config.levels is not None:
        extra["levels"] = config.levels
    former = provenance.former_digests(work.attempt.all_accepted())
    text = provenance.trained_on_text(work.whole.folds[number], work.digests, former)
    beside = {provenance.TRAINED_ON: text}
    trainer = Trainer(
        run,
        config,
        train,
        val,
        device=work.device,
        extra=extra,
        beside=beside,
        say=say,
        loggers=work.loggers,
        ranks=work.ranks,
    )
    if work.ranks.agreed((run / LAST).exists() or (run / PREVIOUS).exists()):
        trainer.restore()
    else:
        work.ranks.on_first(_begin_anew, run, work, say)
        trainer.logger.cut(0, 0)
        trainer.start(network_of(config))
    work.ranks.on_first(_record, records, work, say)
    if work.ranks.agreed(trainer.position.finished and (run / run_folder.DONE).exists()):
        say("finished already")
        return
    trainer.fit()
    work.ranks.on_first(write_results, run, config, data, roles, train, work.device, say)
    work.ranks.wait()


def _begin_anew(run: Path, work: Work, say: Callable[[str], None]) -> None:
    """Check that a run without a checkpoint had none.

    Raises:
        CheckpointError: it had one.
    """
    left = [name for name in (BEST, logs.METRICS, run_folder.DONE) if (run / name).exists()]
    if left:
        raise CheckpointError(
            f"{run}: {LAST}/ and {PREVIOUS}/ are missing, and {', '.join(left)} would be "
            f"overwritten: "
            f"put {LAST}/ back from a copy, or start a new run with --out"
        )
    if work.resumed:
        say(f"{run} has no checkpoint yet: it begins again")


def _record(records: Mapping[Path, dict[str, Any]], work: Work, say: Callable[[str], None]) -> None:
    """Write what a run is and what it uses, and that this attempt begins."""
    for folder, record in records.items():
        run_folder.write_record(folder, record)
    work.attempt.begin()
    _write_images(work, say)


def _write_images(work: Work, say: Callable[[str], None]) -> None:
    """Write images.csv where it is missing, or other files were accepted."""
    images = work.root / provenance.IMAGES
    if images.exists() and not work.attempt.accepted:
        return
    if not images.exists():
        say(f"{images}: was missing; written of the files as they are now")
    provenance.write_images(images, work.splits, work.digests)


def _advice(run: Path, again: str) -> str:
    return f"{checkpoint.what_is_left(run)}; go on with: {again}"


def _show_of_fold(work: Work, number: int, text: str) -> None:
    # An empty line stays above the fold's number, not between it and the text.
    message = text.lstrip("\n")
    work.show(text[: -len(message)] + f"fold {number}: {message}")


def _rows(run: Path) -> list[dict[str, Any]]:
    file = run / "per_image.csv"
    try:
        with open(file, newline="", encoding="utf-8") as stream:
            rows = [row for row in csv.DictReader(stream) if row["role"] == "test"]
        summarize(rows)
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise UsageError(
            f"{file}: missing or damaged ({error}); remove {run / run_folder.DONE} and resume: it "
            f"is made again"
        ) from error
    return rows
