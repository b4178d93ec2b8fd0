"""What a run records of every start and resume, and what it says when files, code or versions are
no longer those it began with."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from intrasense_fast.cli import main
from intrasense_fast.provenance import read_trained_on
from intrasense_fast.training import run_folds
from intrasense_fast.training.attempts import Attempt, environment, read_attempts, remark
from intrasense_fast.training.config import TrainConfig
from tests.support.runs import interrupt, sha256, start, write_pairs

SMALL = (
    "--network unet --network-options widths=[2,2,2,2,4] --size 32 --batch-size 4 --epochs 2 "
    "--folds 0 --val-fraction 0.3 --device cpu --augment paper"
).split()


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Without tables and pictures at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folds, "write_results", lambda *arguments: None)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, beside its data."""
    place = tmp_path_factory.mktemp("attempts")
    data = write_pairs(place / "data", 12, seed=1)
    assert main(["train", "--data", str(data), "--out", str(place / "run"), *SMALL]) == 0
    return place / "run"


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """Its copy, whose data may be changed."""
    shutil.copytree(whole.parent, tmp_path / "place")
    file = tmp_path / "place" / "run" / "config.json"
    record = json.loads(file.read_text())
    record["config"]["data"] = str(tmp_path / "place" / "data")
    file.write_text(json.dumps(record))
    for folder in ("last", "previous"):
        _repoint(file.parent / folder, record["config"]["data"])
    return file.parent


def _repoint(folder: Path, data: str) -> None:
    """Let a checkpoint's state name the copied data."""
    if not folder.exists():
        return
    file = folder / "training_state.pt"
    state = torch.load(file, weights_only=True)
    state["config"]["data"] = data
    torch.save(state, file)
    digests = json.loads((folder / "checksums.json").read_text())
    digests[file.name] = sha256(file)
    (folder / "checksums.json").write_text(json.dumps(digests))


def entries(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "attempts.jsonl").read_text().splitlines()]


def test_an_attempt_records_what_it_ran_on(whole: Path) -> None:
    (entry,) = entries(whole)
    assert (entry["attempt"], entry["kind"], entry["reason"]) == (1, "start", "finished")
    assert entry["began"] <= entry["ended"] and entry["device"] == "cpu"
    assert entry["threads"] == torch.get_num_threads()
    assert entry["versions"]["torch"] == torch.__version__
    assert len(entry["code_sha256"]) == 64 and "accepted" not in entry


def test_resume_says_bitwise_only_where_it_holds(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--resume", str(run)]) == 0
    assert "\nbitwise: files, code, versions, CPU and threads are those" in (
        "\n" + capsys.readouterr().out
    )
    (first, second) = entries(run)
    assert second["kind"] == "resume" and second["reason"] == "finished"
    changed = dict(first, versions={**first["versions"], "numpy": "1.0"}, threads=99)
    changed["code_sha256"] = "0" * 64
    (run / "attempts.jsonl").write_text(json.dumps(changed) + "\n")
    assert main(["train", "--resume", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "not bitwise: since this run began, this package's code" in shown
    assert "numpy 1.0, now " in shown and f"threads 99, now {torch.get_num_threads()}" in shown
    for text in ("{", "[1]\n", '{"versions": {}, "accepted": {"changed": 3}}\n'):
        (run / "attempts.jsonl").write_text(text)
        assert main(["train", "--resume", str(run)]) == 0
        assert "attempts.jsonl is damaged: whether the run goes on to the same bits" in (
            capsys.readouterr().out
        )
    (run / "attempts.jsonl").unlink()
    assert main(["train", "--resume", str(run)]) == 0
    assert "attempts.jsonl was not written when this run began" in capsys.readouterr().out
    assert entries(run)[0]["kind"] == "resume"


def test_changed_missing_and_added_files_are_named_and_refused_until_accepted(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = run.parent / "data"
    roles = json.loads((run / "splits.json").read_text())["folds"][0]
    flipped, gone = roles["train"][:2]
    picture = data / "images" / f"{flipped}.png"
    before = {name: sha256(data / "images" / f"{name}.png") for name in (flipped, gone)}
    shutil.copy(data / "images" / f"{roles['val'][0]}.png", picture)
    for folder in ("images", "masks"):
        (data / folder / f"{gone}.png").unlink()
        shutil.copy(data / folder / f"{roles['val'][0]}.png", data / folder / "new.png")
    table = (run / "images.csv").read_text()
    resume = ["train", "--resume", str(run), "--epochs", "3"]
    assert main(resume) == 2
    shown = capsys.readouterr().err
    assert f"1 changed ({flipped}), 1 missing ({gone}), 1 added (new)" in shown
    assert "--accept-changes" in shown and (run / "images.csv").read_text() == table
    assert len(entries(run)) == 1
    assert main([*resume, "--accept-changes"]) == 0
    shown = capsys.readouterr().out
    assert "accepted, and recorded in" in shown and "not bitwise: since this run began, files" in (
        shown
    )
    accepted = entries(run)[1]["accepted"]
    assert list(accepted) == ["changed", "missing", "added"] and list(accepted["added"]) == ["new"]
    assert accepted["changed"][flipped]["before"].startswith(before[flipped])
    # What trained it before is still known as such, and so is what trains it now.
    trained_on = read_trained_on(run / "last")
    assert trained_on is not None
    for digest in (*before.values(), sha256(picture)):
        assert digest in trained_on.train
    # The accepted files are what the run now expects.
    assert main(["train", "--resume", str(run)]) == 0
    assert "files were changed in an earlier attempt" in capsys.readouterr().out
    assert main(["train", "--data", str(data), "--accept-changes"]) == 2
    assert "give --resume RUN too" in capsys.readouterr().err


@pytest.mark.extended
def test_a_killed_attempt_says_so_afterwards(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start("--data", whole.parent / "data", "--out", run, *SMALL, "--epochs", "9")
    code, _, err = interrupt(process, run, 2, signal.SIGKILL)
    assert code == -9, err
    (entry,) = entries(run)
    assert entry["ended"] is None and entry["reason"] is None
    assert main(["train", "--resume", str(run)]) == 0
    (first, second) = entries(run)
    assert "killed, or its machine stopped" in first["reason"] and second["reason"] == "finished"


def test_the_environment_tells_code_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "elsewhere.py"
    module.write_text("net = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    __import__("elsewhere")
    device = torch.device("cpu")
    config = TrainConfig(network="elsewhere:net")
    one = environment(config, device)
    module.write_text("net = 2\n")
    attempt = Attempt(tmp_path, [one], environment(config, device))
    assert "the network's file" in remark(attempt, 0) and remark(attempt, 0).startswith("not")
    assert remark(Attempt(tmp_path, [one], one), 0).startswith("bitwise")
    gpu = {**one, "device": "NVIDIA H200"}
    assert "bitwise" not in remark(Attempt(tmp_path, [gpu], gpu), 0)
    assert read_attempts(tmp_path) == ([], 0)
