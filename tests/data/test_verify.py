"""`verify` finds every fault that was planted in a fake data set, and no other."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from intrasense_fast.cli import main
from intrasense_fast.data import open_dataset
from intrasense_fast.data.fake import LAYOUTS, Planted, write_tree
from intrasense_fast.data.order import natural_key
from intrasense_fast.data.records import DataError, Problem
from intrasense_fast.data.verify import verify
from intrasense_fast.errors import UsageError

Trees = Callable[[str, bool], tuple[Path, list[Planted]]]


def compare(root: Path, problems: Sequence[Problem], planted: Sequence[Planted]) -> None:
    """Every problem is a planted one, each planted one is found once."""
    left = list(planted)
    for problem in problems:
        relative = os.path.relpath(problem.file, root)
        match = next(
            (
                p
                for p in left
                if (p.level, p.file) == (problem.level, relative) and p.says in problem.message
            ),
            None,
        )
        assert match, f"not planted: {problem}"
        left.remove(match)
    assert not left, f"not found: {left}"


@pytest.mark.parametrize("broken", [False, True], ids=["repairable", "broken"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_planted_fault_and_no_other(layout: str, broken: bool, trees: Trees) -> None:
    root, planted = trees(layout, broken)
    report = verify(root)
    assert report.data.layout == layout and report.data.root == root
    compare(root, report.problems, planted)
    assert bool(report.errors) == broken == any(p.level == "error" for p in planted)
    skipped = verify(root, skip_bad=True)
    assert not skipped.errors and len(skipped.problems) == len(report.problems)
    assert sum("left out: " in p.message for p in skipped.problems) >= len(report.errors)


@pytest.mark.parametrize("broken", [False, True], ids=["repairable", "broken"])
def test_command_and_exit_codes(
    broken: bool, trees: Trees, capsys: pytest.CaptureFixture[str]
) -> None:
    root, planted = trees("busi", broken)
    assert main(["verify", str(root)]) == int(broken)
    shown = capsys.readouterr().out
    for row in (
        "images",
        "masks",
        "several masks",
        "empty masks",
        "classes",
        "sizes",
        "colour modes",
        "near-duplicates",
    ):
        assert row in shown
    assert all(p.says in shown and str(root / p.file) in shown for p in planted)
    assert main(["verify", str(root), "--skip-bad"]) == 0
    assert ("left out: " in capsys.readouterr().out) == broken


def test_counts_of_busi(trees: Trees) -> None:
    root, _ = trees("busi", False)
    rows = dict(verify(root).data.facts())
    assert rows["images"] == "30" and rows["classes"] == "benign 17, malignant 8, normal 5"
    assert rows["masks"] == "33" and rows["images with several masks"] == "2"
    assert rows["groups"] == str(30 - 9)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_in_any_order_of_the_file_system(
    layout: str, trees: Trees, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    root, _ = trees(layout, False)
    wanted = open_dataset(root)
    rng, listing = np.random.default_rng(seed), os.scandir

    @contextlib.contextmanager
    def shuffled(path: Path) -> Iterator[object]:
        with listing(path) as scanned:
            entries = list(scanned)
        rng.shuffle(entries)  # type: ignore[arg-type]
        yield iter(entries)

    monkeypatch.setattr(os, "scandir", shuffled)
    for _ in range(3):
        found = open_dataset(root)
        assert found.records == wanted.records and list(found.published.items()) == list(
            wanted.published.items()
        )
    names = [record.name for record in wanted.records]
    assert names == sorted(names, key=natural_key)


@pytest.mark.parametrize("layout", ["busi", "ddti"])
def test_odd_places(layout: str, trees: Trees, tmp_path: Path) -> None:
    source, planted = trees(layout, False)
    place = tmp_path / "Größe 1 (копия)" / "with spaces"
    shutil.copytree(source, place / "inside")
    compare(place / "inside", verify(place).problems, planted)
    (tmp_path / "link").symlink_to(place / "inside", target_is_directory=True)
    linked = verify(tmp_path / "link")
    compare(tmp_path / "link", linked.problems, planted)
    files = sorted(file for file in (place / "inside").rglob("*") if file.is_file())
    for number, file in enumerate(files):
        moved = tmp_path / "store" / f"{number}"
        moved.parent.mkdir(exist_ok=True)
        file.rename(moved)
        file.symlink_to(moved)
    compare(place / "inside", verify(place / "inside").problems, planted)


def test_broken_link_and_file_that_may_not_be_read(trees: Trees, tmp_path: Path) -> None:
    root = tmp_path / "busi"
    shutil.copytree(trees("busi", False)[0], root)
    target = root / "benign" / "benign (13).png"
    target.unlink()
    target.symlink_to(tmp_path / "gone.png")
    (error,) = verify(root).errors
    assert error.file == str(target) and "a broken link" in error.message
    if os.geteuid():
        target.unlink()
        shutil.copy(root / "benign" / "benign (14).png", target)
        target.chmod(0)
        (error,) = verify(root).errors
        assert error.file == str(target) and "permission denied" in error.message


def test_read_only_media(trees: Trees, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "busi"
    source, planted = trees("busi", False)
    shutil.copytree(source, root)
    before = {file: file.stat().st_mtime_ns for file in root.rglob("*")}
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    report = verify(root)
    (unwritten,) = [p for p in report.problems if "not kept for next time" in p.message]
    assert unwritten.level == "warning" and "set XDG_CACHE_HOME" in unwritten.message
    compare(root, [p for p in report.problems if p is not unwritten], planted)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache é"))
    assert open_dataset(root)[0].image.dtype == np.float32
    assert [file.suffix for file in (tmp_path / "cache é").rglob("*") if file.is_file()] == [
        ".json"
    ]
    assert {file: file.stat().st_mtime_ns for file in root.rglob("*")} == before, (
        "nothing is written into the data set"
    )


def test_wrong_folders(trees: Trees, tmp_path: Path) -> None:
    busi, _ = trees("busi", False)
    with pytest.raises(DataError, match=r"this looks like busi .*expected ddti"):
        open_dataset(busi, "ddti")
    with pytest.raises(DataError, match="layout 'dicom' is unknown; known: auto, busi"):
        open_dataset(busi, "dicom")
    with pytest.raises(DataError, match="expected one of"):
        open_dataset(_folder(tmp_path / "words", "readme.txt"))
    with pytest.raises(DataError, match="no such folder"):
        open_dataset(tmp_path / "absent")
    with pytest.raises(DataError, match="an empty folder"):
        open_dataset(_folder(tmp_path / "empty"))
    (tmp_path / "one" / "empty").mkdir(parents=True)
    with pytest.raises(DataError, match="one/empty: an empty folder"):
        open_dataset(tmp_path / "one")
    cv2.imwrite(str(tmp_path / "one" / "a.png"), np.zeros((8, 8), np.uint8))
    with pytest.raises(DataError, match=r"one: holds empty/, a\.png; expected one of"):
        open_dataset(tmp_path / "one")
    with pytest.raises(DataError, match="unpack an archive first"):
        open_dataset(_folder(tmp_path / "archive", "busi.zip") / "busi.zip")
    for name in ("a", "b"):
        shutil.copytree(busi, tmp_path / "two" / name)
    with pytest.raises(DataError, match=r"open one of its folders: .*two/a, .*two/b"):
        open_dataset(tmp_path / "two")


def _folder(path: Path, *files: str) -> Path:
    path.mkdir()
    for name in files:
        (path / name).write_text("words")
    return path


def test_wrong_folder_from_the_command(
    trees: Trees, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, _ = trees("dataset-b", False)
    assert main(["verify", str(root), "--layout", "bus-bra"]) == 2
    assert "this looks like dataset-b" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "absent")]) == 2
    assert main(["verify", str(root), "--contact-sheet", str(root / "labels.csv")]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    (tmp_path / "file").write_text("keep")
    sheet = tmp_path / "file" / "sheet.png"
    assert main(["verify", str(root), "--contact-sheet", str(sheet)]) == 2
    shown = capsys.readouterr()
    assert f"verify: {sheet}: Not a directory" in shown.err and not shown.out, (
        "said before the work"
    )


def test_names_the_terminal_cannot_show(trees: Trees, tmp_path: Path) -> None:
    root = tmp_path / "größe"
    shutil.copytree(trees("generic", True)[0], root)
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "intrasense_fast", "verify", str(root)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (
        done.returncode == 1 and "gr\\xf6\\xdfe" in done.stdout and "Traceback" not in done.stderr
    )


def test_contact_sheet(trees: Trees, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    assert main(["verify", str(trees("busi", False)[0]), "--contact-sheet", str(sheet)]) == 0
    pixels = cv2.imread(str(sheet))
    assert pixels is not None and pixels.shape[1] == 8 * 168 + 8
    below = pixels[64:]
    frames = {"classes": (60, 60, 230), "masks": (220, 60, 190), "same": (90, 90, 90)}
    for frame, colour in frames.items():
        assert (below == colour).all(axis=2).any(), frame
    assert (
        main(
            [
                "verify",
                str(trees("generic", False)[0]),
                "--contact-sheet",
                str(tmp_path / "none.png"),
            ]
        )
        == 0
    )
    assert (cv2.imread(str(tmp_path / "none.png")) < 128).any(), "says that there are none"


def test_fake_trees_are_repeatable_and_refuse_what_they_cannot(
    trees: Trees, tmp_path: Path
) -> None:
    root, planted = trees("ddti", True)
    assert write_tree("ddti", tmp_path / "again", 30, size=96, seed=5, broken=True) == planted
    for file in sorted(root.rglob("*")):
        if file.is_file():
            assert (tmp_path / "again" / file.relative_to(root)).read_bytes() == file.read_bytes()
    for arguments, message in (
        ({"layout": "dicom"}, "layout 'dicom' is unknown"),
        ({"count": 29}, "at least 30"),
        ({"size": 63}, "sizes from 64 to 1024"),
        ({"seed": -1}, "seeds from 0"),
        ({"out": tmp_path / "again"}, "in use, and nothing is overwritten"),
    ):
        with pytest.raises(UsageError, match=message):
            write_tree(**{"layout": "busi", "out": tmp_path / "new", **arguments})
        assert not (tmp_path / "new").exists()


def test_command_phantom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "fake"
    assert (
        main(["phantom", "--layout", "dataset-b", "--out", str(out), "-n", "30", "--size", "64"])
        == 0
    )
    shown = capsys.readouterr().out
    assert "planted warning: " in shown and "Phantom scores are not clinical scores" in shown
    names = [record.name for record in open_dataset(out, group_duplicates=False).records]
    assert names == [f"{i:06}" for i in [*range(1, 28), 295, 296, 297]]
    assert main(["phantom", "--out", str(out)]) == 2 and "in use" in capsys.readouterr().err
    assert (
        main(["phantom", "--out", str(tmp_path / "few"), "-n", "3"]) == 2
        and "at least 30" in capsys.readouterr().err
    )
