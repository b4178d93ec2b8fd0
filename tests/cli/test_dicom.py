"""`predict` and `evaluate` on DICOM files: grids, millimetres, segmentations, clean-up."""

import csv
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage

from intrasense_fast.cli import main
from intrasense_fast.data.clips import open_clip
from intrasense_fast.evaluation import evaluate_data
from intrasense_fast.inference import Segmenter
from intrasense_fast.measuring.components import CleanUp
from intrasense_fast.measuring.lesion import measure
from intrasense_fast.prediction import predict_files
from intrasense_fast.report.dicom_segmentation import (
    Algorithm,
    SegmentationError,
    write_segmentation,
)
from tests.support.checkpoints import tiny_checkpoint
from tests.support.dicom import (
    PATIENT,
    PATIENT_ID,
    highdicom,
    pydicom,
    scan_region,
    shipped,
    write_dicom,
)
from tests.support.predictions import rows

DIGEST = "ab" * 32


class Bright(torch.nn.Module):
    """Says that bright pixels are lesion."""

    def __init__(self) -> None:
        super().__init__()
        self.architecture, self.config = "stub", {"in_channels": 1, "num_classes": 1}
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - 0.5) * 20 * self.weight


def bright() -> Segmenter:
    return Segmenter(Bright(), 32, None, DIGEST)


def scan(seed: int, shape: tuple[int, int] = (64, 96)) -> np.ndarray:
    """A dark frame with a scan region of 32 x 32 that holds a few bright spots, and a bright
    inscription beside it."""
    generator = np.random.default_rng(seed)
    pixels = np.full(shape, 30, np.uint8)
    pixels[2:6, 60:90] = 255
    for _ in range(3):
        y, x = generator.integers(14, 34, 2)
        pixels[y : y + 6, x : x + 4] = 230
    return pixels


REGION = (8, 10, 39, 41)


def mask_of(out: Path, row: dict[str, str]) -> np.ndarray:
    return cv2.imread(str(out / row["mask"]), cv2.IMREAD_UNCHANGED) > 0


