"""Checkpoints that appear whole or not at all, carry checksums, and keep the one before."""

import errno
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from intrasense_fast.console import command_line
from intrasense_fast.errors import UsageError, first_line, pickle_fault
from intrasense_fast.files import flush_folder, flush_to_disk
from intrasense_fast.networks import load_network, save_network
from intrasense_fast.networks.cards import CARD_FILE, is_foreign
from intrasense_fast.networks.checksums import (
    CHECKSUM_FILE,
    check_files,
    read_checksums,
    write_checksums,
)
from intrasense_fast.networks.pretrained import CONFIG_FILE
from intrasense_fast.networks.selftest import SELFTEST_FILE, write_selftest

LAST, PREVIOUS, BEST = "last", "previous", "best"
STATE_FILE = "training_state.pt"


class CheckpointError(UsageError):
    """A checkpoint that cannot be written or read: the message says what is left and what to do."""


class Restored(NamedTuple):
    """A checkpoint that was read: its folder, the network and the training state."""

    path: Path
    net: nn.Module
    state: dict[str, Any]


def save_last(
    run: Path,
    net: nn.Module,
    state: dict[str, Any],
    extra: dict[str, Any],
    beside: Mapping[str, str] | None = None,
) -> None:
    """Write RUN/last (network, training state, checksums); what was last becomes previous.

    Args:
        extra: JSON values for its config.json; with "image_size", a self-test is written.
        beside: name -> text of more files in the folder.

    Raises:
        CheckpointError: it cannot be written, for instance because the disk is full; last and
            previous are as they were.
    """

    def fill(folder: Path) -> None:
        _save_network(net, folder, extra, beside)
        torch.save(state, folder / STATE_FILE)
        write_checksums(folder)

    temporary = _written(run, LAST, fill)
    last, previous = run / LAST, run / PREVIOUS
    if last.exists():
        # Renames cannot fail half-way; at every moment last, previous or both are whole.
        retired = run / f".{uuid.uuid4().hex}.old"
        if previous.exists():
            previous.rename(retired)
        last.rename(previous)
        temporary.rename(last)
        shutil.rmtree(retired, ignore_errors=True)
    else:
        temporary.rename(last)
    flush_folder(run)


def save_best(
    run: Path, net: nn.Module, extra: dict[str, Any], beside: Mapping[str, str] | None = None
) -> None:
    """Write RUN/best in the layout of `from_pretrained`, replacing the best before it in one step.

    `extra` and `beside` as in `save_last`.

    Raises:
        CheckpointError: it cannot be written; the best before it is as it was.
    """

    def fill(folder: Path) -> None:
        _save_network(net, folder, extra, beside)
        write_checksums(folder)
        # A card of somebody else outlives the network before.
        if is_foreign(run / BEST / CARD_FILE):
            shutil.copyfile(run / BEST / CARD_FILE, folder / CARD_FILE)

    temporary = _written(run, BEST, fill)
    best, retired = run / BEST, run / f".{uuid.uuid4().hex}.old"
    if best.exists():
        best.rename(retired)
    temporary.rename(best)
    shutil.rmtree(retired, ignore_errors=True)
    flush_folder(run)


def load_last(
    run: Path,
    *,
    fused: bool | None,
    say: Callable[[str], None],
    take: Callable[[Restored], None] = lambda restored: None,
) -> Restored:
    """Read RUN/last, or RUN/previous where last is damaged or missing, which `say` is told.

    Args:
        run: the run folder.
        fused: as for the network.
        say: prints a line.
        take: goes on from a checkpoint; whatever it raises but a UsageError is damage.

    Raises:
        CheckpointError: neither can be used.
        UsageError: of `take`: the checkpoint is sound, but of something else.
    """
    reasons = []
    for name in (LAST, PREVIOUS):
        folder = run / name
        try:
            restored = _load(folder, fused)
            _taken(restored, take)
        except ValueError as error:
            if isinstance(error, UsageError) and not isinstance(error, CheckpointError):
                raise
            reasons.append(str(error))
            continue
        if not (folder / SELFTEST_FILE).exists():
            say(
                f"{folder}: has no self-test; it is of an earlier version, or its output not finite"
            )
        if reasons:
            say(f"{reasons[0]}. Going on from {folder}, the checkpoint before it")
        return restored
    raise CheckpointError(f"{run}: no checkpoint can be used: {'; '.join(reasons)}")


