"""Masks: one rule a data set, whatever values its files hold, and an error where it is not
known."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from intrasense_fast.cli import main
from intrasense_fast.data import DataError, ReadingOptions, open_dataset, read_mask
from intrasense_fast.data.mask_values import decide, parse_values
from intrasense_fast.data.masks import load_masks
from intrasense_fast.data.verify import verify
from intrasense_fast.errors import UsageError

LESION = np.zeros((40, 48), bool)
LESION[8:30, 10:30] = True
SECOND = np.zeros_like(LESION)
SECOND[20:34, 25:44] = True


def tree(root: Path, masks: list[np.ndarray]) -> Path:
    """Pairs N.png and N_mask.png; masks in RGB order where they have channels."""
    rng = np.random.default_rng(0)
    root.mkdir(exist_ok=True)
    for i, mask in enumerate(masks):
        cv2.imwrite(str(root / f"{i}.png"), rng.integers(0, 256, (40, 48), np.uint8))
        cv2.imwrite(str(root / f"{i}_mask.png"), mask if mask.ndim == 2 else mask[..., ::-1])
    return root


def labels(first: int, second: int, dtype: type = np.uint8) -> list[np.ndarray]:
    """Six masks: three of the first lesion, one of the second, one of both, one empty."""
    one, two = np.where(LESION, first, 0), np.where(SECOND, second, 0)
    both = np.where(SECOND, second, one)
    return [each.astype(dtype) for each in (one, one, one, two, both, 0 * one)]


TRUTH = [LESION, LESION, LESION, SECOND, LESION | SECOND, np.zeros_like(LESION)]


@pytest.mark.parametrize(
    ("first", "second", "dtype"),
    [(1, 1, np.uint8), (1, 2, np.uint8), (255, 255, np.uint8), (100, 100, np.uint8),
     (4095, 4095, np.uint16), (65535, 65535, np.uint16), (1, 2, np.uint16)],
)  # fmt: skip
def test_values_of_every_kind_are_one_mask(
    first: int, second: int, dtype: type, tmp_path: Path
) -> None:
    data = open_dataset(tree(tmp_path, labels(first, second, dtype)), group_duplicates=False)
    for sample, wanted in zip(data, TRUTH, strict=True):
        assert sample.mask.dtype == np.uint8 and np.array_equal(sample.mask, wanted)
    report = verify(tmp_path)
    assert not report.errors and f"{first}" in str(report) and "lesion above 0" in str(report)


@pytest.mark.parametrize("white", [255, 4095, 65535])
def test_soft_edges_are_cut_at_half_of_white_in_every_file(white: int, tmp_path: Path) -> None:
    dtype = np.uint8 if white == 255 else np.uint16
    soft = [
        (cv2.GaussianBlur(each.astype(np.float32), (0, 0), 1.0) * white).round().astype(dtype)
        for each in TRUTH
    ]
    # A file whose own maximum is less is read by the rule of all the others.
    soft[3] = (soft[3] * 0.8).astype(dtype)
    data = open_dataset(tree(tmp_path, soft), group_duplicates=False)
    for sample, pixels in zip(data, soft, strict=True):
        assert np.array_equal(sample.mask, pixels > white // 2)


def test_inspection_and_access_read_alike(tmp_path: Path) -> None:
    root = tree(tmp_path, labels(1, 2))
    report = verify(root)
    areas = [finding.area for finding in report.findings]
    assert areas == [int(each.sum()) for each in TRUTH]
    assert areas == [int(sample.mask.sum()) for sample in open_dataset(root)]


def test_colours_of_a_palette(tmp_path: Path) -> None:
    def colour(value: tuple[int, int, int], where: np.ndarray) -> np.ndarray:
        return where[..., None] * np.array(value, np.uint8)

    masks = [colour((128, 0, 0), LESION), colour((0, 128, 0), SECOND), colour((0, 0, 0), LESION)]
    root = tree(tmp_path, masks)
    data = open_dataset(root, group_duplicates=False)
    assert [int(sample.mask.sum()) for sample in data] == [LESION.sum(), SECOND.sum(), 0]
    assert "#008000, #800000 (colour): lesion where not black" in str(verify(root))
    only = ReadingOptions(mask_values=parse_values("#800000"))
    chosen = open_dataset(root, group_duplicates=False, options=only)
    assert [int(sample.mask.sum()) for sample in chosen] == [LESION.sum(), 0, 0]
    pale = [np.where(LESION[..., None], (253, 231, 37), (68, 1, 84)).astype(np.uint8)] * 3
    with pytest.raises(DataError, match=r"no black background.*--mask-values '#"):
        tree(tmp_path / "pale", pale) and open_dataset(tmp_path / "pale")


AMBIGUOUS = {
    "no zero": [np.where(each, 255, 100).astype(np.uint8) for each in TRUTH[:4]],
    "three levels": [np.where(LESION, 255, np.where(SECOND, 100, 0)).astype(np.uint8)] * 4,
    "two conventions": [LESION * np.uint8(1)] * 3
    + [cv2.GaussianBlur(LESION * np.uint8(255), (3, 3), 1.0)] * 3,
}


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_what_is_ambiguous_is_an_error_with_its_remedy(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tree(tmp_path / "data", AMBIGUOUS[kind])
    assert main(["verify", str(root)]) == 1
    assert "masks: " in (shown := capsys.readouterr().out) and "--mask-values 255" in shown
    for skip in (False, True):
        with pytest.raises(DataError, match="--mask-values 255"):
            open_dataset(root, skip_bad=skip)
        with pytest.raises(DataError, match="--mask-values 255"):
            _ = open_dataset(root, skip_bad=skip, group_duplicates=False)[0]
    values = "255" if kind != "two conventions" else "1,128,191,239,255"
    assert main(["verify", str(root), "--mask-values", values]) == 0
    shown = capsys.readouterr().out
    assert "lesion where " + values.replace(",", ", ") in shown
    if kind != "two conventions":
        options = ReadingOptions(mask_values=parse_values(values))
        for sample, mask in zip(open_dataset(root, options=options), AMBIGUOUS[kind], strict=True):
            assert np.array_equal(sample.mask, mask == 255)


def test_values_that_no_mask_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree(tmp_path / "data", labels(1, 2))
    assert main(["verify", str(root), "--mask-values", "7"]) == 1
    assert "no mask holds any of them; they hold 0, 1, 2 (uint8)" in capsys.readouterr().out
    assert main(["verify", str(root), "--mask-values", "red"]) == 2
    assert "--mask-values 'red'" in capsys.readouterr().err
    for text in ("", "1,", "#12", "#gggggg", "-1", "1e3"):
        with pytest.raises(UsageError, match="--mask-values"):
            parse_values(text)


def test_the_rule_does_not_depend_on_the_order(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    root = tree(tmp_path, [rng.choice(each, 1)[0] for each in (labels(1, 2), labels(1, 1))])
    files = sorted(root.glob("*_mask.png"))
    levels = [(mask.path, mask.levels) for mask in load_masks(files)]
    assert decide(levels) == decide(levels[::-1])


def test_a_mask_alone_is_read_by_its_own_values(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "m.png"), LESION * np.uint16(4095))
    found, notes = read_mask([tmp_path / "m.png"], LESION.shape)
    assert np.array_equal(found, LESION) and not notes
