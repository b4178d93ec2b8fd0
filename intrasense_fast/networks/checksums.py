"""checksums.json of a checkpoint's folder: the SHA-256 of each of its files."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from intrasense_fast.files import stream_digest

CHECKSUM_FILE = "checksums.json"
_DIGITS = frozenset("0123456789abcdef")


def write_checksums(folder: Path) -> None:
    """Write checksums.json of every file in a folder."""
    digests = {file.name: digest_of(file) for file in sorted(folder.iterdir())}
    (folder / CHECKSUM_FILE).write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")


def read_checksums(folder: str | os.PathLike[str]) -> dict[str, str] | None:
    """File name -> SHA-256 in hexadecimal; None where the folder has no checksums.json.

    Raises:
        ValueError: it is damaged, or names something else than files of the folder.
    """
    file = Path(folder) / CHECKSUM_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged") from error
    if not isinstance(content, dict) or not all(map(_is_digest, content.values())):
        raise ValueError(f"{file} is damaged: it must hold a SHA-256 for each file name")
    odd = next((name for name in content if not _is_plain(name)), None)
    if odd is not None:
        raise ValueError(f"{file}: {odd!r} is no name of a file in this folder; do not use it")
    return content


def check_files(folder: str | os.PathLike[str], names: Iterable[str] | None = None) -> bool:
    """Compare files of a folder with its checksums; whether there are checksums.

    Args:
        folder: of a checkpoint.
        names: the files to check; a name that is neither listed nor there is left out. None = all
            that are listed.

    Raises:
        ValueError: a file is missing, or has other bytes than when it was written.
    """
    digests = read_checksums(folder)
    if digests is None:
        return False
    place = Path(folder)
    chosen = digests if names is None else [name for name in names if name in digests]
    wrong = [
        name
        for name in chosen
        if not (place / name).is_file() or digest_of(place / name) != digests[name]
    ]
    if wrong:
        raise ValueError(f"{place}: {', '.join(wrong)} is missing, truncated or changed (checksum)")
    return True


def digest_of(file: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(file, "rb") as stream:
        return stream_digest(stream)


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and _DIGITS.issuperset(value)


def _is_plain(name: str) -> bool:
    return name == os.path.basename(name) and name not in ("", ".", "..") and "\\" not in name
