"""Phantoms: physics, determinism, semantics, difficulty, and files that the ordinary loader
reads."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from intrasense_fast.data import open_dataset
from intrasense_fast.data.phantom import phantom, write_phantom
from intrasense_fast.data.phantom.scene import ECHOES, MARGINS, scene
from intrasense_fast.data.phantom.signal import compress, envelope


@pytest.mark.parametrize("size", [128, 256, 400])
def test_speckle_of_a_uniform_region_is_rayleigh(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    # Six fields: one alone scatters by about 0.03 about 1.913.
    fields = [envelope(np.zeros((size, size), np.float32), rng) for _ in range(6)]
    values = np.concatenate([field.ravel() for field in fields]).astype(np.float64)
    assert np.isfinite(values).all() and values.min() >= 0
    assert values.mean() / values.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), abs=0.1)
    assert (values**2).mean() == pytest.approx(1.0, abs=0.08), "0 dB of echo is unit mean power"


def test_echo_scales_power_and_looks_smooth(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weak = envelope(np.full((256, 256), -20, np.float32), rng)
    assert 10 * np.log10((weak.astype(np.float64) ** 2).mean()) == pytest.approx(-20, abs=0.5)
    three = envelope(np.zeros((256, 256), np.float32), rng, looks=3)
    assert three.mean() / three.std() == pytest.approx(np.sqrt(3) * 1.913, abs=0.3)


def test_compression_is_logarithmic_and_bounded() -> None:
    signal = np.array([[0.0, 1e-9, 0.1, 1.0, 1e6]], np.float32)
    image = compress(signal, gain=5.0, dynamic_range=50.0)
    assert image.dtype == np.float32 and image.min() >= 0 and image.max() <= 1
    assert image[0, 3] - image[0, 2] == pytest.approx(20 / 50, abs=1e-6)
    assert (np.diff(image) >= 0).all()


@pytest.mark.parametrize("size", [32, 97, (180, 301), 256])
def test_shape_type_and_range(seed: int, size: int | tuple[int, int]) -> None:
    image, mask = phantom(seed, size)
    assert image.shape == mask.shape == ((size, size) if isinstance(size, int) else size)
    assert (
        image.dtype == np.float32
        and np.isfinite(image).all()
        and image.min() >= 0
        and image.max() <= 1
    )
    assert mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1}
    assert image.std() > 0.05


def test_same_seed_same_picture(seed: int) -> None:
    first, again, other = phantom((seed, 1), 128), phantom((seed, 1), 128), phantom((seed, 2), 128)
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_masks_are_those_of_the_first_release() -> None:
    masks = np.stack([phantom(index, 128)[1] for index in range(8)])
    assert hashlib.sha256(np.packbits(masks).tobytes()).hexdigest()[:16] == "1b047762cda662ad"


@pytest.mark.parametrize("echo", list(ECHOES))
@pytest.mark.parametrize("margin", list(MARGINS))
def test_every_kind_of_lesion(seed: int, echo: str, margin: str) -> None:
    rng = np.random.default_rng(seed)
    drawn = scene(rng, (192, 192), lesions=1, distractors=0, echo=echo, margin=margin)
    assert drawn.mask.sum() >= 20 and not drawn.distractors.any()
    inside = float(np.median(drawn.echo[drawn.mask == 1]))
    low, high, _ = ECHOES[echo]
    assert low - 3 < inside < high + 3
    assert np.abs(drawn.transmission).max() < 60


def test_lesions_and_distractors_are_counted_and_apart(seed: int) -> None:
    for index in range(12):
        drawn = scene(np.random.default_rng((seed, index)), (256, 256), lesions=2, distractors=3)
        assert 1 <= cv2.connectedComponents(drawn.mask)[0] - 1 <= 2
        assert not (drawn.mask & drawn.distractors).any()
        normal = scene(np.random.default_rng((seed, index)), (256, 256), lesions=0)
        assert not normal.mask.any()


def test_distractors_match_lesions_in_level_and_differ_in_shape(seed: int) -> None:
    differences, elongation = [], {"lesion": [], "distractor": []}
    for index in range(400):
        drawn = scene(
            np.random.default_rng((seed, index)),
            (256, 256),
            lesions=1,
            distractors=1,
            margin="round",
        )
        if not drawn.distractors.any():
            continue
        differences.append(
            abs(
                np.median(drawn.echo[drawn.mask == 1])
                - np.median(drawn.echo[drawn.distractors == 1])
            )
        )
        for name, shape in (("lesion", drawn.mask), ("distractor", drawn.distractors)):
            rows, columns = np.nonzero(shape)
            if 0 < rows.min() and rows.max() < 255 and 0 < columns.min() and columns.max() < 255:
                axes = np.sqrt(np.linalg.eigvalsh(np.cov(rows, columns)))
                elongation[name].append(axes[1] / axes[0])
    # 0.78 over many scenes; of 40 scenes the median would scatter by 0.17, of 400 by 0.05.
    assert len(differences) >= 20 and np.median(differences) < 1.0
    assert np.percentile(elongation["lesion"], 90) < 2.0
    assert np.percentile(elongation["distractor"], 10) > 2.2


def test_trivial_baselines_fail() -> None:
    train = [phantom((7, index), 96) for index in range(60)]
    test = [phantom((8, index), 96, lesions=1) for index in range(40)]
    frequency = np.mean([mask for _, mask in train], 0)

    def best(predict: object, thresholds: np.ndarray) -> float:
        scores = [
            np.mean([_dice(predict(image, t), mask) for image, mask in train if mask.any()])
            for t in thresholds
        ]
        chosen = thresholds[int(np.argmax(scores))]
        return float(np.mean([_dice(predict(image, chosen), mask) for image, mask in test]))

    assert best(lambda image, t: image < t, np.linspace(0.05, 0.95, 37)) < 0.45
    assert best(lambda image, t: image > t, np.linspace(0.05, 0.95, 37)) < 0.45
    assert best(lambda image, t: frequency > t, np.linspace(0, frequency.max(), 20)[:-1]) < 0.45


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & (b > 0)).sum()) / float(a.sum() + b.sum())


def test_written_folder_is_read_by_the_ordinary_loader(tmp_path: Path) -> None:
    out = write_phantom(
        tmp_path / "made here" / "phantom é", 10, size=64, seed=3, normal_fraction=0.3
    )
    data = open_dataset(out).checked()
    assert len(data) == 10 and data.layout == "generic" and not data.problems
    assert sum(not sample.mask.any() for sample in data) == 3
    again = open_dataset(
        write_phantom(tmp_path / "again", 10, size=64, seed=3, normal_fraction=0.3)
    )
    for first, second in zip(data.records, again.records, strict=True):
        assert (
            first.image.read_bytes() == second.image.read_bytes()
            and first.masks[0].read_bytes() == second.masks[0].read_bytes()
        )
    assert not [entry for entry in out.parent.iterdir() if entry != out], (
        "no temporary folder is left"
    )


def test_used_folder_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="in use, and nothing is overwritten"):
        write_phantom(tmp_path, 2, size=32)
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("intrasense_fast.data.phantom.write_png", full)
    with pytest.raises(OSError, match="No space left"):
        write_phantom(tmp_path / "out", 2, size=32)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 16}, "32 to 4096 pixels"),
        ({"size": (64, 64, 3)}, "32 to 4096 pixels"),
        ({"seed": -1}, "not negative"),
        ({"seed": ()}, "not negative"),
        ({"lesions": 9}, "0 to 8"),
        ({"distractors": -1}, "0 to 8"),
        ({"echo": "grey"}, "'any' or one of anechoic"),
        ({"margin": "square"}, "'any' or one of round"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        phantom(**{"seed": 0, **arguments})


@pytest.mark.parametrize(
    "arguments", [{"count": 0}, {"count": 2, "normal_fraction": 1.5}, {"count": 2, "size": 8}]
)
def test_bad_requests_write_nothing(tmp_path: Path, arguments: dict) -> None:
    with pytest.raises(ValueError, match="needed"):
        write_phantom(tmp_path / "out", **arguments)
    assert not list(tmp_path.iterdir())
