"""Clips in `predict`: a row a frame, an overlay clip, and clips that end in the middle."""

import os
import shutil
import signal
import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest

from intrasense_fast import prediction
from intrasense_fast.cli import main
from intrasense_fast.data.clips import open_clip
from intrasense_fast.data.reading import ReadingOptions
from intrasense_fast.errors import UsageError
from intrasense_fast.inference import Segmenter
from intrasense_fast.prediction import clips as prediction_clips
from intrasense_fast.prediction import predict_files
from intrasense_fast.signals import Stopped
from tests.support.predictions import contents, rows
from tests.support.stubs import Bright, bright_checkpoint

FRAMES = 11


@pytest.fixture(autouse=True)
def no_overview(monkeypatch: pytest.MonkeyPatch) -> None:
    """overlays.png takes longer than all the rest, and is not what is tested here."""
    monkeypatch.setattr(prediction, "save_overlays", lambda path, items: None)


def write_clip(path: Path, codec: str = "MJPG", shape: tuple[int, int] = (48, 64)) -> Path:
    """A bright disc that moves to the right, on dark ground."""
    fourcc = cv2.VideoWriter_fourcc(*codec)
    writer = cv2.VideoWriter(str(path), fourcc, 12.0, shape[::-1])
    if not writer.isOpened():
        pytest.skip(f"this OpenCV writes no {codec}")
    for i in range(FRAMES):
        frame = np.full((*shape, 3), 40, np.uint8)
        cv2.circle(frame, (10 + 4 * i, shape[0] // 2), 7, (230, 230, 230), -1)
        writer.write(frame)
    writer.release()
    return path


def segmenter(limit: float = 2.0) -> Segmenter:
    return Segmenter(Bright(gain=20.0, limit=limit), 32, None, "a" * 64)


@pytest.mark.parametrize("name, codec", [("a.avi", "MJPG"), ("b.mp4", "mp4v")])
def test_a_clip_has_a_row_and_a_mask_a_frame_and_an_overlay_clip(
    name: str, codec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(bright_checkpoint(tmp_path / "best", 20.0))
    clip, out = write_clip(tmp_path / name, codec), tmp_path / "out"
    flags = ["--checkpoint", checkpoint, "--out", str(out), "--maps", "--batch", "4"]
    assert main(["predict", str(clip), *flags]) == 0
    said = capsys.readouterr().out
    assert f"{FRAMES} frames of clips" in said and "a second" in said
    table = rows(out)
    assert [row["image"] for row in table] == [f"{name}#{i + 1:04d}" for i in range(FRAMES)]
    assert {row["status"] for row in table} == {"done"}
    centres = []
    for i, row in enumerate(table):
        mask = cv2.imread(str(out / row["mask"]), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (48, 64) and int(row["area"]) == np.count_nonzero(mask) > 50
        assert 0 <= float(row["doubt"]) <= 1
        entropy = cv2.imread(str(out / name / f"{i + 1:04d}_entropy.png"), cv2.IMREAD_UNCHANGED)
        assert entropy.dtype == np.uint16 and entropy.shape == mask.shape
        centres.append(np.nonzero(mask)[1].mean())
    np.testing.assert_allclose(centres, 10 + 4 * np.arange(FRAMES), atol=1.5)
    assert not list((out / name).glob("*_overlay.png"))
    with open_clip(out / name / "overlay.avi") as drawn:
        frames = list(drawn.frames)
        assert (drawn.length, drawn.shape, drawn.rate) == (FRAMES, (48, 64), 12)
    # Yellow on grey: the contour has little blue.
    assert all((frame[..., 0].astype(int) - frame[..., 2] > 80).any() for frame in frames)


def test_a_clip_of_odd_sides_keeps_them_in_its_masks(tmp_path: Path) -> None:
    clip = tmp_path / "odd.avi"
    frames = [np.full((47, 63, 3), 90, np.uint8)] * 3

    class Odd:
        shape, rate = (47, 63), 10.0

    with prediction_clips._writer(clip, Odd) as writer:  # type: ignore[arg-type]
        for frame in frames:
            writer.write(frame)
    with open_clip(clip) as read:
        assert read.shape == (48, 64) and len(list(read.frames)) == 3


def test_a_clip_that_ends_in_the_middle_is_named_and_what_was_written_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    clip = write_clip(source / "cut.avi")
    cv2.imwrite(str(source / "z.png"), np.full((40, 40), 90, np.uint8))
    (source / "empty.mp4").write_bytes(b"")
    (source / "none.avi").write_bytes(b"no clip at all")
    whole = clip.read_bytes()
    clip.write_bytes(whole[: len(whole) * 7 // 10])
    predicted = predict_files(source, out, segmenter)
    reasons = sorted(predicted.failures)
    assert reasons[0].startswith("cut.avi: ends after frame ")
    assert f"of the {FRAMES} that its header names: truncated or damaged" in reasons[0]
    assert reasons[1].startswith("empty.mp4: empty file (0 bytes)")
    assert reasons[2].startswith("none.avi: cannot be decoded")
    assert len(reasons) == 3 and predicted.written == 1
    table = {row["image"]: row["status"] for row in rows(out)}
    done = [name for name, status in table.items() if status == "done"]
    frames = [name for name in done if name.startswith("cut.avi#")]
    assert "z.png" in done and 2 <= len(frames) < FRAMES == predicted.frames + FRAMES - len(frames)
    assert table["cut.avi"] == "failed"
    with open_clip(out / "cut.avi" / "overlay.avi") as drawn:
        assert len(list(drawn.frames)) == len(frames)
    clip.write_bytes(whole)
    again = predict_files(source, out, segmenter, go_on=True)
    assert again.frames == FRAMES and again.kept == 1
    assert len([row for row in rows(out) if row["image"].startswith("cut.avi")]) == FRAMES


def test_continue_works_by_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name in ("a.avi", "b.avi"):
        write_clip(source / name)
    predict_files(source, tmp_path / "whole", segmenter)
    write = prediction_clips.write_outputs

    def killed(*arguments: object) -> object:
        if arguments[1] == "b.avi#0010":
            raise KeyboardInterrupt
        return write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(prediction_clips, "write_outputs", killed)
    with pytest.raises(KeyboardInterrupt):
        predict_files(source, out, segmenter)
    monkeypatch.undo()
    # The first eight frames of the second clip.
    assert len(rows(out)) == FRAMES + 8 and not (out / "b.avi" / "overlay.avi").exists()
    capsys.readouterr()
    again = predict_files(source, out, segmenter, go_on=True)
    assert (again.kept, again.written, again.frames) == (1, 1, FRAMES)
    assert "1 images that are clips which were not finished: b.avi" in capsys.readouterr().out
    whole = contents(tmp_path / "whole")
    assert contents(out) == whole
    assert predict_files(source, out, segmenter, go_on=True).kept == 2
    (out / "a.avi" / "0003_mask.png").unlink()
    third = predict_files(source, out, segmenter, go_on=True)
    assert third.frames == FRAMES and contents(out).keys() == whole.keys()
    # A shorter clip of the same name leaves no masks of the longer one.
    shutil.copy(source / "b.avi", tmp_path / "kept.avi")
    monkeypatch.setattr("tests.cli.test_predict_clips.FRAMES", 5)
    write_clip(source / "b.avi")
    assert predict_files(source, out, segmenter, go_on=True).frames == 5
    assert len(list((out / "b.avi").glob("*_mask.png"))) == 5
    assert len([row for row in rows(out) if row["image"].startswith("b.avi#")]) == 5


def test_a_frame_that_the_network_fails_on_is_named(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.avi")
    predicted = predict_files(clip, tmp_path / "out", lambda: segmenter(limit=0.1))
    assert len(predicted.failures) == FRAMES and predicted.written == 0
    assert predicted.failures[0].startswith("a.avi#0001: the network's output is NaN")
    assert {row["status"] for row in rows(tmp_path / "out")} == {"failed"}


def test_a_stop_within_a_clip_leaves_whole_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_clip(tmp_path / "a.avi")
    write = prediction_clips.write_outputs

    def stopping(*arguments: object) -> object:
        if arguments[1] == "a.avi#0003":
            os.kill(os.getpid(), signal.SIGTERM)
        return write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(prediction_clips, "write_outputs", stopping)
    with pytest.raises(Stopped):
        predict_files(clip, tmp_path / "out", segmenter)
    assert len(rows(tmp_path / "out")) == 8
    assert not any(name.endswith(".avi") for name in contents(tmp_path / "out"))


def test_frames_beyond_the_bound_and_names_alike_are_refused(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.avi")
    options = ReadingOptions(max_pixels=1000)
    predicted = predict_files(clip, tmp_path / "out", segmenter, options=options)
    assert "frames of 64 x 48" in predicted.failures[0] and "raise it" in predicted.failures[0]
    source = tmp_path / "in"
    source.mkdir()
    shutil.copy(clip, source / "a.avi")
    shutil.copy(clip, source / "A.AVI")
    if len(list(source.iterdir())) < 2:
        pytest.skip("this file system does not tell a.avi from A.AVI")
    with pytest.raises(UsageError, match="would both be written to"):
        predict_files(source, tmp_path / "no", segmenter)


@pytest.mark.extended
def test_memory_does_not_grow_with_the_length_of_a_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.cli.test_predict_clips.FRAMES", 80)
    clip = write_clip(tmp_path / "a.avi")
    alive: set[int] = set()
    most: list[int] = []
    grey = prediction_clips.to_grey

    def counted(*arguments: object) -> np.ndarray:
        image = grey(*arguments)  # type: ignore[arg-type]
        alive.add(id(image))
        weakref.finalize(image, alive.discard, id(image))
        most.append(len(alive))
        return image

    monkeypatch.setattr(prediction_clips, "to_grey", counted)
    assert predict_files(clip, tmp_path / "out", segmenter).frames == 80
    assert len(most) == 80 and max(most) <= 16
