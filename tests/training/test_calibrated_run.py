"""A cross-validated run: each fold's calibration, and its folds measured together without
optimism."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from intrasense_fast import evaluation
from intrasense_fast.cli import main
from intrasense_fast.data.opening import sha256_of
from intrasense_fast.inference import open_segmenter, predict_probabilities
from intrasense_fast.inference.calibration import CALIBRATION_FILE, read_calibration
from intrasense_fast.networks.checksums import check_files
from intrasense_fast.training import results
from tests.support.runs import write_pairs
from tests.support.stubs import NAME

FOLDS = 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("calibrated") / "data", 12, seed=1)


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    run = data.parent / "run"
    flags = "--size 32 --batch-size 2 --epochs 1 --lr 1e-2 --augment us --device cpu".split()
    flags += ["--network", NAME, "--folds", str(FOLDS), "--data", str(data), "--out", str(run)]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("save_overlays", "save_curves"):
            patch.setattr(results, name, lambda *arguments, **options: None)
        assert main(["train", *flags]) == 0
    return run


@pytest.fixture
def no_overview(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "save_overlays", lambda path, items, title: None)


def rows(path: Path) -> dict[str, dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def test_training_fits_a_temperature_on_the_selection_images(data: Path, run: Path) -> None:
    for fold in range(FOLDS):
        folder = run / f"fold-{fold}"
        best = folder / "best"
        calibration = read_calibration(best, sha256_of(best / "model.safetensors"))
        assert calibration is not None
        assert check_files(best, (CALIBRATION_FILE,))
        names = json.loads((run / "splits.json").read_text())["folds"][fold]["val"]
        assert calibration.images == len(names) > 0
        net = open_segmenter(best, device="cpu").net
        losses = []
        for name in names:
            image = cv2.imread(str(data / "images" / f"{name}.png"), 0).astype(np.float32) / 255
            truth = cv2.imread(str(data / "masks" / f"{name}.png"), 0) > 0
            p = predict_probabilities(net, [image], 32)[0].astype(np.float64)
            losses.append(np.where(truth, -1, 1) * np.log(p / (1 - p)))
        best_log = minimize_scalar(
            lambda log, losses: np.mean([np.logaddexp(0, z / np.exp(log)).mean() for z in losses]),
            bounds=np.log([0.1, 10]),
            args=(losses,),
            method="bounded",
        ).x
        assert calibration.temperature == pytest.approx(np.exp(best_log), rel=2e-3)
        assert calibration.nll_after <= calibration.nll_before + 1e-9
        assert calibration.dice_at_threshold >= calibration.dice_at_half - 1e-9
        assert calibration.line() in (folder / "summary.txt").read_text()
        assert json.loads((best / "config.json").read_text())["augment"] == "us"


def test_folds_out_of_fold_are_the_test_images_of_each(
    data: Path, run: Path, tmp_path: Path, no_overview: None, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["evaluate", "--checkpoint", str(run), "--network", NAME, "--data", str(data)]
    assert main([*flags, "--out", str(tmp_path / "honest"), "--out-of-fold"]) == 0
    said = capsys.readouterr().out
    assert "neither trained nor selected on it: 12 by 1 of them." in said
    honest, trained = rows(tmp_path / "honest" / "per_image.csv"), rows(run / "per_image.csv")
    assert honest.keys() == trained.keys() and len(honest) == 12
    for name, row in honest.items():
        assert row["seen"] == "no"
        # A temperature moves no mask at 0.5.
        for column in ("tp", "fp", "fn", "tn"):
            assert row[column] == trained[name][column]
    assert main([*flags, "--out", str(tmp_path / "all")]) == 0
    said = capsys.readouterr().out
    assert "images trained one of the checkpoints" in said and "--out-of-fold asks only" in said
    everything = rows(tmp_path / "all" / "per_image.csv")
    seen = [row["seen"] for row in everything.values()]
    assert set(seen) <= {"train", "val"} and seen.count("train") > 0
    assert main([*flags, "--out", str(tmp_path / "none"), "--held-out"]) == 2
    told = f"{seen.count('train')} of the 12 images trained one of the checkpoints, "
    assert told + f"{seen.count('val')} selected one" in capsys.readouterr().err


def test_doubt_and_calibration_are_in_the_report(
    data: Path, run: Path, tmp_path: Path, no_overview: None
) -> None:
    flags = ["evaluate", "--network", NAME, "--data", str(data)]
    one = ["--checkpoint", str(run / "fold-0" / "best"), "--out", str(tmp_path / "e")]
    assert main([*flags, *one, "--threshold", "tuned"]) == 0
    out = tmp_path / "e"
    summary = json.loads((out / "summary.json").read_text())
    table = rows(out / "per_image.csv")
    fitted = json.loads((run / "fold-0" / "best" / CALIBRATION_FILE).read_text())
    assert summary["threshold"] == fitted["threshold"]
    assert summary["temperatures"] == [fitted["temperature"]]
    assert {"ece", "ece_before", "reliability", "reliability_before"} == set(summary["calibration"])
    assert summary["calibration"]["ece"] != summary["calibration"]["ece_before"]
    doubts = np.array([float(row["doubt"]) for row in table.values()])
    dices = np.array([float(row["dice"]) for row in table.values()])
    assert ((doubts >= 0) & (doubts <= 1)).all() and summary["doubt"]["images"] == 12
    kept = (1 - dices)[np.argsort(doubts, kind="stable")].cumsum() / np.arange(1, 13)
    assert summary["doubt"]["aurc"] == pytest.approx(kept.mean())
    assert summary["doubt"]["aurc_any_order"] == pytest.approx(1 - dices.mean())
    assert "Doubt: rank correlation with Dice" in (out / "summary.txt").read_text()
    picture = cv2.imread(str(out / "doubt.png"))
    assert picture.std() > 0 and picture.shape[1] > 1.5 * picture.shape[0]
