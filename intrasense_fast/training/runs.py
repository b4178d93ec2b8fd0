"""A new run, or one that goes on: everything that is checked before it trains."""

import datetime
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from intrasense_fast import provenance
from intrasense_fast.console import show
from intrasense_fast.data.splits import Splits
from intrasense_fast.errors import UsageError
from intrasense_fast.files import exclusive
from intrasense_fast.training import presets, run_folder, sources
from intrasense_fast.training.attempts import Attempt, environment, read_attempts, remark
from intrasense_fast.training.build import check_network
from intrasense_fast.training.config import TrainConfig
from intrasense_fast.training.distributed import ALONE, Ranks
from intrasense_fast.training.graphed import check_graph
from intrasense_fast.training.loggers import LoggerFactory, check_logs
from intrasense_fast.training.place import ONE_BY_ONE, Place
from intrasense_fast.training.preflight import (
    changed_files,
    check_place,
    check_processes,
    check_roles,
    device_of,
)
from intrasense_fast.training.run_folds import Work, train_all


def begin(
    given: Mapping[str, Any],
    out: str | None,
    *,
    place: Place = ONE_BY_ONE,
    loggers: Sequence[LoggerFactory] = (),
    ranks: Ranks = ALONE,
) -> None:
    """Train a new run to its end.

    Args:
        given: values of `TrainConfig`; the preset has the others.
        out: the folder of the run, or None for runs/DATE-TIME.
        place: where folds are trained; elsewhere than here, loggers are those of --log alone.
        loggers: make loggers of its figures, beside those of --log.
        ranks: the processes that train it; this is the first, the others `follow`.

    Raises:
        UsageError, DataError: an impossible value, or data that cannot be used; nothing is left
            behind.
        Stopped: a signal stopped it, and it is saved.
    """
    config = presets.resolve(given, gpu=torch.cuda.is_available())
    check_processes(config, place, ranks)
    device = device_of(config, ranks)
    if config.channels_last is None:
        # Written into the record: another layout has other last bits.
        config = replace(config, channels_last=device.type == "cuda" or config.amp == "bf16")
    # Built before anything is written: impossible options and missing weights are told at once.
    net = check_network(config)
    if config.cuda_graph:
        check_graph(config, net)
    check_logs(config)
    place.check()
    now = datetime.datetime.now()
    run = run_folder.new_place(out, now)
    with run_folder.claimed(run, phantoms=config.data is None):
        if config.data is None:
            sources.simulate(run, config)
        data, findings = sources.open_source(run, config)
        splits = sources.split(config, data, findings)
        config = replace(config, folds=len(splits.folds) if len(splits.folds) > 1 else 0)
        check_roles(config, splits, findings)
        check_place(config, place)
        digests = provenance.digests_of(data.records, progress=True)
        splits.save(run / run_folder.SPLITS)
        provenance.write_images(run / provenance.IMAGES, splits, digests)
        record = {
            "config": config.as_dict(),
            "splits": splits.digest,
            "images": len(data),
            "layout": data.layout,
            "started": now.isoformat(timespec="seconds"),
            "device": _device_name(device),
            "versions": run_folder.versions(),
            "commit": run_folder.commit(),
        }
        run_folder.write_record(run, record)
        _announce(config, run, device)
        attempt = Attempt(run, [], environment(config, device, ranks.world))
        work = Work(
            config,
            data,
            splits,
            splits,
            digests,
            device,
            record,
            attempt,
            resumed=False,
            root=run,
            loggers=loggers,
            place=place,
        )
        _train_together(run, work, ranks)


def existing_run(name: str) -> Path:
    """The folder of a run that began.

    Raises:
        UsageError: there is none of that name.
    """
    run = Path(name)
    if not name or not run.is_dir():
        named = f"{run}: is no run folder" if name else "--resume was given an empty name"
        raise UsageError(
            f"{named}; name the folder of a run that began, or leave --resume out to begin a new "
            f"one"
        )
    return run


def resume(
    run: Path,
    changes: Mapping[str, Any],
    *,
    accept_changes: bool = False,
    place: Place = ONE_BY_ONE,
    loggers: Sequence[LoggerFactory] = (),
    ranks: Ranks = ALONE,
) -> None:
    """Go on with a run, to its end.

    Args:
        run: its folder.
        changes: values of `TrainConfig` that may change: RESUMABLE.
        accept_changes: go on with other files than it began with, and record which.
        place, loggers: as in `begin`; give them again.
        ranks: as in `begin`; their number may be another than before.

    Raises:
        UsageError, DataError: the run, a change or the data cannot be used; nothing is changed.
        Stopped: a signal stopped it, and it is saved.
    """
    place.check()
    # Nothing is read before the lock, and nothing written before every check: a refused resume
    # changes nothing.
    with exclusive(run):
        record = run_folder.read_record(run)
        config = run_folder.changed(run, record, changes)
        check_place(config, place)
        check_processes(config, place, ranks)
        work = _work(run, record, config, ranks, accept_changes=accept_changes)
        work = replace(work, loggers=loggers, place=place)
        show(remark(work.attempt, read_attempts(run)[1]))
        _train_together(run, work, ranks)


