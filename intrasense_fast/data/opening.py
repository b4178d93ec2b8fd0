"""The one way in to a file: only regular files are opened, and a table, XML or JSON that cannot be
parsed is one named failure."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree

from intrasense_fast.files import stream_digest

_KINDS = {
    stat.S_IFIFO: "a FIFO (named pipe)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class FileError(OSError):
    """A file that cannot be read as what it should be; `strerror` says why, without the name."""


def special_kind(path: str | os.PathLike[str]) -> str | None:
    """ "a FIFO (named pipe)", "a socket", "a device", "a folder"; None for a regular file.

    Raises:
        OSError: there is no such file, or it may not be looked at.
    """
    mode = os.stat(path).st_mode
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no regular file")


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading bytes; nothing else is opened, and nothing waited for.

    Raises:
        FileError: a FIFO, a socket, a device or a folder.
        OSError: missing, or may not be read.
    """
    kind = special_kind(path)
    if kind is not None:
        raise FileError(errno.EINVAL, f"{kind}, no regular file: move it away", os.fspath(path))
    # It may have been replaced since: a FIFO opened so returns at once.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileError(errno.EINVAL, "no regular file: move it away", os.fspath(path))
    return os.fdopen(descriptor, "rb")


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """All bytes of a regular file; errors as in `open_regular`."""
    with open_regular(path) as stream:
        return stream.read()


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a regular file's bytes, in hexadecimal; errors as in `open_regular`."""
    with open_regular(path) as stream:
        return stream_digest(stream)


def read_text(path: str | os.PathLike[str], errors: str = "strict") -> str:
    """A text file in UTF-8, with or without a byte-order mark.

    Raises:
        FileError: another encoding.
        OSError: as in `open_regular`.
    """
    try:
        return read_bytes(path).decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        reason = f"no text in UTF-8 (byte {error.start}): save it as UTF-8"
        raise FileError(errno.EINVAL, reason, os.fspath(path)) from error


def read_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file.

    Raises:
        FileError: no XML, of an unknown encoding, or beyond what the parser takes.
        OSError: as in `open_regular`.
    """
    data = read_bytes(path)
    return _parsed(path, "XML", lambda: ElementTree.fromstring(data))


def _parsed(path: Path, what: str, parse: Callable[[], Any]) -> Any:
    try:
        return parse()
    except Exception as error:
        # A parser raises more kinds than it documents: LookupError, RecursionError, MemoryError.
        reason = (
            f"no readable {what} ({error or type(error).__name__}): get it again from its source"
        )
        raise FileError(errno.EINVAL, reason, os.fspath(path)) from error
