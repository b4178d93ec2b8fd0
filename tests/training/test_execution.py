"""Where the runs of a grid are trained: this machine, jobs of a cluster, folds side by side; and
what goes on after the grid's own process was killed."""

import json
import os
import re
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from intrasense_fast.cli import main
from intrasense_fast.errors import UsageError
from intrasense_fast.files import exclusive
from intrasense_fast.signals import Stopped
from intrasense_fast.training import cluster, cluster_job, execution
from intrasense_fast.training.cluster import SLURM, ClusterExecutor
from intrasense_fast.training.cluster_job import TrainingJob
from intrasense_fast.training.execution import Ending, LocalExecutor, Running, Task
from intrasense_fast.training.grid import Grid
from intrasense_fast.training.place import Place
from tests.support.runs import sha256, stop_grid, write_pairs

STUB = "tests.support.stub_process"
UNETS = ["unet,widths=[2,2,2,2,4]", "unet,widths=[2,2,2,2,2]"]
SHORT = (
    "--seeds 1 --size 32 --batch-size 2 --epochs 5 --device cpu "
    "--phantom-train 6 --phantom-val 3 --phantom-test 3 --executor submitit-local"
).split()
FOLDS = (
    "--network unet --network-options widths=[2,2,2,2,4] --size 32 --batch-size 2 --epochs 2 "
    "--folds 2 --val-fraction 0.3 --device cpu"
).split()


def task(folder: Path, name: str, what: str = "ends") -> Task:
    arguments = [what]
    return Task(name, folder / name, folder / f"{name}.txt", lambda: arguments, lambda: arguments)


@dataclass
class Handed:
    """A task that ends as it is told."""

    task: Task
    end: Ending | None
    calls: list[str] = field(default_factory=list)

    def ending(self) -> Ending | None:
        if self.end is not None and self.end.code == 0:
            self.task.folder.mkdir(exist_ok=True)
            (self.task.folder / "summary.json").write_text("{}")
        return self.end

    def stop(self) -> None:
        self.calls.append("stop")
        self.end = Ending(143, 1.0)

    def kill(self) -> None:
        self.calls.append("kill")


class Elsewhere:
    """An executor of the test."""

    pause = 0.05

    def __init__(self, endings: dict[str, Ending | None], room: int, outlives: bool = True) -> None:
        self.endings, self._room, self.outlives = endings, room, outlives
        self.handed: list[Handed] = []
        self.batches: list[list[str]] = []
        self.before: list[Handed] = []

    def room(self, running: int) -> int:
        return max(0, self._room - running)

    def start(self, tasks: Sequence[Task]) -> list[Running]:
        self.batches.append([task.name for task in tasks])
        made = [Handed(task, self.endings[task.name]) for task in tasks]
        self.handed += made
        return list(made)

    def adopt(self, tasks: Sequence[Task]) -> list[Running]:
        return list(self.before)


def test_a_grid_hands_over_what_is_not_done(tmp_path: Path) -> None:
    tasks = [task(tmp_path, name) for name in "abcd"]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "summary.json").write_text("{}")
    lost = Ending(1, 2.0, "the job 7 ended without a result")
    executor = Elsewhere({"c": Ending(0, 3.0), "d": lost}, room=2)
    executor.before = [Handed(tasks[1], Ending(0, 5.0))]
    said: list[str] = []
    failures = Grid(tmp_path, tasks, executor, "again", said.append).run()
    assert executor.batches == [["c"], ["d"]]
    assert failures == {"d": "failed: the job 7 ended without a result"}
    times = json.loads((tmp_path / "times.json").read_text())
    assert times == {"b": 5.0, "c": 3.0, "d": 2.0}
    assert "[2/4] b: was handed over before" in said and "1 of 4 runs are there already" in said


@pytest.mark.parametrize("outlives", [True, False])
def test_a_stopped_grid_leaves_or_saves_its_runs(outlives: bool, tmp_path: Path) -> None:
    executor = Elsewhere({"a": None}, room=1, outlives=outlives)
    said: list[str] = []
    made = Grid(tmp_path, [task(tmp_path, "a")], executor, "compare --resume X", said.append)
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(Stopped):
        made.run()
    assert executor.handed[0].calls == ([] if outlives else ["stop"])
    assert ("these go on: a" in said[-1]) == outlives and "compare --resume X" in said[-1]


def test_processes_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "_PROCESS", STUB)
    tasks = [task(tmp_path, "good"), task(tmp_path, "bad", "fails")]
    executor = LocalExecutor(jobs=2, threads=1)
    settled = {"good"}
    failures = Grid(
        tmp_path, tasks, executor, "again", lambda text: None, lambda task: task.name in settled
    ).run()
    assert list(failures) == ["bad"] and "intrasense-fast train fails" in failures["bad"]
    assert not (tmp_path / "good.txt").exists()


