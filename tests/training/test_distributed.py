"""Several processes train as one does: the same images, statistics, losses and weights; they stop,
go on and fail together."""

import csv
import functools
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed import TCPStore

from intrasense_fast.cli import main
from intrasense_fast.networks.contract import NetworkOutput
from intrasense_fast.networks.refine import (
    ChannelDecoupling,
    GlobalLocalPerception,
    RunningStandardization,
)
from intrasense_fast.training import heartbeat, results, run_folds
from intrasense_fast.training.config import TrainConfig
from intrasense_fast.training.distributed import ALONE, Ranks
from intrasense_fast.training.interruptions import Wholeness
from intrasense_fast.training.joining import joined
from intrasense_fast.training.parts import Batches, check_parts, part_of
from intrasense_fast.training.position import Position
from intrasense_fast.training.runs import begin
from intrasense_fast.training.step import TrainingStep
from tests.support.ranks import Forked, free_port, together, variables
from tests.support.runs import ROOT, write_pairs

SMALL = (
    "--network unet --network-options widths=[2,2,2,2,4] --size 64 --batch-size 4 --epochs 2 "
    "--folds 0 --val-fraction 0.3 --device cpu --augment paper --seed 3"
).split()
STEPS = 30


class Tiny(nn.Module):
    """Everything that takes statistics over a batch, in a few channels, and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 5, 4, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.gcp, self.cdr = GlobalLocalPerception(8, window=3), ChannelDecoupling(8)
        self.free = nn.BatchNorm2d(8, affine=False, momentum=None)
        self.head, self.second = nn.Conv2d(8, 1, 1), nn.Conv2d(8, 1, 1)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> NetworkOutput:
        features, _ = self.gcp(self.stem(x))
        features, loss = self.cdr(features)
        features = self.free(features)
        logits = nn.functional.interpolate(self.head(features), scale_factor=4)
        return NetworkOutput(logits, (self.second(features),), loss)


def tiny_step(config: TrainConfig, ranks: Ranks) -> TrainingStep:
    torch.manual_seed(config.seed)
    net, cpu = Tiny().double().train(), torch.device("cpu")
    return TrainingStep(net, config, cpu, steps=STEPS, whole=Wholeness(), ranks=ranks)


def batch_of(config: TrainConfig, number: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1000 * config.seed % 2**31 + number)
    image = torch.rand(config.batch_size, 1, 32, 32, generator=rng, dtype=torch.float64)
    # Empty masks too: Dice over an image is not Dice over the batch.
    return image, ((image > 0.7) & (torch.arange(config.batch_size) % 3 > 0)[:, None, None, None])


def trained(
    config: TrainConfig, steps: int, ranks: Ranks
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    step, position, values = tiny_step(config, ranks), Position(), []
    own = part_of(range(config.batch_size), ranks, config.accumulate)
    for number in range(steps):
        image, mask = batch_of(config, number)
        values.append(step(image[own], mask[own].double(), position))
    return {name: value.clone() for name, value in step.net.state_dict().items()}, values


def trained_together(config: TrainConfig, steps: int, rank: int) -> Any:
    with joined() as ranks:
        assert ranks.rank == rank
        return trained(config, steps, ranks)


def deviation(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest, beside the size of its tensor."""
    assert one.keys() == other.keys()
    largest = 0.0
    for name, value in one.items():
        assert value.shape == other[name].shape and value.dtype == other[name].dtype, name
        wanted, found = value.double(), other[name].double()
        assert wanted.isfinite().all() and found.isfinite().all(), name
        largest = max(largest, float((wanted - found).abs().max() / (1 + wanted.abs().max())))
    return largest


@pytest.mark.parametrize(
    ("world", "accumulate", "batch", "steps"),
    [(2, 1, 6, STEPS), (2, 2, 8, 5), pytest.param(3, 1, 6, STEPS, marks=pytest.mark.extended)],
)
def test_processes_equal_one_in_float64(
    world: int, accumulate: int, batch: int, steps: int, tmp_path: Path, seed: int
) -> None:
    config = TrainConfig(batch_size=batch, accumulate=accumulate, lr=1e-4, clip=1.0, seed=seed)
    wanted, values = trained(config, steps, ALONE)
    found = together(world, functools.partial(trained_together, config, steps), tmp_path)
    assert deviation(wanted, found[0][0]) < 1e-9
    for mine, theirs in zip(values, found[0][1], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-9, abs=1e-9)
    for state, log in found[1:]:
        # Bitwise: nobody has to send weights around.
        assert all(value.equal(found[0][0][name]) for name, value in state.items())
        assert log == found[0][1]


