"""Trains what a run holds, one split or folds, and says what is left when something ends it."""

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
from intrasense_fast.metrics import summarize
from intrasense_fast.provenance import FileDigests
from intrasense_fast.training import checkpoint, logs, run_folder
from intrasense_fast.training.attempts import Attempt
from intrasense_fast.training.build import network_of
from intrasense_fast.training.checkpoint import BEST, LAST, PREVIOUS, CheckpointError
from intrasense_fast.training.config import TrainConfig
from intrasense_fast.training.crossval import write_summary
from intrasense_fast.training.interruptions import InterruptedRun, interruption
from intrasense_fast.training.loggers import LoggerFactory
from intrasense_fast.training.results import write_results
from intrasense_fast.training.signals import Stopped
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
        loggers: make loggers beside those of the config.
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
    loggers: Sequence[LoggerFactory] = ()


def train_all(run: Path, work: Work) -> None:
    """Train to the end, and record why the attempt ended.

    Raises:
        Stopped: a signal stopped it, and it is saved.
        UsageError, DataError: something else did; the message says what is left and how to go on.
    """
    try:
        with work.attempt.ended():
            _train_folds(run, work)
    except Stopped:
        # The folder of a fold is no run of its own.
        show(f"go on with: {_going_on(run)}")
        raise
    except DataError as error:
        # A worker's error carries its traceback; the last line is the message.
        raise DataError(str(error).splitlines()[-1]) from error
    except InterruptedRun as error:
        raise UsageError(f"{error}; go on with: {_going_on(run)}") from error
    except (MemoryError, RuntimeError, OSError) as error:
        reason = interruption(error)
        if reason is None and isinstance(error, OSError):
            reason = f"{error.filename or run}: {error.strerror or error}"
        if reason is None:
            raise
        left = checkpoint.what_is_left(run)
        raise UsageError(f"{reason}. {left}; go on with: {_going_on(run)}") from error
    except KeyboardInterrupt:
        left = checkpoint.what_is_left(run)
        show(f"\nstopped at once. {left}; go on with: {_going_on(run)}", sys.stderr)
        raise


def _train_folds(run: Path, work: Work) -> None:
    checkpoint.tidy(run)
    (run / run_folder.BEGINNING).unlink(missing_ok=True)
    if not work.config.folds:
        _train_fold(run, work, 0, {run: work.record}, show)
        _show_next(run)
        return
    folds = len(work.splits.folds)
    for number in range(folds) if work.config.fold is None else [work.config.fold]:
        folder = run / f"fold-{number}"
        begun = replace(work, resumed=folder.exists())
        folder.mkdir(exist_ok=True)
        checkpoint.tidy(folder)
        records = {run: work.record, folder: work.record | {"fold": number}}
        _train_fold(folder, begun, number, records, partial(_show_of_fold, number))
    done = {
        number: _rows(run / f"fold-{number}")
        for number in range(folds)
        if (run / f"fold-{number}" / run_folder.DONE).exists()
    }
    show(write_summary(run, done, work.config.subset, len(work.data)))
    if len(done) < folds:
        show(f"{len(done)} of {folds} folds are trained")
    _show_next(run / f"fold-{min(done)}")


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
    extra = {
        "image_size": config.size,
        "splits": work.whole.digest,
        "fold": number,
        "layout": data.layout,
    }
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
    )
    if (run / LAST).exists() or (run / PREVIOUS).exists():
        trainer.restore()
    else:
        left = [name for name in (BEST, logs.METRICS, run_folder.DONE) if (run / name).exists()]
        if left:
            raise CheckpointError(
                f"{run}: {LAST}/ and {PREVIOUS}/ are missing, and {', '.join(left)} would be "
                f"overwritten: "
                f"put {LAST}/ back from a copy, or start a new run with --out"
            )
        if work.resumed:
            say(f"{run} has no checkpoint yet: it begins again")
        trainer.logger.cut(0, 0)
        trainer.start(network_of(config))
    for folder, record in records.items():
        run_folder.write_record(folder, record)
    work.attempt.begin()
    images = next(iter(records)) / provenance.IMAGES
    if not images.exists() or work.attempt.accepted:
        if not images.exists():
            say(f"{images}: was missing; written of the files as they are now")
        provenance.write_images(images, work.splits, work.digests)
    if trainer.position.finished and (run / run_folder.DONE).exists():
        say("finished already")
        return
    trainer.fit()
    write_results(run, config, data, roles, train, work.device, say)


def _going_on(run: Path) -> str:
    return command_line("train", "--resume", run)


def _show_of_fold(number: int, text: str) -> None:
    # An empty line stays above the fold's number, not between it and the text.
    message = text.lstrip("\n")
    show(text[: -len(message)] + f"fold {number}: {message}")


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
