"""A step that is recorded once gives the numbers of one that is not, whatever happens in it."""

import contextlib
import io
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from intrasense_fast.cli import main
from intrasense_fast.errors import UsageError
from intrasense_fast.networks import build_network, list_networks, register_network
from intrasense_fast.training import capture
from intrasense_fast.training.build import network_of
from intrasense_fast.training.capture import CaptureError, CudaCapture, RepeatedCalls
from intrasense_fast.training.config import TrainConfig
from intrasense_fast.training.graphed import WARM_STEPS, GraphedStep, check_graph
from intrasense_fast.training.interruptions import Wholeness
from intrasense_fast.training.position import Position
from intrasense_fast.training.step import TrainingStep
from tests.support import faulty
from tests.support.networks import wake
from tests.support.runs import open_trainer, write_pairs

CPU = torch.device("cpu")
STEPS = 9
SPOILT = (1, 6)  # one before the recording, one after it
SMALL = TrainConfig(network=faulty.NAME, size=32, batch_size=2, lr=1e-2, clip=0.5)
WHOLE = TrainConfig(
    size=32,
    batch_size=2,
    lr=1e-3,
    clip=1.0,
    encoder="resnet18",
    refine_strides=(32,),
    decoder_channels=(8, 8, 8, 8, 8),
)


class Recorded(RepeatedCalls):
    """Counts what is recorded, and looks at what a recording meets."""

    def __init__(self) -> None:
        self.gradients: list[bool] = []
        self.net: nn.Module | None = None

    def record(self, function: Callable[[], Any]) -> Callable[[], Any]:
        assert self.net is not None
        self.gradients.append(any(one.grad is not None for one in self.net.parameters()))
        return super().record(function)


@pytest.fixture(scope="module", autouse=True)
def small_network() -> None:
    register_network(faulty.NAME)
    faulty.reset()


def step_of(config: TrainConfig, *, graph: bool, seed: int) -> TrainingStep:
    torch.manual_seed(seed)
    net = wake(build_network(config.network, **config.model_arguments())).train()
    config = replace(config, cuda_graph=graph)
    kind = GraphedStep if graph else TrainingStep
    return kind(net, config, CPU, steps=STEPS, whole=Wholeness())


def batches(seed: int, size: int = 32) -> list[tuple[Tensor, Tensor]]:
    """STEPS batches, those in SPOILT with NaN."""
    rng = torch.Generator().manual_seed(seed)
    found = []
    for number in range(STEPS):
        image = torch.rand(2, 1, size, size, generator=rng)
        mask = (image > 0.6).float()
        found.append((image * math.nan if number in SPOILT else image, mask))
    return found


def train(step: TrainingStep, images: list, position: Position, seed: int) -> list[dict]:
    torch.manual_seed(seed)
    return [step(image, mask, position) for image, mask in images]


