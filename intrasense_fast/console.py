"""What a command prints: text that any terminal takes, progress bars that fit, and the command that
comes next.
"""

import shlex
import sys
from typing import Any, TextIO

from tqdm import tqdm

from intrasense_fast.files import escaped, legible

PROGRAM = "intrasense-fast"
# Without the rate: at 80 columns the bar itself must stay.
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{remaining}{postfix}]"


def show(text: str, stream: TextIO | None = None) -> None:
    """Print text that may hold file names with control characters, or unknown to the terminal."""
    target = stream or sys.stdout
    encoding = getattr(target, "encoding", None) or "utf-8"
    shown = escaped(legible(text), keep="\n\t")
    print(shown.encode(encoding, "backslashreplace").decode(encoding), file=target)


def progress(total: int, title: str, unit: str, **options: Any) -> "tqdm[Any]":
    """A progress bar of `total` units; options as tqdm's."""
    return tqdm(total=total, desc=title, unit=unit, bar_format=_BAR, **options)


def command_line(*arguments: object) -> str:
    """A command of this program as one types it: `intrasense-fast train --data 'my data'`."""
    return shlex.join([PROGRAM, *map(str, arguments)])


def show_next(*arguments: object, instead: str = "") -> None:
    """The one line that ends a command: what comes next."""
    show(f"next: {command_line(*arguments)}{instead}")
