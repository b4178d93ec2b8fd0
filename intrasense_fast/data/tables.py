"""Tables of classes and patients: how their columns are called, and how their rows meet the
images."""

import csv
import io
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from intrasense_fast.data.items import Problem
from intrasense_fast.data.joining import Joined, few, join
from intrasense_fast.data.opening import read_text
from intrasense_fast.files import legible

NAME_COLUMNS = (
    "name", "id", "image", "image_id", "imageid", "image_name", "imagename", "filename", "file",
    "file_name", "image_file", "image_path", "file_path", "filepath", "path", "img", "img_id",
    "img_name", "picture", "scan",
)  # fmt: skip
LABEL_COLUMNS = (
    "label", "pathology", "class", "category", "cate", "type", "diagnosis", "tirads",
    "classification", "lesion_type", "tumor_type", "tumour_type", "class_name", "label_name",
)  # fmt: skip
# A patient may have several examinations, so the patient comes first.
CASE_COLUMNS = (
    "patient", "patient_id", "patientid", "patient_no", "patient_number", "patient_name", "subject",
    "subject_id", "subjectid", "subject_no", "pid", "person", "person_id", "case", "case_id",
    "caseid", "case_no", "exam", "exam_id", "examination", "study", "study_id", "studyid",
)  # fmt: skip
GROUP_COLUMNS = ("group", "group_id", "groupid")
_MEANINGS = {"class": LABEL_COLUMNS, "patient": CASE_COLUMNS, "group": GROUP_COLUMNS}


class Identity(NamedTuple):
    """What a table says of one image; "" where it says nothing."""

    label: str
    case: str
    group: str = ""


class Attached(NamedTuple):
    """A table that met the images of a data set.

    Attributes:
        identities: of the images that have a row.
        barred: images that must not be used: the table knows patients, but not theirs.
        reason: what to say of each of them.
        problems: rows without an image, images without a row, contradictions.
        lines: for `verify`: rows, joins and columns.
    """

    identities: Mapping[str, Identity] = MappingProxyType({})
    barred: frozenset[str] = frozenset()
    problems: tuple[Problem, ...] = ()
    lines: tuple[str, ...] = ()
    reason: str = ""


def read_rows(path: Path) -> tuple[list[dict[str, str]], list[Problem]]:
    """The rows of a CSV file with a header; a file that is no such table is an error.

    Keys are casefolded, with "_" for whatever is neither letter nor digit: "Patient ID" is
    patient_id.
    """
    try:
        text = read_text(path)
        header = text.splitlines()[0] if text.strip() else ""
        delimiter = max(",;\t", key=header.count)
        # Not by lines: a quoted cell may hold the end of one.
        cells = io.StringIO(text, newline="")
        rows = list(csv.DictReader(cells, delimiter=delimiter, restkey="", restval=""))
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        return [], [
            Problem("error", str(path), f"cannot be read as a CSV table in UTF-8 ({reason})")
        ]
    return [
        {_column(str(key)): _cell(value) for key, value in row.items() if key != ""} for row in rows
    ], []


def read_lines(path: Path) -> list[str]:
    """The lines of a list of names, stripped and without the empty ones; bytes that are no UTF-8 as
    in `name_of`."""
    text = legible(read_text(path, "surrogateescape"))
    return [line.strip() for line in text.splitlines() if line.strip()]


