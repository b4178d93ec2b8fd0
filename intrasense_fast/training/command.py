"""The command `train`: a new run, a run that goes on, one split or folds."""

import argparse
import csv
import datetime
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from intrasense_fast.data.records import DataError, SegmentationData
from intrasense_fast.data.splits import Fold, Splits
from intrasense_fast.data.torch_dataset import SegmentationDataset
from intrasense_fast.data.verify import show
from intrasense_fast.errors import UsageError
from intrasense_fast.files import atomic_path
from intrasense_fast.kernels._common.capability import fused_status
from intrasense_fast.model import IntraSenseNet
from intrasense_fast.training import checkpoint, logs, sources
from intrasense_fast.training import config as configuration
from intrasense_fast.training.config import RESUMABLE, TrainConfig
from intrasense_fast.training.crossval import write_summary
from intrasense_fast.training.results import write_results
from intrasense_fast.training.signals import Stopped
from intrasense_fast.training.trainer import Trainer
from intrasense_fast.version import __version__

CONFIG, SPLITS, DONE = "config.json", "splits.json", "summary.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", help="new folder for the run (default runs/DATE-TIME)")
    parser.add_argument(
        "--resume", metavar="RUN", help="go on with a run; only --epochs, --workers and --device may be given beside it"
    )
    parser.add_argument("--quick", action="store_true", default=None, help="every file within 90 seconds, no promise on Dice")
    configuration.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Train; 0 when done, 130 or 143 when a signal stopped and saved it.

    Raises:
        UsageError, DataError: bad usage or input.
    """
    try:
        if args.resume:
            _resume(args)
        else:
            _begin(args)
    except Stopped as stopped:
        return 128 + stopped.signal_number
    return 0


def _begin(args: argparse.Namespace) -> None:
    config = configuration.resolve(args, gpu=torch.cuda.is_available())
    device = _device(config)
    # Built before anything is written: impossible options and missing weights are told at once.
    with torch.device("cpu" if config.encoder_weights else "meta"):
        _network(config)
    now = datetime.datetime.now()
    run = Path(args.out or Path("runs", now.strftime("%Y%m%d-%H%M%S")))
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise UsageError(f"--out {run} is in use; nothing is overwritten: choose a new folder, or --resume {run}")
    if config.data is None:
        _make_folder(run)
        sources.simulate(run, config)
    data, findings = sources.open_source(run, config)
    splits = sources.split(config, data, findings)
    config = replace(config, folds=len(splits.folds) if len(splits.folds) > 1 else 0)
    if config.fold is not None and not config.folds:
        raise UsageError("--fold needs --folds: there is one split of these data")
    if config.fold is not None and config.fold >= len(splits.folds):
        raise UsageError(f"--fold must be below the number of folds, {len(splits.folds)}, got {config.fold}")
    _make_folder(run)
    splits.save(run / SPLITS)
    record = {
        "config": config.as_dict(),
        "splits": splits.digest,
        "images": len(data),
        "layout": data.layout,
        "started": now.isoformat(timespec="seconds"),
        "device": _device_name(device),
        "versions": _versions(),
        "commit": _commit(),
    }
    _write_record(run, record)
    _announce(config, run, device)
    _train_all(run, config, data, splits, device)


def _resume(args: argparse.Namespace) -> None:
    run = Path(args.resume)
    allowed = {*RESUMABLE, "resume", "command", "run"}
    extra = [name for name, value in vars(args).items() if value is not None and name not in allowed]
    if extra:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(extra))
        raise UsageError(f"--resume takes every value from {run}/{CONFIG}; not allowed beside it: {flags}")
    record = _read_record(run)
    config = TrainConfig.from_dict(record["config"])
    changes = {name: getattr(args, name) for name in RESUMABLE if getattr(args, name) is not None}
    if changes.get("epochs", config.epochs) < config.epochs:
        raise UsageError(f"--epochs can only be raised on resume: the run has {config.epochs}, got {changes['epochs']}")
    if changes.get("epochs", config.epochs) > config.epochs and config.scheduler in ("cosine", "onecycle"):
        raise UsageError(f"--epochs: a {config.scheduler} schedule ends with the {config.epochs} epochs it was made for")
    config = replace(config, **changes)
    device = _device(config)
    data, _ = sources.open_source(run, config)
    splits = Splits.load(run / SPLITS)
    if splits.digest != record["splits"]:
        raise UsageError(f"{run / SPLITS}: is not the one this run began with; put it back, or start a new run")
    splits.check(image.name for image in data.records)
    if changes:
        _write_record(run, record | {"config": config.as_dict()})
    _train_all(run, config, data, splits, device)


def _train_all(run: Path, config: TrainConfig, data: SegmentationData, splits: Splits, device: torch.device) -> None:
    try:
        with checkpoint.exclusive(run):
            _train_folds(run, config, data, splits, device)
    except Stopped:
        # The folder of a fold is no run of its own.
        show(f"go on with: python train.py --resume {run}")
        raise
    except DataError as error:
        # A worker's error carries its traceback; the last line is the message.
        raise DataError(str(error).splitlines()[-1]) from error
    except torch.OutOfMemoryError as error:
        raise UsageError(f"the GPU's memory is full: lower --batch-size or --size ({str(error).splitlines()[0]})") from error
    except OSError as error:
        reason = f"{error.filename or run}: {error.strerror or error}"
        raise UsageError(f"{reason}. Checkpoints are whole; then go on with: python train.py --resume {run}") from error
    except KeyboardInterrupt:
        show(f"\nstopped at once; go on from the last checkpoint with: python train.py --resume {run}", sys.stderr)
        raise


def _train_folds(run: Path, config: TrainConfig, data: SegmentationData, splits: Splits, device: torch.device) -> None:
    if not config.folds:
        _train_fold(run, config, data, splits, 0, device, show)
        return
    numbers = range(len(splits.folds)) if config.fold is None else [config.fold]
    for number in numbers:
        folder = run / f"fold-{number}"
        folder.mkdir(exist_ok=True)
        _write_record(folder, _read_record(run) | {"fold": number})
        _train_fold(folder, config, data, splits, number, device, partial(_show_of_fold, number))
    done = {
        number: _rows(run / f"fold-{number}") for number in range(len(splits.folds)) if (run / f"fold-{number}" / DONE).exists()
    }
    show(write_summary(run, done, config.subset, len(data)))
    if len(done) < len(splits.folds):
        show(f"{len(done)} of {len(splits.folds)} folds are trained")


def _train_fold(
    run: Path,
    config: TrainConfig,
    data: SegmentationData,
    splits: Splits,
    number: int,
    device: torch.device,
    say: Callable[[str], None],
) -> None:
    places = {record.name: index for index, record in enumerate(data.records)}
    roles = {role: [places[name] for name in names] for role, names in zip(Fold._fields, splits.folds[number], strict=True)}
    options: dict[str, Any] = {
        "size": config.size,
        "cache": config.cache,
        "cache_dir": config.cache_dir,
        "in_channels": config.in_channels,
    }
    train = SegmentationDataset(data, roles["train"], augment=config.augment, seed=config.seed, **options)  # type: ignore[arg-type]
    val = SegmentationDataset(data, roles["val"], **options)
    extra = {"image_size": config.size, "splits": splits.digest, "fold": number, "layout": data.layout}
    trainer = Trainer(run, config, train, val, device=device, extra=extra, say=say)
    if (run / checkpoint.LAST).exists() or (run / checkpoint.PREVIOUS).exists():
        trainer.restore()
        if trainer.position.finished and (run / DONE).exists():
            say("finished already")
            return
    else:
        # A run that was killed before its first checkpoint begins again.
        logs.cut(run, step=0, epoch=0)
        trainer.start(_network(config))
    trainer.fit()
    write_results(run, config, data, roles, train, device, say)


def _show_of_fold(number: int, text: str) -> None:
    # An empty line stays above the fold's number, not between it and the text.
    message = text.lstrip("\n")
    show(text[: -len(message)] + f"fold {number}: {message}")


def _network(config: TrainConfig) -> IntraSenseNet:
    torch.manual_seed(config.seed)
    try:
        return IntraSenseNet(**config.model_arguments(), encoder_weights=config.encoder_weights)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _device(config: TrainConfig) -> torch.device:
    """The device, and whether --fused can be had on it."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: cannot be used here ({str(error).splitlines()[0]})") from error
    if config.fused:
        status = fused_status(torch.zeros(1, device=device))
        if not status.available:
            raise UsageError(f"--fused: {status.reason}; leave --fused out to train with eager operators")
    return device


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


def _make_folder(run: Path) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {run}: cannot be made ({error.strerror})") from error


def _write_record(run: Path, record: dict[str, Any]) -> None:
    with atomic_path(run / CONFIG) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _read_record(run: Path) -> dict[str, Any]:
    file = run / CONFIG
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if not {"config", "splits"} <= set(record):
            raise KeyError("config")
        return record
    except OSError as error:
        raise UsageError(f"{run}: is no run folder, {CONFIG} cannot be read ({error.strerror})") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UsageError(f"{file}: is damaged, or not the record of a run") from error


def _rows(run: Path) -> list[dict[str, Any]]:
    with open(run / "per_image.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if row["role"] == "test"]


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.get_num_threads()} threads)"


def _versions() -> dict[str, str]:
    import cv2

    versions = {"intrasense_fast": __version__, "python": platform.python_version(), "torch": torch.__version__}
    return versions | {"numpy": np.__version__, "opencv": cv2.__version__, "cuda": str(torch.version.cuda)}


def _commit() -> str | None:
    """The commit of the checkout this package runs from, if it is one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
