"""Files that are wrong, as `train` and the readers meet them: each is named, nothing is half-read,
nothing is written."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from intrasense_fast.cli import main
from intrasense_fast.data.images import ImageError, read_image
from intrasense_fast.data.masks import read_mask
from tests.support.runs import write_pairs


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (40, 44)).astype(np.uint8)


def damaged(kind: str, path: Path, seed: int) -> Path:
    """A file that looks like an image and is none, or not a whole one."""
    if kind == "NaN":
        values = pixels(seed).astype(np.float32) / 255
        values[3, 4] = np.nan
        cv2.imwrite(str(path.with_suffix(".tiff")), values)
        return path.with_suffix(".tiff")
    suffix = ".jpg" if kind == "truncated JPEG" else ".png"
    data = bytearray(cv2.imencode(suffix, pixels(seed))[1].tobytes())
    if kind == "corrupt":
        data[len(data) // 2] ^= 0xFF
    elif kind == "zero bytes":
        data = bytearray()
    elif kind == "text":
        data = bytearray(b"no image at all")
    else:
        data = data[: len(data) * 2 // 3]
    path = path.with_suffix(suffix)
    path.write_bytes(data)
    return path


DAMAGE = ("corrupt", "truncated", "truncated JPEG", "zero bytes", "text", "NaN")


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_images_and_masks_are_no_image(kind: str, tmp_path: Path, seed: int) -> None:
    path = damaged(kind, tmp_path / "a", seed)
    for read in (read_image, lambda path: read_mask([path], (40, 44))):
        with pytest.raises(ImageError, match=path.name):
            read(path)


def test_train_names_every_damaged_file_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    data = write_pairs(tmp_path / "data", 12, seed=seed)
    names = []
    for i, kind in enumerate(DAMAGE):
        (data / "images" / f"p{i}.png").unlink()
        names.append(damaged(kind, data / "images" / f"p{i}", seed).name)
    (data / "masks" / "p9.png").write_bytes(b"")
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "run")]) == 2
    shown = capsys.readouterr().err
    assert all(name in shown for name in [*names, "p9.png"]) and "Traceback" not in shown
    assert not (tmp_path / "run").exists()


def test_files_alone_are_named_with_the_nearest_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_pairs(tmp_path / "data", 6, seed=0)
    (data / "masks" / "p3.png").rename(data / "masks" / "p3x.png")
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "run")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert any("p3.png" in line and "the nearest name is p3x.png" in line for line in lines)
    assert any("p3x.png" in line and "the nearest name is p3.png" in line for line in lines)


def test_files_that_may_not_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_pairs(tmp_path / "data", 6, seed=0)
    locked = data / "images" / "p2.png"
    if os.geteuid():
        locked.chmod(0)
    else:
        # To root every file is readable: the refusal is played.
        plain = os.open

        def refused(path: str | os.PathLike[str], *options: int, **others: int) -> int:
            if os.fspath(path) == str(locked):
                raise PermissionError(13, "Permission denied", str(path))
            return plain(path, *options, **others)

        monkeypatch.setattr(os, "open", refused)
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "run")]) == 2
    shown = capsys.readouterr().err
    assert "p2.png" in shown and "permission denied" in shown and "Traceback" not in shown


def test_an_out_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_pairs(tmp_path / "data", 6, seed=0)
    (tmp_path / "file").write_text("keep")
    assert (
        main(
            [
                "train",
                "--data",
                str(data),
                "--out",
                str(tmp_path / "file" / "run"),
                "--batch-size",
                "2",
            ]
        )
        == 2
    )
    shown = capsys.readouterr().err
    assert str(tmp_path / "file") in shown and "Traceback" not in shown
    assert (tmp_path / "file").read_text() == "keep"


@pytest.mark.parametrize(
    "kind",
    ["0 and 255", "0 and 1", "3 channels", "RGBA", "16-bit", "bool PNG", "anti-aliased", "JPEG"],
)
def test_masks_of_every_kind_are_one_mask(kind: str, tmp_path: Path) -> None:
    mask = np.zeros((40, 44), np.uint8)
    cv2.circle(mask, (20, 18), 9, 1, -1)
    path = tmp_path / ("m.jpg" if kind == "JPEG" else "m.png")
    if kind == "bool PNG":
        from PIL import Image

        Image.fromarray(mask * np.uint8(255)).convert("1").save(path)
    else:
        values = {
            "0 and 255": mask * np.uint8(255),
            "0 and 1": mask,
            "3 channels": np.dstack([mask * np.uint8(255)] * 3),
            "RGBA": np.dstack([mask * np.uint8(255)] * 3 + [np.full_like(mask, 255)]),
            "16-bit": mask.astype(np.uint16) * np.uint16(65535),
            "anti-aliased": cv2.GaussianBlur(mask * np.uint8(255), (3, 3), 0.4),
            "JPEG": mask * np.uint8(255),
        }
        cv2.imwrite(str(path), values[kind])
    found, warnings = read_mask([path], mask.shape)
    assert found.dtype == np.uint8 and np.array_equal(found, mask)
    assert warnings == [] or kind in ("anti-aliased", "JPEG")


def test_a_grey_mask_is_converted_by_the_stated_rule_and_said(tmp_path: Path) -> None:
    grey = np.repeat(np.arange(256, dtype=np.uint8)[None], 8, 0)
    cv2.imwrite(str(tmp_path / "m.png"), grey)
    found, warnings = read_mask([tmp_path / "m.png"], grey.shape)
    assert np.array_equal(found, grey > 127)
    assert (
        len(warnings) == 1
        and "ambiguous grey values" in warnings[0]
        and "above 127 counts as lesion" in warnings[0]
    )
