"""`evaluate` as a user runs it; its numbers against metrics computed here from predict's own
masks."""

import csv
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from intrasense_fast import IntraSenseNet
from intrasense_fast.cli import main
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
