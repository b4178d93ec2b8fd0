"""`predict` with several checkpoints, mirror images, tiles, maps, batches and reading threads."""

import json
from argparse import ArgumentParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from intrasense_fast import prediction
from intrasense_fast.cli import main
from intrasense_fast.commands import predict
from intrasense_fast.data.opening import sha256_of
from intrasense_fast.inference import Segmenter
from intrasense_fast.inference.calibration import Calibration, write_calibration
from intrasense_fast.prediction import predict_files
from tests.support.predictions import contents, rows
from tests.support.stubs import Lopsided, bright_checkpoint

COUNT = 5


@pytest.fixture(autouse=True)
def no_overview(monkeypatch: pytest.MonkeyPatch) -> None:
    """overlays.png takes longer than all the rest, and is not what is tested here."""
    monkeypatch.setattr(prediction, "save_overlays", lambda path, items: None)


@pytest.fixture
def source(tmp_path: Path, seed: int) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for i in range(COUNT):
        noise = cv2.GaussianBlur(rng.normal(0, 40, (40, 44)), (0, 0), 3) * 6 + 120
        cv2.imwrite(str(folder / f"p{i}.png"), np.clip(noise, 0, 255).astype(np.uint8))
    return folder


def read(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def segmenter() -> Segmenter:
    return Segmenter(Lopsided(), 32, None, "a" * 64)


def test_the_folds_of_a_run_answer_together(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    folds = [bright_checkpoint(run / f"fold-{i}" / "best", 6.0 + 4 * i) for i in range(3)]
    for i, name in enumerate(("together", "0", "1", "2")):
        chosen = run if i == 0 else folds[i - 1]
        flags = ["--checkpoint", str(chosen), "--out", str(tmp_path / name), "--probabilities"]
        assert main(["predict", str(source), *flags, "--maps"]) == 0
    shown = capsys.readouterr().out
    together = tmp_path / "together"
    doubts = {row["image"]: float(row["doubt"]) for row in rows(together)}
    assert f"look at these first, the most doubted: {max(doubts, key=doubts.__getitem__)}" in shown
    assert f"{COUNT} images in " in shown and " a second" in shown
    for row in rows(together):
        stem = row["image"].removesuffix(".png")
        each = [read(tmp_path / str(i) / f"{stem}_probability.png") / 65535 for i in range(3)]
        mean = read(together / f"{stem}_probability.png") / 65535
        np.testing.assert_allclose(mean, np.mean(each, 0), atol=3e-5)
        bits = lambda p: -p * np.log2(p) - (1 - p) * np.log2(1 - p)
        entropy = read(together / f"{stem}_entropy.png")
        disagreement = read(together / f"{stem}_disagreement.png")
        assert entropy.dtype == disagreement.dtype == np.uint16
        inside = (mean > 1e-3) & (mean < 1 - 1e-3)
        np.testing.assert_allclose((entropy / 65535)[inside], bits(mean[inside]), atol=1e-3)
        apart = bits(mean) - np.mean([bits(p.clip(1e-5, 1 - 1e-5)) for p in each], 0)
        np.testing.assert_allclose((disagreement / 65535)[inside], apart[inside], atol=2e-3)
    assert not list((tmp_path / "0").glob("*_disagreement.png"))
    settings = json.loads((together / "settings.json").read_text())
    assert len(settings["weights_sha256"]) == 3 and settings["temperatures"] == [1.0] * 3
    flags = ["--checkpoint", str(folds[0]), "--probabilities", "--maps", "--continue"]
    assert main(["predict", str(source), "--out", str(together), *flags]) == 2
    assert "--continue" in capsys.readouterr().err


def test_mirror_images_and_temperature_reach_the_masks(source: Path, tmp_path: Path) -> None:
    best = bright_checkpoint(tmp_path / "best", augment="paper")
    weights = sha256_of(best / "model.safetensors")
    plain = ["--checkpoint", str(best), "--probabilities", str(source)]
    assert main(["predict", *plain, "--out", str(tmp_path / "plain")]) == 0
    fitted = Calibration(3.0, 0.4, 9, 0.03, 0.01, 0.2, 0.1, 0.7, 0.8, weights)
    write_calibration(best, fitted)
    for name, flags in (
        ("warm", []),
        ("cold", ["--no-calibration"]),
        ("tuned", ["--threshold", "tuned"]),
        ("flips", ["--no-calibration", "--tta"]),
    ):
        assert main(["predict", *plain, "--out", str(tmp_path / name), *flags]) == 0
    outputs = {name: contents(tmp_path / name) for name in ("plain", "warm", "cold", "flips")}
    masks = [name for name in outputs["plain"] if name.endswith("_mask.png")]
    assert len(masks) == COUNT
    for name in masks:
        # The temperature moves no mask at 0.5, flips of an equivariant network nothing at all.
        assert outputs["warm"][name] == outputs["plain"][name]
        probability = name.replace("_mask", "_probability")
        assert outputs["warm"][probability] != outputs["plain"][probability]
        for same in ("cold", "flips"):
            assert outputs[same][probability] == outputs["plain"][probability]
        tuned = read(tmp_path / "tuned" / name) > 0
        shown = read(tmp_path / "warm" / probability) / 65535
        clear = np.abs(shown - 0.4) > 1e-4
        assert np.array_equal(tuned[clear], shown[clear] > 0.4)
    assert {row["threshold"] for row in rows(tmp_path / "tuned")} == {"0.4"}


def test_reading_ahead_changes_nothing(source: Path, tmp_path: Path) -> None:
    (source / "p3.png").write_bytes(b"spoilt")
    for workers in (0, 3):
        out = tmp_path / str(workers)
        predicted = predict_files(source, out, segmenter, workers=workers)
        assert predicted.written == COUNT - 1 and len(predicted.failures) == 1
        assert predicted.answered == COUNT - 1 and predicted.seconds > 0
    assert contents(tmp_path / "0") == contents(tmp_path / "3")


def test_continue_refuses_what_would_change_masks(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = bright_checkpoint(tmp_path / "best")
    flags = ["predict", str(source), "--checkpoint", str(best), "--out", str(tmp_path / "out")]
    assert main(flags) == 0
    for more, message in (
        (["--tta"], "the --tta flips [[]], now [[], [1]]"),
        (["--tile", "32"], "--tile null, now 32"),
        (["--batch", "4"], "--batch 8, now 4"),
        (["--maps"], "--maps false, now true"),
    ):
        assert main([*flags, *more, "--continue"]) == 2
        assert message in capsys.readouterr().err
    assert main([*flags, "--workers", "2", "--continue"]) == 0
    for more, message in (
        (["--workers", "-1"], "--workers must lie between 0 and 256, got -1"),
        (["--batch", "0"], "--batch must lie between 1 and 4096, got 0"),
        (["--tile", "5"], "--tile must lie between 32 and 8192, got 5"),
        (["--threshold", "tuned"], "--threshold tuned: a checkpoint has no calibration.json"),
    ):
        assert main([*flags[:-1], str(tmp_path / "new"), *more]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_folder_of_an_earlier_version_is_told(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best, out = bright_checkpoint(tmp_path / "best"), tmp_path / "out"
    flags = ["predict", str(source), "--checkpoint", str(best), "--out", str(out)]
    assert main(flags) == 0
    table = out / "predictions.csv"
    lines = [line.split(",") for line in table.read_text().splitlines()]
    place = lines[0].index("doubt")
    table.write_text("\n".join(",".join(line[:place] + line[place + 1 :]) for line in lines) + "\n")
    settings = json.loads((out / "settings.json").read_text())
    for name in ("maps", "temperatures", "tta", "tile", "batch"):
        del settings[name]
    (out / "settings.json").write_text(json.dumps(settings))
    before = contents(out)
    assert main([*flags, "--continue"]) == 2
    message = capsys.readouterr().err
    assert "was made by an earlier version, without the columns doubt" in message
    assert "choose a new folder with --out" in message and contents(out) == before


def test_the_command_that_goes_on_has_every_flag() -> None:
    parser = ArgumentParser()
    predict.add_arguments(parser)
    given = (
        "in --checkpoint a --checkpoint b --out o --threshold tuned --tta --tile 64 --batch 3 "
        "--no-calibration --maps --workers 2 --probabilities --amp bf16 --size 96"
    )
    args = parser.parse_args(given.split())
    again = predict._going_on(args).split()
    assert again[:2] == ["intrasense-fast", "predict"] and again[-1] == "--continue"
    wanted = vars(args) | {"go_on": True}
    assert vars(parser.parse_args(again[2:])) == wanted
