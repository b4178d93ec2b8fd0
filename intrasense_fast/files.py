"""Files that appear complete or not at all."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from intrasense_fast.errors import UsageError


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], *, flush: bool = True) -> Iterator[Path]:
    """A temporary path beside `path`, with its suffix; on success it is flushed to disk and renamed to `path`.

    An existing file is replaced in one step. If the block raises, or is interrupted, the temporary file is removed and `path`
    is as it was. Missing parent folders are created. flush=False leaves it to the system when the file reaches the disk: for
    thousands of files that can be made again.

    Raises:
        FileNotFoundError: the block ended without writing the temporary path.
        IsADirectoryError: `path` is a folder.
    """
    final = Path(path)
    if final.is_dir():
        raise IsADirectoryError(f"cannot write {final}: it is a folder")
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.parent / f".{uuid.uuid4().hex}.tmp{final.suffix}"
    try:
        yield temporary
        if not temporary.exists():
            raise FileNotFoundError(f"nothing was written for {final}")
        if flush:
            _flush(temporary)
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)
    if flush:
        with contextlib.suppress(OSError):
            _flush(final.parent)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside `path`; on success it is renamed to `path`, else it is removed.

    Raises:
        UsageError: `path` is in use: a file, a link, or a folder that is not empty.
    """
    final = Path(path)
    if final.is_symlink() or final.is_file() or (final.is_dir() and any(final.iterdir())):
        raise UsageError(f"{final}: in use, and nothing is overwritten: name a folder that does not exist or is empty")
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.parent / f".{uuid.uuid4().hex}.part"
    try:
        temporary.mkdir()
        yield temporary
        if final.is_dir():
            final.rmdir()
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