def same(one: Any, other: Any) -> bool:
    """Are two nested values the same, to the bit, NaN where NaN is?"""
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(
            one.nan_to_num(nan=12345.0), other.nan_to_num(nan=12345.0)
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


def stored(step: TrainingStep) -> dict[str, Any]:
    """The state of its optimizer and schedule, through a file."""
    file = io.BytesIO()
    torch.save(step.optimisation.state(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("scheduler", ["none", "plateau", "cosine", "onecycle"])
def test_a_recorded_step_has_the_numbers_of_a_plain_one(
    scheduler: str, amp: str, momentum: float, seed: int
) -> None:
    config = replace(SMALL, scheduler=scheduler, amp=amp, momentum=momentum)
    check_same_steps(config, seed)


@pytest.mark.extended
@pytest.mark.parametrize(("amp", "scheduler"), [("bf16", "none"), ("off", "cosine")])
def test_so_does_the_whole_network(amp: str, scheduler: str, seed: int) -> None:
    check_same_steps(replace(WHOLE, amp=amp, scheduler=scheduler), seed)


def test_so_has_the_average_of_the_weights(seed: int) -> None:
    check_same_steps(replace(SMALL, ema=0.9), seed)


def test_so_have_micro_batches(seed: int) -> None:
    check_same_steps(replace(SMALL, accumulate=2), seed)


def check_same_steps(config: TrainConfig, seed: int) -> None:
    plain, graphed = (step_of(config, graph=graph, seed=seed) for graph in (False, True))
    images = batches(seed)
    positions = Position(), Position()
    wanted = train(plain, images, positions[0], seed)
    found = train(graphed, images, positions[1], seed)
    assert [values["skipped"] for values in wanted] == [float(n in SPOILT) for n in range(STEPS)]
    assert len({values["loss"] for values in wanted}) == STEPS
    for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
        assert list(one) == list(other) and same(one, other), number
    assert positions[0] == positions[1]
    assert same(graphed.net.state_dict(), plain.net.state_dict())
    assert same(stored(graphed), stored(plain))
    assert same(graphed.candidate.state_dict(), plain.candidate.state_dict())
    assert config.ema is None or not same(plain.candidate.state_dict(), plain.net.state_dict())


@pytest.mark.parametrize("scheduler", ["none", "onecycle"])
@pytest.mark.parametrize("first", [True, False], ids=["graph, plain", "plain, graph"])
def test_either_goes_on_from_the_other(first: bool, scheduler: str, seed: int) -> None:
    config, images = replace(SMALL, scheduler=scheduler), batches(seed)
    whole = step_of(config, graph=False, seed=seed)
    train(whole, images, Position(), seed)

    before = step_of(config, graph=first, seed=seed)
    train(before, images[:5], Position(), seed)
    random, state = torch.get_rng_state(), stored(before)
    after = step_of(config, graph=not first, seed=seed + 1)
    after.net.load_state_dict(before.net.state_dict())
    after.optimisation.take(state)
    torch.set_rng_state(random)
    for image, mask in images[5:]:
        after(image, mask, Position())
    assert same(after.net.state_dict(), whole.net.state_dict())
    assert same(stored(after), stored(whole))


def test_a_checkpoint_holds_numbers_and_no_graph(seed: int) -> None:
    step = step_of(replace(SMALL, scheduler="cosine"), graph=True, seed=seed)
    train(step, batches(seed), Position(), seed)
    (group,) = stored(step)["optimizer"]["param_groups"]
    assert type(group["lr"]) is float and group["capturable"] is False


@pytest.mark.parametrize(("scheduler", "recordings"), [("none", 2), ("cosine", 2)])
def test_each_graph_is_recorded_once(scheduler: str, recordings: int, seed: int) -> None:
    step, spy = recording_step(replace(SMALL, scheduler=scheduler), seed)
    train(step, batches(seed), Position(), seed)
    assert len(spy.gradients) == recordings and spy.gradients[0] is False


def test_the_optimizer_is_recorded_again_for_another_rate(seed: int) -> None:
    """The rate of "none" and "plateau" is part of the graph."""
    step, spy = recording_step(replace(SMALL, scheduler="plateau"), seed)
    images = batches(seed)
    train(step, images[:6], Position(), seed)
    step.optimisation.optimizer.param_groups[0]["lr"] /= 2
    train(step, images[7:], Position(), seed)
    assert len(spy.gradients) == 3


def test_the_first_steps_that_count_are_those_that_change_weights(seed: int) -> None:
    """The optimizer has its averages before it is recorded."""
    step, spy = recording_step(SMALL, seed)
    image, mask = batches(seed)[0]
    for _ in range(2 * WARM_STEPS):
        step(image * math.nan, mask, Position())
    assert not spy.gradients
    for _ in range(WARM_STEPS + 1):
        step(image, mask, Position())
    assert len(spy.gradients) == 2


def recording_step(config: TrainConfig, seed: int) -> tuple[GraphedStep, Recorded]:
    spy = Recorded()
    spy.net = network_of(config).train()
    config = replace(config, cuda_graph=True)
    return GraphedStep(spy.net, config, CPU, steps=STEPS, whole=Wholeness(), capture=spy), spy


def test_a_batch_of_another_shape_is_refused(seed: int) -> None:
    step = step_of(SMALL, graph=True, seed=seed)
    (image, mask), *_ = batches(seed)
    step(image, mask, Position())
    with pytest.raises(ValueError, match=r"one shape, the first was \(2, 1, 32, 32\), got \(1, 1"):
        step(image[:1], mask[:1], Position())


def test_an_error_in_a_first_step_leaves_no_trace(seed: int) -> None:
    step = step_of(SMALL, graph=True, seed=seed)
    before = {name: value.clone() for name, value in step.net.state_dict().items()}
    (image, mask), *_ = batches(seed)
    faulty.reset(step1=faulty.fill_memory)
    with pytest.raises(RuntimeError):
        step(image, mask, Position())
    faulty.reset()
    assert same(step.net.state_dict(), before)


class Graphs:
    """torch.cuda's streams and graphs as far as `CudaCapture` calls them: what was called."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.breaks = False
        for name in ("Stream", "stream", "current_stream", "CUDAGraph", "graph"):
            patch.setattr(torch.cuda, name, getattr(self, f"_{name}"))

    def wait_stream(self, other: object) -> None:
        self.calls.append("wait")

    def replay(self) -> None:
        self.calls.append("replay")

    def pool(self) -> str:
        return "pool"

    def __enter__(self) -> None:
        self.calls.append("enter")

    def __exit__(self, *error: object) -> None:
        self.calls.append("leave")
        if self.breaks:
            raise RuntimeError("CUDA error: operation failed due to a previous error")

    def _Stream(self, device: torch.device) -> "Graphs":
        return self

    def _stream(self, stream: "Graphs") -> "Graphs":
        return self

    def _current_stream(self, device: torch.device) -> "Graphs":
        return self

    def _CUDAGraph(self) -> "Graphs":
        return self

    def _graph(self, graph: "Graphs", **options: Any) -> "Graphs":
        self.calls.append(f"{options['pool']} {options['capture_error_mode']}")
        return self


def test_a_recording_is_one_graph_on_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs, result = Graphs(monkeypatch), torch.zeros(3)
    recorder = CudaCapture(torch.device("cuda"))
    with recorder.running():
        replay = recorder.record(lambda: result)
        assert replay() is result
        recorder.record(lambda: None)
    first = ["wait", "enter", "None thread_local", "enter", "leave", "replay"]
    assert graphs.calls == [*first, "pool thread_local", "enter", "leave", "leave", "wait"]


def test_a_recording_that_fails_names_flag_and_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = Graphs(monkeypatch)
    recorder, graphs.breaks = CudaCapture(torch.device("cuda")), True

    def waits() -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    with pytest.raises(CaptureError) as caught:
        recorder.record(waits)
    message = str(caught.value)
    assert "--cuda-graph" in message and "--no-cuda-graph" in message
    assert f"{__file__}:" in message and "in waits" in message
    assert "operation not permitted when stream is capturing." in message
    assert isinstance(caught.value, UsageError)


def test_full_memory_in_a_recording_is_full_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = Graphs(monkeypatch)
    recorder, graphs.breaks = CudaCapture(torch.device("cuda")), True

    def fills() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        recorder.record(fills)


def test_without_a_gpu_calls_are_repeated() -> None:
    assert isinstance(capture.capture_on(CPU), RepeatedCalls)


@pytest.mark.parametrize(
    ("network", "amp", "words"),
    [("intrasense", "fp16", "--amp fp16"), ("eanet", "bf16", "eanet works on the host")],
)
def test_what_no_graph_can_hold_is_refused(network: str, amp: str, words: str) -> None:
    config = TrainConfig(network=network, amp=amp, cuda_graph=True)
    with torch.device("meta"):
        net = network_of(config)
    with pytest.raises(UsageError, match=f"--cuda-graph: .*{words}"):
        check_graph(config, net)


@pytest.mark.parametrize("command", ["train", "ablate"])
def test_a_cpu_is_refused_before_anything_is_written(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = ["--out", str(out), "--device", "cpu", "--cuda-graph"]
    assert main([command, *flags]) == 2
    assert "--cuda-graph needs a GPU, and the device is cpu" in capsys.readouterr().err
    assert not out.exists()


class _Waits(torch.utils._python_dispatch.TorchDispatchMode):
    """Refuses what would wait for a GPU: values that are read, and tensors that change device."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        places = torch.utils._pytree.tree_leaves((args, kwargs, result))
        devices = {one.device.type for one in places if isinstance(one, Tensor)}
        assert devices <= {"meta"}, f"{function} of {devices}"
        return result


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "unet" else pytest.mark.extended)
        for name in list_networks()
    ],
)
def test_no_network_reads_a_value_in_a_step(name: str) -> None:
    """On the meta device there are no values: reading one, or a shape that depends on one, is an
    error."""
    size = 64
    config = replace(SMALL, network=name, size=size, batch_size=2, amp="off", cuda_graph=True)
    with torch.device("meta"):
        net = network_of(config)
    if getattr(net, "host_work", None):
        pytest.skip(f"{name} works on the host: {net.host_work}")
    meta = torch.device("meta")
    step = GraphedStep(net.train(), config, meta, steps=STEPS, whole=Wholeness())
    step.autocast = contextlib.nullcontext  # there is none on the meta device
    image, mask = torch.empty(2, 2, 1, size, size, device="meta")
    with _Waits():
        step._computed(image, mask)


@pytest.mark.parametrize("first", [True, False], ids=["graph, plain", "plain, graph"])
def test_a_run_goes_on_either_way(first: bool, tmp_path: Path, seed: int) -> None:
    """Through the trainer and its checkpoints, 4 of 8 steps each way."""
    data = write_pairs(tmp_path / "data", 12, seed=seed)
    config = replace(SMALL, batch_size=2, augment="paper", scheduler="plateau")

    def fit(name: str, epochs: int, graph: bool) -> Path:
        run = tmp_path / name
        run.mkdir(exist_ok=True)
        now = replace(config, epochs=epochs, cuda_graph=graph)
        trainer = open_trainer(data, run, now, lambda text: None)
        if (run / "last").exists():
            trainer.restore()
        else:
            torch.manual_seed(seed)
            trainer.start(network_of(now))
        trainer.fit()
        return run

    whole = fit("whole", 2, False)
    fit("parts", 1, first)
    parts = fit("parts", 2, not first)
    for name in ("history.jsonl", "metrics.csv"):
        assert (parts / name).read_text() == (whole / name).read_text()
    weights = [load_file(run / "last" / "model.safetensors") for run in (whole, parts)]
    assert same(*weights)
