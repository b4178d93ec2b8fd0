"""A stopped run goes on to bitwise the weights of an uninterrupted one, whatever stopped it."""

import json
import random
import shutil
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.support.runs import TINY, interrupt, start, train, write_pairs

OPTIONS = [*TINY, "--augment", "paper", "--scheduler", "onecycle", "--folds", "0", "--val-fraction", "0.25"]
STEPS = 9


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


def test_killed_while_checkpoints_are_exchanged(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """Every state that a kill between two renames can leave behind."""
    run = tmp_path / "run"
    code, _, err = interrupt(start("--data", data, "--out", run, *OPTIONS), run, 7, signal.SIGINT)
    assert code == 130, err
    assert (run / "previous").is_dir()
    for step in range(3):
        torn = tmp_path / f"torn-{step}"
        shutil.copytree(run, torn)
        (torn / ".1234.part").mkdir()
        (torn / ".1234.part" / "model.safetensors").write_bytes(b"half")
        (torn / "previous").rename(torn / ".5678.old")
        if step >= 1:
            (torn / "last").rename(torn / "previous")
        if step == 2:
            (torn / "best").rename(torn / ".9abc.old")
        code, out, err = train("--resume", torn)
        assert code == 0, err
        if step:
            assert "last is missing" in out and "Going on from" in out
        assert_same(torn, uninterrupted)


def test_a_damaged_last_falls_back_to_previous_and_says_so(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert interrupt(start("--data", data, "--out", run, *OPTIONS), run, 7, signal.SIGINT)[0] == 130
    file = run / "last" / "training_state.pt"
    file.write_bytes(file.read_bytes()[:-100])
    spoilt = tmp_path / "spoilt"
    shutil.copytree(run, spoilt)
    code, out, err = train("--resume", run)
    assert code == 0, err
    assert "training_state.pt is missing, truncated or changed" in out and "previous" in out
    assert_same(run, uninterrupted)
    (spoilt / "previous" / "model.safetensors").write_bytes(b"")
    code, _, err = train("--resume", spoilt)
    assert code == 2 and "no checkpoint can be used" in err and "Traceback" not in err


def test_resume_takes_everything_from_the_run(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (["--lr", "0.1"], "not allowed beside it: --lr"),
        (["--epochs", "2"], "can only be raised"),
        (["--epochs", "5"], "a onecycle schedule ends with the 3 epochs"),
    ):
        code, _, err = train("--resume", uninterrupted, *arguments)
        assert code == 2 and message in err and "Traceback" not in err
    code, out, err = train("--resume", uninterrupted)
    assert code == 0 and "finished already" in out
    config = tmp_path / "run"
    shutil.copytree(uninterrupted, config)
    record = json.loads((config / "config.json").read_text())
    record["config"]["size"] = 64
    (config / "config.json").write_text(json.dumps(record))
    code, _, err = train("--resume", config)
    assert code == 2 and "size = 32, now 64" in err
    (config / "config.json").write_text("{")
    code, _, err = train("--resume", config)
    assert code == 2 and "is damaged" in err
    code, _, err = train("--resume", tmp_path)
    assert code == 2 and "is no run folder" in err


def test_more_epochs_equal_a_longer_run(data: Path, tmp_path: Path) -> None:
    options = [*TINY, "--folds", "0", "--val-fraction", "0.25", "--momentum", "0.9"]
    assert train("--data", data, "--out", tmp_path / "a", *options)[0] == 0
    assert train("--data", data, "--out", tmp_path / "b", *options, "--epochs", "2", "--workers", "2")[0] == 0
    assert train("--resume", tmp_path / "b", "--epochs", "3")[0] == 0
    one, other = (load_file(tmp_path / run / "last" / "model.safetensors") for run in "ab")
    assert all(value.equal(other[key]) for key, value in one.items())