def test_a_job_is_saved_and_goes_on_in_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What submitit does when the time of a job is nearly over: `checkpoint`, in the main thread,
    while the job works; then what it returned, in another process."""
    pytest.importorskip("submitit", reason="submitit is not installed")
    monkeypatch.setattr(execution, "_PROCESS", STUB)
    log = tmp_path / "log.txt"
    job = TrainingJob("a", tmp_path / "a", log, ["saves"], threads=1, seconds=100.0)
    made = []

    def time_is_over(number: int, frame: object) -> None:
        made.append(job.checkpoint())

    def tell() -> None:
        deadline = time.monotonic() + 30
        while "ready" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGUSR2)

    monkeypatch.setattr(cluster_job, "_SECONDS_OF_GRACE", 0)
    before = signal.signal(signal.SIGUSR2, time_is_over)
    try:
        log.write_text("")
        threading.Thread(target=tell).start()
        code, seconds = job()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert code == 143 and 100 < seconds < 140
    (again,) = made
    assert again.function._seconds > 100 and again.function._arguments == ["saves"]
    again.function._arguments = ["ends"]
    assert again.function()[0] == 0


def test_a_job_waits_while_another_has_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "_PROCESS", STUB)
    (tmp_path / "a").mkdir()
    monkeypatch.setattr(cluster_job, "_SECONDS_BETWEEN_TRIES", 0.1)
    job = TrainingJob("a", tmp_path / "a", tmp_path / "log.txt", ["ends"], threads=1)
    with exclusive(tmp_path / "a"):
        worker = threading.Thread(target=job)
        worker.start()
        worker.join(0.6)
        assert worker.is_alive() and not (tmp_path / "log.txt").exists()
    worker.join(30)
    assert "intrasense-fast train ends" in (tmp_path / "log.txt").read_text()


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands in place of SLURM's: sbatch keeps its scripts, sacct says what state.txt does."""
    pytest.importorskip("submitit", reason="submitit is not installed")
    import submitit

    folder = tmp_path / "bin"
    folder.mkdir()
    commands = {
        "sbatch": f'cp "$1" {folder}/script.sh\necho Submitted batch job 42',
        "srun": "exit 1",
        "sacct": f"cat {folder}/state.txt",
    }
    for name, text in commands.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    (folder / "state.txt").write_text("JobID|State|NodeList\n")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    submitit.SlurmJob.watcher.clear()
    return folder


def test_runs_are_an_array_of_slurm(slurm: Path, tmp_path: Path) -> None:
    import submitit

    options = ("partition=gpu", "time=4:00:01", "gpus=1", "cpus=4", "mem=32GB", "licenses=x@1")
    place = Place(SLURM, 8, options)
    place.check()
    assert place.threads() == 4
    tasks = [task(tmp_path, "a"), task(tmp_path, "b")]
    executor = place.executor(tmp_path, place.threads())
    executor.start(tasks)
    script = (slurm / "script.sh").read_text()
    for line in (
        "--array=0-1%2",
        "--partition=gpu",
        "--time=241",
        "--gpus-per-node=1",
        "--cpus-per-task=4",
        "--mem=32GB",
        "--licenses=x@1",
        "--requeue",
        "--signal=USR2@120",
    ):
        assert f"#SBATCH {line}\n" in script, line
    known = json.loads((tmp_path / "jobs" / "jobs.json").read_text())
    assert {name: entry["job"] for name, entry in known.items()} == {"a": "42_0", "b": "42_1"}
    # A grid that is started again: one job is at work, the other was ended by hand.
    (slurm / "state.txt").write_text(
        "JobID|State|NodeList\n42_0|RUNNING|n1\n42_1|CANCELLED by 0|n1\n"
    )
    submitit.SlurmJob.watcher.clear()
    (adopted,) = place.executor(tmp_path, 4).adopt(tasks)
    assert adopted.task is tasks[0] and adopted.ending() is None
    known = json.loads((tmp_path / "jobs" / "jobs.json").read_text())
    assert list(known) == ["a"]
    # Then that node fails.
    (slurm / "state.txt").write_text("JobID|State|NodeList\n42_0|NODE_FAIL|n1\n")
    submitit.SlurmJob.watcher.clear()
    submitit.SlurmJob.watcher.register_job("42_0")
    ending = adopted.ending()
    assert ending is not None and ending.code == 1 and "NODE_FAIL" in (ending.reason or "")
    assert json.loads((tmp_path / "jobs" / "jobs.json").read_text()) == {}


