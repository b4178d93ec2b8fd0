"""The figures of a run, wherever they go: TensorBoard's own reader finds those of the files, also
after a kill; a logger from Python is told the same."""

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from intrasense_fast.cli import main
from intrasense_fast.networks import build_network
from intrasense_fast.training import loggers, runs
from intrasense_fast.training.config import TENSORBOARD, TrainConfig
from intrasense_fast.training.run_clock import RunClock
from intrasense_fast.training.trainer import Trainer
from tests.support.runs import open_trainer, write_pairs

CONFIG = TrainConfig(
    network="unet",
    network_options=("widths=[2,2,2,2,4]",),
    size=32,
    batch_size=4,
    epochs=3,
    lr=1e-2,
)
MODEL = "--network unet --network-options widths=[2,2,2,2,4] --size 32 --batch-size 2".split()
PHANTOMS = "--phantom-train 4 --phantom-val 2 --phantom-test 2 --device cpu".split()


@pytest.fixture
def data(tmp_path: Path, seed: int) -> Path:
    return write_pairs(tmp_path / "data", 12, seed=seed)


def begun(data: Path, run: Path, config: TrainConfig) -> Trainer:
    run.mkdir(exist_ok=True)
    made = open_trainer(data, run, config, lambda text: None)
    torch.manual_seed(0)
    made.start(build_network("unet", **config.model_arguments()))
    return made


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows: tag -> step -> value, every value once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    events = {tag: reader.Scalars(tag) for tag in reader.Tags()["scalars"]}
    values = {tag: {event.step: event.value for event in found} for tag, found in events.items()}
    assert all(len(values[tag]) == len(found) for tag, found in events.items())
    # A tag whose events were all cut stays, without any.
    return {tag: found for tag, found in values.items() if found}


def of_lines(lines: list[dict[str, Any]], number: str) -> dict[str, dict[int, float]]:
    """The same of lines of history.jsonl or rows of metrics.csv, in float32."""
    values: dict[str, dict[int, float]] = {}
    for line in lines:
        for name, text in line.items():
            value = math.nan if text in (None, "") else float(text)
            if name not in ("step", "epoch") and math.isfinite(value):
                values.setdefault(name, {})[int(line[number])] = float(np.float32(value))
    return values


def assert_same_figures(run: Path, steps: int, epochs: int) -> None:
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert (len(lines), len(rows)) == (steps, epochs)
    shown = scalars(run / "tensorboard" / "steps")
    assert shown == of_lines(lines, "step") and "loss" in shown and "learning_rate" in shown
    shown = scalars(run / "tensorboard" / "epochs")
    assert shown == of_lines(rows, "epoch") and len(shown["val_dice"]) == epochs


def test_tensorboard_holds_the_figures_of_the_files(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    trainer = begun(data, tmp_path / "run", replace(CONFIG, log=TENSORBOARD))
    trainer.fit()
    assert_same_figures(trainer.run, steps=6, epochs=3)


def test_event_files_are_cut_back_to_the_checkpoint(data: Path, tmp_path: Path) -> None:
    """A process that is killed in its second epoch, its event file cut in the middle of a record:
    steps after the checkpoint are shown once, of the process that repeated them."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    config = replace(CONFIG, log=TENSORBOARD)
    killed = begun(data, tmp_path / "run", config)
    killed._train_epoch()
    killed._finish_epoch()
    killed._train_epoch()
    # Figures that the run will not repeat: were they shown, the comparison would fail.
    killed.logger.log_step({"step": 3, "epoch": 2, "loss": 77.0, "other": 1.0})
    killed.logger.log_epoch({"epoch": 2, "val_dice": 77.0})
    killed.logger.flush()
    for file in (killed.run / "tensorboard").rglob("events*"):
        with open(file, "ab") as stream:
            stream.write(b"\x18\x00\x00\x00\x00\x00\x00\x00cut")
    resumed = open_trainer(data, killed.run, config, lambda text: None)
    resumed.restore()
    assert resumed.position.total == 2
    resumed.fit()
    assert_same_figures(killed.run, steps=6, epochs=3)


class Recorder:
    """A logger of a user's own."""

    made: ClassVar[list["Recorder"]] = []

    def __init__(self, run: Path, config: TrainConfig) -> None:
        self.run, self.config, self.calls = run, config, list[tuple[str, Any]]()
        Recorder.made.append(self)

    def cut(self, step: int, epoch: int) -> None:
        self.calls.append(("cut", (step, epoch)))

    def log_step(self, values: Mapping[str, Any]) -> None:
        self.calls.append(("step", dict(values)))

    def log_epoch(self, values: Mapping[str, Any]) -> None:
        self.calls.append(("epoch", dict(values)))

    def flush(self) -> None:
        self.calls.append(("flush", None))

    def close(self) -> None:
        self.calls.append(("close", None))


def test_a_logger_from_python_is_told_what_the_files_are(tmp_path: Path) -> None:
    Recorder.made.clear()
    given = {
        "network": "unet",
        "network_options": ("widths=[2,2,2,2,4]",),
        "size": 32,
        "batch_size": 2,
        "epochs": 2,
        "device": "cpu",
        "phantom_train": 4,
        "phantom_val": 2,
        "phantom_test": 2,
    }
    run = tmp_path / "run"
    runs.begin(given, str(run), loggers=[Recorder])
    (recorder,) = Recorder.made
    names = [name for name, _ in recorder.calls]
    assert recorder.run == run and recorder.config.size == 32
    assert names[0] == "cut" and recorder.calls[0][1] == (0, 0) and names[-1] == "close"
    assert names.index("flush") > names.index("step")
    steps = [values for name, values in recorder.calls if name == "step"]
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert steps == lines and len(lines) == 4
    epochs = [values for name, values in recorder.calls if name == "epoch"]
    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_dice"]) for row in rows] == [row["val_dice"] for row in epochs]
    assert not (run / "tensorboard").exists()
    runs.resume(run, {}, loggers=[Recorder])
    assert Recorder.made[-1].calls[0] == ("cut", (4, 2))


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    run = tmp_path / "run"
    assert main(["train", "--log", "tensorboard", *MODEL, *PHANTOMS, "--out", str(run)]) == 2
    shown = capsys.readouterr().err
    assert "pip install 'intrasense-fast[tensorboard]'" in shown and shown.count("\n") == 1
    assert not run.exists()


def test_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 epochs of 10 steps: 2 s a step, 7 s to end an epoch."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def passed(seconds: float) -> None:
        now[0] += seconds

    clock = RunClock(10, 4)
    passed(1000)
    clock.begin()
    assert clock.left(0, 0) is None
    for _ in range(10):
        passed(2)
        clock.step()
    assert clock.left(0, 10) == pytest.approx(30 * 2)
    passed(7)
    clock.epoch()
    assert clock.left(1, 0) == pytest.approx(30 * 2 + 3 * 7)
    assert clock.left(3, 9) == pytest.approx(2 + 7)
    assert clock.left(4, 0) == 0
