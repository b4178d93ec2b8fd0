"""Metrics against scikit-learn, scipy (brute-force distances) and cases worked out by hand."""

import itertools
import json
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.distance import cdist
from sklearn import metrics as sklearn_metrics

from intrasense_fast.metrics import COUNTS, METRICS, image_metrics, summarize

Mask = NDArray[np.bool_]
OVERLAPS = ("dice", "jaccard", "recall", "precision", "boundary_iou")


def surface_points(mask: Mask) -> NDArray[np.int64]:
    """scipy's erosion with everything outside the image taken as background."""
    return np.argwhere(
        mask
        & ~ndimage.binary_erosion(mask, ndimage.generate_binary_structure(2, 1), border_value=0)
    )


def pooled_distances(p: Mask, t: Mask) -> NDArray[np.float64]:
    table = cdist(surface_points(p), surface_points(t))
    return np.concatenate([table.min(1), table.min(0)])


def band(mask: Mask) -> Mask:
    """Pixels of the mask within chessboard distance d of a pixel that is not in it, the frame
    around the image included."""
    width = max(1, round(0.02 * math.hypot(*mask.shape)))
    framed = np.pad(mask, 1)
    return mask & (ndimage.distance_transform_cdt(framed, "chessboard")[1:-1, 1:-1] <= width)


def random_mask(generator: np.random.Generator, shape: tuple[int, int]) -> Mask:
    """A blob or two, now and then noise: never empty and never full."""
    noise = generator.normal(size=shape)
    smooth = ndimage.gaussian_filter(noise, generator.choice([0, 1.5, 4]))
    mask = smooth > np.quantile(smooth, generator.uniform(0.05, 0.95))
    mask.flat[generator.integers(mask.size)] = True
    mask.flat[generator.integers(mask.size)] = False
    if not mask.any():
        mask.flat[0] = True
    return mask


def test_agrees_with_sklearn_and_brute_force(seed: int) -> None:
    generator = np.random.default_rng(seed)
    for _ in range(40):
        shape = tuple(generator.integers(3, 90, size=2))
        p, t = random_mask(generator, shape), random_mask(generator, shape)
        row = image_metrics(p, t)
        a, b = t.ravel(), p.ravel()
        distances = pooled_distances(p, t)
        expected = {
            "dice": sklearn_metrics.f1_score(a, b, zero_division=0),
            "jaccard": sklearn_metrics.jaccard_score(a, b, zero_division=0),
            "accuracy": sklearn_metrics.accuracy_score(a, b),
            "recall": sklearn_metrics.recall_score(a, b, zero_division=0),
            "precision": sklearn_metrics.precision_score(a, b, zero_division=0),
            "specificity": sklearn_metrics.recall_score(~a, ~b, zero_division=0),
            "hd95": np.percentile(distances, 95),
            "assd": distances.mean(),
            "boundary_iou": (band(p) & band(t)).sum() / (band(p) | band(t)).sum(),
        }
        assert set(row) == {*METRICS, *COUNTS} == {*expected, *COUNTS}
        assert {name: row[name] for name in METRICS} == pytest.approx(
            expected, rel=1e-12, abs=1e-12
        )
        tn, fp, fn, tp = sklearn_metrics.confusion_matrix(a, b, labels=[False, True]).ravel()
        assert [row[name] for name in COUNTS] == [tp, fp, fn, tn]


def test_properties_of_random_masks(seed: int) -> None:
    generator = np.random.default_rng(seed)
    for _ in range(40):
        shape = tuple(generator.integers(2, 60, size=2))
        p, t = random_mask(generator, shape), random_mask(generator, shape)
        row, swapped, same = image_metrics(p, t), image_metrics(t, p), image_metrics(t, t)
        assert row["dice"] == pytest.approx(2 * row["jaccard"] / (1 + row["jaccard"]))
        for name in ("dice", "jaccard", "accuracy", "hd95", "assd", "boundary_iou"):
            assert row[name] == pytest.approx(swapped[name], rel=1e-12)
        assert row["recall"] == swapped["precision"]
        assert [same[name] for name in METRICS] == [1, 1, 1, 1, 1, 1, 0, 0, 1]
        for change in (np.flipud, np.fliplr, np.transpose):
            assert image_metrics(change(p), change(t)) == pytest.approx(row, rel=1e-12)
        shifted = [
            image_metrics(np.pad(p, ((2, 30), (7, 11))), np.pad(t, ((2, 30), (7, 11))))[name]
            for name in ("dice", "recall")
        ]
        assert shifted == [row["dice"], row["recall"]]