@pytest.mark.extended
def test_jobs_of_an_array_tell_how_they_ended(slurm: Path, tmp_path: Path) -> None:
    """sbatch and srun that start the tasks of an array here: one that succeeds, one that does
    not."""
    (slurm / "sbatch").write_text(
        "#!/bin/bash\n"
        "for i in 0 1; do\n"
        "  SLURM_JOB_ID=1$i SLURM_ARRAY_JOB_ID=42 SLURM_ARRAY_TASK_ID=$i SLURM_PROCID=0 "
        'setsid bash "$1" > /dev/null 2>&1 &\n'
        "done\n"
        "echo Submitted batch job 42\n"
    )
    (slurm / "srun").write_text(
        '#!/bin/bash\nwhile [ "$1" != --error ]; do shift; done; shift 2; exec "$@"\n'
    )
    tasks = [task(tmp_path, "a", "--help"), task(tmp_path, "b", "--nothing")]
    executor = ClusterExecutor(SLURM, tmp_path, ("time=10",), None, 1)
    endings: dict[str, Ending] = {}
    running = executor.start(tasks)
    deadline = time.monotonic() + 120
    while len(endings) < 2 and time.monotonic() < deadline:
        endings |= {run.task.name: end for run in running if (end := run.ending()) is not None}
        time.sleep(0.1)
    assert (endings["a"].code, endings["b"].code) == (0, 2)
    assert "unrecognized arguments: --nothing" in (tmp_path / "b.txt").read_text()
    assert json.loads((tmp_path / "jobs" / "jobs.json").read_text()) == {}


def test_what_sbatch_says_is_told(slurm: Path, tmp_path: Path) -> None:
    (slurm / "sbatch").write_text("#!/bin/bash\necho sbatch: invalid partition >&2\nexit 1\n")
    executor = ClusterExecutor(SLURM, tmp_path, ("time=10", "partition=absent"), None, 1)
    with pytest.raises(UsageError, match=r"no job was submitted: .*invalid partition"):
        executor.start([task(tmp_path, "a"), task(tmp_path, "b")])
    assert not (tmp_path / "jobs" / "jobs.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--executor", "slurm", "--slurm", "time=10"], "there is no sbatch"),
        (["--slurm", "time=10"], "--slurm is for jobs of a cluster"),
        (["--executor", "submitit-local", "--slurm", "time"], "--slurm must be KEY=VALUE"),
        (["--executor", "submitit-local", "--slurm", "time=soon"], "--slurm time must be MINUTES"),
        (["--executor", "submitit-local", "--slurm", "gpus=a100"], "gpus_per_node must be an int"),
        (["--jobs", "0"], "--jobs must be at least 1, got 0"),
    ],
    ids=str,
)
def test_what_no_executor_takes_is_one_line(
    flags: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(cluster.shutil, "which", lambda name: None)
    out = str(tmp_path / "out")
    for command in (["compare", "--networks", "unet"], ["train", "--folds", "2"]):
        assert main([*command, *flags, "--out", out]) == 2
        shown = capsys.readouterr().err
        assert message in shown and shown.count("\n") == 1 and "Traceback" not in shown
    assert not list(tmp_path.iterdir())


def test_slurm_needs_its_package_and_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=re.escape("pip install 'intrasense-fast[slurm]'")):
        Place(SLURM, None, ("time=10",)).check()
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(cluster.shutil, "which", lambda name: name)
    with pytest.raises(UsageError, match="needs --slurm time="):
        Place(SLURM).check()


@pytest.mark.parametrize(
    ("text", "minutes"), [("90", 90), ("1:30:00", 90), ("0:00:01", 1), ("2-00:00:00", 2880)]
)
def test_times_are_minutes(text: str, minutes: int) -> None:
    assert cluster._parameters([f"time={text}"]) == {"time": minutes}


def compared(out: Path) -> list[str]:
    return ["compare", "--networks", *UNETS, *SHORT, "--out", str(out)]


def without_times(out: Path) -> dict[str, str]:
    """The tables of a study, but for when it was made, where it is, and how long it took."""
    tables = {}
    for name in ("tables.md", "summary.csv", "differences.csv", "strata.csv", "per_image.csv"):
        text = (out / name).read_text().replace(str(out), "OUT")
        text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", "THEN", text)
        # Hours of training and milliseconds an image end the rows of the table of costs.
        tables[name] = re.sub(
            r"^(\| \S+ \| unet \| scratch \|.*?\|.*?\|).*$", r"\1", text, flags=re.M
        )
    return tables


@pytest.mark.extended
def test_a_killed_grid_of_jobs_gives_the_same_tables(tmp_path: Path) -> None:
    """SIGKILL to the process that handed the jobs over; they go on, and the same command collects
    them."""
    pytest.importorskip("submitit", reason="submitit is not installed")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(compared(whole)) == 0
    stop_grid(compared(killed), killed, signal.SIGKILL)
    assert len(json.loads((killed / "jobs" / "jobs.json").read_text())) == 2
    assert main(compared(killed)) == 0
    assert without_times(killed) == without_times(whole)
    times = json.loads((killed / "times.json").read_text())
    assert len(times) == 2 and min(times.values()) > 0
    logs = [path.read_text() for path in (killed / "logs").iterdir()]
    # Each run was trained once, by the job of the process that was killed.
    assert [text.count("intrasense-fast train ") for text in logs] == [1, 1]
    assert json.loads((killed / "jobs" / "jobs.json").read_text()) == {}