def follow(ranks: Ranks) -> int:
    """Train with the first process what it begins or resumes, to its end; the exit code.

    Errors as in `begin` and `resume`, told by this process alone.
    """
    handed = ranks.receive()
    if handed is None:
        return 2
    run, work, fold = handed
    if not run.is_dir():
        raise UsageError(
            f"{run}: is not seen from here ({socket.gethostname()}): all processes need the same "
            "folders, on a disk that they share"
        )
    device = device_of(work.config, ranks)
    ranks.use(device)
    train_all(run, replace(work, device=device, ranks=ranks), fold)
    return 0


def _train_together(run: Path, work: Work, ranks: Ranks, fold: int | None = None) -> None:
    if ranks.world > 1:
        # Loggers are of the first process.
        ranks.hand_out((run.resolve(), replace(work, loggers=()), fold))
        images = work.config.batch_size // ranks.world
        show(f"{ranks.world} processes, each with {images} images of a batch")
        ranks.use(work.device)
    train_all(run, replace(work, ranks=ranks), fold)


def resume_fold(run: Path, number: int, changes: Mapping[str, Any], ranks: Ranks = ALONE) -> None:
    """Begin or go on with one fold of a run that began; other processes may train its others.

    Args:
        run: the folder of the run; of it nothing is changed but the folder of the fold.
        number: from 0.
        changes: values of `TrainConfig` that may change for this fold: RESUMABLE without epochs.
        ranks: as in `resume`.

    Raises:
        UsageError, DataError, Stopped: as in `resume`.
    """
    record = run_folder.read_record(run)
    config = run_folder.changed(run, record, changes)
    if not config.folds:
        raise UsageError(f"--fold needs --folds: {run} has one split")
    if number not in range(config.folds):
        raise UsageError(f"--fold must be below the number of folds, {config.folds}, got {number}")
    if "epochs" in changes:
        raise UsageError("--epochs is of all folds: leave --fold out, or --epochs")
    check_processes(config, ONE_BY_ONE, ranks)
    folder = run / f"fold-{number}"
    folder.mkdir(exist_ok=True)
    with exclusive(folder):
        work = _work(run, record, config, ranks, fold=number)
        earlier, damaged = read_attempts(folder)
        attempt = replace(work.attempt, run=folder, earlier=earlier, of_run=work.attempt.earlier)
        if earlier or damaged:
            show(remark(attempt, damaged))
        _train_together(run, replace(work, attempt=attempt), ranks, number)


def _work(
    run: Path,
    record: dict[str, Any],
    config: TrainConfig,
    ranks: Ranks,
    *,
    accept_changes: bool = False,
    fold: int | None = None,
) -> Work:
    """What a run that began goes on with; where a fold is given it alone is checked.

    Raises:
        UsageError, DataError: the data cannot be used.
    """
    check_logs(config)
    device = device_of(config, ranks)
    data, findings = sources.open_source(run, config)
    whole = Splits.load(run / run_folder.SPLITS)
    if whole.digest != record["splits"]:
        raise UsageError(
            f"{run / run_folder.SPLITS}: is not the one this run began with; put it back, or "
            f"start a new run"
        )
    digests = provenance.digests_of(data.records, progress=True)
    accepted = changed_files(run, whole, digests, accept_changes)
    attempt = Attempt(
        run, read_attempts(run)[0], environment(config, device, ranks.world), accepted
    )
    splits = whole.without(
        name for part in whole.folds for role in part for name in role if name not in digests
    )
    check_roles(config if fold is None else replace(config, fold=fold), splits, findings)
    record |= {"config": config.as_dict()}
    return Work(
        config, data, splits, whole, digests, device, record, attempt, resumed=True, root=run
    )


def resume_or_start(
    given: Mapping[str, Any],
    out: str,
    *,
    accept_changes: bool = False,
    place: Place = ONE_BY_ONE,
    loggers: Sequence[LoggerFactory] = (),
    ranks: Ranks = ALONE,
) -> None:
    """Go on with the run at `out`, or begin it: the same call however often a run was stopped.

    Args and errors as in `begin` and `resume`, and:

    Raises:
        UsageError: the run there was begun with other values.
    """
    run = Path(out)
    if (run / run_folder.CONFIG).exists():
        changes = run_folder.agreed(run, given)
        resume(
            run, changes, accept_changes=accept_changes, place=place, loggers=loggers, ranks=ranks
        )
        return
    run_folder.remove_beginning(run)
    begin(given, out, place=place, loggers=loggers, ranks=ranks)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.get_num_threads()} threads)"


def _announce(config: TrainConfig, run: Path, device: torch.device) -> None:
    if config.preset != "paper":
        paper = TrainConfig()
        changed = {
            key: value
            for key, value in config.as_dict().items()
            if value != paper.as_dict()[key] and key not in ("preset", "folds")
        }
        shown = ", ".join(f"{key.replace('_', '-')} {value}" for key, value in changed.items())
        show(f"preset {config.preset}, instead of the paper's values: {shown}")
    show(f"training on {_device_name(device)}; run folder {run}; Ctrl-C saves and stops")