def test_a_mask_lies_on_the_whole_frame_and_is_measured_in_millimetres(
    tmp_path: Path, seed: int
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    pixels = scan(seed)
    write_dicom(source / "1.2.840.7", pixels, [scan_region(REGION, (0.012, 0.01))])
    cv2.imwrite(str(source / "plain.png"), pixels)
    predicted = predict_files(source, out, bright)
    assert predicted.images == 2 and not predicted.failures
    table = {row["image"]: row for row in rows(out)}
    row = table["1.2.840.7"]
    assert row["mask"] == "1.2.840.7_mask.png"
    mask = mask_of(out, row)
    # The network saw the region at its own size: bright pixels are lesion, the inscription is not.
    wanted = pixels > 128
    wanted[:10] = False
    assert mask.shape == pixels.shape and np.array_equal(mask, wanted)
    measured = measure(mask, (0.12, 0.1))
    assert row["unit"] == "mm" and int(row["components"]) == measured.components
    assert float(row["lesion_area"]) == pytest.approx(measured.area)
    assert float(row["longest_axis"]) == pytest.approx(measured.longest_axis)
    assert float(row["cross_axis"]) == pytest.approx(measured.cross_axis)
    assert float(row["taller_than_wide"]) == pytest.approx(measured.taller_than_wide)
    assert int(row["area"]) == mask.sum()
    assert table["plain.png"]["unit"] == "px"
    # Doubt is of what the network saw, as in `evaluate`.
    cut = tmp_path / "cut.png"
    cv2.imwrite(str(cut), pixels[10:42, 8:40])
    predict_files(cut, tmp_path / "cut", bright)
    assert row["doubt"] == rows(tmp_path / "cut")[0]["doubt"]


def test_a_clip_is_segmented_frame_by_frame(tmp_path: Path, seed: int) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    pixels = np.stack([scan(seed + number) for number in range(3)])
    tags = {"FrameTime": 50}
    clip = write_dicom(source / "a.dcm", pixels, [scan_region(REGION)], **tags)
    with open_clip(clip) as opened:
        assert opened.rate == 20 and opened.length == 3 and opened.shape == (64, 96)
    predicted = predict_files(source, out, bright, contours=True)
    assert (predicted.images, predicted.frames) == (1, 3) and not predicted.failures
    table = rows(out)
    assert [row["image"] for row in table] == [f"a.dcm#000{number}" for number in (1, 2, 3)]
    for row, frame in zip(table, pixels, strict=True):
        wanted = frame > 128
        wanted[:10] = False
        assert np.array_equal(mask_of(out, row), wanted) and row["unit"] == "mm"
    assert len(json.loads((out / "contours.json").read_text())["images"]) == 3
    clip.write_bytes(clip.read_bytes()[:-200])
    failures = predict_files(source, tmp_path / "cut", bright).failures
    assert len(failures) == 1 and "bytes of its pixels are there" in failures[0]


def test_what_is_to_be_said_of_a_clip_is_said_once(tmp_path: Path, seed: int) -> None:
    # A region of the scanner's larger picture.
    region = scan_region((0, 0, 900, 700))
    write_dicom(tmp_path / "in" / "a.dcm", np.stack([scan(seed)] * 2), [region])
    (remark,) = predict_files(tmp_path / "in", tmp_path / "out", bright).remarks
    assert remark.startswith("a.dcm: its scan region") and "does not fit the 96 x 64" in remark
    messages = [row["message"] for row in rows(tmp_path / "out")]
    assert messages == [remark.removeprefix("a.dcm: ")] * 2


def test_spacing_is_for_pictures_that_do_not_say_it(tmp_path: Path, seed: int) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    write_dicom(source / "a.dcm", scan(seed), [scan_region(REGION, (0.012, 0.01))])
    cv2.imwrite(str(source / "b.png"), scan(seed)[10:42, 8:40])
    checkpoint = tiny_checkpoint(tmp_path / "best")
    flags = ["predict", "--checkpoint", str(checkpoint), str(source), "--out", str(out)]
    assert main([*flags, "--spacing", "0.5,0.25"]) == 0
    table = {row["image"]: row for row in rows(out)}
    for name, spacing in (("a.dcm", (0.12, 0.1)), ("b.png", (0.5, 0.25))):
        measured = measure(mask_of(out, table[name]), spacing)
        if measured.components:
            assert float(table[name]["lesion_area"]) == pytest.approx(measured.area)
        assert table[name]["unit"] == "mm"
    assert json.loads((out / "settings.json").read_text())["spacing"] == [0.5, 0.25]


@pytest.mark.parametrize("spacing", ["0", "x", "1,2,3", "-1", "nan", "1e9"])
def test_an_impossible_spacing_is_refused(
    spacing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--checkpoint", str(tmp_path), str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["predict", *flags, f"--spacing={spacing}"]) == 2
    assert "millimetres a pixel are needed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "empty"),
    [("examples_rgb_color.dcm", False), ("ExplVR_BigEnd.dcm", True), ("SC_rgb_rle.dcm", False)],
)
def test_a_segmentation_opens_elsewhere_and_round_trips(
    name: str, empty: bool, tmp_path: Path, seed: int
) -> None:
    source, path = shipped(name), tmp_path / "a_seg.dcm"
    data = pydicom.dcmread(source)
    generator = np.random.default_rng(seed)
    mask = generator.random((data.Rows, data.Columns)) > (2 if empty else 0.7)
    write_segmentation(path, source, mask, Algorithm("intrasense", DIGEST, 0.5))
    read = pydicom.dcmread(path)
    assert read.SOPClassUID == pydicom.uid.SegmentationStorage
    assert read.SegmentationType == "BINARY" and read.BitsAllocated == 1
    assert np.array_equal(np.squeeze(read.pixel_array), mask)
    reference = read.ReferencedSeriesSequence[0]
    assert reference.SeriesInstanceUID == data.SeriesInstanceUID
    (instance,) = reference.ReferencedInstanceSequence
    assert instance.ReferencedSOPInstanceUID == data.SOPInstanceUID
    assert read.StudyInstanceUID == data.StudyInstanceUID
    assert read.get("FrameOfReferenceUID") == data.get("FrameOfReferenceUID")
    (segment,) = read.SegmentSequence
    assert segment.SegmentLabel == "Lesion" and segment.SegmentAlgorithmType == "AUTOMATIC"
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "52988006"
    assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert DIGEST in algorithm.AlgorithmParameters and algorithm.AlgorithmVersion
    other = highdicom.seg.segread(path)
    pixels = other.get_pixels_by_source_instance([data.SOPInstanceUID])
    assert np.array_equal(pixels[0, ..., 0], mask)


def test_segmentations_are_written_with_their_masks_and_taken_up(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for name in ("a.dcm", "b.dcm"):
        write_dicom(source / name, scan(seed), [scan_region(REGION)])
    cv2.imwrite(str(source / "c.png"), scan(seed))
    predict_files(source, out, bright, dicom_seg=True, contours=True)
    assert "1 inputs are no DICOM files of one frame" in capsys.readouterr().out
    assert not (out / "c_seg.dcm").exists()
    for row in rows(out)[:2]:
        read = pydicom.dcmread(out / row["image"].replace(".dcm", "_seg.dcm"))
        assert np.array_equal(np.squeeze(read.pixel_array), mask_of(out, row))
    record = json.loads((out / "contours.json").read_text())
    assert [image["file_name"] for image in record["images"]] == ["a.dcm", "b.dcm", "c.png"]
    assert sum(each["area"] for each in record["annotations"]) == sum(
        int(row["area"]) for row in rows(out)
    )
    kept = (out / "a_seg.dcm").read_bytes()
    (out / "b_seg.dcm").unlink()
    again = predict_files(source, out, bright, dicom_seg=True, contours=True, go_on=True)
    assert (again.written, again.kept) == (1, 2) and (out / "b_seg.dcm").exists()
    assert (out / "a_seg.dcm").read_bytes() == kept
    assert json.loads((out / "contours.json").read_text())["images"] != []
    with pytest.raises(ValueError, match="was made with --dicom-seg true, now false"):
        predict_files(source, out, bright, contours=True, go_on=True)
    # The patient stands in the segmentation alone, as in its source.
    for path in out.rglob("*"):
        if path.is_file() and path.suffix != ".dcm":
            content = path.read_bytes()
            assert PATIENT.encode() not in content and PATIENT_ID.encode() not in content


def test_a_table_without_measurements_is_not_gone_on_with(tmp_path: Path, seed: int) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), scan(seed))
    out = tmp_path / "out"
    predict_files(tmp_path / "a.png", out, bright)
    kept = [{k: v for k, v in row.items() if k != "lesion_area"} for row in rows(out)]
    with open(out / "predictions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, kept[0])
        writer.writeheader()
        writer.writerows(kept)
    with pytest.raises(ValueError, match="without the columns lesion_area"):
        predict_files(tmp_path / "a.png", out, bright, go_on=True)


def test_a_segmentation_without_its_source_is_refused(tmp_path: Path, seed: int) -> None:
    path, out = tmp_path / "a.dcm", tmp_path / "out"
    cv2.imwrite(str(tmp_path / "a.png"), scan(seed))
    with pytest.raises(ValueError, match="none of the inputs is a DICOM file"):
        predict_files(tmp_path / "a.png", out, bright, dicom_seg=True)
    assert not out.exists()
    mask, algorithm = np.zeros((64, 96), bool), Algorithm("stub", DIGEST, 0.5)
    target = tmp_path / "a_seg.dcm"
    with pytest.raises(SegmentationError, match="its source cannot be read"):
        write_segmentation(target, path, mask, algorithm)
    write_dicom(path, scan(seed))
    with pytest.raises(SegmentationError, match="no single frame of 96 x 9"):
        write_segmentation(target, path, mask[:9], algorithm)
    data = pydicom.dcmread(path)
    del data.StudyInstanceUID
    data.save_as(path)
    with pytest.raises(SegmentationError, match="no StudyInstanceUID"):
        write_segmentation(target, path, mask, algorithm)
    predicted = predict_files(path, out, bright, dicom_seg=True)
    assert "no StudyInstanceUID" in predicted.failures[0]
    assert rows(out)[0]["status"] == "failed" and not (out / "a_seg.dcm").exists()
    assert not target.exists()


def test_a_source_that_goes_while_it_is_segmented_is_a_failure(tmp_path: Path, seed: int) -> None:
    path = write_dicom(tmp_path / "a.dcm", scan(seed))

    class Removing(Bright):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            path.unlink(missing_ok=True)
            return super().forward(x)

    network = Segmenter(Removing(), 32, None, DIGEST)
    predicted = predict_files(path, tmp_path / "out", lambda: network, dicom_seg=True)
    assert "its source cannot be read (No such file or directory)" in predicted.failures[0]
    assert not (tmp_path / "out" / "a_seg.dcm").exists()


def test_a_missing_highdicom_is_named(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dicom(tmp_path / "a.dcm", scan(seed))
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ValueError, match=r"needs the package highdicom: pip install"):
        predict_files(tmp_path / "a.dcm", tmp_path / "out", bright, dicom_seg=True)
    assert not (tmp_path / "out").exists()


def test_clean_up_is_off_until_asked_for(tmp_path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(generator.normal(size=(32, 32)), 1.5)
    cv2.imwrite(str(tmp_path / "a.png"), ((field > 0.1) * 255).astype(np.uint8))
    clean_up = CleanUp(fill_holes=True, min_area=9, keep_largest=True)
    predict_files(tmp_path / "a.png", tmp_path / "raw", bright)
    predict_files(tmp_path / "a.png", tmp_path / "clean", bright, clean_up=clean_up)
    raw, clean = (mask_of(tmp_path / out, rows(tmp_path / out)[0]) for out in ("raw", "clean"))
    assert np.array_equal(raw, field > 0.1)
    assert np.array_equal(clean, clean_up(raw)) and not np.array_equal(raw, clean)
    with pytest.raises(ValueError, match="--keep-largest"):
        predict_files(tmp_path / "a.png", tmp_path / "clean", bright, go_on=True)


def data_set(root: Path, seed: int, dicom: int) -> Path:
    for number in range(3):
        pixels = scan(seed + number)
        truth = np.zeros_like(pixels)
        truth[15:30, 15:30] = 255
        if number < dicom:
            write_dicom(root / f"{number}.dcm", pixels, [scan_region(REGION, (0.02, 0.01))])
        else:
            root.mkdir(exist_ok=True)
            cv2.imwrite(str(root / f"{number}.png"), pixels)
        cv2.imwrite(str(root / f"{number}_mask.png"), truth)
    return root


@pytest.mark.parametrize(
    "dicom",
    [pytest.param(3, marks=pytest.mark.extended), 2, pytest.param(0, marks=pytest.mark.extended)],
)
def test_evaluate_says_its_unit_and_never_mixes(dicom: int, tmp_path: Path, seed: int) -> None:
    data, out = data_set(tmp_path / "data", seed, dicom), tmp_path / "out"
    clean_up = CleanUp(keep_largest=True)
    evaluated = evaluate_data(str(data), str(tmp_path / "best"), out, bright, clean_up=clean_up)
    with open(out / "per_image.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["unit"] for row in table] == ["mm"] * dicom + ["px"] * (3 - dicom)
    summary = json.loads((out / "summary.json").read_text())
    if dicom == 2:
        assert summary["metrics"]["hd95"]["n"] == 0
        assert "HD95 and ASSD are 2 in mm and 1 in px" in evaluated.table
    else:
        unit = "mm" if dicom else "px"
        assert f"HD95 ({unit})" in evaluated.table
        mean = np.mean([float(row["hd95"]) for row in table])
        assert summary["metrics"]["hd95"]["mean"] == pytest.approx(mean)
    before, after = (np.mean([float(r[key]) for r in table]) for key in ("dice_before", "dice"))
    said = f"mean Dice {before:.4f} before, {after:.4f} after, over 3 images"
    assert f"Clean-up (--keep-largest): {said}" in evaluated.table
    assert summary["clean_up"]["dice_before"] == pytest.approx(before)