@pytest.mark.extended
def test_a_job_whose_time_is_over_goes_on_in_the_next(tmp_path: Path) -> None:
    """submitit's signal, as at the end of a job's time: the save, and the next job of the run."""
    pytest.importorskip("submitit", reason="submitit is not installed")
    out = tmp_path / "study"
    arguments = compared(out)
    arguments[arguments.index("--epochs") + 1] = "30"
    del arguments[arguments.index(UNETS[1])]
    told: list[int] = []

    def end_the_time() -> None:
        """Once it has trained for some steps."""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            (history,) = list(out.glob("cells/*/history.jsonl")) or [None]
            if history is not None and history.read_text().count("\n") >= 4:
                ((_, entry),) = json.loads((out / "jobs" / "jobs.json").read_text()).items()
                watcher = entry["job"]
                children = Path(f"/proc/{watcher}/task/{watcher}/children").read_text().split()
                told.extend(map(int, children))
                os.kill(told[0], signal.SIGUSR2)
                return
            time.sleep(0.02)

    worker = threading.Thread(target=end_the_time)
    worker.start()
    assert main(arguments) == 0
    worker.join(10)
    assert len(told) == 1
    (log,) = (path.read_text() for path in (out / "logs").iterdir())
    assert log.count("--resume-or-start") == 2
    assert "stopped and saved" in log and "bitwise: files, code" in log
    (run,) = (out / "cells").iterdir()
    assert len((run / "history.jsonl").read_text().splitlines()) == 30 * 3


@pytest.mark.slow
def test_folds_side_by_side_are_those_one_after_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_pairs(tmp_path / "data", 12, seed=4)
    arguments = ["train", "--data", str(data), *FOLDS, "--out"]
    assert main([*arguments, str(tmp_path / "one")]) == 0
    assert main([*arguments, str(tmp_path / "two"), "--jobs", "2"]) == 0
    one, two = tmp_path / "one", tmp_path / "two"
    for name in ("splits.json", "images.csv", "per_image.csv", "summary.csv"):
        assert sha256(one / name) == sha256(two / name), name
    for fold in ("fold-0", "fold-1"):
        for name in ("best/model.safetensors", "last/model.safetensors", "history.jsonl"):
            assert sha256(one / fold / name) == sha256(two / fold / name), name
        assert (two / fold / "best" / "trained_on.json").read_text() == (
            one / fold / "best" / "trained_on.json"
        ).read_text()
        assert not (two / fold / "images.csv").exists()
        assert (two / fold / "attempts.jsonl").exists()
    capsys.readouterr()
    # Another process in a fold is told, whoever asks.
    with exclusive(two / "fold-1"):
        assert main(["train", "--resume", str(two), "--fold", "1"]) == 2
        assert "fold-1: another process is working" in capsys.readouterr().err
        assert main(["train", "--resume", str(two)]) == 2
    capsys.readouterr()
    assert main(["train", "--resume", str(two), "--epochs", "3", "--jobs", "2"]) == 0
    shown = capsys.readouterr().out
    assert "fold-0: had 2 epochs, goes on to 3" in shown and "2 folds, n = 12" in shown
    assert len((two / "fold-1" / "metrics.csv").read_text().splitlines()) == 1 + 3


def test_one_split_has_no_folds_to_share_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_pairs(tmp_path / "data", 8, seed=1)
    run = tmp_path / "run"
    options = ["--size", "32", "--batch-size", "2", "--folds", "0"]
    command = ["train", "--data", str(data), *options, "--out", str(run), "--jobs", "2"]
    assert main(command) == 2
    assert "--jobs 2: only folds are trained side by side" in capsys.readouterr().err
    assert not run.exists()


def test_the_report_alone_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Path] = []

    def write_report(out: Path) -> list[Path]:
        made.append(out)
        return [out / "report.html"]

    monkeypatch.setattr("intrasense_fast.report.study.write_report", write_report)
    # A study at work holds the lock of its folder.
    with exclusive(tmp_path):
        assert main(["compare", "--resume", str(tmp_path), "--report"]) == 0
    assert made == [tmp_path] and "report.html" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_report_alone_needs_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "study")
    assert main(["compare", "--networks", "unet", "--report", "--out", out]) == 2
    assert "--report is for a study that is there" in capsys.readouterr().err
    assert main(["compare", "--resume", out, "--report"]) == 2
    assert "is no folder of a study" in capsys.readouterr().err
