"""The layouts: which pixels come out of the odd files, how damage is repaired, and what is
refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from intrasense_fast.data import (
    DataError,
    ImageError,
    open_dataset,
    read_dataset,
    read_image,
    read_mask,
)
from intrasense_fast.data.integrity import fault
from intrasense_fast.data.layouts.ddti import OutlineError, parse_outlines

Trees = Callable[[str, bool], tuple[Path, list]]
SQUARE = [{"x": 2, "y": 3}, {"x": 8, "y": 3}, {"x": 8, "y": 6}, {"x": 2, "y": 6}]


def grey(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)


@pytest.mark.parametrize(
    ("layout", "count"),
    [
        ("busi", 30),
        ("unext", 30),
        ("dataset-b", 30),
        ("ddti", 29),
        ("ddti-masks", 30),
        ("bus-bra", 30),
        ("generic", 30),
    ],
)
def test_every_sample_of_every_layout(layout: str, count: int, trees: Trees) -> None:
    data = open_dataset(trees(layout, False)[0])
    assert len(data) == count and data.layout == layout and layout in data.describe()
    for record, sample in zip(data.records, data, strict=True):
        assert sample.image.dtype == np.float32 and sample.image.ndim == 2
        assert sample.mask.dtype == np.uint8 and sample.mask.shape == sample.image.shape
        assert 0 <= sample.image.min() < sample.image.max() <= 1 and set(
            np.unique(sample.mask)
        ) <= {0, 1}
        assert (sample.name, sample.case, sample.group, sample.label) == (
            record.name,
            record.case,
            record.group,
            record.label,
        )
        assert np.allclose(sample.image * 255, grey(record.image), atol=1.0)
        if not record.regions:
            # JPEG masks ring by a few grey values, which a threshold in the middle does not see.
            truth = np.maximum.reduce(
                [np.resize(grey(mask), sample.mask.shape) > 127 for mask in record.masks]
            )
            if all(grey(mask).shape == sample.mask.shape for mask in record.masks):
                assert np.array_equal(sample.mask, truth)


def test_several_and_coloured_masks_of_busi(trees: Trees) -> None:
    root, _ = trees("busi", False)
    samples = {sample.name: sample for sample in open_dataset(root)}
    files = sorted((root / "benign").glob("benign (5)_mask*.png"))
    assert len(files) == 3
    masks = np.stack([grey(file) > 127 for file in files])
    assert (
        np.array_equal(samples["benign (5)"].mask, masks.any(axis=0))
        and masks.any(axis=0).sum() > masks[0].sum()
    )
    for name, channels in (("benign (2)", 4), ("benign (3)", 3)):
        stored = cv2.imread(str(root / "benign" / f"{name}_mask.png"), cv2.IMREAD_UNCHANGED)
        assert stored.shape[2] == channels and np.array_equal(
            samples[name].mask, stored[:, :, 0] > 127
        )
    assert not any(samples[f"normal ({i})"].mask.any() for i in range(1, 6))


def test_labels_cases_and_published_lists(trees: Trees) -> None:
    dataset_b = {
        record.name: record.label for record in open_dataset(trees("dataset-b", False)[0]).records
    }
    assert (
        dataset_b["000018"] == "malignant"
        and dataset_b["000001"] == "benign"
        and dataset_b["000295"] == "malignant"
    )
    bus_bra = {record.name: record for record in open_dataset(trees("bus-bra", False)[0]).records}
    assert (
        bus_bra["bus_0002-l"].case == bus_bra["bus_0002-r"].case == "2"
        and bus_bra["bus_0002-l"].label == "malignant"
    )
    unext = open_dataset(trees("unext", False)[0])
    assert {name: len(members) for name, members in unext.published.items()} == {
        "busi_train": 21,
        "busi_val": 10,
    }
    ddti = {record.name: record for record in open_dataset(trees("ddti", False)[0]).records}
    assert (ddti["2_2"].case, ddti["2_2"].label, ddti["4_1"].label) == (
        "2",
        "tirads-4a",
        "tirads-4a",
    )
    assert len(ddti["1_1"].regions) == 2 and "400_1" not in ddti and "6_2" not in ddti


def test_outlines_are_filled(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "7_1.jpg"), np.full((10, 12, 3), 90, np.uint8))
    lower = [{"x": point["x"], "y": point["y"] + 1} for point in SQUARE]
    svg = json.dumps([{"points": SQUARE, "regionType": "freehand"}, {"points": lower}])
    marks = f"<mark><image>1</image><svg>{svg}</svg></mark>"
    (tmp_path / "7.xml").write_text(f"<case><number>3</number><tirads>4a</tirads>{marks}</case>")
    (sample,) = open_dataset(tmp_path)
    expected = np.zeros((10, 12), np.uint8)
    expected[3:8, 2:9] = 1
    assert np.array_equal(sample.mask, expected) and (sample.case, sample.label) == (
        "7",
        "tirads-4a",
    )


WHOLE = json.dumps([{"points": SQUARE, "annotation": {}, "regionType": "freehand"}])
TWO = json.dumps([{"points": SQUARE, "annotation": {}, "regionType": "freehand"}] * 2)


def test_outlines_cut_anywhere() -> None:
    """Cut after the points of the last region: the same outline. Cut inside the points, or in a
    region begun: refused."""
    polygon = tuple((float(point["x"]), float(point["y"])) for point in SQUARE)
    for text, expected in ((WHOLE, [polygon]), (TWO, [polygon, polygon])):
        assert parse_outlines(text) == (expected, [])
        last, first = text.rindex("]", 0, -1), text.index("]")
        begun = text.rindex('{"points"')
        for cut in range(1, len(text)):
            if cut > last:
                assert parse_outlines(text[:cut]) == (
                    expected,
                    ["JSON cut after its last point: closed"],
                )
            elif cut <= first or begun < cut:
                with pytest.raises(OutlineError, match="JSON damaged at character"):
                    parse_outlines(text[:cut])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "no list of regions"),
        ('[{"regionType": "freehand"}]', "a region without points"),
        ('[{"points": [{"x": 1}]}]', "a region without points"),
        ('[{"points": [{"x": NaN, "y": 1}]}]', "not finite"),
        ('[{"points": [{"x": 1e9, "y": 1}]}]', "far outside"),
        ("nonsense", "JSON damaged at character 0"),
    ],
)
def test_outlines_that_cannot_be_used(text: str, message: str) -> None:
    with pytest.raises(OutlineError, match=message):
        parse_outlines(text)


def test_image_values(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    deep = rng.integers(0, 65536, (5, 6), np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    assert np.allclose(read_image(tmp_path / "deep.png"), deep / 65535, atol=1e-6)
    colour = rng.integers(0, 256, (5, 6, 4), np.uint8)
    cv2.imwrite(str(tmp_path / "colour.png"), colour)
    blue, green, red = (colour[..., i].astype(np.float64) for i in range(3))
    assert np.allclose(
        read_image(tmp_path / "colour.png"),
        (0.299 * red + 0.587 * green + 0.114 * blue) / 255,
        atol=1e-6,
    )
    dark = np.ones((4, 4), np.uint8)
    cv2.imwrite(str(tmp_path / "dark.png"), dark)
    assert np.allclose(read_image(tmp_path / "dark.png"), 1 / 255), (
        "never stretched by the image's own maximum"
    )
    mask, notes = read_mask([tmp_path / "dark.png"], (4, 4))
    assert mask.all() and not notes, "a mask of 0 and 1"
    with pytest.raises(ImageError, match="use the mask drawn on this image"):
        read_mask([tmp_path / "dark.png"], (4, 9))
    near, notes = read_mask([tmp_path / "dark.png"], (4, 6))
    assert near.shape == (4, 6) and "resized with nearest neighbour" in notes[0]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tiff"])
def test_a_file_cut_anywhere_is_refused(suffix: str, tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = cv2.GaussianBlur(rng.integers(0, 256, (40, 48), np.uint8), (0, 0), 2)
    path = tmp_path / f"a{suffix}"
    content = cv2.imencode(suffix, image)[1].tobytes()
    path.write_bytes(content)
    assert np.allclose(read_image(path) * 255, image, atol=40 if suffix == ".jpg" else 1e-3)
    for cut in [1, 5, *rng.integers(10, len(content) - 12, 25).tolist()]:
        path.write_bytes(content[:cut])
        with pytest.raises(ImageError, match=r"truncated|corrupt|not a PNG|cannot be decoded"):
            read_image(path)


def test_a_large_jpeg_is_checked_without_a_word_from_the_decoder(
    seed: int, capfd: pytest.CaptureFixture[str]
) -> None:
    image = cv2.GaussianBlur(
        np.random.default_rng(seed).integers(0, 256, (300, 400, 3), np.uint8), (0, 0), 1
    )
    for pixels, options in (
        (image, ()),
        (image[..., 0], ()),
        (image, (cv2.IMWRITE_JPEG_RST_INTERVAL, 5)),
    ):
        content = cv2.imencode(".jpg", pixels, options)[1].tobytes()
        assert fault(content) is None and fault(content + b"words behind the end") is None
        assert capfd.readouterr().err == ""
        assert "truncated" in str(fault(content[: len(content) // 4] + b"\xff\xd9"))
        capfd.readouterr()


def test_a_progressive_jpeg_is_checked_without_a_word_from_the_decoder(
    seed: int, capfd: pytest.CaptureFixture[str]
) -> None:
    image = cv2.GaussianBlur(
        np.random.default_rng(seed).integers(0, 256, (90, 120, 3), np.uint8), (0, 0), 1
    )
    for pixels in (image, image[..., 0]):
        content = cv2.imencode(".jpg", pixels, (cv2.IMWRITE_JPEG_PROGRESSIVE, 1))[1].tobytes()
        # Of the scans cut below OpenCV's decoder may speak.
        capfd.readouterr()
        assert fault(content) is None and fault(content + b"words behind the end") is None
        assert capfd.readouterr().err == ""
        # A scan ends at the next marker: 0xFF that no 0x00 follows.
        ends = [
            re.compile(b"\xff[^\x00]").search(content, scan.end())
            for scan in re.finditer(b"\xff\xda", content)
        ]
        starts = [scan.end() + 10 for scan in re.finditer(b"\xff\xda", content)]
        assert len(starts) > 3
        for start, end in (
            (start, match.start()) for start, match in zip(starts, ends, strict=True) if match
        ):
            middle = (start + end) // 2
            assert "truncated" in str(fault(content[:middle] + content[end:])), (
                "a scan cut in its middle"
            )


def test_other_oddities_have_an_outcome(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    image, mask = np.full((20, 20), 99, np.uint8), np.zeros((20, 20), np.uint8)
    mask[5:9, 5:9] = 255
    for name, marked in (("a", mask), ("inverted", np.full_like(mask, 255)), ("faint", mask // 4)):
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), image)
        cv2.imwrite(str(tmp_path / "masks" / f"{name}.png"), marked)
    cv2.imwrite(str(tmp_path / "images" / "twice.png"), image)
    cv2.imwrite(str(tmp_path / "images" / "twice.jpg"), image)
    cv2.imwrite(str(tmp_path / "masks" / "twice.png"), mask)
    (tmp_path / "images" / "scan.webp").write_bytes(b"RIFF")
    data = read_dataset(tmp_path)
    problems = {(Path(p.file).name, p.level): p.message for p in (*data.problems, *data.check())}
    assert (
        "same name as" in problems["twice.png", "error"]
        and "convert it to PNG" in problems["scan.webp", "error"]
    )
    assert "is it inverted?" in problems["inverted.png", "warning"]
    assert "none above 127, which is lesion in this data set" in problems["faint.png", "error"]
    with pytest.raises(DataError, match=r"2 files .*\n.*twice.*same name") as caught:
        open_dataset(tmp_path)
    assert len(caught.value.problems) == 2
    kept = open_dataset(tmp_path, skip_bad=True, group_duplicates=False)
    assert any("left out: same name" in problem.message for problem in kept.problems)


def outlined(*regions: list[tuple[int, int]]) -> str:
    """A case of one image, each region in a mark of its own."""
    marks = []
    for region in regions:
        points = [{"x": x, "y": y} for x, y in region]
        svg = json.dumps([{"points": points, "annotation": {}, "regionType": "freehand"}])
        marks.append(f"<mark><image>1</image><svg>{svg}</svg></mark>")
    return f"<case><number>1</number>{''.join(marks)}</case>"


def test_an_outline_within_another_or_given_twice_adds_nothing(tmp_path: Path) -> None:
    outer = [(10, 10), (49, 10), (49, 39), (10, 39)]
    inner = [(20, 15), (29, 15), (29, 24), (20, 24)]
    beside = [(60, 10), (69, 10), (69, 19), (60, 19)]
    cv2.imwrite(str(tmp_path / "1_1.jpg"), np.full((60, 80), 90, np.uint8))
    square = np.zeros((60, 80), np.uint8)
    square[10:40, 10:50] = 1
    both = square.copy()
    both[10:20, 60:70] = 1
    for regions, expected in (
        ((outer,), square),
        ((outer, inner), square),
        ((inner, outer), square),
        ((outer, outer), square),
        ((outer, inner, outer, beside), both),
    ):
        (tmp_path / "1.xml").write_text(outlined(*regions))
        (sample,) = open_dataset(tmp_path, group_duplicates=False)
        assert np.array_equal(sample.mask, expected)
