"""--ema: the average is that of its formula, is what is selected and saved as best/, and goes on
bitwise."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from intrasense_fast.networks import build_network, load_network
from intrasense_fast.networks.checksums import write_checksums
from intrasense_fast.networks.selftest import check_selftest
from intrasense_fast.signals import Stopped
from intrasense_fast.training.averaging import WeightAverage
from intrasense_fast.training.config import TrainConfig
from intrasense_fast.training.selection import validate
from intrasense_fast.training.trainer import Trainer
from tests.support.runs import open_trainer, sha256, write_pairs

DECAY = 0.7
WIDTHS = "widths=[2,2,2,2,4]"
CONFIG = TrainConfig(
    network="unet",
    network_options=(WIDTHS,),
    size=32,
    batch_size=4,
    epochs=3,
    lr=1e-2,
    ema=DECAY,
)
FILES = ("last/model.safetensors", "best/model.safetensors", "metrics.csv", "history.jsonl")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("ema") / "data", 12, seed=3)


def opened(data: Path, run: Path, said: list[str] | None = None) -> Trainer:
    run.mkdir(exist_ok=True)
    lines: list[str] = [] if said is None else said
    return open_trainer(data, run, CONFIG, lines.append)


def begun(data: Path, run: Path, seed: int) -> Trainer:
    made = opened(data, run)
    torch.manual_seed(seed)
    made.start(build_network("unet", **CONFIG.model_arguments()))
    return made


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


def test_the_average_is_that_of_its_formula(data: Path, tmp_path: Path, seed: int) -> None:
    """Against float64 sums over the weights after each step; a skipped step moves nothing."""
    trainer = begun(data, tmp_path / "run", seed)
    step, average = trainer.training_step, trainer.training_step.average
    assert average is not None
    weights: list[dict[str, Tensor]] = []
    generator = torch.Generator().manual_seed(seed)
    for number in range(6):
        image = torch.rand((4, 1, 32, 32), generator=generator)
        if number in (0, 3):
            before = copied(average.net.state_dict())
            assert step(image * float("nan"), (image > 0.5).float(), trainer.position)["skipped"]
            after = average.net.state_dict()
            assert all(torch.equal(after[name], value) for name, value in before.items())
            continue
        assert not step(image, (image > 0.5).float(), trainer.position)["skipped"]
        weights.append(copied(trainer.net.state_dict()))
    for name, value in average.net.state_dict().items():
        if not value.is_floating_point():
            assert torch.equal(value, weights[-1][name]), name
            continue
        expected = weights[0][name].double()
        for each in weights[1:]:
            expected = DECAY * expected + (1 - DECAY) * each[name].double()
        scale = expected.abs().max().clamp(min=1e-3)
        assert float((value.double() - expected).abs().max() / scale) < 1e-5, name
        moved = float((weights[0][name] - weights[-1][name]).abs().max()) > 0
        assert not moved or not torch.equal(value, weights[-1][name]), name


class Odd(nn.Module):
    """Buffers that no average may touch, and statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2)
        self.register_buffer("table", torch.arange(1000))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf, torch.nan]))


def test_only_weights_and_statistics_are_averaged() -> None:
    net = Odd()
    average = WeightAverage(net, 0.999)
    for value in (1.0, 2.0, 3.0):
        net.norm.running_mean.fill_(value)
        net.norm.num_batches_tracked += 1
        average.update(net)
    assert torch.equal(average.net.table, torch.arange(1000))
    torch.testing.assert_close(average.net.mask, net.mask, rtol=0, atol=0, equal_nan=True)
    assert int(average.net.norm.num_batches_tracked) == 3
    # 1, then 1.001, then 1.001 * 0.999 + 0.003.
    assert average.net.norm.running_mean.tolist() == pytest.approx([1.002999] * 2, abs=1e-6)
    assert not any(weight.requires_grad for weight in average.net.parameters())
    assert all(weight.requires_grad for weight in net.parameters())


