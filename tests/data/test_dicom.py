"""DICOM files through the one way in: real ultrasound that pydicom ships, small ones made here, and
everything that can be wrong with them."""

import logging
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from intrasense_fast.cli import main
from intrasense_fast.data.images import (
    ImageError,
    decode_frames,
    decode_image,
    frame_count,
    pixel_count,
    read_image,
)
from intrasense_fast.data.inputs import list_inputs
from intrasense_fast.data.layouts import read_dataset
from intrasense_fast.data.listing import is_picture, without_ending
from intrasense_fast.data.region import Region
from tests.support.dicom import (
    PATIENT,
    PATIENT_ID,
    pydicom,
    scan_region,
    shipped,
    write_dicom,
)

ULTRASOUND = ("examples_rgb_color.dcm", "examples_jpeg2k.dcm", "ExplVR_BigEnd.dcm")


def noise(seed: int, shape: tuple[int, ...], largest: int = 255) -> np.ndarray:
    dtype = np.uint8 if largest <= 255 else np.uint16
    return np.random.default_rng(seed).integers(0, largest + 1, shape).astype(dtype)


@pytest.mark.parametrize("name", ULTRASOUND)
def test_real_ultrasound_is_read_as_pydicom_reads_it(name: str) -> None:
    path = shipped(name)
    data = pydicom.dcmread(path)
    decoded = decode_image(path)
    assert decoded.pixels.shape == (data.Rows, data.Columns, 3)
    assert np.array_equal(decoded.pixels, data.pixel_array)
    assert decoded.mode == "DICOM RGB" and decoded.spacing is None
    grey = read_image(path)
    assert grey.dtype == np.float32 and grey.shape == (data.Rows, data.Columns)
    assert 0 <= grey.min() < grey.max() <= 1
    assert pixel_count(path) == data.Rows * data.Columns and frame_count(path) == 1


def test_a_real_clip_is_read_frame_by_frame() -> None:
    path = shipped("examples_ybr_color.dcm")
    assert frame_count(path) == 30
    frames = decode_frames(path)
    wanted = pydicom.dcmread(path).pixel_array
    for _, frame in zip(range(3), frames, strict=False):
        assert frame.pixels.shape == (240, 320, 3)
        # Its regions are of the scanner's larger picture.
        assert frame.region is None and "does not fit the 320 x 240" in frame.note
    assert len(list(frames)) == 27
    assert np.array_equal(next(decode_frames(path)).pixels, wanted[0])
    with pytest.raises(ImageError, match="a DICOM clip of 30 frames, where one picture"):
        decode_image(path)


def test_a_real_palette_is_coloured() -> None:
    decoded = decode_image(shipped("examples_palette.dcm"))
    data = pydicom.dcmread(shipped("examples_palette.dcm"))
    red, green, blue = (
        np.frombuffer(data[f"{name}PaletteColorLookupTableData"].value, "<u2") >> 8
        for name in ("Red", "Green", "Blue")
    )
    assert decoded.pixels.dtype == np.uint8
    index = data.pixel_array
    assert np.array_equal(decoded.pixels, np.stack([red[index], green[index], blue[index]], -1))