def test_squares_worked_out_by_hand() -> None:
    target = np.zeros((12, 16), bool)
    target[2:6, 2:6] = True
    prediction = np.roll(target, 3, axis=1)
    row = image_metrics(prediction, target)
    assert [row[name] for name in COUNTS] == [4, 12, 12, 164]
    assert (
        row["dice"] == 0.25
        and row["jaccard"] == 4 / 28
        and row["recall"] == row["precision"] == 0.25
    )
    assert row["accuracy"] == 168 / 192 and row["specificity"] == 164 / 176
    # The target's 12 surface pixels: its columns 2..5 lie 3, 2, 1, 0 from the prediction's left
    # side; the rows in between count at the two outer columns only. The other direction is its
    # mirror image.
    one_way = [3] * 4 + [2] * 2 + [1] * 2 + [0] * 4
    assert row["assd"] == pytest.approx(np.mean(one_way)) and row["hd95"] == 3
    # d = round(0.02 * 20) is 0, so one pixel: the bands are the rims, and share the four
    # corner-side pixels of one column.
    assert row["boundary_iou"] == 4 / 20


def test_one_pixel_each() -> None:
    p, t = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    p[1, 2], t[4, 6] = True, True
    row = image_metrics(p, t)
    assert row["hd95"] == row["assd"] == 5 and row["dice"] == row["boundary_iou"] == 0
    assert image_metrics(np.ones((1, 1)), np.ones((1, 1)))["dice"] == 1


def test_full_image() -> None:
    full, inner = np.ones((20, 30), bool), np.zeros((20, 30), bool)
    inner[1:-1, 1:-1] = True
    row = image_metrics(full, inner)
    assert row["recall"] == 1 and row["specificity"] == 0
    distances = pooled_distances(full, inner)
    assert row["hd95"] == pytest.approx(np.percentile(distances, 95)) and row[
        "assd"
    ] == pytest.approx(distances.mean())
    row = image_metrics(inner, full)
    assert math.isnan(row["specificity"]) and row["precision"] == 1
    assert image_metrics(full, full, empty="one")["specificity"] == 1


@pytest.mark.parametrize(
    ("empty", "overlap", "distance"), [("nan", math.nan, math.nan), ("one", 1, 0)]
)
def test_both_empty(empty: str, overlap: float, distance: float) -> None:
    row = image_metrics(np.zeros((6, 5)), np.zeros((6, 5)), empty=empty)
    assert [row[name] for name in OVERLAPS] == pytest.approx([overlap] * 5, nan_ok=True)
    assert [row["hd95"], row["assd"]] == pytest.approx([distance] * 2, nan_ok=True)
    assert row["accuracy"] == row["specificity"] == 1 and row["tn"] == 30


@pytest.mark.parametrize("empty", ["nan", "one"])
@pytest.mark.parametrize("empty_prediction", [True, False])
def test_one_side_empty(empty: str, empty_prediction: bool) -> None:
    nothing, something = np.zeros((6, 5), bool), np.zeros((6, 5), bool)
    something[2:4, 1:4] = True
    row = image_metrics(
        *((nothing, something) if empty_prediction else (something, nothing)), empty=empty
    )
    assert [row[name] for name in OVERLAPS] == [0] * 5
    assert math.isnan(row["hd95"]) and math.isnan(row["assd"])
    assert row["accuracy"] == 24 / 30 and row["specificity"] == (1 if empty_prediction else 24 / 30)


def test_kinds_of_masks_agree() -> None:
    t = np.eye(8, dtype=bool)
    expected = image_metrics(t, np.roll(t, 1))
    for kind in (np.uint8, np.int64, np.float32):
        assert image_metrics(t.astype(kind), np.roll(t, 1).astype(kind)) == expected
    assert image_metrics(t.T[::-1], np.roll(t, 1).T[::-1])["dice"] == expected["dice"]


