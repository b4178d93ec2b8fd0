"""`predict` that was stopped, killed or fed bad files: what is left, and what --continue makes of
it."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from intrasense_fast import prediction
from intrasense_fast.cli import main
from intrasense_fast.files import exclusive
from intrasense_fast.inference import (
    NotFiniteError,
    Segmenter,
    predict_probabilities,
    probability_maps,
)
from intrasense_fast.inference.ensemble import AT_A_TIME
from intrasense_fast.prediction import predict_files
from intrasense_fast.prediction import work as prediction_work
from tests.support.checkpoints import tiny_checkpoint
from tests.support.predictions import contents, rows

COUNT = 24


class Threshold(torch.nn.Module):
    """Says that bright pixels are lesion; of an image brighter than `limit` it says NaN."""

    def __init__(self, limit: float = 2.0) -> None:
        super().__init__()
        self.architecture, self.config = "stub", {"in_channels": 1, "num_classes": 1}
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.limit = limit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        too_bright = x.mean((1, 2, 3), keepdim=True) > self.limit
        return torch.where(too_bright, torch.nan, (x - 0.5) * 20 * self.weight)


def segmenter(limit: float = 2.0, weights: str = "a" * 64) -> Segmenter:
    return Segmenter(Threshold(limit), 32, None, weights)


def write_images(folder: Path, count: int, seed: int, shape: tuple[int, int] = (40, 44)) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for i in range(count):
        noise = cv2.GaussianBlur(rng.normal(0, 40, shape), (0, 0), 3) * 6 + 120
        cv2.imwrite(str(folder / f"p{i}.png"), np.clip(noise, 0, 255).astype(np.uint8))
    return folder


def as_set(out: Path) -> set[tuple[str, ...]]:
    return {tuple(row.values()) for row in rows(out)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("run") / "best")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("many") / "in", COUNT, seed=7)


def command(checkpoint: Path, source: Path, out: Path, *more: str) -> list[str]:
    start = [sys.executable, "-m", "intrasense_fast", "predict", "--checkpoint", str(checkpoint)]
    return [*start, str(source), "--out", str(out), *more]


def environment() -> dict[str, str]:
    """That of the test, without the interpreter and a display."""
    kept = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return kept | {"MPLBACKEND": "Agg"}


def finish(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def uninterrupted(checkpoint: Path, many: Path) -> Path:
    out = many.parent / "whole"
    done = finish(command(checkpoint, many, out))
    assert done.returncode == 0, done.stderr
    assert len(rows(out)) == COUNT
    return out


@pytest.mark.extended
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)], ids=["SIGKILL", "SIGTERM"]
)
def test_what_is_stopped_goes_on_to_the_same_table(
    number: signal.Signals, code: int, checkpoint: Path, many: Path, uninterrupted: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(checkpoint, many, out),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    table = out / "predictions.csv"
    deadline = time.monotonic() + 500
    while process.poll() is None and time.monotonic() < deadline:
        if table.exists() and table.read_bytes().count(b"\n") > COUNT // 4:
            process.send_signal(number)
            break
        time.sleep(0.002)
    shown, errors = process.communicate(timeout=500)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    before = as_set(out)
    assert COUNT // 4 <= len(before) < COUNT and before < as_set(uninterrupted)
    if number == signal.SIGTERM:
        assert "Go on with: intrasense-fast predict" in shown and "--continue" in shown
    written = {row["mask"]: (out / row["mask"]).stat().st_mtime_ns for row in rows(out)}
    done = finish(command(checkpoint, many, out, "--continue"))
    assert done.returncode == 0, done.stderr
    assert f"{len(before)} were segmented before" in done.stdout
    assert len(rows(out)) == COUNT and as_set(out) == as_set(uninterrupted)
    assert all((out / mask).stat().st_mtime_ns == time_ for mask, time_ in written.items())
    mine, theirs = contents(out), contents(uninterrupted)
    for each in (mine, theirs):
        # The order of the table's rows is that in which images were done.
        del each["predictions.csv"]
    assert mine == theirs


def test_continue_does_what_is_missing_failed_or_changed(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_images(tmp_path / "in", 5, seed), tmp_path / "out"
    sound = (source / "p1.png").read_bytes()
    (source / "p1.png").write_bytes(b"spoilt")
    first = predict_files(source, out, segmenter)
    assert (first.images, first.written, first.kept) == (5, 4, 0)
    (failed,) = (row for row in rows(out) if row["status"] == "failed")
    assert failed["image"] == "p1.png" and "not a PNG" in failed["message"] and not failed["mask"]
    assert str(source) not in failed["message"]
    (source / "p1.png").write_bytes(sound)
    other = cv2.imread(str(source / "p2.png"), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(source / "p2.png"), 255 - other)
    (out / "p3_mask.png").unlink()
    (source / "p4.png").unlink()
    before = contents(out)
    capsys.readouterr()
    second = predict_files(source, out, segmenter, go_on=True)
    shown = capsys.readouterr().out
    assert (second.images, second.written, second.kept, second.failures) == (4, 3, 1, ())
    for text in (
        "1 images that failed: p1.png",
        "1 images that have changed: p2.png",
        "1 images that have lost files: p3.png",
        "1 rows are of images that are no longer there",
    ):
        assert text in shown
    assert sorted(row["image"] for row in rows(out)) == [f"p{i}.png" for i in range(5)]
    assert {row["status"] for row in rows(out)} == {"done"}
    after = contents(out)
    assert after["p0_mask.png"] == before["p0_mask.png"]
    assert after["p2_mask.png"] != before["p2_mask.png"]
    fresh = predict_files(source, tmp_path / "fresh", segmenter)
    assert fresh.written == 4 and as_set(tmp_path / "fresh") <= as_set(out)


def test_a_changed_image_that_fails_leaves_no_mask(tmp_path: Path, seed: int) -> None:
    source, out = write_images(tmp_path / "in", 2, seed), tmp_path / "out"
    predict_files(source, out, segmenter)
    (source / "p1.png").write_bytes(b"")
    again = predict_files(source, out, segmenter, go_on=True)
    assert len(again.failures) == 1 and not (out / "p1_mask.png").exists()
    assert {row["image"]: row["status"] for row in rows(out)} == {
        "p0.png": "done",
        "p1.png": "failed",
    }


@pytest.mark.parametrize("end", [b"\n", b",\n", b"p2 ", b'p2 ""a,\n'])
def test_a_line_cut_by_a_kill_is_dropped_and_said(
    end: bytes, tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_images(tmp_path / "in", 3, seed), tmp_path / "out"
    # A name that the table must quote, of two lines.
    (source / "p2.png").rename(source / 'p2 "a,\nb.png')
    predict_files(source, out, segmenter)
    whole = as_set(out)
    table = out / "predictions.csv"
    assert len(whole) == 3
    content = table.read_bytes()
    # Within the last row, or without the line end alone.
    kept = len(content) - len(end) if content.endswith(end) else content.rindex(end) + len(end)
    table.write_bytes(content[:kept])
    leftover = out / f".{'0' * 32}.tmp.png"
    leftover.write_bytes(b"half")
    capsys.readouterr()
    again = predict_files(source, out, segmenter, go_on=True)
    assert (again.written, again.kept) == (1, 2)
    assert "1 of its lines are cut or damaged" in capsys.readouterr().out
    assert as_set(out) == whole and not leftover.exists()


def test_continue_refuses_other_settings_and_other_folders(tmp_path: Path, seed: int) -> None:
    source, out = write_images(tmp_path / "in", 2, seed), tmp_path / "out"
    predict_files(source, out, segmenter)
    before = contents(out)
    for options, message in (
        ({"threshold": 0.4}, "--threshold 0.5, now 0.4"),
        ({"probabilities": True}, "--probabilities false, now true"),
        ({"options": prediction.ReadingOptions(levels=300)}, "--levels null, now 300"),
    ):
        with pytest.raises(prediction.UsageError, match=message):
            predict_files(source, out, segmenter, go_on=True, **options)  # type: ignore[arg-type]
    for other, message in (
        (segmenter(weights="b" * 64), "the checkpoint's weights aaaaaaaaaaaa, now bbbbbbbbbbbb"),
        (Segmenter(Threshold(), 48, None, "a" * 64), "--size 32, now 48"),
    ):
        with pytest.raises(prediction.UsageError, match=message):
            predict_files(source, out, lambda other=other: other, go_on=True)
    with pytest.raises(prediction.UsageError, match="or add --continue"):
        predict_files(source, out, segmenter)
    with exclusive(out), pytest.raises(prediction.UsageError, match="another process"):
        predict_files(source, out, segmenter, go_on=True)
    assert contents(out) == before
    for name, text, message in (
        ("predictions.csv", "a,b\n1,2\n", "no table that --continue can go on with"),
        ("settings.json", "{", "is damaged"),
    ):
        spoilt = tmp_path / f"spoilt {name}"
        shutil.copytree(out, spoilt)
        (spoilt / name).write_text(text)
        with pytest.raises(prediction.UsageError, match=message):
            predict_files(source, spoilt, segmenter, go_on=True)
        assert (spoilt / name).read_text() == text
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "precious.txt").write_text("keep")
    with pytest.raises(prediction.UsageError, match="is in use"):
        predict_files(source, tmp_path / "used", segmenter, go_on=True)
    assert predict_files(source, tmp_path / "new", segmenter, go_on=True).written == 2


def test_an_output_that_is_not_finite_is_a_named_failure(tmp_path: Path, seed: int) -> None:
    source, out = write_images(tmp_path / "in", 3, seed), tmp_path / "out"
    cv2.imwrite(str(source / "p1.png"), np.full((40, 40), 250, np.uint8))
    predicted = predict_files(source, out, lambda: segmenter(limit=0.9))
    (failure,) = predicted.failures
    assert failure.startswith("p1.png: the network's output is NaN or infinite")
    assert not list(out.glob("p1_*"))
    assert {row["image"]: row["status"] for row in rows(out)} == {
        "p0.png": "done",
        "p1.png": "failed",
        "p2.png": "done",
    }
    dark, bright = np.zeros((40, 50), np.float32), np.ones((30, 30), np.float32)
    first, second = probability_maps(Threshold(0.9), [dark, bright], 32)
    assert second is None and first is not None
    assert first.shape == (40, 50) and np.isfinite(first).all()
    with pytest.raises(NotFiniteError, match="image 1: the network's output is NaN"):
        predict_probabilities(Threshold(0.9), [dark, bright], 32)


def test_images_of_low_range_are_named(
    tmp_path: Path, seed: int, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_images(tmp_path / "in", 2, seed), tmp_path / "out"
    cv2.imwrite(str(source / "p1.png"), np.full((40, 40), 4000, np.uint16))
    arguments = ["predict", "--checkpoint", str(checkpoint), str(source), "--out", str(out)]
    assert main(arguments) == 0
    shown = capsys.readouterr().err
    assert "column message of 1 inputs (p1.png)" in shown and "less than a tenth" in shown
    assert "give --levels 4095" in shown
    messages = {row["image"]: row["message"] for row in rows(out)}
    assert not messages["p0.png"] and "low levels: values up to 4000" in messages["p1.png"]


@pytest.mark.extended
def test_memory_does_not_grow_with_the_number_of_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    source, out = write_images(tmp_path / "in", 200, seed, shape=(24, 24)), tmp_path / "out"
    (source / "p100.png").write_bytes(b"spoilt")
    alive: set[int] = set()
    most: list[int] = []
    decode = prediction_work.to_grey

    def counted(*arguments: object) -> np.ndarray:
        image = decode(*arguments)  # type: ignore[arg-type]
        alive.add(id(image))
        weakref.finalize(image, alive.discard, id(image))
        most.append(len(alive))
        return image

    monkeypatch.setattr(prediction_work, "to_grey", counted)
    monkeypatch.setattr(prediction, "MAX_ROWS", 2)
    predicted = predict_files(source, out, segmenter)
    assert len(most) == 199
    # One chunk in work, and the last of the one before it.
    assert max(most) <= 2 * AT_A_TIME
    assert predicted.written == 199 and len(predicted.failures) == 1
    assert [row["image"] for row in rows(out) if row["status"] == "failed"] == ["p100.png"]
    assert len(rows(out)) == 200


def test_a_full_disk_leaves_a_whole_table(checkpoint: Path, tmp_path: Path, seed: int) -> None:
    source = write_images(tmp_path / "in", 1, seed)
    noise = np.random.default_rng(seed).integers(0, 256, (200, 200)).astype(np.uint8)
    cv2.imwrite(str(source / "p1.png"), noise)
    out = tmp_path / "out"
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    # Python would keep 20 kB of every module that it compiles.
    restricted = {**environment(), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command(checkpoint, source, out),
        env=restricted,
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert f"{out / 'p1_overlay.png'}: File too large" in done.stderr
    assert "predictions.csv is whole. Go on with" in done.stderr
    assert "Traceback" not in done.stderr
    assert [row["image"] for row in rows(out)] == ["p0.png"]
    assert json.loads((out / "settings.json").read_text())["size"] == 32
    assert main([*command(checkpoint, source, out, "--continue")[3:]]) == 0
    assert [row["image"] for row in rows(out)] == ["p0.png", "p1.png"]
