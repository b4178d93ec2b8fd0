"""What is checked before a run trains: its device, its files, its folds, its processes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from intrasense_fast import provenance
from intrasense_fast.console import show
from intrasense_fast.data.records import DataError, Finding
from intrasense_fast.data.splits import Splits
from intrasense_fast.data.torch_dataset import check_memory
from intrasense_fast.errors import UsageError
from intrasense_fast.inference import default_device, usable_device
from intrasense_fast.kernels.runtime import fused_status
from intrasense_fast.provenance import FileDigests
from intrasense_fast.training import sources
from intrasense_fast.training.attempts import ATTEMPTS
from intrasense_fast.training.config import TrainConfig
from intrasense_fast.training.distributed import Ranks
from intrasense_fast.training.graphed import check_gpu
from intrasense_fast.training.parts import check_parts
from intrasense_fast.training.place import Place
from intrasense_fast.training.trainer import steps_of


def device_of(config: TrainConfig, ranks: Ranks) -> torch.device:
    """The device of a run.

    Raises:
        UsageError: it cannot be used, or --fused or --cuda-graph cannot be had on it.
    """
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


def changed_files(
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


def check_place(config: TrainConfig, place: Place) -> None:
    """Refuse to train side by side what has no folds.

    Raises:
        UsageError: there is one split.
    """
    if not place.is_default and not config.folds:
        raise UsageError(
            f"{' '.join(place.flags())}: only folds are trained side by side, and there is one "
            "split of these data; give --folds, or leave it out"
        )


def check_roles(config: TrainConfig, splits: Splits, findings: Sequence[Finding]) -> None:
    """Refuse a --fold that there is not, folds too small for a batch or without a lesion, and a
    cache that memory does not hold.

    Raises:
        UsageError: one of them.
    """
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


def check_processes(config: TrainConfig, place: Place, ranks: Ranks) -> None:
    """Refuse what several processes cannot do together, and a batch that cannot be shared out.

    Raises:
        UsageError: one of them.
    """
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
