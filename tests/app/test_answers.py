"""What the page says of a picture is what `predict` writes of it; and what is refused before it
opens."""

import base64
import csv
import re
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from intrasense_fast import prediction
from intrasense_fast.app import markup
from intrasense_fast.app.answers import Shown, shown_file
from intrasense_fast.app.server import check_address, library
from intrasense_fast.cli import main
from intrasense_fast.data.opening import sha256_of
from intrasense_fast.errors import UsageError
from intrasense_fast.inference.calibration import Calibration, write_calibration
from intrasense_fast.inference.opening import open_ensemble
from intrasense_fast.prediction.outputs import Origin
from intrasense_fast.prediction.work import Picture
from tests.support.stubs import bright_checkpoint


def blobs(seed: int, height: int = 60, width: int = 90) -> np.ndarray:
    """Smooth noise, float32 (H, W) in (0, 1)."""
    noise = np.random.default_rng(seed).normal(size=(height, width))
    smooth = cv2.GaussianBlur(noise, (0, 0), 5)
    return (1 / (1 + np.exp(-smooth / smooth.std()))).astype("f4")


def random_shown(seed: int, spacing: tuple[float, float] | None = None) -> Shown:
    picture = Picture(blobs(seed + 1), Origin(None, spacing), "said <of> it")
    return Shown("a <b>.png", picture, blobs(seed))


def png(path: Path, pixels: np.ndarray) -> Path:
    file = path.with_suffix(".png")
    cv2.imwrite(str(file), pixels)
    return file


def dicom(path: Path, pixels: np.ndarray) -> Path:
    """With a scan region that is half of the frame, and millimetres."""
    from tests.support.dicom import scan_region, write_dicom

    return write_dicom(path, pixels, [scan_region((20, 10, 75, 49), (0.012, 0.01))])


def downloads(shown: Shown, threshold: float) -> dict[str, bytes]:
    """Name -> content of what the page offers."""
    links = re.findall(
        r'download="([^"]+)" href="data:[^,]+,([^"]+)"', markup.numbers(shown, threshold)
    )
    return {name: base64.b64decode(data) for name, data in links}


def read(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("write", [png, dicom])
def test_the_page_says_what_predict_writes(
    write: Callable[..., Path], tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two checkpoints with temperatures of their own."""
    monkeypatch.setattr(prediction, "save_overlays", lambda path, items: None)
    checkpoints = [str(bright_checkpoint(tmp_path / f"best{i}", 6.0 + 4 * i)) for i in range(2)]
    for i, checkpoint in enumerate(checkpoints):
        digest = sha256_of(Path(checkpoint) / "model.safetensors")
        fitted = Calibration(1.5 + i, 0.4, 9, 0.03, 0.01, 0.2, 0.1, 0.7, 0.8, digest)
        write_calibration(checkpoint, fitted)
    file = write(tmp_path / "1.2.840", np.rint(blobs(seed) * 255).astype(np.uint8))
    out, threshold = tmp_path / "out", 0.6
    named = [text for each in checkpoints for text in ("--checkpoint", each)]
    flags = ["--out", str(out), "--threshold", str(threshold), "--probabilities", "--contours"]
    assert main(["predict", str(file), *named, *flags]) == 0
    with open(out / "predictions.csv", newline="", encoding="utf-8") as table:
        (row,) = csv.DictReader(table)

    shown = shown_file(open_ensemble(checkpoints), file)
    mask = shown.mask(threshold)
    assert shown.probability.dtype == np.float32 and shown.probability.shape == (60, 90)
    (probability,) = out.glob("*_probability.png")
    assert np.array_equal(np.rint(shown.probability * 65535), read(probability))
    assert np.array_equal(mask * np.uint8(255), read(out / row["mask"]))
    assert 0 < mask.sum() == int(row["area"]) < mask.size
    assert shown.doubt(threshold) == float(row["doubt"])
    measured: dict[str, Any] = asdict(shown.measurements(threshold))
    measured["lesion_area"] = measured.pop("area")
    assert {name: str(value) for name, value in measured.items()} == {
        name: row[name] for name in measured
    }
    assert shown.picture.remark == row["message"]
    assert row["unit"] == ("mm" if write is dicom else "px")
    if write is dicom:
        assert not mask[:, :20].any() and not mask[:10].any()
    saved_mask, saved_contour = downloads(shown, threshold).values()
    decoded = cv2.imdecode(np.frombuffer(saved_mask, np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(decoded, read(out / row["mask"]))
    assert saved_contour == (out / "contours.json").read_bytes()


def test_numbers_have_the_units_of_the_file(seed: int) -> None:
    for spacing, unit in ((None, "px"), ((0.1, 0.2), "mm")):
        shown = random_shown(seed, spacing)
        measured, text = shown.measurements(0.5), markup.numbers(shown, 0.5)
        assert f"<td>{measured.area:,.1f} {unit}²</td>" in text
        assert f"<td>{measured.longest_axis:,.1f} {unit}</td>" in text
        assert f"<td>{measured.cross_axis:,.1f} {unit}</td>" in text
        assert ("Millimetres come from the file" in text) == (unit == "mm")
    assert "no lesion at this threshold" in markup.numbers(shown, 1.0)


def test_names_and_remarks_are_text(seed: int) -> None:
    shown = random_shown(seed)
    assert list(downloads(shown, 0.4)) == ["a &lt;b&gt;_mask.png", "a &lt;b&gt;_contour.json"]
    assert "90 x 60 pixels; said &lt;of&gt; it" in markup.status(shown)
    assert "<b>" not in markup.status(shown) + markup.error("<b>") + markup.head("<b>")


def test_an_address_that_cannot_be_used_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        arguments = ["app", "--checkpoint", str(tmp_path), "--port", str(port)]
        assert main(arguments) == 2
    text = capsys.readouterr().err
    assert text == f"app: --port {port}: is in use on 127.0.0.1; give another one\n"
    assert main([*arguments[:-1], "0"]) == 2 and "from 1 to 65535" in capsys.readouterr().err
    assert main([*arguments, "--threshold", "1"]) == 2 and "--threshold" in capsys.readouterr().err
    assert main([*arguments, *arguments[1:3]]) == 2 and "is named twice" in capsys.readouterr().err
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"app: --checkpoint {tmp_path}: is no checkpoint")
    with pytest.raises(UsageError, match=r"--host 203\.0\.113\.7: is no address of this computer"):
        check_address("203.0.113.7", port)


def test_without_gradio_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UsageError, match=r"pip install 'intrasense-fast\[app\]'") as error:
        library()
    assert "\n" not in str(error.value)