def _taken(restored: Restored, take: Callable[[Restored], None]) -> None:
    try:
        take(restored)
    except UsageError:
        raise
    # What its content makes of optimizers and schedules is anyone's guess.
    except Exception as error:
        raise CheckpointError(
            f"{restored.path / STATE_FILE}: holds no state of this run "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error


def what_is_left(run: Path) -> str:
    """Whether there is a checkpoint to go on from, in a run or one of its folds, in words."""
    for folder in (run, *sorted(run.glob("fold-*"))):
        if (folder / LAST).exists() or (folder / PREVIOUS).exists():
            return "The last checkpoint is whole"
    return "There is no checkpoint yet: it will begin again"


def tidy(run: Path) -> None:
    """Remove what an interrupted write left behind, and put a best that was being replaced back in
    its place."""
    for leftover in (*run.glob(".*.part"), *run.glob(".*.tmp*")):
        shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink(
            missing_ok=True
        )
    retired = sorted(run.glob(".*.old"), key=lambda path: path.stat().st_mtime)
    for folder in retired:
        target = run / (PREVIOUS if (folder / STATE_FILE).exists() else BEST)
        if target.exists():
            shutil.rmtree(folder, ignore_errors=True)
        else:
            folder.rename(target)


def _load(folder: Path, fused: bool | None) -> Restored:
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is missing")
    digests = read_checksums(folder)
    if digests is None or STATE_FILE not in digests:
        raise CheckpointError(f"{folder / CHECKSUM_FILE} is missing or damaged")
    check_files(folder)
    net = load_network(folder, fused=fused)
    try:
        state = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
    # What a damaged pickle does is anyone's guess.
    except Exception as error:
        raise CheckpointError(f"{folder / STATE_FILE}: {pickle_fault(error)}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{folder / STATE_FILE}: holds {type(state).__name__}, no state")
    return Restored(folder, net, state)


def _save_network(
    net: nn.Module, folder: Path, extra: dict[str, Any], beside: Mapping[str, str] | None
) -> None:
    save_network(net, folder, extra)
    if "image_size" in extra:
        write_selftest(net, folder, extra["image_size"])
    for name, text in (beside or {}).items():
        (folder / name).write_text(text, encoding="utf-8")


def _written(run: Path, name: str, fill: Callable[[Path], None]) -> Path:
    """A temporary folder beside the final one, filled and flushed to disk."""
    temporary = run / f".{uuid.uuid4().hex}.part"
    try:
        temporary.mkdir(parents=True)
        fill(temporary)
        for file in temporary.iterdir():
            flush_to_disk(file)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, (OSError, RuntimeError)) or type(error).__name__ == "SafetensorError":
            full = (
                getattr(error, "errno", None) == errno.ENOSPC or shutil.disk_usage(run).free < 2**20
            )
            reason = (
                "the disk is full"
                if full
                else getattr(error, "strerror", None) or first_line(error)
            )
            raise CheckpointError(
                f"{run / name} could not be written: {reason}. {what_is_left(run)}; make room, "
                f"then go on with: {command_line('train', '--resume', _whole_run(run))}"
            ) from error
        raise
    return temporary


def _whole_run(folder: Path) -> Path:
    """The run that a folder is, or is a fold of: the folder of a fold is no run of its own."""
    is_fold = folder.name.startswith("fold-") and (folder.parent / CONFIG_FILE).exists()
    return folder.parent if is_fold else folder
