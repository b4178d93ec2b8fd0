"""Files that pair by patterns that the user gives with --pairs, in whatever folders they lie."""

from collections.abc import Sequence
from pathlib import Path

from intrasense_fast.data.items import DataError, Problem
from intrasense_fast.data.joining import few
from intrasense_fast.data.layouts._files import (
    Identity,
    Reading,
    files,
    is_picture,
    not_read,
    pair,
    read_labels,
)
from intrasense_fast.data.patterns import EXAMPLE, matches

NAME = "pairs"
EXPECTED = f"the files that {EXAMPLE} names"


def pictures(path: Path, pattern: str) -> dict[Path, dict[str, str]]:
    """The pictures under `path` that match a pattern, and what its fields stand for.

    Raises:
        DataError: none does; the message shows what is there.
    """
    there = [file for file in files(path, recursive=True) if is_picture(file)]
    found = matches(there, path, pattern)
    if not found:
        shown = [file.relative_to(path).as_posix() for file in there]
        raise DataError(f"{path}: no picture matches {pattern!r}; there are {few(shown) or 'none'}")
    return found


def read(path: Path, patterns: tuple[str, str]) -> Reading:
    """An image of each {id}; every mask of the same fields is its own. labels.csv comes first.

    The name is the id, or LABEL/ID, CASE/ID where the pattern has these fields.

    Raises:
        DataError: a pattern matches nothing.
    """
    image_files, mask_files = (pictures(path, pattern) for pattern in patterns)
    shared = set(next(iter(image_files.values()))) & set(next(iter(mask_files.values())))
    images: dict[str, Path] = {}
    own: dict[str, Identity] = {}
    keys: dict[tuple[str, ...], list[str]] = {}
    problems: list[Problem] = []
    for file, fields in image_files.items():
        name = "/".join(fields[field] for field in ("label", "case", "id") if field in fields)
        if name in images:
            text = (
                f"the same {{id}} as {images[name].name}: keep one, or give {{label}} or {{case}}"
            )
            problems.append(Problem("error", str(file), text))
            continue
        images[name] = file
        own[name] = Identity(fields.get("label", ""), fields.get("case", ""))
        keys.setdefault(tuple(fields[field] for field in sorted(shared)), []).append(name)
    masks: dict[str, list[Path]] = {}
    for file, fields in mask_files.items():
        if file in image_files:
            continue
        key = tuple(fields[field] for field in sorted(shared))
        if len(keys.get(key, ())) > 1:
            text = (
                f"a mask of several images ({few(keys[key])}): give {{label}} or {{case}} in both"
            )
            problems.append(Problem("error", str(file), f"{text} patterns"))
            continue
        masks.setdefault(keys.get(key, [fields["id"]])[0], []).append(file)
    attached = read_labels(path, images)
    identities = {
        name: _merged(attached.identities.get(name), given) for name, given in own.items()
    }
    records, unpaired, joins = pair(images, masks, attached._replace(identities=identities))
    everything = files(path, recursive=True)
    line = _unmatched(path, everything, {*image_files, *mask_files})
    problems += [*not_read(everything), *unpaired]
    return Reading(records, problems, (*joins, *line))


def _merged(table: Identity | None, given: Identity) -> Identity:
    if table is None:
        return given
    return Identity(table.label or given.label, table.case or given.case, table.group)


def _unmatched(path: Path, there: Sequence[Path], matched: set[Path]) -> tuple[str, ...]:
    left = [
        file.relative_to(path).as_posix()
        for file in there
        if is_picture(file) and file not in matched
    ]
    return (f"{len(left)} pictures match neither pattern: {few(left)}",) if left else ()
