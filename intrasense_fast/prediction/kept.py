"""What --continue keeps of an earlier call's table: rows that hold, of images and of the frames of
clips."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from intrasense_fast.console import progress, show
from intrasense_fast.data.joining import few
from intrasense_fast.data.opening import sha256_of
from intrasense_fast.prediction.table import COLUMNS, DONE, TABLE, Row, read_rows
from intrasense_fast.report.tables import write_csv

_FRAME = "#"
# Why rows are made again.
_FAILED, _CHANGED, _LOST = "failed", "have changed", "have lost files"
_UNFINISHED = "are clips which were not finished"


class Kept(NamedTuple):
    """Rows of an earlier call that hold: `images` those of the inputs, `elsewhere` the others."""

    images: frozenset[str]
    elsewhere: int


def take_up(
    folder: Path, images: Mapping[str, Path], outputs: Mapping[str, Sequence[Path]]
) -> Kept:
    """Drop the rows that must be made again, and say why.

    Those are: of images that failed, whose bytes have changed or whose files are gone, and lines
    that a kill cut. What was written of a changed image is removed with its row.

    Args:
        folder: of the earlier call.
        images: name in the table -> file, of every input.
        outputs: name in the table -> the files that are written of it.

    Raises:
        UsageError: predictions.csv is no such table.
    """
    rows, damaged = read_rows(folder / TABLE)
    digests = _Digests(images)
    reasons: dict[str, str] = {}
    for row in progress(len(rows), "check", "image", iterable=rows, leave=False):
        unit = _unit(row["image"], images)
        reason = _reason(row, unit, folder, digests, outputs) if unit else None
        if unit and reason:
            reasons.setdefault(unit, reason)
    # Of a clip one frame that does not hold takes all of them.
    kept = [row for row in rows if _unit(row["image"], images) not in reasons]
    if damaged:
        show(f"{folder / TABLE}: {damaged} of its lines are cut or damaged, and are left out")
    for reason in dict.fromkeys(reasons.values()):
        names = [unit for unit, why in reasons.items() if why == reason]
        show(f"done again: {len(names)} images that {reason}: {few(names)}")
    for unit, reason in reasons.items():
        if reason == _CHANGED:
            # Before its row goes: a mask without a row would be of a picture that is no more.
            for path in outputs[unit]:
                path.unlink(missing_ok=True)
    if damaged or len(kept) < len(rows) or not (folder / TABLE).exists():
        write_csv(folder / TABLE, kept, COLUMNS)
    units = [_unit(row["image"], images) for row in kept]
    elsewhere = units.count(None)
    if elsewhere:
        show(f"{elsewhere} rows are of images that are no longer there: they stay")
    return Kept(frozenset(unit for unit in units if unit), elsewhere)


def frame_name(clip: str, number: int) -> str:
    """What predictions.csv calls a frame of a clip; numbers begin with 1."""
    return f"{clip}{_FRAME}{number:04d}"


class _Digests:
    """SHA-256 of input files, each read once: a clip has many rows."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files
        self._known: dict[str, str | None] = {}

    def of(self, name: str) -> str | None:
        """None of a file that cannot be read."""
        if name not in self._known:
            try:
                self._known[name] = sha256_of(self._files[name])
            except OSError:
                self._known[name] = None
        return self._known[name]


def _unit(name: str, images: Mapping[str, Path]) -> str | None:
    """The input that a row is of, the clip of a frame; None where it is no longer there."""
    if name in images:
        return name
    clip, found, _ = name.rpartition(_FRAME)
    return clip if found and clip in images else None


def _reason(
    row: Row, unit: str, folder: Path, digests: _Digests, outputs: Mapping[str, Sequence[Path]]
) -> str | None:
    """Why a row does not hold; None where it does."""
    if row["status"] != DONE:
        return _FAILED
    if digests.of(unit) != row["sha256"]:
        return _CHANGED
    whole = all(path.is_file() and path.stat().st_size for path in outputs[unit])
    if row["image"] == unit:
        return None if whole else _LOST
    if not whole:
        return _UNFINISHED
    return None if (folder / row["mask"]).is_file() else _LOST
