"""Several opinions in one answer: their mean, their disagreement, mirror images, tiles."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from intrasense_fast.data.opening import sha256_of
from intrasense_fast.errors import UsageError
from intrasense_fast.inference import Segmenter, probability_maps
from intrasense_fast.inference.calibration import Calibration, write_calibration
from intrasense_fast.inference.ensemble import Ensemble
from intrasense_fast.inference.opening import (
    check_threshold,
    chosen_threshold,
    named_checkpoints,
    open_ensemble,
)
from tests.support.stubs import Bright, Lopsided, bright_checkpoint

FLIPS = ((), (1,), (0,), (0, 1))


def calibration(temperature: float, threshold: float = 0.4, weights: str = "") -> Calibration:
    return Calibration(temperature, threshold, 9, 0.03, 0.01, 0.2, 0.1, 0.7, 0.8, weights)


def images(seed: int, *shapes: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.random(shape).astype(np.float32) for shape in shapes or ((40, 50), (64, 33))]


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def test_one_opinion_is_that_of_the_network_bit_by_bit(seed: int) -> None:
    pictures = images(seed)
    net = Bright()
    wanted = probability_maps(net, pictures, 32)
    found = Ensemble((Segmenter(net, 32),)).answers(pictures, disagreement=True)
    for answer, probability in zip(found, wanted, strict=True):
        assert answer is not None and probability is not None
        assert np.array_equal(answer.probability, probability)
        assert answer.disagreement is None


def test_the_answer_is_the_mean_of_calibrated_opinions(seed: int) -> None:
    (image,) = images(seed, (32, 32))
    members = (
        Segmenter(Bright(gain=4.0), 32, calibration=calibration(2.0)),
        Segmenter(Bright(gain=9.0, level=0.3), 32),
        Segmenter(Bright(gain=6.0, level=0.6), 32, calibration=calibration(0.5)),
    )
    z = [4 * (image - 0.5) / 2, 9 * (image - 0.3), 6 * (image - 0.6) / 0.5]
    opinions = [sigmoid(each.astype(np.float64)) for each in z]
    mean = np.mean(opinions, 0)
    bits = lambda p: -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    ensemble = Ensemble(members)
    (answer,) = ensemble.answers([image], disagreement=True)
    assert answer is not None and answer.disagreement is not None
    assert answer.probability.dtype == answer.disagreement.dtype == np.float32
    np.testing.assert_allclose(answer.probability, mean, atol=1e-6)
    wanted = bits(mean) - np.mean([bits(p) for p in opinions], 0)
    np.testing.assert_allclose(answer.disagreement, wanted, atol=1e-5)
    assert ensemble.temperatures == [2.0, 1.0, 0.5] and ensemble.opinions == 3
    assert ensemble.threshold is None
    (some,) = ensemble.answers([image], chosen=[[1]])
    assert some is not None
    np.testing.assert_allclose(some.probability, opinions[1], atol=1e-6)


def test_flips_of_an_equivariant_network_change_nothing(seed: int) -> None:
    pictures = images(seed, (32, 32), (40, 50))
    member = Segmenter(Bright(), 32, calibration=calibration(1.7))
    plain = Ensemble((member,)).answers(pictures)
    for flips in (FLIPS[:2], FLIPS):
        turned = Ensemble((member,), flips).answers(pictures, disagreement=True)
        for one, other in zip(plain, turned, strict=True):
            assert one is not None and other is not None and other.disagreement is not None
            assert np.array_equal(one.probability, other.probability)
            assert other.disagreement.max() <= 1e-6


def test_the_answer_for_a_mirror_image_is_the_mirror_image_of_the_answer(seed: int) -> None:
    (image,) = images(seed, (32, 32))
    member = Segmenter(Lopsided(), 32)
    (plain,) = Ensemble((member,)).answers([image])
    (both,) = Ensemble((member,), FLIPS).answers([image], disagreement=True)
    assert plain is not None and both is not None and both.disagreement is not None
    assert np.abs(plain.probability - both.probability).max() > 0.05
    assert both.disagreement.max() > 1e-3
    for axes in FLIPS[1:]:
        (turned,) = Ensemble((member,), FLIPS).answers([np.flip(image, axes)])
        assert turned is not None
        np.testing.assert_allclose(np.flip(turned.probability, axes), both.probability, atol=1e-6)


def test_a_member_that_fails_fails_the_image(seed: int) -> None:
    dark, light = np.zeros((32, 32), np.float32), np.ones((32, 32), np.float32)
    members = (Segmenter(Bright(), 32), Segmenter(Bright(limit=0.9), 32))
    first, second = Ensemble(members).answers([dark, light])
    assert first is not None and second is None


def test_tiles_of_what_fits_are_the_whole_bit_by_bit(seed: int) -> None:
    pictures = images(seed, (40, 50), (64, 33), (64, 64))
    member = Segmenter(Lopsided(), 32)
    whole = Ensemble((member,)).answers(pictures)
    tiles = Ensemble((member,), tile=64).answers(pictures)
    for one, other in zip(whole, tiles, strict=True):
        assert one is not None and other is not None
        assert np.array_equal(one.probability, other.probability)


def test_tiles_see_what_is_lost_when_a_large_image_is_made_small() -> None:
    image = np.zeros((96, 160), np.float32)
    image[50:52, 71:73] = 1
    member = Segmenter(Bright(gain=20.0), 32)
    (whole,) = Ensemble((member,)).answers([image])
    (tiles,) = Ensemble((member,), tile=32).answers([image])
    assert whole is not None and tiles is not None
    assert not (whole.probability > 0.5).any()
    # At its own resolution an answer for each pixel alone is the same, whatever the tiles.
    np.testing.assert_allclose(tiles.probability, sigmoid(20 * (image - 0.5)), atol=1e-5)


def test_several_threads_may_ask(seed: int) -> None:
    pictures = images(seed, *[(32, 40)] * 6)
    ensemble = Ensemble((Segmenter(Lopsided(), 32), Segmenter(Bright(), 32)), FLIPS, 32)
    ask = lambda image: ensemble.answers([image])[0].probability  # type: ignore[union-attr]
    wanted = [ask(image) for image in pictures]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(ask, pictures))
    assert all(np.array_equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_checkpoints_that_do_not_belong_together(tmp_path: Path) -> None:
    one = str(bright_checkpoint(tmp_path / "one"))
    larger = str(bright_checkpoint(tmp_path / "larger", 7.0, image_size=64))
    levels = str(bright_checkpoint(tmp_path / "levels", 6.0, levels=4095))
    copy = str(bright_checkpoint(tmp_path / "copy"))
    for second, message in (
        (
            larger,
            f"{one} and {larger} were trained with size 32 and 64: an ensemble needs the same",
        ),
        (levels, f"{one} and {levels} were trained with --levels none and 4095"),
        (copy, f"{one} and {copy} hold the same weights"),
    ):
        with pytest.raises(UsageError) as error:
            open_ensemble([one, second], device="cpu")
        assert message in str(error.value) and "\n" not in str(error.value)
    assert open_ensemble([one, larger], size=48, device="cpu").size == 48
    with pytest.raises(UsageError, match="is named twice"):
        named_checkpoints([one, f"{tmp_path}/larger/../one"])
    for options, message in (
        ({"tile": 8}, "--tile must lie between 32 and 8192, got 8"),
        ({"batch": 0}, "--batch must lie between 1 and 4096, got 0"),
    ):
        with pytest.raises(UsageError, match=message):
            open_ensemble([one], device="cpu", **options)  # type: ignore[arg-type]


def test_flips_are_those_of_training(tmp_path: Path) -> None:
    kinds = (None, "us", "paper", "none")
    paths = {
        kind: str(
            bright_checkpoint(tmp_path / str(kind), 5.0 + i, **({"augment": kind} if kind else {}))
        )
        for i, kind in enumerate(kinds)
    }
    flips = lambda *kinds: (
        open_ensemble([paths[kind] for kind in kinds], device="cpu", tta=True).flips
    )
    assert flips(None) == flips("us") == FLIPS[:2]
    assert flips("paper") == FLIPS
    assert flips("paper", "us") == flips("us", "paper") == FLIPS[:2]
    with pytest.raises(UsageError, match=r"--tta: .* was trained with --augment none"):
        flips("paper", "none")
    assert open_ensemble([paths["paper"]], device="cpu").flips == ((),)


def test_a_run_stands_for_all_its_folds(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for fold in (0, 2, 10):
        bright_checkpoint(run / f"fold-{fold}" / "best", 4.0 + fold)
    (run / "config.json").write_text('{"config": {"folds": 11}}')
    named = named_checkpoints([str(run)])
    assert named.checkpoints == [str(run / f"fold-{fold}" / "best") for fold in (0, 2, 10)]
    (remark,) = named.remarks
    assert "3 of 11 folds are trained: fold-0, fold-2, fold-10" in remark
    ensemble = open_ensemble(named.checkpoints, device="cpu")
    assert len(ensemble.members) == 3
    single = str(run / "fold-2" / "best")
    assert named_checkpoints([single]) == ([single], [])


def test_thresholds_and_temperatures_come_from_the_checkpoints(tmp_path: Path) -> None:
    paths = [bright_checkpoint(tmp_path / str(i), 4.0 + i) for i in range(2)]
    for path, temperature, threshold in zip(paths, (2.0, 0.5), (0.3, 0.4), strict=True):
        weights = sha256_of(path / "model.safetensors")
        write_calibration(path, calibration(temperature, threshold, weights))
    names = [str(path) for path in paths]
    ensemble = open_ensemble(names, device="cpu")
    assert ensemble.temperatures == [2.0, 0.5]
    assert chosen_threshold("tuned", ensemble) == pytest.approx(0.35)
    assert chosen_threshold(0.25, ensemble) == 0.25
    plain = open_ensemble(names, device="cpu", calibrate=False)
    assert plain.temperatures == [1.0, 1.0]
    with pytest.raises(UsageError, match="--threshold tuned: a checkpoint has no calibration"):
        chosen_threshold("tuned", plain)
    for wrong in (1.5, "best"):
        with pytest.raises(UsageError, match="--threshold must lie in"):
            check_threshold(wrong)