@pytest.mark.extended
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("JPGExtended.dcm", (1024, 256)),
        ("SC_rgb_rle_16bit.dcm", (100, 100, 3)),
        ("SC_rgb_jpeg_gdcm.dcm", (100, 100, 3)),
        ("SC_rgb_jls_lossy_sample.dcm", (100, 100, 3)),
        ("SC_rgb_gdcm_KY.dcm", (100, 100, 3)),
        ("SC_rgb_dcmtk_+eb+cy+np.dcm", (100, 100, 3)),
        ("SC_ybr_full_422_uncompressed.dcm", (100, 100, 3)),
        ("SC_jpeg_no_color_transform.dcm", (256, 256, 3)),
        ("GDCMJ2K_TextGBR.dcm", (400, 400, 3)),
        ("JPEGLSNearLossless_16.dcm", (50, 10)),
        ("image_dfl.dcm", (512, 512)),
        ("SC_rgb_small_odd_big_endian.dcm", (3, 3, 3)),
        ("examples_overlay.dcm", (300, 484)),
    ],
)
def test_every_transfer_syntax_gives_what_pydicom_gives(name: str, shape: tuple[int, ...]) -> None:
    decoded = decode_image(shipped(name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = pydicom.dcmread(shipped(name)).pixel_array
    assert decoded.pixels.shape == shape and decoded.pixels.dtype in (np.uint8, np.uint16)
    # A JPEG file may be of another quality in two decoders of one machine: none is.
    assert np.array_equal(decoded.pixels, wanted)


@pytest.mark.parametrize("stored", [8, 10, 12, 16])
def test_bits_stored_are_the_value_of_white(stored: int, tmp_path: Path, seed: int) -> None:
    white = 2**stored - 1
    pixels = noise(seed, (9, 11), white).astype(np.uint16)
    pixels[0, :2] = 0, white
    tags = {"BitsStored": stored, "HighBit": stored - 1}
    plain = write_dicom(tmp_path / "a.dcm", pixels, **tags)
    inverted = {"PhotometricInterpretation": "MONOCHROME1"}
    turned = write_dicom(tmp_path / "b.dcm", pixels, **tags, **inverted)
    np.testing.assert_allclose(read_image(plain), pixels / white, atol=1e-7)
    np.testing.assert_allclose(read_image(turned), 1 - pixels / white, atol=1e-6)
    if stored < 16:
        # What other bits hold, an overlay for instance, is no grey.
        marked = pixels | np.uint16(1 << 15)
        np.testing.assert_allclose(
            read_image(write_dicom(tmp_path / "c.dcm", marked, **tags)), pixels / white, atol=1e-7
        )
        assert read_image(plain, levels=65535).max() == 1
    with pytest.raises(ImageError, match="beyond --levels 100"):
        read_image(plain, levels=100)


def test_the_scan_region_gives_the_crop_and_the_millimetres(tmp_path: Path, seed: int) -> None:
    pixels = noise(seed, (40, 60, 3))
    path = write_dicom(tmp_path / "a.dcm", pixels, [scan_region((5, 3, 44, 32), (0.012, 0.01))])
    decoded = decode_image(path)
    assert decoded.region == Region(5, 3, 40, 30)
    assert decoded.spacing == pytest.approx((0.12, 0.1))
    assert np.array_equal(decoded.pixels, pixels)
    assert np.array_equal(decoded.scan(), pixels[3:33, 5:45])
    pasted = decoded.region.paste(decoded.scan()[..., 0], (40, 60))
    assert pasted.shape == (40, 60) and pasted.sum() == pixels[3:33, 5:45, 0].sum(dtype=int)


def regions_of(path: Path, regions: list[Any], **tags: object) -> Any:
    return decode_image(write_dicom(path, np.zeros((40, 60), np.uint8), regions, **tags))


def test_other_regions_and_spacings(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    doppler = scan_region((0, 30, 59, 39), RegionSpatialFormat=3, RegionDataType=3)
    found = regions_of(path, [scan_region((2, 2, 29, 29)), doppler])
    assert found.region == Region(2, 2, 28, 28)
    dual = [scan_region((0, 2, 29, 29)), scan_region((30, 2, 60, 29))]
    found = regions_of(path, dual)
    assert found.region == Region(0, 2, 60, 28) and found.spacing == pytest.approx((0.1, 0.1))
    unlike = [scan_region((0, 2, 29, 29)), scan_region((30, 2, 59, 29), (0.02, 0.02))]
    assert regions_of(path, unlike).spacing is None
    assert regions_of(path, [scan_region((0, 0, 60, 40))]).region is None
    time = scan_region((2, 2, 29, 29), PhysicalUnitsXDirection=4)
    assert regions_of(path, [time]).spacing is None
    assert regions_of(path, [time], PixelSpacing=[0.2, 0.3]).spacing == (0.2, 0.3)
    backwards = scan_region((2, 2, 29, 29), (-0.01, 0.01))
    assert regions_of(path, [backwards]).spacing == pytest.approx((0.1, 0.1))
    assert regions_of(path, [], PixelSpacing=[0.0, 0.3]).spacing is None
    for box in ((10, 10, 5, 20), (0, 39, 59, 2)):
        with pytest.raises(ImageError, match=r"scan region from .* holds no pixels"):
            regions_of(path, [scan_region(box)])
    far = regions_of(path, [scan_region((0, 0, 200, 100))])
    assert far.region is None and far.spacing is None and "--spacing gives them" in far.note


@pytest.mark.parametrize("full", [True, False])
def test_a_data_set_takes_the_region_of_image_and_mask(
    full: bool, tmp_path: Path, seed: int
) -> None:
    pixels, mask = noise(seed, (40, 60)), np.zeros((40, 60), np.uint8)
    mask[10:20, 15:30] = 255
    region = Region(5, 3, 40, 30)
    drawn = mask if full else region.crop(mask)
    write_dicom(tmp_path / "images" / "1.2.840.7", pixels, [scan_region((5, 3, 44, 32))])
    (tmp_path / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "masks" / "1.2.840.7.png"), drawn)
    data = read_dataset(tmp_path)
    assert [record.name for record in data.records] == ["1.2.840.7"] and not data.problems
    sample = data[0]
    assert sample.image.shape == sample.mask.shape == (30, 40)
    assert sample.spacing == pytest.approx((0.1, 0.1))
    assert np.array_equal(sample.mask, region.crop(mask) == 255)
    np.testing.assert_allclose(sample.image, region.crop(pixels) / 255, atol=1e-7)
    (finding,) = data.inspect()
    assert finding.mode == "DICOM grey" and not finding.problems


def test_a_clean_copy_of_dicom_files_is_png(tmp_path: Path, seed: int) -> None:
    pixels, mask = noise(seed, (40, 60)), np.zeros((40, 60), np.uint8)
    mask[10:20, 15:30] = 255
    write_dicom(tmp_path / "in" / "images" / "a.dcm", pixels, [scan_region((5, 3, 44, 32))])
    (tmp_path / "in" / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "masks" / "a.png"), mask)
    assert (
        main(
            ["prepare", str(tmp_path / "in"), "--size", "original", "--out", str(tmp_path / "out")]
        )
        == 0
    )
    copy = cv2.imread(str(tmp_path / "out" / "images" / "a.png"), cv2.IMREAD_UNCHANGED)
    assert copy.dtype == np.uint8 and np.array_equal(copy, pixels[3:33, 5:45])
    drawn = cv2.imread(str(tmp_path / "out" / "masks" / "0" / "a.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(drawn, mask[3:33, 5:45])


def test_files_without_ending_are_found_and_an_index_is_none(tmp_path: Path) -> None:
    for name in ("IM0001", "1.2.3.4", "a.dcm", "b.IMA"):
        write_dicom(tmp_path / name, np.zeros((4, 4), np.uint8))
    (tmp_path / "notes").write_text("no picture")
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    inputs = list_inputs(tmp_path)
    assert sorted(path.name for _, path in inputs.images) == ["1.2.3.4", "IM0001", "a.dcm", "b.IMA"]
    cv2.imwrite(str(tmp_path / "1.2.3.4_mask.png"), np.zeros((4, 4), np.uint8))
    assert [path.name for path in list_inputs(tmp_path).masks] == ["1.2.3.4_mask.png"]
    assert not inputs.problems and not is_picture(tmp_path / "notes")
    assert without_ending(Path("x/1.2.3.4")) == Path("x/1.2.3.4")
    assert without_ending(Path("x/a.dcm")) == Path("x/a")


def message(path: Path, **arguments: int) -> str:
    with pytest.raises(ImageError) as caught:
        decode_image(path, **arguments)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "\n" not in text
    assert PATIENT not in text and PATIENT_ID not in text
    return text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("reportsi.dcm", "without a picture (Basic Text SR Storage)"),
        ("rtplan.dcm", "without a picture (RT Plan Storage)"),
        ("liver_1frame.dcm", "a DICOM Segmentation, no picture"),
        ("CT_small.dcm", "signed DICOM pixels"),
        ("rtdose_1frame.dcm", "32 bits in 32; 8 to 16 bits"),
        ("meta_missing_tsyntax.dcm", "without its transfer syntax"),
        ("badVR.dcm", "gives no NumberOfFrames"),
        ("dicomdirtests/DICOMDIR", "without a picture (Media Storage Directory Storage)"),
        ("JPEG-lossy.dcm", "corrupt DICOM pixels"),
    ],
)
def test_what_is_no_picture_is_said_in_one_line(name: str, said: str) -> None:
    assert said in message(shipped("README.txt").parent / name)


def test_budgets_and_impossible_headers(tmp_path: Path) -> None:
    pixels, path = np.zeros((30, 40), np.uint8), tmp_path / "a.dcm"
    write_dicom(path, pixels)
    assert "raise --max-pixels" in message(path, max_pixels=1000)
    assert pixel_count(path, 1000) == 0
    cases: list[tuple[dict[str, object], str]] = [
        ({"Rows": 60000, "Columns": 60000}, "raise --max-pixels"),
        ({"Rows": 0}, "a size of 40 x 0"),
        ({"NumberOfFrames": 10**9}, "bytes of its pixels are there"),
        ({"NumberOfFrames": -1}, "and -1 frames"),
        ({"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}, "8 to 16 bits in 8 or 16"),
        ({"PhotometricInterpretation": "CMYK"}, "colours of a kind that is not read"),
        ({"SamplesPerPixel": 3}, "3 samples a pixel of MONOCHROME2"),
        ({"HighBit": 3}, "8 bits stored with 3 as the highest"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "corrupt DICOM pixels"),
    ]
    for tags, said in cases:
        assert said in message(write_dicom(path, pixels, **tags)), tags
    data = pydicom.dcmread(write_dicom(path, pixels))
    data.PixelData = pydicom.encaps.encapsulate([b"\0" * 20])
    data["PixelData"].is_undefined_length = True
    for syntax, said in (
        (pydicom.uid.MPEG4HP41, "which is not read: save it uncompressed"),
        ("1.2.3.4.5", "an unknown transfer syntax, which is not read"),
        (pydicom.uid.JPEG2000Lossless, "corrupt DICOM pixels"),
    ):
        data.file_meta.TransferSyntaxUID = syntax
        data.save_as(path, implicit_vr=False, little_endian=True)
        assert said in message(path)


def test_a_deflated_file_is_inflated_within_bounds(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(shipped("image_dfl.dcm").read_bytes()[:-300])
    assert "the deflated DICOM file has no end" in message(path)
    data = pydicom.dcmread(write_dicom(path, np.zeros((30, 40), np.uint8)))
    data.add_new(0x00091010, "OB", b"\0" * (5 << 20))
    data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    data.save_as(path)
    assert path.stat().st_size < 20_000
    assert "inflates to more" in message(path) or "deflated" in message(path)


def test_every_truncation_is_named(tmp_path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    path = tmp_path / "a.dcm"
    for name in ("examples_rgb_color.dcm", "examples_jpeg2k.dcm"):
        whole = shipped(name).read_bytes()
        for keep in generator.integers(0, len(whole) - 1, 4).tolist():
            path.write_bytes(whole[:keep])
            message(path)


@pytest.mark.extended
def test_flipped_bytes_are_read_or_named(tmp_path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    path = tmp_path / "a.dcm"
    small = write_dicom(tmp_path / "b.dcm", noise(seed, (20, 30)), [scan_region((2, 2, 20, 15))])
    for source in (small, shipped("SC_rgb_dcmtk_+eb+cy+np.dcm"), shipped("SC_rgb_rle.dcm")):
        whole = bytearray(source.read_bytes())
        for _ in range(15):
            changed = bytearray(whole)
            for place in generator.integers(128, min(len(whole), 3000), 4).tolist():
                changed[place] = int(generator.integers(256))
            path.write_bytes(changed)
            try:
                decoded = decode_image(path, max_pixels=10**6)
            except ImageError as error:
                assert "\n" not in str(error)
            else:
                assert decoded.pixels.size > 0


def test_nothing_of_a_patient_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    pixels = np.zeros((30, 40), np.uint8)
    # Values that pydicom warns of, and quotes.
    odd = {"PatientName": f"{PATIENT}\\{PATIENT}" * 9, "StudyDate": PATIENT_ID, "Modality": PATIENT}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_dicom(tmp_path / "images" / "a.dcm", pixels, **odd)
        write_dicom(tmp_path / "images" / "b.dcm", pixels, **odd, Rows=99)
    capfd.readouterr()
    caplog.clear()
    level = logging.getLogger("pydicom").level
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        main(["verify", str(tmp_path / "images")])
        decode_image(tmp_path / "images" / "a.dcm")
        message(tmp_path / "images" / "b.dcm")
    shown = capfd.readouterr()
    every = [shown.out, shown.err, caplog.text, *(str(each.message) for each in warned)]
    assert not any(PATIENT in text or PATIENT_ID in text for text in every)
    assert logging.getLogger("pydicom").level == level


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_dicom(tmp_path / "a.dcm", np.zeros((4, 4), np.uint8))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert "pip install 'intrasense-fast[dicom]'" in message(path)
    assert pixel_count(path) == 0


@pytest.mark.extended
def test_the_packages_are_imported_when_a_file_is_met() -> None:
    code = (
        "import sys; import intrasense_fast.commands.predict, intrasense_fast.data.images\n"
        "assert not {'pydicom', 'highdicom', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_syntax_without_its_decoder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.pixels.decoders import JPEG2000LosslessDecoder

    monkeypatch.setattr(JPEG2000LosslessDecoder, "_available", {})
    said = message(shipped("examples_jpeg2k.dcm"))
    assert "JPEG 2000" in said and "no decoder is installed: pip install" in said


@pytest.mark.extended
def test_a_network_trains_on_dicom_files(tmp_path: Path, seed: int) -> None:
    for number in range(6):
        mask = np.zeros((48, 64), np.uint8)
        mask[14:26, 14 + number : 26 + number] = 255
        pixels = noise(seed + number, (48, 64), 120) + mask // 2
        images = tmp_path / "data" / "images"
        write_dicom(images / f"1.2.{number}", pixels, [scan_region((8, 8, 47, 43))])
        (tmp_path / "data" / "masks").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "data" / "masks" / f"1.2.{number}.png"), mask)
    flags = "--size 32 --batch-size 2 --epochs 1 --encoder resnet18 --workers 0"
    flags += " --refine-strides 32 --decoder-channels 8 8 8 8 8"
    run = tmp_path / "run"
    assert main(["train", "--data", str(images.parent), "--out", str(run), *flags.split()]) == 0
    assert (run / "best" / "model.safetensors").exists()