def test_two_processes_alone_in_their_batchnorm_differ(tmp_path: Path, seed: int) -> None:
    """The comparison above can fail: without synchronised statistics it does."""
    config = TrainConfig(batch_size=6, lr=1e-4, clip=1.0, seed=seed, sync_batchnorm=False)
    wanted, _ = trained(config, 3, ALONE)
    found = together(2, functools.partial(trained_together, config, 3), tmp_path)
    assert deviation(wanted, found[0][0]) > 1e-6


def test_layers_keep_names_buffers_and_statistics(tmp_path: Path, rng: torch.Generator) -> None:
    x = torch.randn(6, 4, generator=rng, dtype=torch.float64)
    weights = torch.randn(6, 4, generator=rng, dtype=torch.float64)

    def normalised(rank: int) -> Any:
        from intrasense_fast.training.sync_norm import synchronise

        with joined() as ranks:
            net = nn.ModuleDict({"a": nn.BatchNorm1d(4), "b": RunningStandardization(4)}).double()
            names = list(net.state_dict())
            assert synchronise(net, ranks, batchnorm=True) == []
            assert list(net.state_dict()) == names and isinstance(net["a"], nn.BatchNorm1d)
            own = x[3 * rank : 3 * rank + 3].requires_grad_()
            y = net["a"](own)
            (y * weights[3 * rank : 3 * rank + 3]).sum().backward()
            net["b"].learn(own.detach())
            net.eval()
            return y.detach(), own.grad, net.state_dict(), net["a"](own).detach()

    found = together(2, normalised, tmp_path)
    whole, plain = x.clone().requires_grad_(), nn.BatchNorm1d(4).double()
    y = plain(whole)
    (y * weights).sum().backward()
    wanted = {"a": plain.state_dict()}
    for place, target in ((0, y.detach()), (1, whole.grad), (3, plain.eval()(x).detach())):
        torch.testing.assert_close(torch.cat([one[place] for one in found]), target)
    for _, _, state, _ in found:
        for name, value in wanted["a"].items():
            torch.testing.assert_close(state[f"a.{name}"], value)
        torch.testing.assert_close(state["b.running_mean"], x.mean(0))
        torch.testing.assert_close(state["b.running_var"], x.var(0, correction=0))


def test_a_step_that_is_not_finite_in_one_process_is_skipped_by_all(
    tmp_path: Path, seed: int
) -> None:
    config = TrainConfig(batch_size=4, seed=seed)

    def skipped(rank: int) -> Any:
        with joined() as ranks:
            step, position = tiny_step(config, ranks), Position()
            image, mask = batch_of(config, 0)
            image = image[part_of(range(4), ranks, 1)]
            if rank == 1:
                image[0, 0, 0, 0] = torch.nan
            before = {name: value.clone() for name, value in step.net.state_dict().items()}
            values = step(image, mask[:2].double(), position)
            after = step.net.state_dict()
            same = all(value.equal(after[name]) for name, value in before.items())
            return values["skipped"], position.skipped_in_a_row, same

    assert together(2, skipped, tmp_path) == [(1.0, 1, True)] * 2


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (4, 1), (2, 2), (1, 4)])
def test_every_image_of_a_batch_has_one_process(world: int, accumulate: int, seed: int) -> None:
    order, size = list(range(seed % 7 + 19)), 8
    parts = [
        list(Batches(order, size, Ranks(rank, world), accumulate))  # type: ignore[arg-type]
        for rank in range(world)
    ]
    for number in range(len(order) // size):
        batch = order[number * size : number * size + size]
        mine = [part[number] for part in parts]
        assert sorted(itertools.chain(*mine)) == batch
        micro = size // accumulate
        for k in range(accumulate):
            share = micro // world
            chunks = [one[k * share : k * share + share] for one in mine]
            assert list(itertools.chain(*chunks)) == batch[k * micro : k * micro + micro]
    assert {len(part) for part in parts} == {len(order) // size}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((4, 1, 3, True, 64), "--batch-size 4 for 3 processes: the batch must be a multiple of 3"),
        ((4, 1, 8, True, 64), "give --batch-size 8"),
        ((8, 3, 1, True, 64), "in 3 micro-batches: the batch must be a multiple of 3"),
        ((4, 4, 1, True, 64), "leaves one image a micro-batch"),
        ((4, 1, 4, False, 64), "leave --no-sync-batchnorm out"),
        ((4, 1, 4, True, 32), "one image of 32 pixels a process"),
    ],
)
def test_batches_that_cannot_be_shared_are_refused(
    given: tuple[int, int, int, bool, int], message: str
) -> None:
    batch, accumulate, world, synced, size = given
    with pytest.raises(ValueError, match=message.replace("(", "\\(")):
        check_parts(batch, accumulate, world, synced=synced, size=size)
    check_parts(16, 2, 4, synced=True, size=64)


