"""Temperature, threshold and calibration error against scipy and against all pixels one by one."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from intrasense_fast.errors import UsageError
from intrasense_fast.inference.calibration import (
    CALIBRATION_FILE,
    Calibration,
    PixelCounts,
    calibrated,
    read_calibration,
    tempered,
    write_calibration,
)
from intrasense_fast.networks.checksums import check_files, write_checksums

SHAPES = ((40, 60), (61, 33), (30, 30))


def drawn(seed: int, temperature: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Probabilities of images whose pixels are lesion with sigmoid(z / temperature)."""
    rng = np.random.default_rng(seed)
    logits = [rng.normal(-1, 3, shape) for shape in SHAPES]
    masks = [rng.random(z.shape) < 1 / (1 + np.exp(-z / temperature)) for z in logits]
    probabilities = [(1 / (1 + np.exp(-z))).astype(np.float32) for z in logits]
    return probabilities, [mask.astype(np.uint8) for mask in masks]


def counted(probabilities: list[np.ndarray], masks: list[np.ndarray]) -> PixelCounts:
    counts = PixelCounts()
    for probability, mask in zip(probabilities, masks, strict=True):
        counts.add(probability, mask)
    return counts


def exact_nll(
    probabilities: list[np.ndarray], masks: list[np.ndarray], temperature: float
) -> float:
    losses = []
    for probability, mask in zip(probabilities, masks, strict=True):
        p = probability.astype(np.float64)
        z = np.log(p / (1 - p)) / temperature
        losses.append(np.logaddexp(0, np.where(mask == 1, -z, z)).mean())
    return float(np.mean(losses))


@pytest.mark.parametrize("true", [0.4, 1.0, 2.5])
def test_the_temperature_is_scipys(true: float, seed: int) -> None:
    probabilities, masks = drawn(seed, true)
    counts = counted(probabilities, masks)
    best = minimize_scalar(
        lambda log: exact_nll(probabilities, masks, math.exp(log)),
        bounds=(math.log(0.1), math.log(10)),
        method="bounded",
        options={"xatol": 1e-7},
    )
    assert counts.fit() == pytest.approx(math.exp(best.x), rel=1e-3)
    # Logits are told apart to a hundredth.
    assert counts.nll(counts.fit()) == pytest.approx(best.fun, abs=3e-4)
    assert counts.nll(1.0) == pytest.approx(exact_nll(probabilities, masks, 1.0), abs=3e-4)


def test_temperatures_end_at_a_tenth_and_at_ten(seed: int, tmp_path: Path) -> None:
    probabilities, _ = drawn(seed, 1.0)
    right = [(p > 0.5).astype(np.uint8) for p in probabilities]
    wrong = [1 - mask for mask in right]
    for masks, wanted in ((right, 0.1), (wrong, 10)):
        fitted = calibrated(counted(probabilities, masks), "a" * 64)
        assert fitted.temperature == pytest.approx(wanted) and 0.1 <= fitted.temperature <= 10
        write_calibration(tmp_path, fitted)
        assert read_calibration(tmp_path, "a" * 64) == fitted


def test_the_calibration_error_is_that_of_all_pixels(seed: int) -> None:
    probabilities, masks = drawn(seed, 2.5)
    p = np.concatenate([one.ravel() for one in probabilities]).astype(np.float64)
    t = np.concatenate([one.ravel() for one in masks])
    # Images count the same, whatever their size.
    weights = np.concatenate([np.full(one.size, 1 / one.size / 3) for one in probabilities])
    places = np.minimum((p * 15).astype(int), 14)
    exact = sum(abs(np.sum((weights * (p - t))[places == place])) for place in range(15))
    counts = counted(probabilities, masks)
    assert counts.ece(1.0) == pytest.approx(exact, abs=2e-3)
    assert counts.ece(counts.fit()) < 0.5 * counts.ece(1.0)
    rows = counts.reliability(1.0)
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert sum(row["share"] * row["lesion"] for row in rows) == pytest.approx((weights * t).sum())