def test_the_average_is_validated_and_is_best(data: Path, tmp_path: Path, seed: int) -> None:
    trainer = begun(data, tmp_path / "run", seed)
    trainer.config = replace(CONFIG, epochs=1)
    trainer.fit()
    average = trainer.training_step.average
    assert average is not None
    best, last = (load_network(trainer.run / name, fused=False) for name in ("best", "last"))
    for found, wanted in ((best, average.net), (last, trainer.net)):
        state = wanted.state_dict()
        assert all(torch.equal(state[name], value) for name, value in found.state_dict().items())
    assert any(
        not torch.equal(one, other)
        for one, other in zip(best.parameters(), last.parameters(), strict=True)
    )
    assert check_selftest(best, trainer.run / "best") and check_selftest(last, trainer.run / "last")
    _, dice = validate(trainer.training_step, trainer.val, lambda: None)
    assert dice == trainer.position.best_dice


def test_a_stopped_run_goes_on_to_the_same_bits(data: Path, tmp_path: Path, seed: int) -> None:
    whole = begun(data, tmp_path / "whole", seed)
    whole.fit()
    run = tmp_path / "stopped"
    stopped = begun(data, run, seed)
    inner, step = stopped.training_step, 1 + seed % 5

    def stop(*arguments: object) -> dict[str, float]:
        values = inner(*arguments)
        if stopped.position.total + 1 == step:
            stopped.stop.signal_number = 15
        return values

    class Stopping:
        __call__ = staticmethod(stop)

        def __getattr__(self, name: str) -> object:
            return getattr(inner, name)

    stopped.training_step = Stopping()
    with pytest.raises(Stopped):
        stopped.fit()
    assert stopped.position.total == step
    resumed = opened(data, run)
    resumed.restore()
    resumed.fit()
    for name in FILES:
        assert sha256(run / name) == sha256(whole.run / name), name
    states = [
        torch.load(folder / "last" / "training_state.pt", weights_only=True)
        for folder in (run, whole.run)
    ]
    assert states[0]["average"].keys() == states[1]["average"].keys()
    assert all(torch.equal(v, states[1]["average"][k]) for k, v in states[0]["average"].items())
    assert int(states[0]["average"]["n_averaged"]) == 6


@pytest.mark.parametrize("fault", ["missing", "shape", "infinite"])
def test_a_damaged_average_is_told_and_previous_serves(
    fault: str, data: Path, tmp_path: Path, seed: int
) -> None:
    trainer = begun(data, tmp_path / "run", seed)
    trainer._save()
    trainer._save()
    file = trainer.run / "last" / "training_state.pt"
    state = torch.load(file, weights_only=True)
    name = next(name for name in state["average"] if name.endswith("weight"))
    if fault == "missing":
        del state["average"]
    elif fault == "shape":
        state["average"][name] = torch.zeros(7)
    else:
        state["average"][name].fill_(torch.inf)
    torch.save(state, file)
    (trainer.run / "last" / "checksums.json").unlink()
    write_checksums(trainer.run / "last")
    said: list[str] = []
    opened(data, trainer.run, said).restore()
    assert "holds no state of this run" in said[0] and "previous" in said[0]


def test_runs_without_it_hold_nothing_of_it(data: Path, tmp_path: Path, seed: int) -> None:
    values = CONFIG.as_dict()
    del values["ema"], values["log"]
    before = TrainConfig.from_dict(values)
    assert before.ema is None and before.log == "files"
    run = tmp_path / "run"
    run.mkdir()
    trainer = open_trainer(data, run, before, lambda text: None)
    trainer.start(build_network("unet", **before.model_arguments()))
    assert trainer.training_step.average is None
    assert trainer.training_step.candidate is trainer.net
    trainer._save()
    state = torch.load(run / "last" / "training_state.pt", weights_only=True)
    assert set(state) == {
        *("position", "optimizer", "schedule", "scaler", "rng", "extra", "config"),
    }


def test_an_average_is_a_copy() -> None:
    net = nn.Linear(2, 1)
    average = WeightAverage(net, 0.5)
    kept = copy.deepcopy(average.net.state_dict())
    with torch.no_grad():
        net.weight.fill_(9)
    assert all(torch.equal(average.net.state_dict()[name], v) for name, v in kept.items())
