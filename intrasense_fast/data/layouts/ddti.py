"""DDTI as downloaded: CASE.xml with outlines as JSON, CASE_1.jpg, CASE_2.jpg, ... in one folder."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from intrasense_fast.data.items import Problem, Record
from intrasense_fast.data.layouts._files import (
    Reading,
    by_name,
    files,
    is_picture,
    name_of,
    nearest,
    not_read,
)
from intrasense_fast.data.opening import read_xml
from intrasense_fast.data.order import natural_key

NAME = "ddti"
FOLDS = 5
EXPECTED = "CASE.xml with the outlines, and CASE_1.jpg, CASE_2.jpg, ..., in one folder"

Region = tuple[tuple[float, float], ...]

_IMAGE_NAME = re.compile(r"^(?P<case>.+)_(?P<number>[0-9]+)$")


class OutlineError(ValueError):
    """The JSON of a mark that cannot be used."""


def detect(path: Path) -> bool:
    found = files(path)
    cases = {file.stem for file in found if file.suffix.casefold() == ".xml"}
    return any(
        is_picture(file) and (match := _IMAGE_NAME.match(file.stem)) and match["case"] in cases
        for file in found
    )


def read(path: Path) -> Reading:
    """One record an outlined image. The case is the name of its XML file, and the group; the class
    is its TI-RADS.

    The archive itself holds images without an outline: they are left out, each with a warning. JSON
    that was cut after the last point of an outline is closed, with a warning; cut anywhere else it
    is an error, for the outline
    is not known.
    """
    found = files(path)
    images, problems = by_name(file for file in found if is_picture(file))
    records: list[Record] = []
    used: set[str] = set()
    for table in (file for file in found if file.suffix.casefold() == ".xml"):
        records += _read_case(table, images, used, problems)
    for name in sorted(images.keys() - used, key=natural_key):
        problems.append(
            Problem(
                "warning",
                str(images[name]),
                "left out: no XML file outlines anything in this image",
            )
        )
    problems += not_read(found)
    cases = len({record.case for record in records})
    join = f"XML files: {cases} cases outline {len(records)} of {len(images)} images"
    return Reading(sorted(records, key=lambda record: natural_key(record.name)), problems, (join,))


def _read_case(
    table: Path, images: dict[str, Path], used: set[str], problems: list[Problem]
) -> Iterator[Record]:
    case = name_of(table)
    own = sorted(
        (name for name in images if (match := _IMAGE_NAME.match(name)) and match["case"] == case),
        key=natural_key,
    )
    try:
        tree = read_xml(table)
    except OSError as error:
        problems.append(Problem("error", str(table), error.strerror or str(error)))
        used.update(own)
        return
    label = _label(tree.findtext("tirads"))
    regions: dict[str, list[Region]] = {}
    bad: set[str] = set()
    for mark in tree.iter("mark"):
        number = (mark.findtext("image") or "").strip()
        text = (mark.findtext("svg") or "").strip()
        name = f"{case}_{number}"
        if not number:
            if len(own) != 1:
                problems.append(
                    Problem(
                        "error",
                        str(table),
                        f"a mark without image number, and {len(own)} images of this case: add "
                        f"<image>",
                    )
                )
                used.update(own)
                bad.update(own)
                continue
            name = own[0]
            problems.append(
                Problem(
                    "warning",
                    str(table),
                    f"a mark without image number: taken for {name}, the only image of this case",
                )
            )
        if name not in images:
            hint = nearest(name, images, {key: [path] for key, path in images.items()})
            problems.append(
                Problem("error", str(table), f"outlines {name}, but there is no such image{hint}")
            )
            continue
        if not text:
            problems.append(Problem("warning", str(table), f"an empty outline of {name}"))
            continue
        try:
            outlines, notes = parse_outlines(text)
        except OutlineError as error:
            problems.append(Problem("error", str(table), f"outline of {name}: {error}"))
            used.add(name)
            bad.add(name)
            continue
        problems += [Problem("warning", str(table), f"outline of {name}: {note}") for note in notes]
        regions.setdefault(name, []).extend(outlines)
    for name in own:
        if regions.get(name) and name not in bad:
            used.add(name)
            yield Record(name, images[name], (), case, case, label, tuple(regions[name]))


def _label(text: str | None) -> str:
    value = (text or "").strip()
    return "" if value.casefold() in ("", "none") else f"tirads-{value.casefold()}"


def parse_outlines(text: str) -> tuple[list[Region], list[str]]:
    """The polygons of one mark, `[{"points": [{"x": .., "y": ..}, ...], "regionType": ..}, ...]`,
    and what was repaired.

    Raises:
        OutlineError: the JSON is damaged inside the points of a region, or is no list of regions.
    """
    notes = []
    try:
        regions = json.loads(text)
    except json.JSONDecodeError as error:
        regions = _complete(text)
        if regions is None:
            raise OutlineError(
                f"JSON damaged at character {error.pos}, inside the points: restore it from the "
                f"source"
            ) from None
        notes.append("JSON cut after its last point: closed")
    except (RecursionError, ValueError, OverflowError) as error:
        # Nested a thousand deep, or a number of thousands of digits.
        raise OutlineError(f"JSON that cannot be read ({error}): restore it") from None
    if not isinstance(regions, list):
        raise OutlineError("no list of regions")
    polygons: list[Region] = []
    for region in regions:
        try:
            points = tuple((float(point["x"]), float(point["y"])) for point in region["points"])
        except (TypeError, KeyError, ValueError, OverflowError):
            raise OutlineError("a region without points of x and y") from None
        if (
            not np.isfinite(np.asarray(points)).all()
            or np.abs(np.asarray(points)).max(initial=0) > 1e6
        ):
            raise OutlineError("a point that is not finite or far outside any image")
        if len(set(points)) < 3:
            notes.append(
                f"a region of {len(set(points))} different points encloses nothing: left out"
            )
        else:
            polygons.append(points)
    return polygons, notes


def _complete(text: str) -> list[object] | None:
    """Regions of a list that breaks off after the points of its last region were closed; None where
    that is not so."""
    decoder = json.JSONDecoder()
    at = re.match(r"\s*\[\s*", text)
    if not at:
        return None
    regions: list[object] = []
    position = at.end()
    while position < len(text):
        try:
            region, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            break
        regions.append(region)
        separator = re.match(r"\s*,?\s*", text[position:])
        position += separator.end() if separator else 0
    rest = text[position:]
    opening = re.match(r'\s*\{\s*"points"\s*:\s*', rest)
    if not rest.strip():
        return regions or None
    if not opening:
        return None
    try:
        points, end = decoder.raw_decode(rest, opening.end())
    except (ValueError, RecursionError):
        return None
    # What follows the points of a region tells nothing of its outline.
    return None if '"points"' in rest[end:] else [*regions, {"points": points}]
