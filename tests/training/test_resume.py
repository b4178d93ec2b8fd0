"""A stopped run goes on to bitwise the weights of an uninterrupted one, whatever stopped it."""

import csv
import hashlib
import json
import random
import shutil
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from intrasense_fast.cli import main
from intrasense_fast.files import exclusive
from intrasense_fast.training.checkpoint import load_last, tidy
from tests.support.runs import TINY, interrupt, start, train_here, write_pairs

OPTIONS = [
    *TINY,
    *"--epochs 2 --augment paper --scheduler onecycle --folds 0 --val-fraction 0.25".split(),
]
STEPS = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("resume") / "data", 17, seed=5)


@pytest.fixture(scope="module")
def uninterrupted(data: Path) -> Path:
    run = data.parent / "whole"
    assert train_here("--data", data, "--out", run, *OPTIONS) == 0
    return run


def assert_same(found: Path, wanted: Path) -> None:
    for folder in ("last", "best"):
        one, other = (load_file(run / folder / "model.safetensors") for run in (found, wanted))
        assert one.keys() == other.keys() and all(
            value.equal(other[key]) for key, value in one.items()
        ), folder
    for name in ("metrics.csv", "history.jsonl", "per_image.csv", "splits.json"):
        assert (found / name).read_text() == (wanted / name).read_text(), name
    assert len((found / "history.jsonl").read_text().splitlines()) == STEPS
    assert not list(found.glob(".*"))


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGKILL, -9),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.extended),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
    ],
    ids=str,
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
    assert train_here("--resume", run) == 0
    assert_same(run, uninterrupted)


@pytest.fixture(scope="module")
def stopped(data: Path) -> Path:
    """A run that SIGINT stopped in its second epoch."""
    run = data.parent / "stopped"
    code, _, err = interrupt(start("--data", data, "--out", run, *OPTIONS), run, 4, signal.SIGINT)
    assert code == 130, err
    assert (run / "previous").is_dir()
    return run


@pytest.mark.extended
def test_killed_while_checkpoints_are_exchanged(stopped: Path, tmp_path: Path) -> None:
    """The states that a kill between two renames can leave behind: previous set aside; then last
    moved, and best set aside."""
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
    assert train_here("--resume", run) == 0
    shown = capsys.readouterr().out
    assert "training_state.pt is missing, truncated or changed" in shown and "previous" in shown
    assert_same(run, uninterrupted)
    (spoilt / "previous" / "model.safetensors").write_bytes(b"")
    assert main(["train", "--resume", str(spoilt)]) == 2
    assert "no checkpoint can be used" in capsys.readouterr().err


