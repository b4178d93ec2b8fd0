"""Nothing is lost: whatever ends a run from outside, it says what, exits as promised, and goes on
to the bits of an uninterrupted one."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from intrasense_fast import networks
from intrasense_fast.cli import main
from intrasense_fast.errors import UsageError
from intrasense_fast.files import exclusive
from intrasense_fast.inference import open_segmenter
from intrasense_fast.training import run_folds
from tests.support import faulty
from tests.support.runs import sha256, start, write_pairs

SHORT = (
    f"--network {faulty.NAME} --size 32 --batch-size 4 --epochs 2 --folds 0 --val-fraction 0.25 "
    "--device cpu --augment paper --scheduler onecycle --lr 1e-2"
).split()
TRUST = ["--network", faulty.NAME]
STEPS = 6


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without tables and pictures at the end; no network is registered, no fault planned."""
    monkeypatch.setattr(networks, "_registered", {})
    monkeypatch.setattr(run_folds, "write_results", lambda *arguments: None)
    faulty.reset()
    yield
    faulty.reset()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("faults") / "data", 17, seed=5)


@pytest.fixture(scope="module")
def whole(data: Path) -> Path:
    """A run that nothing interrupted."""
    run = data.parent / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folds, "write_results", lambda *arguments: None)
        faulty.reset()
        assert main(["train", "--data", str(data), "--out", str(run), *SHORT]) == 0
    return run


def hashes(run: Path) -> dict[str, str]:
    """Of the weights and logs of a run."""
    names = ("last/model.safetensors", "best/model.safetensors", "history.jsonl", "metrics.csv")
    return {name: sha256(run / name) for name in names}


def goes_on_to_the_same_bits(run: Path, whole: Path) -> None:
    assert main(["train", "--resume", str(run), *TRUST]) == 0
    assert hashes(run) == hashes(whole)
    assert len((run / "history.jsonl").read_text().splitlines()) == STEPS
    assert not list(run.glob(".*"))


def reason(run: Path) -> str:
    return json.loads((run / "attempts.jsonl").read_text().splitlines()[-1])["reason"]


def kill_a_worker() -> None:
    os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    time.sleep(0.2)


