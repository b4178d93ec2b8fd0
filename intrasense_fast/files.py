"""Files that appear complete or not at all, and file names as text that every reader of UTF-8
takes."""

import contextlib
import functools
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from intrasense_fast.errors import UsageError

_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.(tmp|part)")
# Descriptors of the folders that this process works in.
_locks: set[int] = set()
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], *, flush: bool = True) -> Iterator[Path]:
    """A temporary path beside `path`, with its suffix; on success it is flushed to disk and renamed
    to `path`.

    An existing file is replaced in one step. If the block raises, or is interrupted, the temporary
    file is removed and `path` is as it was. Missing parent folders are created. flush=False leaves
    it to the system when the file reaches the disk: for thousands of files that can be made again.

    Raises:
        FileNotFoundError: the block ended without writing the temporary path.
        IsADirectoryError: `path` is a folder.
        OSError: it cannot be written; the error names `path`, not the temporary one.
    """
    final = Path(path)
    if final.is_dir():
        raise IsADirectoryError(f"cannot write {final}: it is a folder")
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.parent / f".{uuid.uuid4().hex}.tmp{final.suffix}"
    try:
        with _named(temporary, final):
            yield temporary
            if not temporary.exists():
                raise FileNotFoundError(f"nothing was written for {final}")
            if flush:
                flush_to_disk(temporary)
            os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)
    if flush:
        flush_folder(final.parent)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside `path`; on success it is renamed to `path`, else it is removed.

    Raises:
        UsageError: `path` is in use: a file, a link, or a folder that is not empty.
        OSError: it cannot be written; the error names a file in `path`, not in the temporary
            folder.
    """
    final = Path(path)
    if final.is_symlink() or final.is_file() or (final.is_dir() and any(final.iterdir())):
        raise UsageError(
            f"{final}: in use, and nothing is overwritten: name a folder that does not exist or is "
            f"empty"
        )
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.parent / f".{uuid.uuid4().hex}.part"
    try:
        with _named(temporary, final):
            temporary.mkdir()
            yield temporary
            if final.is_dir():
                final.rmdir()
            temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def exclusive(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes that ask so too out of `folder` while the block runs, or until this one
    dies: processes that it forks do not hold the lock.

    Raises:
        UsageError: another process is in it.
    """
    import fcntl  # not on Windows, where the rest of this module works

    _free_children()
    descriptor = os.open(folder, os.O_RDONLY)
    _locks.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"{folder}: another process is working in this folder; wait for it, or stop it"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        # A forked process has closed it already.
        if descriptor in _locks:
            _locks.remove(descriptor)
            os.close(descriptor)


@functools.cache
def _free_children() -> None:
    """Let every process that is forked from now on close the locks of this one: a lock lasts as
    long as any copy of its descriptor."""
    os.register_at_fork(after_in_child=_close_locks)


def _close_locks() -> None:
    while _locks:
        os.close(_locks.pop())


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed `atomic_path` blocks left in `folder` and below."""
    for path in folder.rglob(".*"):
        if _TEMPORARY.match(path.name) and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


def check_place(path: str | os.PathLike[str]) -> None:
    """Find out before long work whether `path` could be written; nothing is left behind.

    Raises:
        OSError: no file can be made there; the error names `path`.
    """
    final = Path(path)
    place = next(folder for folder in final.absolute().parents if folder.exists())
    temporary = place / f".{uuid.uuid4().hex}.tmp{final.suffix}"
    with _named(temporary, final):
        temporary.touch()
        temporary.unlink()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file whole, in UTF-8; what is `legible` only stands in it legibly.

    Raises:
        OSError: it cannot be written; what stood at `path` is untouched.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(legible(text), encoding="utf-8")


def stream_digest(stream: BinaryIO) -> str:
    """SHA-256 of what a stream still holds, in hexadecimal."""
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def legible(name: str) -> str:
    """A file name as valid Unicode: each byte that is no UTF-8 as %E9 or the like, the rest as it
    is.

    Every table, list and copy names such files so: a single raw byte would make the whole of a text
    file unreadable.
    """
    return re.sub("[\udc80-\udcff]", lambda found: f"%{ord(found[0]) - 0xDC00:02X}", name)


def escaped(text: str, keep: str = "") -> str:
    """Text for a terminal: control characters and those that turn its direction as \\x1b, \\u202e.

    A file may be named with them, and a terminal would obey. `keep` names characters that stay.
    """
    return _CONTROLS.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or the list of names of a folder, is on the disk.

    Raises:
        OSError: it cannot get there.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(path: Path) -> None:
    """The same for a folder whose files are there: some file systems cannot flush the list of
    names."""
    with contextlib.suppress(OSError):
        flush_to_disk(path)


@contextlib.contextmanager
def _named(temporary: Path, final: Path) -> Iterator[None]:
    """An error of the block that names no file, or the temporary path, names the final one."""
    try:
        yield
    except OSError as error:
        name = (
            final
            if error.filename is None
            else str(error.filename).replace(str(temporary), str(final))
        )
        if error.errno is None or (str(name) == str(error.filename) and error.filename2 is None):
            raise
        raise OSError(error.errno, error.strerror, str(name)) from error