def test_bad_masks() -> None:
    mask = np.ones((4, 4), bool)
    with pytest.raises(
        ValueError, match=r"target must be bool or hold 0 and 1 only, got 255; threshold it first"
    ):
        image_metrics(mask, mask.astype(np.uint8) * 255)
    with pytest.raises(ValueError, match=r"prediction must be bool or hold 0 and 1 only, got nan"):
        image_metrics(np.full((4, 4), np.nan), mask)
    with pytest.raises(
        ValueError,
        match=r"prediction must be one image \(H, W\) with pixels, got shape \(1, 4, 4\)",
    ):
        image_metrics(mask[None], mask)
    with pytest.raises(ValueError, match=r"got shape \(0, 4\)"):
        image_metrics(mask[:0], mask)
    with pytest.raises(ValueError, match=r"prediction is \(3, 4\) and target \(4, 4\)"):
        image_metrics(mask[:3], mask)
    with pytest.raises(ValueError, match='empty must be "nan" or "one", got \'zero\''):
        image_metrics(mask, mask, empty="zero")


def rows_of_six() -> list[dict[str, float]]:
    """Two good lesions, one missed beside, one missed empty, one normal image clean and one with
    two false pixels."""
    t, far, nothing = (np.zeros((10, 10), bool) for _ in range(3))
    t[2:6, 2:6] = True
    half = t.copy()
    half[2:4] = False
    far[8:, 8:] = True
    few = nothing.copy()
    few[0, :2] = True
    pairs = [(t, t), (half, t), (far, t), (nothing, t), (nothing, nothing), (few, nothing)]
    return [image_metrics(p, y) for p, y in pairs]


def test_summary_by_hand() -> None:
    summary = summarize(rows_of_six())
    dice = summary.metrics["dice"]
    values = [1, 2 / 3, 0, 0]
    assert (dice.n, dice.nan, dice.mean, dice.median) == (
        4,
        0,
        pytest.approx(np.mean(values)),
        pytest.approx(1 / 3),
    )
    assert dice.sd == pytest.approx(np.std(values, ddof=1))
    assert (summary.metrics["hd95"].n, summary.metrics["hd95"].nan) == (3, 1)
    # tp = 16 + 8, fp = 4, fn = 8 + 16 + 16, of 400 pixels
    assert summary.pooled == pytest.approx(
        {
            "dice": 48 / 92,
            "jaccard": 24 / 68,
            "accuracy": 356 / 400,
            "recall": 24 / 64,
            "precision": 24 / 28,
            "specificity": 332 / 336,
        }
    )
    assert (summary.images, summary.lesion_images, summary.normal_images) == (6, 4, 2)
    assert (summary.missed_lesions, summary.one_side_empty) == (2, 1)
    assert (summary.false_positive_rate, summary.false_positive_area) == (0.5, pytest.approx(0.01))


def test_summary_ignores_order_and_reads_text(seed: int) -> None:
    rows = rows_of_six()
    expected = summarize(rows).as_dict()
    as_text = [{"name": "a", **{key: str(value) for key, value in row.items()}} for row in rows]
    for order in itertools.islice(itertools.permutations(as_text), seed % 100, seed % 100 + 5):
        assert json.dumps(summarize(order).as_dict(), allow_nan=False)
        assert summarize(order).as_dict()["pooled"] == expected["pooled"]
        assert summarize(order).metrics["dice"].mean == pytest.approx(
            expected["metrics"]["dice"]["mean"]
        )


def test_summary_without_lesions_or_rows() -> None:
    for empty in ("nan", "one"):
        summary = summarize(rows_of_six()[4:], empty=empty)
        assert (
            summary.lesion_images == 0
            and summary.metrics["dice"].n == 0
            and math.isnan(summary.pooled["dice"])
        )
        assert summary.empty == empty
    nothing = summarize([])
    assert nothing.images == 0 and math.isnan(nothing.false_positive_rate)
    single = summarize(rows_of_six()[:1]).metrics["dice"]
    assert single.mean == single.median == 1 and math.isnan(single.sd)
    assert summarize(rows_of_six()[:1]).as_dict()["metrics"]["dice"]["sd"] is None


def test_summary_of_bad_rows() -> None:
    row = rows_of_six()[0]
    with pytest.raises(ValueError, match="row 1 has no column 'fn'"):
        summarize([row, {key: value for key, value in row.items() if key != "fn"}])
    with pytest.raises(ValueError, match="row 0 has dice = '', which is no number"):
        summarize([{**row, "dice": ""}])
    with pytest.raises(ValueError, match="empty must be"):
        summarize([row], empty="skip")
