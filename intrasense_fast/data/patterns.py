"""Patterns of file names, for folders that no layout fits: 'Image_{id}.png' and 'mask_{id}.png'."""

import re
from collections.abc import Sequence
from pathlib import Path

from intrasense_fast.data.order import natural_key
from intrasense_fast.errors import UsageError
from intrasense_fast.files import legible

FIELDS = ("id", "label", "case")
EXAMPLE = "--pairs 'Image_{id}.png' 'mask_{id}.png'"

_PART = re.compile(r"\{(\w*)\}|(\*\*/)|(\*)|(\?)|([^{*?]+|.)")


def check_pattern(pattern: str, what: str) -> None:
    """Refuse a pattern without {id}, or with a field that is unknown.

    Raises:
        UsageError: the message shows what is needed.
    """
    names = re.findall(r"\{(\w*)\}", pattern)
    unknown = sorted(set(names) - set(FIELDS))
    if unknown or "id" not in names:
        reason = f"{{{unknown[0]}}} is unknown" if unknown else "{id} is missing"
        fields = ", ".join(f"{{{name}}}" for name in FIELDS)
        raise UsageError(
            f"--pairs: the {what} pattern {pattern!r} must hold {{id}}, and may hold "
            f"{fields} and *: {reason}; for instance {EXAMPLE}"
        )


def compiled(pattern: str) -> re.Pattern[str]:
    """The pattern as a regular expression over a path relative to the folder, "/" between folders.

    {id}, {label} and {case} stand for text within one name, the same everywhere they occur; * for
    any text within one name, **/ for any folders.
    """
    parts: list[str] = []
    seen: set[str] = set()
    for field, folders, star, one, text in _PART.findall(pattern.removeprefix("./")):
        if field:
            parts.append(f"(?P={field})" if field in seen else f"(?P<{field}>[^/]+?)")
            seen.add(field)
        elif folders:
            parts.append("(?:[^/]+/)*")
        elif star or one:
            parts.append("[^/]*" if star else "[^/]")
        else:
            parts.append(re.escape(text))
    return re.compile("".join(parts))


def matches(paths: Sequence[Path], root: Path, pattern: str) -> dict[Path, dict[str, str]]:
    """The files that match a pattern, in natural order, and what its fields stand for."""
    expression = compiled(pattern)
    found: dict[Path, dict[str, str]] = {}
    for path in sorted(paths, key=lambda path: natural_key(path.relative_to(root).as_posix())):
        match = expression.fullmatch(path.relative_to(root).as_posix())
        if match:
            found[path] = {field: legible(text) for field, text in match.groupdict().items()}
    return found
