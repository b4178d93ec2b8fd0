"""The trainer's own decisions: steps that are not finite, a full disk, patience; and the baselines
by hand."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from intrasense_fast import IntraSenseNet
from intrasense_fast.data.records import Sample
from intrasense_fast.data.torch_dataset import ResumableSampler, SegmentationDataset
from intrasense_fast.metrics import image_metrics
from intrasense_fast.training import checkpoint, logs
from intrasense_fast.training.baselines import fit_baselines
from intrasense_fast.training.checkpoint import CheckpointError
from intrasense_fast.training.config import TrainConfig
from intrasense_fast.training.step_guard import DivergedError
from intrasense_fast.training.trainer import Trainer
from tests.support.runs import open_trainer, write_pairs

CONFIG = TrainConfig(
    size=32,
    batch_size=4,
    epochs=2,
    lr=1e-3,
    encoder="resnet18",
    refine_strides=(32,),
    decoder_channels=(8, 8, 8, 8, 8),
    augment="none",
)


@pytest.fixture
def trainer(tmp_path: Path, seed: int) -> Trainer:
    data = write_pairs(tmp_path / "data", 12, seed=seed)
    run = tmp_path / "run"
    run.mkdir()
    made = open_trainer(data, run, CONFIG, lambda text: None)
    torch.manual_seed(seed)
    made.start(IntraSenseNet(**CONFIG.model_arguments()))
    return made


def poison(trainer: Trainer, steps: set[int]) -> None:
    """Make the input of some steps NaN, counted from 0."""
    count = iter(range(10**6))

    def spoil(net: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        is_poisoned = net.training and next(count) in steps
        return (inputs[0] * float("nan"),) if is_poisoned else None

    trainer.net.register_forward_pre_hook(spoil)


def test_a_step_that_is_not_finite_leaves_no_trace(trainer: Trainer) -> None:
    poison(trainer, {1})
    trainer.fit()
    assert trainer.position.skipped == 1 and trainer.position.skipped_in_a_row == 0
    assert all(torch.isfinite(value).all() for value in trainer.net.state_dict().values())
    lines = [json.loads(line) for line in (trainer.run / "history.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines] == [0, 1, 0, 0] and lines[1]["loss"] is None
    assert "1" in (trainer.run / "metrics.csv").read_text().splitlines()[-1].split(",")[-1]


def test_a_skipped_step_changes_nothing(trainer: Trainer) -> None:
    before = {
        key: value.clone()
        for key, value in trainer.net.state_dict().items()
        if value.is_floating_point()
    }
    trainer.net.train()
    image, mask = torch.full((4, 1, 32, 32), float("nan")), torch.zeros(4, 1, 32, 32)
    values = trainer.training_step(image, mask, trainer.position)
    assert values["skipped"] == 1
    assert all(torch.equal(trainer.net.state_dict()[key], value) for key, value in before.items())


def test_twenty_in_a_row_stop_with_a_message(trainer: Trainer) -> None:
    trainer.steps, trainer.train.indices, trainer.sampler = (
        24,
        list(range(8)) * 12,
        ResumableSampler(96),
    )
    poison(trainer, set(range(1, 1000)))
    with pytest.raises(DivergedError, match=r"20 steps in a row.*--lr"):
        trainer.fit()
    assert trainer.position.total == 21 and (trainer.run / "last" / "model.safetensors").exists()


@pytest.mark.parametrize("where", ["network", "state"])
def test_a_full_disk_keeps_the_checkpoint_before(
    where: str, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer._save()
    kept = {path.name: path.read_bytes() for path in (trainer.run / "last").iterdir()}

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "network":
        monkeypatch.setattr(checkpoint, "save_network", full)
    else:
        monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        CheckpointError, match=r"last could not be written: the disk is full.*--resume"
    ):
        trainer._save()
    assert {path.name: path.read_bytes() for path in (trainer.run / "last").iterdir()} == kept
    assert not list(trainer.run.glob(".*"))
    monkeypatch.undo()
    trainer._save()
    assert {path.name: path.read_bytes() for path in (trainer.run / "previous").iterdir()} == kept


def test_a_really_full_disk(trainer: Trainer, tmp_path: Path) -> None:
    """A process that may write no file beyond 1 MiB, as on a full disk or quota: no traceback, the
    old checkpoint whole."""
    import resource
    import subprocess
    import sys

    trainer._save()
    digest = (trainer.run / "last" / "checksums.json").read_text()
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from intrasense_fast.training import checkpoint\n"
        "from intrasense_fast import IntraSenseNet\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))\n"
        "try:\n"
        "    checkpoint.save_last(Path(sys.argv[1]), IntraSenseNet(), {}, {})\n"
        "except checkpoint.CheckpointError as error:\n"
        "    print(error); sys.exit(7)\n"
    )
    assert resource.RLIMIT_FSIZE is not None
    done = subprocess.run(
        [sys.executable, "-c", code, str(trainer.run)], capture_output=True, text=True
    )
    assert done.returncode == 7, done.stderr
    assert "could not be written" in done.stdout
    assert (trainer.run / "last" / "checksums.json").read_text() == digest and not list(
        trainer.run.glob(".*")
    )


def test_patience(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer.config = CONFIG.__class__(**{**CONFIG.__dict__, "epochs": 50, "patience": 2})
    dice = iter([0.3, 0.5, 0.4, 0.5, 0.9])
    validate = "intrasense_fast.training.trainer.validate"
    monkeypatch.setattr(validate, lambda *arguments: (1.0, next(dice)))
    monkeypatch.setattr(checkpoint, "save_last", lambda *arguments: None)
    monkeypatch.setattr(checkpoint, "save_best", lambda *arguments: None)
    trainer.fit()
    assert (
        trainer.position.epoch == 4
        and trainer.position.best_epoch == 1
        and trainer.position.best_dice == 0.5
    )


def test_selection_without_lesions_is_an_error(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = (np.zeros((32, 32), np.float32), np.zeros((32, 32), np.uint8))
    monkeypatch.setattr(trainer.val, "pixels", lambda index: empty)
    with pytest.raises(ValueError, match="none of the selection images has a lesion"):
        trainer.fit()


def test_baselines_by_hand() -> None:
    """Dark 8 x 8 lesions at one place: intensity is perfect, the mean mask is exact, the empty mask
    finds nothing."""
    samples = []
    for i in range(4):
        image, mask = np.full((32, 32), 0.8, np.float32), np.zeros((32, 32), np.uint8)
        mask[8:16, 8 : 16 + (i % 2) * 8] = 1
        image[mask == 1] = 0.2
        samples.append(Sample(image, mask, str(i), str(i), str(i), ""))
    train = SegmentationDataset(samples, range(4), size=32)
    baselines = fit_baselines(train)
    names = list(baselines)
    assert names[:2] == ["empty mask", "mean mask"] and names[2].startswith("intensity <")
    dice = {
        name: [image_metrics(predict(s.image), s.mask)["dice"] for s in samples]
        for name, predict in baselines.items()
    }
    assert dice["empty mask"] == [0.0] * 4
    assert dice[names[2]] == [1.0] * 4
    # Small (64 pixels) and large (128) lesions alternate: either threshold gives 1 on half of them
    # and 2/3 on the other.
    assert sorted(round(value, 6) for value in dice["mean mask"]) == [0.666667, 0.666667, 1.0, 1.0]


@pytest.mark.parametrize("dark", [True, False])
def test_baseline_levels_are_the_best_of_a_plain_search(dark: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(6):
        mask = (
            (cv2.GaussianBlur(rng.random((32, 32)), (0, 0), 3) > 0.5).astype(np.uint8)
            if i
            else np.zeros((32, 32), np.uint8)
        )
        image = (
            (0.5 + (mask * -0.2 if dark else mask * 0.2) + rng.normal(0, 0.1, mask.shape))
            .clip(0, 1)
            .astype(np.float32)
        )
        samples.append(Sample(image, mask, str(i), str(i), str(i), ""))
    with_lesion = [sample for sample in samples if sample.mask.any()]

    def score(predict: Callable[[np.ndarray], np.ndarray]) -> float:
        return float(
            np.mean([image_metrics(predict(s.image), s.mask)["dice"] for s in with_lesion])
        )

    baselines = fit_baselines(SegmentationDataset(samples, range(6), size=32))
    mean = np.mean([sample.mask for sample in samples], 0, dtype=np.float32)
    levels = [np.float32(0.02 * k) for k in range(1, 50)]
    assert score(baselines["mean mask"]) == pytest.approx(
        max(score(lambda _, v=v: mean >= v * mean.max()) for v in levels)
    )
    below, above = (
        max(score(lambda image, v=v, side=side: (image < v) == side) for v in levels)
        for side in (True, False)
    )
    (name,) = (name for name in baselines if name.startswith("intensity"))
    assert name.startswith("intensity <" if below > above else "intensity >=")
    assert score(baselines[name]) == pytest.approx(max(below, above))


def test_checkpoint_folders_are_named_as_documented() -> None:
    assert (checkpoint.LAST, checkpoint.PREVIOUS, checkpoint.BEST) == ("last", "previous", "best")


def test_health_is_written_and_a_dead_module_is_told(trainer: Trainer) -> None:
    lines: list[str] = []
    trainer.say = lines.append
    with torch.no_grad():
        trainer.net.cdr["32"].expand.bias.fill_(-1e30)
    trainer.fit()
    (*_, last) = logs.read_epochs(trainer.run)
    assert float(last["dead_channels_32"]) == 1.0
    assert 0 <= float(last["gate_saturated_32"]) <= 1
    # One position at stride 32: its attention has no entropy.
    assert "attention_entropy_32" not in last
    warnings = [line for line in lines if line.startswith("warning: stride 32: ")]
    assert any("100 % of the channels are switched off" in line for line in warnings)