def attach(
    path: Path,
    names: Collection[str],
    classes: Mapping[str, str] | None = None,
    *,
    optional: bool = False,
    strict: bool = False,
) -> Attached:
    """Labels, cases and groups of a CSV table for the images of these names.

    One column names the image (name, id, image, file, ...): of several, the one that joins most.
    One more is a label (label, class, pathology, ...), a case (patient, subject_id, case, ...) or a
    group. Where it gives cases or groups, an image without one is an error: its patient could stand
    in two
    folds.

    Args:
        path: the table.
        names: of the images.
        classes: translates label values.
        optional: the table may belong to something else: that nothing joins is no error.
        strict: a row without an image is an error of its own.
    """
    rows, problems = read_rows(path)
    if problems or not rows:
        empty = Problem("warning", str(path), "an empty table: no labels read")
        return Attached(problems=tuple(problems) or (empty,))
    columns = list(rows[0])
    candidates = [column for column in NAME_COLUMNS if column in columns]
    chosen: dict[str, str] = {}
    for what, keys in _MEANINGS.items():
        filled = [key for key in keys if key in columns and any(row[key] for row in rows)]
        if filled and filled[:1] != candidates:
            chosen[what] = filled[0]
    if not candidates or not chosen:
        if optional:
            return Attached(lines=(f"{path.name}: not used, its columns are {few(columns)}",))
        wanted = f"one of {few(NAME_COLUMNS)} and one of {few(LABEL_COLUMNS + CASE_COLUMNS, 30)}"
        text = f"columns {', '.join(columns)}; needed: {wanted}"
        return Attached(problems=(Problem("error", str(path), text),))
    free = [column for column in candidates if column not in chosen.values()] or candidates
    joins = {column: join([row[column] for row in rows], names) for column in free}
    key = max(free, key=lambda column: joins[column].matched)
    identities = [_identity(row, chosen, classes or {}) for row in rows]
    used = [key, *chosen.values()]
    unused = [column for column in columns if column not in used]
    described = ", ".join(f"{what} from {column}" for what, column in chosen.items())
    line = f"joined by {key}; {described}"
    line += f"; not understood: {', '.join(unused)}" if unused else ""
    grouping = [what for what in ("patient", "group") if what in chosen]
    return attach_rows(
        path, joins[key], identities, len(names), grouping, line, optional=optional, strict=strict
    )


def attach_rows(
    path: Path,
    joined: Joined,
    identities: Sequence[Identity],
    images: int,
    grouping: Sequence[str],
    line: str = "",
    *,
    optional: bool = False,
    strict: bool = False,
) -> Attached:
    """What joined rows say of the images, and everything that did not meet; arguments as in
    `attach`.

    Args:
        path: the file of the rows.
        joined: rows and images.
        identities: of each row.
        images: how many there are.
        grouping: "patient" and "group", where the table gives them.
        line: what else to say of the join.
    """
    met = images - len(joined.bare)
    lines = [f"{path.name}: {len(identities)} rows, {met} of {images} images have one; {line}"]
    if joined.loose:
        entry, image = joined.loose[0]
        lines[0] += f"; {len(joined.loose)} names joined though written otherwise "
        lines[0] += f"({entry!r} = {image!r})"
    if not joined.matched:
        if optional:
            return Attached(lines=(f"{path.name}: not used, it names none of these images",))
        text = f"none of its {len(identities)} rows names an image: {few(joined.lost)}"
        text += f"; the images are {few(joined.bare)}" if joined.bare else ""
        return Attached(problems=(Problem("error", str(path), text),), lines=tuple(lines))
    found: dict[str, Identity] = {}
    problems: list[Problem] = []
    for name, identity in zip(joined.names, identities, strict=True):
        if name is not None and found.setdefault(name, identity) != identity:
            text = f"two rows contradict each other about {name}"
            problems.append(Problem("error", str(path), text))
    if joined.lost and not optional:
        problems += _lost(path, joined.lost, strict)
    ungrouped = [name for name, identity in found.items() if not _grouped(identity)]
    barred = frozenset([*joined.bare, *ungrouped]) if grouping else frozenset()
    if joined.bare and not grouping:
        text = f"{len(joined.bare)} images have no row, their class is unknown: {few(joined.bare)}"
        problems.append(Problem("warning", str(path), text))
    reason = (
        f"no patient or group in {path.name}, so that a patient could part over folds: add its "
    )
    reason += "row, or move the image away"
    return Attached(found, barred, tuple(problems), tuple(lines), reason)


def _grouped(identity: Identity) -> bool:
    return bool(identity.case or identity.group)


def _lost(path: Path, lost: Sequence[str], strict: bool) -> list[Problem]:
    if strict:
        return [
            Problem("error", str(path), f"lists {name}, but there is no such image")
            for name in lost
        ]
    text = f"{len(lost)} rows name no image, or several: {few(lost)}"
    return [Problem("warning", str(path), text)]


def _identity(
    row: Mapping[str, str], chosen: Mapping[str, str], classes: Mapping[str, str]
) -> Identity:
    label, case, group = (
        row[chosen[what]] if what in chosen else "" for what in ("class", "patient", "group")
    )
    return Identity(classes.get(label.casefold(), label), case, group)


def _column(text: str) -> str:
    return re.sub(r"[^\w]+", "_", text.strip().casefold()).strip("_")


def _cell(value: object) -> str:
    return "" if value is None or isinstance(value, list) else str(value).strip()
