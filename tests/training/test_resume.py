"""A stopped run goes on to bitwise the weights of an uninterrupted one, whatever stopped it."""

import json
import random
import shutil
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from intrasense_fast.cli import main
from intrasense_fast.training.checkpoint import exclusive, load_last, tidy
from tests.support.runs import TINY, interrupt, start, train, write_pairs

OPTIONS = [*TINY, *"--epochs 2 --augment paper --scheduler onecycle --folds 0 --val-fraction 0.25".split()]
STEPS = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("resume") / "data", 17, seed=5)


@pytest.fixture(scope="module")
def uninterrupted(data: Path) -> Path:
    run = data.parent / "whole"
    code, _, err = train("--data", data, "--out", run, *OPTIONS)
    assert code == 0, err
    return run


def assert_same(found: Path, wanted: Path) -> None:
    for folder in ("last", "best"):
        one, other = (load_file(run / folder / "model.safetensors") for run in (found, wanted))
        assert one.keys() == other.keys() and all(value.equal(other[key]) for key, value in one.items()), folder
    for name in ("metrics.csv", "history.jsonl", "per_image.csv", "splits.json"):
        assert (found / name).read_text() == (wanted / name).read_text(), name
    assert len((found / "history.jsonl").read_text().splitlines()) == STEPS
    assert not list(found.glob(".*"))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)], ids=lambda x: str(x)
)
def test_resume_is_bitwise(
    number: signal.Signals, code: int, data: Path, uninterrupted: Path, tmp_path: Path, seed: int
) -> None:
    run, step = tmp_path / "run", random.Random(seed).randrange(1, STEPS - 1)
    found, out, err = interrupt(start("--data", data, "--out", run, *OPTIONS), run, step, number)
    assert found == code, err
    assert "Traceback" not in err
    if number != signal.SIGKILL:
        assert f"--resume {run}" in out
        assert len((run / "history.jsonl").read_text().splitlines()) < STEPS
    code, out, err = train("--resume", run)
    assert code == 0, err
    assert_same(run, uninterrupted)


@pytest.fixture(scope="module")
def stopped(data: Path) -> Path:
    """A run that SIGINT stopped in its second epoch."""
    run = data.parent / "stopped"
    code, _, err = interrupt(start("--data", data, "--out", run, *OPTIONS), run, 4, signal.SIGINT)
    assert code == 130, err
    assert (run / "previous").is_dir()
    return run


def test_killed_while_checkpoints_are_exchanged(stopped: Path, tmp_path: Path) -> None:
    """The states that a kill between two renames can leave behind: previous set aside; then last moved, and best set aside."""
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    (run / ".1234.part").mkdir()
    (run / ".1234.part" / "model.safetensors").write_bytes(b"half")
    (run / ".4321.tmp.csv").write_text("half")
    (run / "previous").rename(run / ".5678.old")
    names = sorted(path.name for path in stopped.iterdir())
    tidy(run)
    assert sorted(path.name for path in run.iterdir()) == names
    shutil.rmtree(run / "previous")
    (run / "last").rename(run / "previous")
    (run / "best").rename(run / ".9abc.old")
    tidy(run)
    assert (run / "best" / "model.safetensors").exists()
    said: list[str] = []
    restored = load_last(run, fused=None, say=said.append)
    assert restored.path == run / "previous" and restored.state["position"]["total"] >= 4
    assert "last is missing" in said[0] and "Going on from" in said[0]


def test_a_damaged_last_falls_back_to_previous_and_says_so(
    stopped: Path, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    file = run / "last" / "training_state.pt"
    file.write_bytes(file.read_bytes()[:-100])
    spoilt = tmp_path / "spoilt"
    shutil.copytree(run, spoilt)
    code, out, err = train("--resume", run)
    assert code == 0, err
    assert "training_state.pt is missing, truncated or changed" in out and "previous" in out
    assert_same(run, uninterrupted)
    (spoilt / "previous" / "model.safetensors").write_bytes(b"")
    assert main(["train", "--resume", str(spoilt)]) == 2
    assert "no checkpoint can be used" in capsys.readouterr().err


def test_resume_takes_everything_from_the_run(uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--lr", "0.1"], "not allowed beside it: --lr"),
        (["--no-gcp"], "not allowed beside it: --gcp"),
        (["--quick"], "not allowed beside it: --quick"),
        (["--epochs", "1"], "can only be raised"),
        (["--epochs", "5"], "a onecycle schedule ends with the 2 epochs"),
    ):
        assert main(["train", "--resume", str(uninterrupted), *arguments]) == 2
        assert message in capsys.readouterr().err
    assert main(["train", "--resume", str(uninterrupted)]) == 0
    assert "finished already" in capsys.readouterr().out
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    file = run / "config.json"
    record = json.loads(file.read_text())
    for name, value in (("size", 64), ("lr", 0.5), ("gcp", False), ("seed", 9)):
        then = record["config"][name]
        file.write_text(json.dumps(record | {"config": record["config"] | {name: value}}))
        assert main(["train", "--resume", str(run)]) == 2
        assert f"was made with {name} = {then}, now {value}" in capsys.readouterr().err
    for text, message in (("{", "is damaged"), ("{}", "is damaged"), ("[1]", "is damaged")):
        file.write_text(text)
        assert main(["train", "--resume", str(run)]) == 2
        assert message in capsys.readouterr().err
    for folder in (tmp_path, tmp_path / "absent"):
        assert main(["train", "--resume", str(folder)]) == 2
        assert "is no run folder" in capsys.readouterr().err


def test_one_process_a_run(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with exclusive(stopped):
        assert main(["train", "--resume", str(stopped)]) == 2
    assert "another process is working in this folder" in capsys.readouterr().err


def test_more_epochs_equal_a_longer_run(data: Path, tmp_path: Path) -> None:
    options = [*TINY, "--folds", "0", "--val-fraction", "0.25", "--momentum", "0.9"]
    common = ["train", "--data", str(data), *options]
    assert main([*common, "--out", str(tmp_path / "a"), "--epochs", "2"]) == 0
    assert main([*common, "--out", str(tmp_path / "b"), "--epochs", "1", "--workers", "2"]) == 0
    assert main(["train", "--resume", str(tmp_path / "b"), "--epochs", "2"]) == 0
    one, other = (load_file(tmp_path / run / "last" / "model.safetensors") for run in "ab")
    assert all(value.equal(other[key]) for key, value in one.items())
