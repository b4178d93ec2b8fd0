"""pydicom, imported when it is needed, silent, and with every error as one line without values.

Its warnings, log lines and errors quote what a file holds, which may be a patient's name.
"""

import contextlib
import importlib
import logging
import os
import threading
import warnings
from collections.abc import Iterator

from intrasense_fast.data.header import HeaderError
from intrasense_fast.data.opening import open_regular

AGAIN = "get it again from its source"
_LOGGERS = ("pydicom", "pylibjpeg", "highdicom")
# The silence is the process's: one thread at a time has it.
_silence = threading.RLock()


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Does a regular file hold the mark of DICOM, "DICM" at byte 128? False where it cannot be
    read."""
    try:
        with open_regular(path) as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def needed(package: str, purpose: str) -> None:
    """Import a package of the extra `dicom`.

    Raises:
        HeaderError: it is missing.
    """
    try:
        importlib.import_module(package)
    except ImportError:
        raise HeaderError(
            f"{purpose} needs the package {package}: pip install 'intrasense-fast[dicom]'"
        ) from None


@contextlib.contextmanager
def quiet(fault: str) -> Iterator[None]:
    """Run pydicom without a word; what it raises becomes a HeaderError.

    Args:
        fault: what the error says, for instance "corrupt DICOM header".

    Raises:
        HeaderError: one of ours as it is; another exception as `fault` and its type, no text of it.
        MemoryError: as it is.
        OSError: as it is, where it is the system's.
    """
    with _silence, warnings.catch_warnings(), _loggers_off():
        warnings.simplefilter("ignore")
        try:
            yield
        except (HeaderError, MemoryError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            # A parser raises more kinds than it documents, and their text quotes the file.
            raise HeaderError(f"{fault} ({type(error).__name__}): {AGAIN}") from None


@contextlib.contextmanager
def _loggers_off() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