def test_resume_takes_everything_from_the_run(
    uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    for key, value, message in (
        ("epochs", "x", 'epochs must be an integer, got "x"'),
        ("epochs", True, "epochs must be an integer, got true"),
        ("device", None, "device must be text, got null"),
        ("fused", 1, "fused must be true or false or null, got 1"),
        (
            "decoder_channels",
            [8, 8.5],
            "decoder_channels must be a list, each an integer, got [8, 8.5]",
        ),
        ("loss_weights", [1.0], "loss_weights must be a list, each a number, got [1.0]"),
        ("workers", -1, f"{file}: workers must be at least 0 and at most 256, got -1"),
        ("scheduler", "linear", f"{file}: scheduler must be one of none, plateau"),
    ):
        file.write_text(json.dumps(record | {"config": record["config"] | {key: value}}))
        assert main(["train", "--resume", str(run)]) == 2
        shown = capsys.readouterr().err
        assert message in shown and str(file) in shown
    for text, message in (
        ("{", "is damaged"),
        ("{}", "is damaged"),
        ("[1]", "is damaged"),
        ('{"config": null, "splits": ""}', '"config" must be'),
        ('{"config": {}, "splits": 1}', '"splits" must be'),
        ('{"config": {}, "splits": ""}', "written by another version"),
    ):
        file.write_text(text)
        assert main(["train", "--resume", str(run)]) == 2
        assert message in capsys.readouterr().err
    for folder in (tmp_path, tmp_path / "absent"):
        assert main(["train", "--resume", str(folder)]) == 2
        assert "is no run folder" in capsys.readouterr().err
    assert main(["train", "--resume", ""]) == 2
    assert "--resume was given an empty name" in capsys.readouterr().err


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_run_records_which_files_it_used(
    data: Path, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(uninterrupted / "images.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["name", "fold-0", "image_sha256", "mask_sha256"]
    for row in rows:
        for column, folder in (("image_sha256", "images"), ("mask_sha256", "masks")):
            assert row[column] == sha256(data / folder / f"{row['name']}.png")
    (fold,) = json.loads((uninterrupted / "splits.json").read_text())["folds"]
    used = {row["name"]: row["fold-0"] for row in rows}
    assert used == {name: role for role, names in fold.items() for name in names}
    for checkpoint in ("best", "last"):
        record = json.loads((uninterrupted / checkpoint / "trained_on.json").read_text())
        for role in ("train", "val"):
            wanted = {row["image_sha256"] for row in rows if row["fold-0"] == role}
            assert wanted and set(record[role]) == wanted
    # A checkpoint copied alone still knows: two images that are new to it are left.
    shutil.copytree(uninterrupted / "best", tmp_path / "alone")
    more, new = shutil.copytree(data, tmp_path / "more"), write_pairs(tmp_path / "new", 2, seed=6)
    for file in new.glob("*/*.png"):
        shutil.copy(file, more / file.parent.name / f"new-{file.name}")
    arguments = ["--checkpoint", str(tmp_path / "alone"), "--data", str(more), "--held-out"]
    assert main(["evaluate", *arguments, "--out", str(tmp_path / "e")]) == 0
    with open(tmp_path / "e" / "per_image.csv", newline="", encoding="utf-8") as file:
        assert sorted(row["name"] for row in csv.DictReader(file)) == ["new-p0", "new-p1"]


def test_resume_refuses_other_files_and_completes_old_runs(
    data: Path, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    table = run / "images.csv"
    whole = table.read_text()
    first = sha256(data / "images" / "p0.png")
    table.write_text(whole.replace(first, "0" * 64))
    before = contents(run)
    assert main(["train", "--resume", str(run)]) == 2
    message = "the files are not those this run began with: 1 changed (p0)"
    assert message in capsys.readouterr().err and contents(run) == before
    table.write_text("name\n")
    assert main(["train", "--resume", str(run)]) == 2
    assert "images.csv: the files are not those" in capsys.readouterr().err
    table.unlink()
    assert main(["train", "--resume", str(run)]) == 0
    assert "images.csv: was missing; written of the files as they are" in capsys.readouterr().out
    assert table.read_text() == whole


def contents(run: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(run)): file.read_bytes()
        for file in sorted(run.rglob("*"))
        if file.is_file()
    }


def test_a_refused_resume_changes_nothing(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    before = contents(run)
    for arguments, message in (
        (["--workers", "-1"], "--workers must be at least 0 and at most 256, got -1"),
        (["--device", "meta"], "--device meta: cannot be used here"),
        (["--epochs", "500"], "schedule ends"),
    ):
        assert main(["train", "--resume", str(run), *arguments]) == 2
        assert message in capsys.readouterr().err and contents(run) == before
    with exclusive(run):
        assert main(["train", "--resume", str(run), "--workers", "2"]) == 2
    assert (
        "another process is working in this folder" in capsys.readouterr().err
        and contents(run) == before
    )
    # Only what the checkpoints themselves say shows that they cannot be used.
    for name in ("last", "previous"):
        (run / name / "training_state.pt").write_bytes(b"")
    before = contents(run)
    assert main(["train", "--resume", str(run), "--workers", "2"]) == 2
    assert "no checkpoint can be used" in capsys.readouterr().err and contents(run) == before


def test_lost_checkpoints_are_no_new_run(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    for name in ("last", "previous"):
        shutil.rmtree(run / name)
    before = contents(run)
    assert main(["train", "--resume", str(run)]) == 2
    shown = capsys.readouterr().err
    assert (
        "last/ and previous/ are missing, and best, metrics.csv would be overwritten" in shown
        and contents(run) == before
    )


def test_a_run_killed_before_its_first_checkpoint_begins_again(
    stopped: Path, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "splits.json"):
        shutil.copy(stopped / name, run)
    (run / "history.jsonl").write_text('{"step": 1, "epoch": 1}\n{"st')
    (run / ".1234.part").mkdir()
    (run / ".1234.part" / "model.safetensors").write_bytes(b"half")
    assert train_here("--resume", run) == 0
    shown = capsys.readouterr().out
    assert f"{run} has no checkpoint yet: it begins again" in shown and "damaged" not in shown
    assert_same(run, uninterrupted)


@pytest.mark.extended
def test_damaged_logs_lose_the_damaged_lines_alone(
    stopped: Path, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    lines = (run / "history.jsonl").read_bytes().splitlines(keepends=True)
    (run / "history.jsonl").write_bytes(
        lines[0] + b"\xff" + lines[1] + b"{}\n" + b"".join(lines[3:])
    )
    header, first, second = (run / "metrics.csv").read_bytes().splitlines(keepends=True)
    (run / "metrics.csv").write_bytes(
        header + first.replace(b",", b",x", 1) + b"\xff" + second + second
    )
    assert main(["train", "--resume", str(run)]) == 0
    shown = capsys.readouterr().out
    assert (
        "history.jsonl: 2 damaged lines are left out" in shown
        and "metrics.csv: 2 damaged lines are left out" in shown
    )
    assert (run / "history.jsonl").read_bytes() == lines[0] + b"".join(lines[3:])
    assert (run / "metrics.csv").read_bytes() == header + second
    for spoilt in (b"\xff" + header + first, b"\xff\xfe\x00", b""):
        (run / "metrics.csv").write_bytes(spoilt)
        (run / "summary.json").unlink()
        assert main(["train", "--resume", str(run)]) == 0
    assert "Traceback" not in capsys.readouterr().err


def test_one_process_a_run(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with exclusive(stopped):
        assert main(["train", "--resume", str(stopped)]) == 2
    assert "another process is working in this folder" in capsys.readouterr().err


@pytest.mark.slow
def test_more_epochs_equal_a_longer_run(data: Path, tmp_path: Path) -> None:
    options = [*TINY, "--folds", "0", "--val-fraction", "0.25", "--momentum", "0.9"]
    common = ["train", "--data", str(data), *options]
    assert main([*common, "--out", str(tmp_path / "a"), "--epochs", "2"]) == 0
    assert main([*common, "--out", str(tmp_path / "b"), "--epochs", "1", "--workers", "2"]) == 0
    assert main(["train", "--resume", str(tmp_path / "b"), "--epochs", "2"]) == 0
    one, other = (load_file(tmp_path / run / "last" / "model.safetensors") for run in "ab")
    assert all(value.equal(other[key]) for key, value in one.items())
