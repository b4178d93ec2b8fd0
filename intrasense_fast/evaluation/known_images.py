"""Which images of a data set trained or selected the checkpoints that are measured on it."""

from collections import Counter
from collections.abc import Mapping, Sequence

from intrasense_fast.data.opening import sha256_of
from intrasense_fast.data.records import SegmentationData, threaded
from intrasense_fast.errors import UsageError
from intrasense_fast.provenance import TRAINED_ON, TrainedOn, read_trained_on

# Of several checkpoints the first that is true of one of them.
_ROLES = ("train", "val", "unknown", "no")

Roles = Mapping[str, tuple[str, ...]]


def trained_on(checkpoints: Sequence[str], flag: str | None) -> list[TrainedOn | None]:
    """The record of each checkpoint; with `flag`, which needs them, none may be missing.

    Raises:
        UsageError: one is damaged, or missing where it is needed.
    """
    records = [read_trained_on(checkpoint) for checkpoint in checkpoints]
    for checkpoint, record in zip(checkpoints, records, strict=True):
        if flag and record is None:
            raise UsageError(
                f"{flag}: {checkpoint} has no {TRAINED_ON}, which says what it was trained on: it "
                "is older, or was copied without it; put the file beside config.json, or leave "
                f"{flag} out"
            )
    return records


def roles_of(data: SegmentationData, records: Sequence[TrainedOn | None]) -> Roles:
    """Image name -> for each checkpoint "train" or "val" where the image's bytes trained or
    selected it, "no", or "unknown" where that is not recorded."""
    names = [record.name for record in data.records]
    if not any(records):
        return dict.fromkeys(names, ("unknown",) * len(records))
    digests = threaded(sha256_of, [record.image for record in data.records], "SHA-256", False)
    return {
        name: tuple(record.role(digest) if record else "unknown" for record in records)
        for name, digest in zip(names, digests, strict=True)
    }


def seen(roles: Sequence[str]) -> str:
    """What the column `seen` says of an image that several checkpoints know: the worst."""
    return next(role for role in _ROLES if role in roles)


def overlap(roles: Roles, held_out: bool) -> str:
    """One line on how many of the images the checkpoints know."""
    counts = Counter(map(seen, roles.values()))
    several = len(next(iter(roles.values()))) > 1
    who = "one of the checkpoints" if several else "the checkpoint"
    known = f"{counts['train']} of the {len(roles)} images trained {who}, {counts['val']}"
    known += " selected one" if several else " selected it"
    if counts["unknown"]:
        return (
            f"{'One of the checkpoints' if several else 'The checkpoint'} has no {TRAINED_ON}: "
            "whether it was trained or selected on these images cannot be told."
        )
    if not counts["train"] + counts["val"]:
        return f"None of the {len(roles)} images trained or selected {who}."
    if held_out:
        return f"{known}; these are left out."
    remedy = "--held-out leaves these images out"
    remedy += ", --out-of-fold asks only those that do not know an image" if several else ""
    return f"{known}: the figures are optimistic; {remedy}."


def askable(roles: Roles) -> dict[str, list[int]]:
    """Image name -> places of the checkpoints that were neither trained nor selected on it."""
    return {
        name: [place for place, role in enumerate(each) if role == "no"]
        for name, each in roles.items()
    }


def out_of_fold(roles: Roles) -> str:
    """One line on who is asked."""
    counts = Counter(len(places) for places in askable(roles).values())
    asked = ", ".join(
        f"{images} by {places} of them" for places, images in sorted(counts.items()) if places
    )
    left = f"; {counts[0]} images are known to all and left out" if counts[0] else ""
    return (
        f"Each image was measured by those of the {len(next(iter(roles.values())))} checkpoints "
        f"that were neither trained nor selected on it: {asked or 'none'}{left}."
    )
