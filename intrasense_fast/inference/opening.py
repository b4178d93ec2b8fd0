"""The checkpoints that are named together on a command line, and whether they belong together."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from intrasense_fast.data.opening import read_text
from intrasense_fast.data.order import natural_key
from intrasense_fast.errors import UsageError
from intrasense_fast.inference.calibration import CALIBRATION_FILE
from intrasense_fast.inference.ensemble import AT_A_TIME, NO_FLIP, Ensemble, Flip
from intrasense_fast.inference.segmenter import MOST_SIZE, SMALLEST_SIZE, Segmenter, open_segmenter
from intrasense_fast.precision import OFF

MOST_BATCH = 4096
TUNED = "tuned"
_BEST, _CONFIG = "best", "config.json"
_LEFT_RIGHT: Flip = (1,)
# Axes of (H, W) that training turned round, by --augment.
_FLIPS: dict[str, tuple[Flip, ...]] = {
    "paper": (NO_FLIP, _LEFT_RIGHT, (0,), (0, 1)),
    "us": (NO_FLIP, _LEFT_RIGHT),
    "none": (NO_FLIP,),
}
# Left-right flips are part of every augmentation that flips at all.
_UNRECORDED = _FLIPS["us"]


class Named(NamedTuple):
    """What a command line names: the folders of the checkpoints, and remarks to show."""

    checkpoints: list[str]
    remarks: list[str]


def named_checkpoints(given: Sequence[str]) -> Named:
    """The checkpoints that are given: for the folder of a cross-validated run, best/ of all folds.

    Raises:
        UsageError: one is named twice.
    """
    checkpoints: list[str] = []
    remarks: list[str] = []
    for name in given:
        folds = sorted(Path(name).glob(f"fold-*/{_BEST}"), key=lambda path: natural_key(str(path)))
        if not folds:
            checkpoints.append(name)
            continue
        checkpoints += [str(path) for path in folds]
        planned = _planned(Path(name))
        if planned is not None and len(folds) < planned:
            trained = ", ".join(path.parent.name for path in folds)
            remarks.append(f"{name}: {len(folds)} of {planned} folds are trained: {trained}")
    places = [str(Path(each).resolve()) for each in checkpoints]
    twice = next((one for i, one in enumerate(checkpoints) if places[i] in places[:i]), None)
    if twice is not None:
        raise UsageError(f"--checkpoint {twice}: is named twice; name each checkpoint once")
    return Named(checkpoints, remarks)


def _planned(run: Path) -> int | None:
    """How many folds a run has, by its config.json; None where that does not say."""
    try:
        folds = json.loads(read_text(run / _CONFIG))["config"]["folds"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    return folds if type(folds) is int else None


def open_ensemble(
    checkpoints: Sequence[str],
    *,
    size: int | None = None,
    device: str | None = None,
    fused: bool | None = None,
    amp: str = OFF,
    calibrate: bool = True,
    tta: bool = False,
    tile: int | None = None,
    batch: int = AT_A_TIME,
) -> Ensemble:
    """The networks of one or several checkpoints on a device.

    Args:
        checkpoints: folders with config.json and model.safetensors.
        size, device, fused, amp: as for `open_segmenter`.
        calibrate: apply the temperatures that the checkpoints hold.
        tta: also ask for the flips that all of them were trained with.
        tile: side in pixels of the tiles of images that are larger; None = every image is seen
            whole.
        batch: images at a time.

    Raises:
        UsageError: one of them cannot be used, or they do not belong together; the message names
            the flag.
    """
    if tile is not None and not SMALLEST_SIZE <= tile <= MOST_SIZE:
        raise UsageError(f"--tile must lie between {SMALLEST_SIZE} and {MOST_SIZE}, got {tile}")
    if not 1 <= batch <= MOST_BATCH:
        raise UsageError(f"--batch must lie between 1 and {MOST_BATCH}, got {batch}")
    members: list[Segmenter] = []
    for checkpoint in checkpoints:
        member = open_segmenter(checkpoint, size=size, device=device, fused=fused, amp=amp)
        if members:
            _check_alike(checkpoints[0], members[0], checkpoint, member)
        copies = [checkpoints[i] for i, one in enumerate(members) if _same(one, member)]
        if copies:
            raise UsageError(
                f"--checkpoint {copies[0]} and {checkpoint} hold the same weights: name one of them"
            )
        members.append(member if calibrate else replace(member, calibration=None))
    flips = _common_flips(checkpoints, members) if tta else (NO_FLIP,)
    return Ensemble(tuple(members), flips, tile, batch)


def _check_alike(name: str, first: Segmenter, other_name: str, other: Segmenter) -> None:
    differences = [
        f"{what} {_shown(here)} and {_shown(there)}"
        for what, here, there in (
            ("size", first.size, other.size),
            ("--levels", first.levels, other.levels),
        )
        if here != there
    ]
    if differences:
        remedy = "" if first.levels != other.levels else ", or give --size"
        raise UsageError(
            f"--checkpoint {name} and {other_name} were trained with {', '.join(differences)}: an "
            f"ensemble needs the same of all; leave one out{remedy}"
        )


def _same(one: Segmenter, other: Segmenter) -> bool:
    return bool(one.weights_sha256) and one.weights_sha256 == other.weights_sha256


def _common_flips(checkpoints: Sequence[str], members: Sequence[Segmenter]) -> tuple[Flip, ...]:
    """The flips that every member was trained with, in one order."""
    for checkpoint, member in zip(checkpoints, members, strict=True):
        if member.augment == "none":
            raise UsageError(
                f"--tta: {checkpoint} was trained with --augment none, and knows no mirror images: "
                "leave --tta out"
            )
    known = [_FLIPS.get(member.augment or "", _UNRECORDED) for member in members]
    return tuple(flip for flip in known[0] if all(flip in flips for flips in known))


def _shown(value: object) -> str:
    return "none" if value is None else str(value)


def check_threshold(threshold: float | str) -> None:
    """Raise a UsageError unless it is a probability, or "tuned"."""
    if threshold != TUNED and not (isinstance(threshold, (int, float)) and 0 <= threshold <= 1):
        raise UsageError(f"--threshold must lie in [0, 1], or be {TUNED}, got {threshold}")


def chosen_threshold(threshold: float | str, ensemble: Ensemble) -> float:
    """The probability above which a pixel is lesion.

    Raises:
        UsageError: it is "tuned", and a checkpoint holds none.
    """
    if not isinstance(threshold, str):
        return float(threshold)
    if ensemble.threshold is None:
        raise UsageError(
            f"--threshold {TUNED}: a checkpoint has no {CALIBRATION_FILE}, or --no-calibration was "
            "given: the threshold is fitted at the end of training; give a number"
        )
    return ensemble.threshold