def test_processes_record_no_step() -> None:
    with pytest.raises(ValueError, match="--cuda-graph: a step of 2 processes is not recorded"):
        begin({"cuda_graph": True}, None, ranks=Ranks(0, 2, 0))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": ""}, "WORLD_SIZE, MASTER_ADDR, MASTER_PORT, LOCAL_RANK not"),
        ({"WORLD_SIZE": "2", "RANK": ""}, "started with torchrun"),
        ({**variables(5, 2, 1)}, "RANK must be at least 0 and below WORLD_SIZE, got 5 of 2"),
        ({**variables(0, 2, 1), "MASTER_PORT": "x"}, "a variable of the launcher is no number"),
    ],
)
def test_variables_of_a_launcher_are_checked(
    given: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in variables(0, 1, 1):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "--quick"]) == 2
    assert message in capsys.readouterr().err


def test_each_process_has_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(1, 2, 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [ranks.device(name) for name in ("auto", "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    assert ALONE.device("cuda:1") == "cuda:1" and ALONE.device("auto") == "auto"
    with pytest.raises(ValueError, match="each of 2 processes has a device of its own"):
        ranks.device("cuda:0")
    with pytest.raises(ValueError, match="process 2 of this machine has no GPU, there are 2"):
        Ranks(2, 3, 2).device("auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ranks.device("auto") == "cpu"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("distributed") / "data", 12, seed=1)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Without tables and pictures at the end, which take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folds, "write_results", _write_nothing)
        yield


def _write_nothing(run: Path, *arguments: object) -> None:
    (run / "summary.json").write_text("{}")


def train_together(
    *arguments: object, folder: Path, patch: Callable[[int], None] | None = None, world: int = 2
) -> Forked:
    def call(rank: int) -> int:
        if patch is not None:
            patch(rank)
        return main(["train", *map(str, arguments)])

    return Forked(world, call, folder)


def codes(forked: Forked) -> list[Any]:
    found = forked.results()
    for rank, code in enumerate(found):
        assert not isinstance(code, str), f"{code}\n{forked.printed(rank)}"
    return found


@pytest.fixture(scope="module")
def uninterrupted(data: Path) -> Path:
    run = data.parent / "whole"
    forked = train_together("--data", data, "--out", run, *SMALL, folder=data.parent / "logs")
    assert codes(forked) == [0, 0], forked.printed(0)
    # The first one prints.
    assert "2 processes, each with 2 images of a batch" in forked.printed(0)
    assert "epoch 2/2" in forked.printed(0) and forked.printed(1) == ""
    return run


def assert_same(found: Path, wanted: Path) -> None:
    for folder in ("last", "best"):
        one, other = (load_file(run / folder / "model.safetensors") for run in (found, wanted))
        assert one.keys() == other.keys()
        assert all(value.equal(other[key]) for key, value in one.items()), folder
    for name in ("metrics.csv", "history.jsonl", "splits.json"):
        assert (found / name).read_text() == (wanted / name).read_text(), name


def kill_at(step: int, number: signal.Signals, *ranks: int) -> Callable[[int], None]:
    """A patch that sends processes a signal after so many steps of their own."""

    def patch(rank: int) -> None:
        begin = TrainingStep.__call__
        made = iter(range(1, 1000))

        def counted(self: TrainingStep, *arguments: Any) -> dict[str, float]:
            values = begin(self, *arguments)
            if next(made) == step and rank in ranks:
                os.kill(os.getpid(), number)
            return values

        TrainingStep.__call__ = counted  # type: ignore[method-assign]

    return patch


def test_two_processes_train_the_run_of_one(
    uninterrupted: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In float32: the same images and selection, losses near those of one process."""
    run = data.parent / "alone"
    assert main(["train", "--data", str(data), "--out", str(run), *SMALL]) == 0
    assert (run / "splits.json").read_text() == (uninterrupted / "splits.json").read_text()
    for name in ("images.csv", "best/config.json"):
        assert (run / name).exists() and (uninterrupted / name).exists()
    tables = []
    for folder in (run, uninterrupted):
        with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
            tables.append(list(csv.DictReader(file)))
    for one, other in zip(*tables, strict=True):
        assert one.keys() == other.keys()
        for name in ("train_loss", "train_dice", "val_loss"):
            assert float(one[name]) == pytest.approx(float(other[name]), rel=1e-3), name
    (entry,) = map(json.loads, (uninterrupted / "attempts.jsonl").read_text().splitlines())
    assert entry["processes"] == 2 and entry["reason"] == "finished"
    # A checkpoint is that of one process, and one process goes on with the run of two.
    one, other = (load_file(each / "last" / "model.safetensors") for each in (run, uninterrupted))
    assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in other.items()}
    longer = shutil.copytree(uninterrupted, data.parent / "longer")
    capsys.readouterr()
    assert main(["train", "--resume", str(longer), "--epochs", "3"]) == 0
    assert "not bitwise: since this run began, processes 2, now 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("number", "rank", "code"),
    [
        (signal.SIGUSR1, 1, 143),
        pytest.param(signal.SIGINT, 0, 130, marks=pytest.mark.extended),
        pytest.param(signal.SIGTERM, 1, 143, marks=pytest.mark.extended),
    ],
)
def test_a_signal_to_one_stops_all_and_resume_is_bitwise(
    number: signal.Signals, rank: int, code: int, uninterrupted: Path, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    forked = train_together(
        "--data", data, "--out", run, *SMALL, folder=tmp_path / "a", patch=kill_at(3, number, rank)
    )
    assert codes(forked) == [code, code]
    assert "stopped and saved" in forked.printed(0)
    assert f"--resume {run}" in forked.printed(0) and forked.printed(1) == ""
    assert len((run / "history.jsonl").read_text().splitlines()) == 3
    again = train_together("--resume", run, folder=tmp_path / "b")
    assert codes(again) == [0, 0], again.printed(0)
    assert "bitwise: files, code, versions" in again.printed(0)
    assert_same(run, uninterrupted)


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.extended)])
def test_micro_batches_go_on_to_the_same_bits(world: int, data: Path, tmp_path: Path) -> None:
    """In the middle of an epoch."""
    options = ["--data", data, *SMALL, "--accumulate", 2]
    whole, run = tmp_path / "whole", tmp_path / "run"
    forked = train_together(*options, "--out", whole, folder=tmp_path / "a", world=world)
    assert codes(forked) == [0] * world, forked.printed(0)
    stop = kill_at(3, signal.SIGUSR1, 0)
    forked = train_together(*options, "--out", run, folder=tmp_path / "b", patch=stop, world=world)
    assert codes(forked) == [143] * world, forked.printed(0)
    forked = train_together("--resume", run, folder=tmp_path / "c", world=world)
    assert codes(forked) == [0] * world, forked.printed(0)
    assert_same(run, whole)


def test_a_killed_process_ends_the_others_with_a_message(data: Path, tmp_path: Path) -> None:
    run, began = tmp_path / "run", time.monotonic()
    forked = train_together(
        *("--data", data, "--out", run, *SMALL),
        folder=tmp_path / "a",
        patch=kill_at(3, signal.SIGKILL, 1),
    )
    assert codes(forked) == [2, None]
    assert time.monotonic() - began < 60
    shown = forked.printed(0)
    assert "another of the 2 processes of this run ended or was lost" in shown
    assert (
        "The run is saved, at step 3; go on with: intrasense-fast train --resume"
        in shown.replace("3. go", "3; go")
    )
    assert "Traceback" not in shown


@pytest.mark.extended
def test_the_first_process_may_be_killed_too(
    uninterrupted: Path, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    forked = train_together(
        *("--data", data, "--out", run, *SMALL),
        folder=tmp_path / "a",
        patch=kill_at(3, signal.SIGKILL, 0),
    )
    assert codes(forked) == [None, 2]
    shown = forked.printed(1)
    assert "process 1: another of the 2 processes" in shown and f"--resume {run}" in shown
    again = train_together("--resume", run, folder=tmp_path / "b")
    assert codes(again) == [0, 0]
    assert_same(run, uninterrupted)


def test_bad_usage_is_told_once(data: Path, tmp_path: Path) -> None:
    forked = train_together(
        "--data", data, "--out", tmp_path / "run", *SMALL, "--lr", "-1", folder=tmp_path / "a"
    )
    assert codes(forked) == [2, 2], forked.printed(1)
    assert "--lr must be finite and > 0" in forked.printed(0) and forked.printed(1) == ""
    assert not (tmp_path / "run").exists()


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_BEAT_SECONDS", 0.05), ("_GRACE_SECONDS", 0.2)):
        monkeypatch.setattr(heartbeat, name, value)


def test_silence_ends_a_process_that_waits(
    hurried: None, capfd: pytest.CaptureFixture[str]
) -> None:
    port, ended = free_port(), []
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    for is_known in (lambda: True, lambda: False):
        one = heartbeat.Heartbeat(
            "127.0.0.1", port, 0, 2, lambda: "Saved", is_known=is_known, end=ended.append
        )
        one._thread.join(20)
        assert not one._thread.is_alive()
        assert ended == ([] if is_known() else [2])
    assert "process 0: process 1 has not answered for 20 s. Saved" in capfd.readouterr().err
    del store


@pytest.mark.extended
def test_a_process_that_hangs_ends_the_others(hurried: None, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    forked = train_together(
        *("--data", data, "--out", run, *SMALL),
        folder=tmp_path / "a",
        patch=kill_at(3, signal.SIGSTOP, 1),
    )
    forked.processes[0].join(100)
    os.kill(forked.processes[1].pid, signal.SIGKILL)
    assert codes(forked) == [None, None] and forked.processes[0].exitcode == 2
    shown = forked.printed(0)
    assert "process 0: process 1 has not answered" in shown and f"--resume {run}" in shown


@pytest.mark.extended
def test_folds_workers_and_saves_within_an_epoch(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folds, "write_results", results.write_results)
    run, options = tmp_path / "run", "--folds 2 --epochs 1 --workers 1 --save-every 0.0001".split()
    forked = train_together("--data", data, "--out", run, *SMALL, *options, folder=tmp_path / "a")
    assert codes(forked) == [0, 0], forked.printed(0)
    assert "fold 1: epoch 1/1" in forked.printed(0) and forked.printed(1) == ""
    for fold in ("fold-0", "fold-1"):
        # The end of the epoch, and the save before it.
        assert (run / fold / "last").exists() and (run / fold / "previous").exists()
        assert (run / fold / "summary.json").exists() and (run / fold / "overlays.png").exists()
    assert (run / "summary.csv").exists()


@pytest.mark.slow
def test_torchrun_trains_writes_results_and_goes_on(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launch += ["--master-port", str(free_port()), str(ROOT / "train.py")]
    for arguments in (["--data", data, "--out", run, *SMALL], ["--resume", run]):
        done = subprocess.run(
            [*launch, *map(str, arguments)], capture_output=True, text=True, timeout=300, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr
    assert "finished already" in done.stdout
    assert (run / "per_image.csv").exists() and (run / "overlays.png").exists()
