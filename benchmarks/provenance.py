"""Where a figure comes from: device, driver, versions, commit. Every result file holds it."""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path

import torch

from intrasense_fast.files import atomic_path

ROOT = Path(__file__).parents[1]


def provenance() -> dict[str, str | None]:
    """The machine, the versions and the commit; None where unknown.

    Keys: "gpu", "driver", "cuda", "torch", "triton", "python", "cpu", "threads", "commit", "note",
    "date".

    $INTRASENSE_BENCH_NOTE says under which conditions was measured, such as a machine shared with
    others.
    """
    cuda = torch.cuda.is_available()
    try:
        triton: str | None = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = None
    return {
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        if cuda
        else None,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": triton,
        "python": platform.python_version(),
        "cpu": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": str(torch.get_num_threads()),
        "commit": commit(),
        "note": os.environ.get("INTRASENSE_BENCH_NOTE", ""),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }


def commit() -> str:
    """$INTRASENSE_COMMIT where it is set (a copy without its history), else git's.

    "+" stands behind git's where the tree differs.
    """
    if given := os.environ.get("INTRASENSE_COMMIT"):
        return given
    head = _output("git", "rev-parse", "--short=10", "HEAD")
    if not head:
        return "unknown"
    return head + ("+" if _output("git", "status", "--porcelain", "--untracked-files=no") else "")


def write_json(path: Path, content: dict) -> None:
    """Write a result in one step."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
