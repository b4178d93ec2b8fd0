"""`evaluate` as a user runs it; its numbers against metrics computed here from predict's own
masks."""

import csv
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from intrasense_fast import IntraSenseNet, evaluation
from intrasense_fast.cli import main
from intrasense_fast.inference import Segmenter, ensemble
from tests.support.checkpoints import tiny_checkpoint


@pytest.fixture
def data(tmp_path: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for i in range(5):
        height, width = rng.integers(40, 90, 2)
        mask = np.zeros((height, width), np.uint8)
        if i:
            cv2.circle(mask, (int(width) // 2, int(height) // 2), 5 + 3 * i, 255, -1)
        image = np.clip(rng.normal(100, 20, mask.shape) + mask * 0.3, 0, 255).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "data" / "images" / f"p{i}.png"), image)
        cv2.imwrite(str(tmp_path / "data" / "masks" / f"p{i}.png"), mask)
    return tmp_path / "data"


def test_tables_agree_with_predicts_masks(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(tiny_checkpoint(tmp_path / "best"))
    assert (
        main(
            [
                "evaluate",
                "--checkpoint",
                checkpoint,
                "--data",
                str(data),
                "--out",
                str(tmp_path / "e"),
            ]
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert (
        main(
            [
                "predict",
                "--checkpoint",
                checkpoint,
                str(data / "images"),
                "--out",
                str(tmp_path / "p"),
            ]
        )
        == 0
    )
    with open(tmp_path / "e" / "per_image.csv", newline="", encoding="utf-8") as file:
        table = {row["name"]: row for row in csv.DictReader(file)}
    assert len(table) == 5
    dices = []
    for name, row in table.items():
        found = cv2.imread(str(tmp_path / "p" / f"{Path(name).name}_mask.png"), 0) > 0
        truth = cv2.imread(str(data / "masks" / f"{Path(name).name}.png"), 0) > 0
        assert int(row["tp"]) == np.count_nonzero(found & truth) and int(
            row["fp"]
        ) == np.count_nonzero(found & ~truth)
        if truth.any():
            dices.append(
                2
                * np.count_nonzero(found & truth)
                / (np.count_nonzero(found) + np.count_nonzero(truth))
            )
            assert float(row["dice"]) == pytest.approx(dices[-1])
    summary = json.loads((tmp_path / "e" / "summary.json").read_text())
    assert summary["metrics"]["dice"]["mean"] == pytest.approx(np.mean(dices))
    assert (
        summary["lesion_images"] == 4
        and summary["normal_images"] == 1
        and summary["image_size"] == 32
    )
    assert (tmp_path / "e" / "summary.txt").read_text().strip() in shown
    assert (tmp_path / "e" / "overlays.png").stat().st_size > 0


def test_an_image_spoilt_since_is_named(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(tiny_checkpoint(tmp_path / "best"))
    (data / "images" / "p3.png").write_bytes(b"")
    assert main(
        ["evaluate", "--checkpoint", checkpoint, "--data", str(data), "--out", str(tmp_path / "e")]
    ) in (1, 2)
    assert "p3.png" in capsys.readouterr().err


def test_a_name_that_is_no_utf8(data: Path, tmp_path: Path) -> None:
    checkpoint = str(tiny_checkpoint(tmp_path / "best"))
    odd = tmp_path / os.fsdecode(b"donn\xe9es")
    try:
        data.rename(odd)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    for folder in ("images", "masks"):
        (odd / folder / "p2.png").rename(odd / folder / os.fsdecode(b"caf\xe9.png"))
    assert (
        main(
            [
                "evaluate",
                "--checkpoint",
                checkpoint,
                "--data",
                str(odd),
                "--out",
                str(tmp_path / "e"),
            ]
        )
        == 0
    )
    with open(tmp_path / "e" / "per_image.csv", newline="", encoding="utf-8") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["caf%E9", "p0", "p1", "p3", "p4"]
    assert "donn%E9es (generic)" in (tmp_path / "e" / "summary.txt").read_text(encoding="utf-8")


def test_usage_errors(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = str(tiny_checkpoint(tmp_path / "best"))
    three = str(tiny_checkpoint(tmp_path / "three", num_classes=3))
    for arguments, message in (
        (
            [
                "--checkpoint",
                checkpoint,
                "--data",
                str(tmp_path / "absent"),
                "--out",
                str(tmp_path / "o"),
            ],
            "absent",
        ),
        (["--checkpoint", checkpoint, "--data", str(data), "--out", str(data)], "is in use"),
        (
            ["--checkpoint", str(tmp_path), "--data", str(data), "--out", str(tmp_path / "o")],
            "checkpoint folder",
        ),
        (
            ["--checkpoint", three, "--data", str(data), "--out", str(tmp_path / "o")],
            "has 3 classes",
        ),
        (
            [
                "--checkpoint",
                checkpoint,
                "--data",
                str(data),
                "--out",
                str(tmp_path / "o"),
                "--device",
                "meta",
            ],
            "--device meta",
        ),
    ):
        assert main(["evaluate", *arguments]) == 2
        shown = capsys.readouterr().err
        assert message in shown and "Traceback" not in shown


def test_a_dead_module_is_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "best", image_size=64)
    net = IntraSenseNet.from_pretrained(checkpoint)
    with torch.no_grad():
        net.gcp["32"].gate.bias.fill_(-1e6)
    net.save_pretrained(checkpoint, {"image_size": 64}, overwrite=True)
    arguments = ["--checkpoint", str(checkpoint), "--data", str(data), "--out", str(tmp_path / "e")]
    assert main(["evaluate", *arguments]) == 0
    assert "warning: stride 32: the gate is a fixed pattern" in capsys.readouterr().err


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_trained_on(checkpoint: Path, train: Sequence[Path], val: Sequence[Path]) -> None:
    roles = {"train": [sha256(path) for path in train], "val": [sha256(path) for path in val]}
    (checkpoint / "trained_on.json").write_text(json.dumps({"format": 1, **roles}))


def per_image(out: Path) -> dict[str, dict[str, str]]:
    with open(out / "per_image.csv", newline="", encoding="utf-8") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def test_images_that_trained_the_checkpoint_are_told_and_left_out(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "best")
    images = sorted((data / "images").iterdir())
    write_trained_on(checkpoint, images[:2], images[2:3])
    # By content, whatever the name.
    for folder in ("images", "masks"):
        (data / folder / "p1.png").rename(data / folder / "q9.png")
    arguments = ["evaluate", "--checkpoint", str(checkpoint), "--data", str(data), "--out"]
    assert main([*arguments, str(tmp_path / "all")]) == 0
    said = "2 of the 5 images trained the checkpoint, 1 selected it"
    assert f"{said}: the figures are optimistic" in capsys.readouterr().out
    assert {name: row["seen"] for name, row in per_image(tmp_path / "all").items()} == {
        "p0": "train",
        "q9": "train",
        "p2": "val",
        "p3": "no",
        "p4": "no",
    }
    assert main([*arguments, str(tmp_path / "rest"), "--held-out"]) == 0
    assert f"{said}; these are left out." in capsys.readouterr().out
    rest = per_image(tmp_path / "rest")
    assert sorted(rest) == ["p3", "p4"]
    assert said in (tmp_path / "rest" / "summary.txt").read_text()
    summary = json.loads((tmp_path / "rest" / "summary.json").read_text())
    assert summary["seen"] == {"train": 2, "val": 1, "no": 2} and summary["held_out"]
    assert summary["lesion_images"] == 2
    write_trained_on(checkpoint, sorted((data / "images").iterdir()), [])
    assert main([*arguments, str(tmp_path / "none"), "--held-out"]) == 2
    assert "5 of the 5 images trained the checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_checkpoint_that_does_not_say_what_it_saw(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "best")
    arguments = ["evaluate", "--checkpoint", str(checkpoint), "--data", str(data), "--out"]
    assert main([*arguments, str(tmp_path / "e")]) == 0
    assert "on these images cannot be told" in capsys.readouterr().out
    assert {row["seen"] for row in per_image(tmp_path / "e").values()} == {"unknown"}
    assert main([*arguments, str(tmp_path / "h"), "--held-out"]) == 2
    assert "has no trained_on.json" in capsys.readouterr().err
    for content in ("{", "[]", '{"train": "abc", "val": []}', '{"train": [1], "val": []}'):
        (checkpoint / "trained_on.json").write_text(content)
        assert main([*arguments, str(tmp_path / "h")]) == 2
        assert "trained_on.json: is damaged" in capsys.readouterr().err
    assert not (tmp_path / "h").exists()


class Refusing(torch.nn.Module):
    """Says NaN of the images whose mean is above `limit`, and half of all others."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.architecture, self.config = "stub", {"in_channels": 1, "num_classes": 1}
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.limit = limit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x.mean((1, 2, 3), keepdim=True) > self.limit, torch.nan, x * self.weight)


def test_an_output_that_is_not_finite_is_a_named_failure(data: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(data / "images" / "p2.png"), np.full((60, 60), 255, np.uint8))
    cv2.imwrite(str(data / "masks" / "p2.png"), np.eye(60, dtype=np.uint8) * 255)
    network = Segmenter(Refusing(limit=0.9), 32)
    evaluated = evaluation.evaluate_data(
        str(data), str(tmp_path), tmp_path / "e", lambda: network, skip_bad=True
    )
    (failure,) = evaluated.failures
    assert failure.startswith("p2: the network's output is NaN or infinite")
    assert sorted(per_image(tmp_path / "e")) == ["p0", "p1", "p3", "p4"]


def test_images_in_memory_stay_within_the_pixel_bound(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = 90 * 90
    at_once: list[int] = []
    maps = ensemble.probability_maps

    def counted(
        net: torch.nn.Module, images: Sequence[np.ndarray], size: int, amp: str, flip: tuple
    ) -> list[np.ndarray | None]:
        at_once.append(sum(image.size for image in images))
        return maps(net, images, size, amp, flip)

    monkeypatch.setattr(ensemble, "probability_maps", counted)
    network = Segmenter(Refusing(limit=2.0), 32)
    options = evaluation.ReadingOptions(max_pixels=bound)
    evaluation.evaluate_data(
        str(data), str(tmp_path), tmp_path / "e", lambda: network, options=options
    )
    assert len(per_image(tmp_path / "e")) == 5
    assert len(at_once) > 1 and max(at_once) <= bound
