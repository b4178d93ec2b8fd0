"""How files are read, through every command: orientation, levels, patterns, budgets."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from intrasense_fast.cli import main
from intrasense_fast.data.fake.class_folders import turned_png
from intrasense_fast.data.phantom import write_phantom
from tests.support.checkpoints import tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("run") / "best")


def picture(seed: int, shape: tuple[int, int] = (50, 70)) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 40, shape)
    return np.clip(cv2.GaussianBlur(noise, (0, 0), 4) * 6 + 120, 1, 255).astype(np.uint8)


def predict(checkpoint: Path, source: Path, out: Path, *more: str) -> int:
    return main(["predict", "--checkpoint", str(checkpoint), str(source), "--out", str(out), *more])


def mask(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_a_predicted_mask_fits_the_picture_as_people_see_it(
    orientation: int, checkpoint: Path, tmp_path: Path, seed: int
) -> None:
    source, pixels = tmp_path / "in", picture(seed)
    source.mkdir()
    (source / "turned.png").write_bytes(turned_png(pixels, orientation))
    cv2.imwrite(str(source / "plain.png"), pixels)
    assert predict(checkpoint, source, tmp_path / "out") == 0
    turned = mask(tmp_path / "out" / "turned_mask.png")
    assert turned.shape == pixels.shape
    assert np.array_equal(turned, mask(tmp_path / "out" / "plain_mask.png"))


def test_levels_come_with_the_checkpoint(checkpoint: Path, tmp_path: Path, seed: int) -> None:
    source, pixels = tmp_path / "in", picture(seed)
    source.mkdir()
    cv2.imwrite(str(source / "deep.png"), pixels.astype(np.uint16) * 16)
    cv2.imwrite(str(source / "plain.png"), pixels)
    trained = tiny_checkpoint(tmp_path / "best")
    config = json.loads((trained / "config.json").read_text())
    (trained / "config.json").write_text(json.dumps(config | {"levels": 4080}))
    assert predict(trained, source, tmp_path / "stored") == 0
    assert predict(checkpoint, source, tmp_path / "given", "--levels", "4080") == 0
    for out in ("stored", "given"):
        deep, plain = (mask(tmp_path / out / f"{name}_mask.png") for name in ("deep", "plain"))
        assert deep.shape == pixels.shape and np.array_equal(deep, plain)


def test_patterns_and_budgets_of_predict(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name in ("Image_1.png", "Image_2.png", "seg_1.png"):
        cv2.imwrite(str(source / name), picture(1, (40, 40)))
    cv2.imwrite(str(source / "Image_3.png"), picture(1, (90, 90)))
    (source / "Image_4.webp").write_bytes(b"\0" * 200)
    arguments = ("--pairs", "Image_{id}.png", "seg_{id}.png", "--max-pixels", "2000")
    assert predict(checkpoint, source, tmp_path / "out", *arguments) == 1
    shown = capsys.readouterr().err
    assert "Image_3.png: 90 x 90" in shown and "raise --max-pixels" in shown
    with open(tmp_path / "out" / "predictions.csv", newline="") as file:
        status = {row["image"]: row["status"] for row in csv.DictReader(file)}
    assert status == {"Image_1.png": "done", "Image_2.png": "done", "Image_3.png": "failed"}
    assert predict(checkpoint, source, tmp_path / "all") == 1
    assert "Image_4.webp: a picture in webp, which is not read" in capsys.readouterr().err


def test_train_says_at_once_what_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_phantom(tmp_path / "data", 12, size=64, seed=1)
    for flag, value, said in (
        ("--size", "100000", "--size must be at most 8192: a network takes gigabytes"),
        ("--workers", "10000", "--workers must be at most 256: each is a process"),
        ("--levels", "0", "--levels must be from 1 to 65535"),
        ("--max-pixels", "-1", "--max-pixels must be from 1"),
        ("--mask-values", "x", "--mask-values 'x'"),
        ("--folds", "40", "use fewer folds"),
        ("--batch-size", "100", "lower --batch-size"),
    ):
        arguments = ["train", "--data", str(data), "--out", str(tmp_path / "run"), flag, value]
        assert main(arguments) == 2, flag
        assert said in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
    for file in sorted((data / "masks").iterdir()):
        cv2.imwrite(str(file), np.zeros_like(mask(file)))
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "run"), "--quick"]) == 2
    assert "training images shows a lesion" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
