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
from intrasense_fast.data.records import DataError, Finding
from intrasense_fast.data.splits import Splits
from intrasense_fast.data.torch_dataset import check_memory
from intrasense_fast.errors import UsageError
from intrasense_fast.files import exclusive
from intrasense_fast.inference import default_device, usable_device
from intrasense_fast.kernels.runtime import fused_status
from intrasense_fast.provenance import FileDigests
from intrasense_fast.training import config as configuration
from intrasense_fast.training import run_folder, sources
from intrasense_fast.training.attempts import ATTEMPTS, Attempt, environment, read_attempts, remark
from intrasense_fast.training.build import check_network
from intrasense_fast.training.config import TrainConfig
from intrasense_fast.training.distributed import ALONE, Ranks
from intrasense_fast.training.graphed import check_gpu, check_graph
from intrasense_fast.training.loggers import LoggerFactory, check_logs
from intrasense_fast.training.parts import check_parts
from intrasense_fast.training.place import ONE_BY_ONE, Place
from intrasense_fast.training.run_folds import Work, train_all
from intrasense_fast.training.trainer import steps_of


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
    config = configuration.resolve(given, gpu=torch.cuda.is_available())
    _check_parts(config, place, ranks)
    device = _device(config, ranks)
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
        _check_roles(config, splits, findings)
        _check_place(config, place)
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
        _check_place(config, place)
        _check_parts(config, place, ranks)
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
    device = _device(work.config, ranks)
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
    _check_parts(config, ONE_BY_ONE, ranks)
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
    device = _device(config, ranks)
    data, findings = sources.open_source(run, config)
    whole = Splits.load(run / run_folder.SPLITS)
    if whole.digest != record["splits"]:
        raise UsageError(
            f"{run / run_folder.SPLITS}: is not the one this run began with; put it back, or "
            f"start a new run"
        )
    digests = provenance.digests_of(data.records, progress=True)
    accepted = _changed_files(run, whole, digests, accept_changes)
    attempt = Attempt(
        run, read_attempts(run)[0], environment(config, device, ranks.world), accepted
    )
    splits = whole.without(
        name for part in whole.folds for role in part for name in role if name not in digests
    )
    _check_roles(config if fold is None else replace(config, fold=fold), splits, findings)
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


def _changed_files(
    run: Path, splits: Splits, digests: Mapping[str, FileDigests], accepted: bool
) -> dict[str, Any]:
    """The record of files that are not those of the attempt before; empty where there are none.

    Raises:
        DataError: there are some, and they were not accepted.
    """
    file = run / provenance.IMAGES
    changes = provenance.changes_since(file, splits, digests)
    if changes and not accepted:
        raise DataError(
            f"{file}: the files are not those this run began with: {changes}. Put them back, start "
            "a new run, or give --accept-changes to go on with them as they are, which the run "
            "records"
        )
    if changes:
        show(f"accepted, and recorded in {run / ATTEMPTS}: files {changes}")
        if changes.added:
            show("added images that splits.json does not name are left out")
    return changes.record()


def _check_place(config: TrainConfig, place: Place) -> None:
    if not place.is_default and not config.folds:
        raise UsageError(
            f"{' '.join(place.flags())}: only folds are trained side by side, and there is one "
            "split of these data; give --folds, or leave it out"
        )


def _check_roles(config: TrainConfig, splits: Splits, findings: Sequence[Finding]) -> None:
    """Refuse a --fold that there is not, folds too small for a batch or without a lesion, and a
    cache that memory does not hold."""
    if config.fold is not None and not config.folds:
        raise UsageError("--fold needs --folds: there is one split of these data")
    if config.fold is not None and config.fold >= len(splits.folds):
        raise UsageError(
            f"--fold must be below the number of folds, {len(splits.folds)}, got {config.fold}"
        )
    folds = [
        (number, fold) for number, fold in enumerate(splits.folds) if config.fold in (None, number)
    ]
    for _, fold in folds:
        steps_of(len(fold.train), config.batch_size)
    sources.check_folds(folds, findings)
    if config.cache == "memory":
        check_memory(max(len(fold.train) + len(fold.val) for _, fold in folds), config.size)


def _check_parts(config: TrainConfig, place: Place, ranks: Ranks) -> None:
    if ranks.world > 1 and config.cuda_graph:
        raise UsageError(
            f"--cuda-graph: a step of {ranks.world} processes is not recorded; leave it out, or "
            "torchrun"
        )
    if ranks.world > 1 and not place.is_default:
        raise UsageError(
            f"{' '.join(place.flags())}: the {ranks.world} processes of torchrun train one fold "
            "after another; leave it out, or torchrun"
        )
    check_parts(
        config.batch_size,
        config.accumulate,
        ranks.world,
        synced=config.sync_batchnorm,
        size=config.size,
    )


def _device(config: TrainConfig, ranks: Ranks) -> torch.device:
    """The device, and whether --fused and --cuda-graph can be had on it."""
    asked = ranks.device(config.device)
    device = usable_device(default_device() if asked == "auto" else asked)
    if config.cuda_graph:
        check_gpu(device)
    if config.fused:
        status = fused_status(torch.zeros(1, device=device))
        if not status.available:
            raise UsageError(
                f"--fused: {status.reason}; leave --fused out to train with eager operators"
            )
    return device


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
