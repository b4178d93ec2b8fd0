"""Tiny training runs as subprocesses."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from intrasense_fast.cli import main
from intrasense_fast.data.layouts import open_dataset
from intrasense_fast.data.torch_dataset import SegmentationDataset
from intrasense_fast.training.config import TrainConfig
from intrasense_fast.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
TINY = "--size 32 --batch-size 4 --epochs 3 --refine-strides 32 --lr 1e-3 --seed 3".split()
TINY += "--encoder resnet18 --decoder-channels 8 8 8 8 8".split()


def write_pairs(folder: Path, count: int, seed: int, size: int = 40) -> Path:
    """A generic data set: bright discs on noise."""
    rng = np.random.default_rng(seed)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        mask = np.zeros((size, size + 4), np.uint8)
        centre = tuple(int(v) for v in rng.integers(12, size - 12, 2))
        cv2.circle(mask, centre, int(rng.integers(6, 11)), 255, -1)
        image = np.clip(rng.normal(90, 20, mask.shape) + mask * 0.4, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / "images" / f"p{i}.png"), image)
        cv2.imwrite(str(folder / "masks" / f"p{i}.png"), mask)
    return folder


def open_trainer(
    data: Path, run: Path, config: TrainConfig, say: Callable[[str], object]
) -> Trainer:
    """A trainer of the first eight images of a data set, which selects on the next four."""
    samples = open_dataset(data)
    train, val = (SegmentationDataset(samples, part, size=32) for part in (range(8), range(8, 12)))
    return Trainer(
        run,
        config,
        train,
        val,
        device=torch.device("cpu"),
        extra={"image_size": 32},
        say=say,
    )


def start(*arguments: object) -> subprocess.Popen[str]:
    """`python train.py ARGUMENTS`, no interpreter."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"MPLBACKEND": "Agg"}
    command = [sys.executable, str(ROOT / "train.py"), *map(str, arguments)]
    return subprocess.Popen(
        command,
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def train(*arguments: object) -> tuple[int, str, str]:
    """Run to the end: exit code, stdout, stderr."""
    process = start(*arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def train_here(*arguments: object) -> int:
    """The same within this process, bit for bit: its exit code."""
    return main(["train", *map(str, arguments)])


def interrupt(
    process: subprocess.Popen[str], run: Path, step: int, number: signal.Signals
) -> tuple[int, str, str]:
    """Send a signal once `step` steps are in the history."""
    history = run / "history.jsonl"
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if history.exists() and history.read_bytes().count(b"\n") >= step:
            process.send_signal(number)
            break
        time.sleep(0.01)
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def stop_grid(arguments: Sequence[str], out: Path, number: signal.Signals) -> tuple[int, str, str]:
    """`intrasense-fast ARGUMENTS`, a grid in `out`, sent a signal once a run of it has made a
    step."""
    process = subprocess.Popen(
        [sys.executable, "-m", "intrasense_fast", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 400
    while not list(out.glob("cells/*/history.jsonl")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    shown, errors = process.communicate(timeout=300)
    return process.returncode, shown, errors


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
