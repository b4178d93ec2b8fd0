"""Packages that only `export` needs: imported when asked for, and named with their extra."""

import importlib
from types import ModuleType

from intrasense_fast.errors import UsageError

EXTRA = "pip install 'intrasense-fast[onnx]'"


def needed(name: str) -> ModuleType:
    """A module of the extra `onnx`.

    Raises:
        UsageError: its package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise UsageError(f"--format onnx needs the package {package}: {EXTRA}") from error
