"""One listing: what counts as a picture, for verify and predict alike, and what is never opened."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from intrasense_fast.cli import main
from intrasense_fast.data import read_dataset
from intrasense_fast.data.inputs import chunks, list_inputs
from intrasense_fast.data.listing import files
from intrasense_fast.data.opening import FileError, open_regular, read_xml, sha256_of
from intrasense_fast.files import escaped

Trees = Callable[[str, bool], tuple[Path, list]]
PICTURE = cv2.imencode(".png", np.arange(64, dtype=np.uint8).reshape(8, 8) * 3)[1].tobytes()
HIDDEN = (
    ".hidden.png", "._a.png", ".thumbnails/a.png", "__MACOSX/a.png", ".ipynb_checkpoints/a.png",
    "Thumbs.db", "@eaDir/a.png", "desktop.ini",
)  # fmt: skip


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(PICTURE)
    return root


def listed(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in files(root, recursive=True)]


def test_hidden_and_system_entries_never_count(tmp_path: Path) -> None:
    root = put(tmp_path / "data", "images/a.png", "masks/a.png")
    for folder in ("images", "masks"):
        put(root / folder, *HIDDEN)
    data = read_dataset(root)
    assert [record.name for record in data.records] == ["a"] and not data.problems
    assert listed(root) == ["images/a.png", "masks/a.png"]
    assert [str(relative) for relative, _ in list_inputs(root).images] == ["images/a.png"]


def test_links_back_and_out_are_not_followed_and_others_are(tmp_path: Path) -> None:
    root = put(tmp_path / "data", "a.png", "z/b.png")
    put(tmp_path / "elsewhere", "c.png")
    for link, target in (
        ("self", root),
        ("z/up", root),
        ("z/out", tmp_path),
        ("also z", root / "z"),
        ("c", tmp_path / "elsewhere"),
    ):
        (root / link).symlink_to(target)
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    (tmp_path / "elsewhere" / "z again").symlink_to(root / "z")
    assert listed(root) == ["a.png", "also z/b.png", "c/c.png", "z/b.png"]


def test_folders_that_all_link_to_one_another_end(tmp_path: Path) -> None:
    for i in range(9):
        put(tmp_path, f"{i}/a.png")
    for i in range(9):
        for j in range(9):
            if i != j:
                (tmp_path / f"{i}" / f"to {j}").symlink_to(tmp_path / f"{j}")
    assert len(listed(tmp_path)) == 9 + 9 * 8


def special(path: Path, kind: str) -> str:
    if kind == "FIFO":
        os.mkfifo(path)
        return "a FIFO"
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            here = Path.cwd()
            os.chdir(path.parent)  # the name of a socket may hold 108 bytes
            server.bind(path.name)
            os.chdir(here)
        return "a socket"
    path.symlink_to("/dev/zero")
    return "a device"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
@pytest.mark.parametrize("kind", ["FIFO", "socket", "device"])
def test_what_is_no_regular_file_is_named_and_never_opened(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = put(tmp_path / "data", "images/a.png", "masks/a.png", "masks/b.png")
    said = special(root / "images" / "b.png", kind)
    special(root / "images" / "odd", kind)
    with pytest.raises(FileError, match=said):
        open_regular(root / "images" / "b.png")
    assert main(["verify", str(root)]) == 1
    shown = capsys.readouterr().out
    assert shown.count(said) == 2
    special(root / "labels.csv", kind)
    assert main(["verify", str(root)]) == 1
    assert f"labels.csv: cannot be read as a CSV table in UTF-8 ({said}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a.webp", "a.jp2", "a.nii.gz", "a.gif"])
def test_a_picture_that_cannot_be_read_is_an_error(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = put(tmp_path / "data", "images/a.png", "masks/a.png")
    (root / "images" / name).write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 300)
    (root / "images" / "notes.txt").write_text("words")
    assert main(["verify", str(root)]) == 1
    assert f"error: {root / 'images' / name}: a" in (shown := capsys.readouterr().out)
    assert "notes.txt" not in shown
    (problem,) = list_inputs(root / "images").problems
    assert problem.file.endswith(name) and "convert it to PNG" in problem.message


def test_predict_sees_what_verify_sees(trees: Trees) -> None:
    for layout in ("busi", "unext", "bus-bra", "class-folders", "dataset-b"):
        root, _ = trees(layout, False)
        seen = {record.image for record in read_dataset(root).records}
        inputs = list_inputs(root)
        assert {path for _, path in inputs.images} == seen, layout
        assert len(inputs.masks) >= len(seen) and not inputs.problems


def test_chunks_hold_few_pixels(tmp_path: Path) -> None:
    put(tmp_path, *(f"{i}.png" for i in range(7)))
    images = list_inputs(tmp_path).images
    assert [len(chunk) for chunk in chunks(images, 3)] == [3, 3, 1]
    assert [len(chunk) for chunk in chunks(images, 3, 128)] == [2, 2, 2, 1]
    assert [len(chunk) for chunk in chunks(images, 3, 64)] == [1] * 7


@pytest.mark.parametrize(
    "text",
    ['<?xml version="1.0" encoding="klingon"?><a/>', "<a>", "", "<a>&b;</a>"],
)
def test_xml_of_every_fault_is_one_failure(text: str, tmp_path: Path) -> None:
    (tmp_path / "1.xml").write_text(text)
    (tmp_path / "1_1.jpg").write_bytes(PICTURE)
    with pytest.raises(FileError, match="no readable XML"):
        read_xml(tmp_path / "1.xml")
    (problem, *_) = read_dataset(tmp_path).problems
    assert problem.level == "error" and "no readable XML" in problem.message


def test_control_characters_reach_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert escaped("a\x1b[31m\n\u202eb é") == "a\\x1b[31m\\n\\u202eb é"
    assert escaped("a\nb\x07", keep="\n") == "a\nb\\x07"
    put(tmp_path / "data", "images/bad\x1b[2J\nerror: forged.png", "masks/a.png")
    assert main(["verify", str(tmp_path / "data")]) == 1
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "bad\\x1b[2J\\nerror: forged.png" in shown


def test_the_digest_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    wanted = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(tmp_path / "a") == wanted