def dice_at(probabilities: list[np.ndarray], masks: list[np.ndarray], cut: float) -> float:
    dices = []
    for probability, mask in zip(probabilities, masks, strict=True):
        found = probability > cut
        if mask.any():
            dices.append(2 * (found & (mask == 1)).sum() / (found.sum() + mask.sum()))
    return float(np.mean(dices))


def test_the_threshold_is_that_of_the_best_dice(seed: int) -> None:
    probabilities, masks = drawn(seed, 2.5)
    masks[0][:] = 0
    calibration = calibrated(counted(probabilities, masks))
    warm = [tempered(p, calibration.temperature) for p in probabilities]
    found = dice_at(warm, masks, calibration.threshold)
    assert calibration.dice_at_half == pytest.approx(dice_at(probabilities, masks, 0.5), abs=1e-9)
    # Logits are told apart to a hundredth: pixels of one bin may fall on either side.
    assert calibration.dice_at_threshold == pytest.approx(found, abs=2e-3)
    best = max(dice_at(probabilities, masks, cut) for cut in np.linspace(0.05, 0.95, 181))
    assert calibration.dice_at_threshold >= best - 2e-3
    assert calibration.images == 3
    with pytest.raises(ValueError, match="needs an image with a lesion"):
        calibrated(counted(probabilities[:1], masks[:1]))


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 3.0, 10.0])
def test_no_temperature_changes_the_mask_at_a_half(temperature: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    half = np.float32(0.5)
    near = [half, np.nextafter(half, np.float32(1)), np.nextafter(half, np.float32(0))]
    values = np.concatenate([rng.random(997).astype(np.float32), near, [0, 1]]).astype(np.float32)
    changed = tempered(values.reshape(-1, 2), temperature).ravel()
    assert changed.dtype == np.float32 and np.isfinite(changed).all()
    assert np.array_equal(changed > half, values > half)
    z = np.log(values[:997].astype(np.float64)) - np.log1p(-values[:997].astype(np.float64))
    inside = np.abs(z) < 16
    wanted = 1 / (1 + np.exp(-z / temperature))
    np.testing.assert_allclose(changed[:997][inside], wanted[inside], atol=2e-7)
    order = np.argsort(values)
    assert (np.diff(changed[order]) >= 0).all()
    if temperature == 1:
        assert np.array_equal(changed, values)


def calibration(weights: str) -> Calibration:
    return Calibration(1.3, 0.42, 9, 0.03, 0.01, 0.2, 0.1, 0.7, 0.8, weights)


def test_it_lies_in_the_checkpoint_under_its_checksums(tmp_path: Path) -> None:
    weights = "a" * 64
    assert read_calibration(tmp_path, weights) is None
    (tmp_path / "config.json").write_text("{}")
    write_checksums(tmp_path)
    for _ in range(2):
        write_calibration(tmp_path, calibration(weights))
    assert read_calibration(tmp_path, weights) == calibration(weights)
    assert check_files(tmp_path, (CALIBRATION_FILE, "config.json"))
    with pytest.raises(UsageError, match="is of other weights; copy the checkpoint again"):
        read_calibration(tmp_path, "b" * 64)
    file = tmp_path / CALIBRATION_FILE
    text = file.read_text()
    file.write_text(text.replace("1.3", "1.4"))
    with pytest.raises(UsageError, match=r"missing, truncated or changed"):
        read_calibration(tmp_path, weights)
    loose = tmp_path / "loose"
    loose.mkdir()
    content = json.loads(text)
    for spoilt in (
        "{",
        "[]",
        json.dumps(content | {"format": 2}),
        json.dumps(content | {"temperature": 0}),
        json.dumps(content | {"threshold": None}),
        json.dumps(content | {"more": 1}),
    ):
        (loose / CALIBRATION_FILE).write_text(spoilt)
        with pytest.raises(UsageError, match=r"calibration\.json: is damaged"):
            read_calibration(loose, weights)
    shutil.rmtree(loose)