@pytest.mark.parametrize("step", [2, pytest.param(STEPS - 1, marks=pytest.mark.extended)])
def test_a_killed_worker(
    step: int, data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    faulty.reset(**{f"step{step}": kill_a_worker})
    flags = ["--data", str(data), "--out", str(run), *SHORT, "--workers", "2"]
    assert main(["train", *flags]) == 2
    shown = capsys.readouterr().err
    assert "a process that loads images died (DataLoader worker" in shown, shown
    # In the middle of the step it was not told; the step is part of what is saved.
    assert f"The run is saved, at step {step}; go on with: " in shown
    assert f"--resume {run}" in shown and "Traceback" not in shown
    assert "died" in reason(run)
    goes_on_to_the_same_bits(run, whole)


@pytest.mark.parametrize(
    ("fault", "epoch"),
    [(kill_a_worker, 1), pytest.param(faulty.fill_memory, 2, marks=pytest.mark.extended)],
)
def test_faults_while_a_checkpoint_is_selected(
    fault: Callable[[], object],
    epoch: int,
    data: Path,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    faulty.reset(**{f"eval{epoch}": fault})
    flags = ["--data", str(data), "--out", str(run), *SHORT, "--workers", "1"]
    assert main(["train", *flags]) == 2
    shown = capsys.readouterr().err
    assert f"The run is saved, at step {3 * epoch}; go on with: " in shown, shown
    goes_on_to_the_same_bits(run, whole)


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.extended), 5])
def test_memory_runs_out_in_a_step(
    step: int, data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    faulty.reset(**{f"step{step}": faulty.fill_memory})
    assert main(["train", "--data", str(data), "--out", str(run), *SHORT]) == 2
    shown = capsys.readouterr().err
    assert "this machine's memory is full (" in shown and "Traceback" not in shown
    assert f"The run is saved, at step {step - 1}; go on with: " in shown
    goes_on_to_the_same_bits(run, whole)


@pytest.mark.parametrize("step", [2, pytest.param(5, marks=pytest.mark.extended)])
def test_the_disk_fills_up(
    step: int, data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No file may grow beyond 100 bytes, as with a quota: the history cannot be written."""
    run = tmp_path / "run"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    faulty.reset(**{f"step{step}": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))})
    try:
        assert main(["train", "--data", str(data), "--out", str(run), *SHORT]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    shown = capsys.readouterr().err
    left = "The last checkpoint is whole" if step > 3 else "There is no checkpoint yet"
    assert (
        f"{run / 'history.jsonl'}: File too large" in shown
        and left in shown
        and f"--resume {run}" in shown
    )
    assert "its end is not recorded" in shown and "Traceback" not in shown
    goes_on_to_the_same_bits(run, whole)
    first, second = (json.loads(line) for line in (run / "attempts.jsonl").open())
    assert "no end was recorded" in first["reason"] and second["reason"] == "finished"


@pytest.mark.parametrize(
    "number", [signal.SIGUSR1, pytest.param(signal.SIGTERM, marks=pytest.mark.extended)]
)
def test_schedulers_stop_a_run(
    number: signal.Signals, data: Path, whole: Path, tmp_path: Path, seed: int
) -> None:
    run, step = tmp_path / "run", 1 + seed % (STEPS - 1)
    faulty.reset(**{f"step{step}": lambda: signal.raise_signal(number)})
    command = ["train", "--data", str(data), "--out", str(run), *SHORT, "--resume-or-start"]
    assert main(command) == 143
    assert reason(run) == f"stopped by {number.name}"
    assert len((run / "history.jsonl").read_text().splitlines()) == step
    # The same command, as a scheduler gives it again.
    assert main(command) == 0
    assert hashes(run) == hashes(whole)


def test_a_signal_to_all_processes_of_a_run(data: Path, whole: Path, tmp_path: Path) -> None:
    """As a batch system sends it: those that load images end too, and it is no fault."""

    def end_all() -> None:
        for worker in multiprocessing.active_children():
            os.kill(worker.pid or 0, signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.2)

    run = tmp_path / "run"
    faulty.reset(step4=end_all)
    flags = ["--data", str(data), "--out", str(run), *SHORT, "--workers", "2"]
    assert main(["train", *flags]) == 143
    goes_on_to_the_same_bits(run, whole)


def test_a_signal_while_the_run_begins(data: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folds, "network_of", lambda config: signal.raise_signal(signal.SIGUSR1))
        assert main(["train", "--data", str(data), "--out", str(tmp_path / "run"), *SHORT]) == 143


def test_killed_within_an_epoch_with_living_workers(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL reaches the run alone; its workers hang, and hold nothing that a resume needs."""
    run = tmp_path / "run"
    flags = ["--data", data, "--out", run, *SHORT, "--workers", "2", "--save-every", "1e-9"]
    process = start(*flags)
    children: list[int] = []
    try:
        while process.poll() is None and not (run / "previous").exists():
            children = _children(process.pid)
            time.sleep(0.01)
        children = _children(process.pid) or children
        for child in children:
            os.kill(child, signal.SIGSTOP)
        process.kill()
        assert process.wait() == -9
        alive = [child for child in children if Path(f"/proc/{child}").exists()]
        goes_on_to_the_same_bits(run, whole)
        assert children and alive == children
    finally:
        for child in children:
            _end(child)
        process.communicate()
    shown = capsys.readouterr().out
    assert f"going on from {run}/last: epoch" in shown
    killed, last = (json.loads(line) for line in (run / "attempts.jsonl").open())
    assert "it was killed" in killed["reason"] and last["reason"] == "finished"


def _children(process: int) -> list[int]:
    try:
        text = Path(f"/proc/{process}/task/{process}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def _end(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        pass


def test_a_lock_is_not_held_by_forked_processes(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with exclusive(tmp_path):
        child = os.fork()
        if not child:
            os.write(writer, b"x")
            signal.pause()
        os.read(reader, 1)
        with pytest.raises(UsageError, match="another process is working"), exclusive(tmp_path):
            pass
    try:
        with exclusive(tmp_path):
            pass
    finally:
        _end(child)
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)


@pytest.mark.extended
def test_saving_within_an_epoch_changes_nothing(data: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["train", "--data", str(data), "--out", str(run), *SHORT, "--save-every", "1e-9"]
    assert main(command) == 0
    assert hashes(run) == hashes(whole)


def test_resume_or_start_refuses_another_command(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    command = ["train", "--data", str(data), "--out", str(run), *SHORT, "--resume-or-start"]
    for flags, message in (
        (["--lr", "0.5"], "was begun with --lr 0.01, now 0.5"),
        (["--size", "64", "--seed", "4"], "--size 32, now 64; --seed 0, now 4"),
        (["--epochs", "1"], "can only be raised"),
        (["--resume", str(run)], "needs --out RUN, and no --resume"),
        (["--out", ""], "needs --out RUN, and no --resume"),
    ):
        assert main([*command, *flags]) == 2
        assert message in capsys.readouterr().err
    assert hashes(run) == hashes(whole)


def test_a_run_killed_while_it_began_is_begun_again(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    command = ["train", "--data", str(data), "--out", str(run), *SHORT, "--resume-or-start"]
    (run / "splits.json").write_text("{")
    # Whose these are is not known.
    assert main(command) == 2 and (run / "splits.json").exists()
    assert f"--out {run} is in use; nothing is overwritten" in capsys.readouterr().err
    (run / ".begins").touch()
    assert main(command) == 0
    assert hashes(run) == hashes(whole)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--size 9000", "--size must be at most 8192: a network takes gigabytes"),
        ("--size 31", "--size must be at least 32 and at most 8192, got 31"),
        ("--workers 1000", "--workers must be at most 256: each is a process"),
        ("--save-every 0", "--save-every must be above 0 and at most 10080 (a week), or none"),
        ("--save-every nan", "--save-every must be above 0"),
        ("--resume-or-start", "--resume-or-start needs --out RUN"),
    ],
)
def test_bounds_say_why(
    flags: str, message: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--data", str(data), *flags.split()]) == 2
    assert message in capsys.readouterr().err


def test_a_checkpoints_size_is_bounded(tmp_path: Path) -> None:
    net = networks.build_network("unet", widths=[2, 2, 2, 2, 4])
    for place, size in enumerate((31, 8193, 10**12, True, "64", 64.0, [64])):
        networks.save_network(net, tmp_path / str(place), {"image_size": size})
        needed = r"image_size must be an integer from 32 to 8192.*give --size"
        with pytest.raises(UsageError, match=needed):
            open_segmenter(tmp_path / str(place), device="cpu")
    with pytest.raises(UsageError, match=r"^--size must be an integer from 32 to 8192"):
        open_segmenter(tmp_path / "0", size=8193, device="cpu")
    assert open_segmenter(tmp_path / "0", size=64, device="cpu").size == 64
