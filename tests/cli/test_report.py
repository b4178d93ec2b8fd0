"""Tables, CSV files and pictures: what they hold, what they refuse, and that a failed write leaves
the old file."""

import csv
import errno
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from intrasense_fast.files import atomic_folder, atomic_path, check_place, legible
from intrasense_fast.metrics import image_metrics, summarize
from intrasense_fast.report import figures, overlays
from intrasense_fast.report.curves import save_curves
from intrasense_fast.report.figures import GREEN, ORANGE, SKY, to_rgb
from intrasense_fast.report.maps import (
    RefinementItem,
    StrideMaps,
    positions_to_show,
    save_refinement_maps,
)
from intrasense_fast.report.overlays import (
    LARGEST_DRAWN,
    OverlayItem,
    drawn_size,
    overlay,
    save_overlays,
)
from intrasense_fast.report.tables import comparison_table, summary_table, write_csv

pytestmark = pytest.mark.filterwarnings("error")


def disc(size: int, shift: int = 0) -> NDArray[np.bool_]:
    y, x = np.mgrid[:size, :size]
    return np.asarray((y - size / 2) ** 2 + (x - size / 2 - shift) ** 2 < (size / 4) ** 2)


def item(name: str = "case", size: int = 48) -> OverlayItem:
    return OverlayItem(name, np.full((size, size), 90, np.uint8), disc(size), disc(size, 6))


def picture(path: Path) -> NDArray[np.uint8]:
    values = cv2.imread(str(path))
    assert values is not None and values.ndim == 3 and values.std() > 5
    return np.asarray(values[..., ::-1], np.uint8)


def holds(values: NDArray[np.uint8], rgb: tuple[int, int, int]) -> bool:
    return bool((np.abs(values.astype(int) - rgb).max(-1) < 40).any())


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_atomic_path_replaces_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    for text in ("first", "second"):
        with atomic_path(path) as temporary:
            assert temporary.parent == path.parent and temporary.suffix == ".txt"
            temporary.write_text(text)
        assert path.read_text() == text
    assert os.listdir(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_atomic_path_keeps_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and not leftovers(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing was written"), atomic_path(path):
        pass
    with pytest.raises(IsADirectoryError, match="it is a folder"), atomic_path(tmp_path):
        pass


def test_errors_name_the_final_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for named in (True, False):
        with pytest.raises(OSError) as caught, atomic_path(path) as temporary:
            raise OSError(errno.EFBIG, "File too large", *([str(temporary)] if named else []))
        assert caught.value.filename == str(path) and caught.value.errno == errno.EFBIG
    with (
        pytest.raises(PermissionError) as refused,
        atomic_folder(tmp_path / "new") as folder,
        atomic_path(folder / "b"),
    ):
        raise PermissionError(errno.EACCES, "Permission denied")
    assert refused.value.filename == str(tmp_path / "new" / "b")
    with pytest.raises(FileNotFoundError) as other, atomic_path(path):
        (tmp_path / "absent").read_bytes()
    assert other.value.filename == str(tmp_path / "absent"), "an error of another file stays"
    path.write_text("a file")
    with pytest.raises(NotADirectoryError) as nowhere:
        check_place(path / "b.png")
    assert nowhere.value.filename == str(path / "b.png")
    check_place(tmp_path / "absent" / "b.png")
    assert os.listdir(tmp_path) == ["a.txt"]


def test_names_that_are_no_utf8_are_legible(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9 \xc3\xa9%")
    assert legible(name) == "caf%E9 é%"
    write_csv(tmp_path / "t.csv", [{"name": name}])
    assert (tmp_path / "t.csv").read_text(encoding="utf-8") == "name\ncaf%E9 é%\n"
    save_overlays(tmp_path / "o.png", [item(name)])


def test_csv_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    write_csv(path, [{"name": "a, b", "dice": 0.1 + 0.2}, {"name": "é", "hd95": float("nan")}])
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"name": "a, b", "dice": "0.30000000000000004", "hd95": ""},
        {"name": "é", "dice": "", "hd95": "nan"},
    ]
    write_csv(path, [], columns=["epoch", "loss"])
    assert path.read_text() == "epoch,loss\n"
    with pytest.raises(ValueError, match="no rows"):
        write_csv(path, [])
    with pytest.raises(ValueError, match="lacks: dice"):
        write_csv(path, [{"epoch": 1, "dice": 1}], columns=["epoch"])
    assert path.read_text() == "epoch,loss\n" and not leftovers(tmp_path)


def test_csv_of_metrics_summarizes_to_the_same(tmp_path: Path) -> None:
    rows = [image_metrics(disc(40, shift), disc(40)) for shift in (0, 3, 25)] + [
        image_metrics(disc(40), np.zeros((40, 40)))
    ]
    write_csv(tmp_path / "t.csv", [{"name": str(i), **row} for i, row in enumerate(rows)])
    with open(tmp_path / "t.csv", newline="") as file:
        assert summarize(csv.DictReader(file)).as_dict() == summarize(rows).as_dict()


def test_summary_table() -> None:
    t = np.zeros((10, 10), bool)
    t[2:6, 2:6] = True
    half, nothing = t & (np.arange(10) < 4), np.zeros((10, 10), bool)
    rows = [image_metrics(p, y) for p, y in ((t, t), (half, t), (nothing, t), (half, nothing))]
    lines = summary_table(summarize(rows), "Test images").splitlines()
    assert lines[0] == "Test images" and lines[1].split() == [
        "mean",
        "±",
        "SD",
        "median",
        "pooled",
        "n",
    ]
    assert [line.split()[0] for line in lines[3:8]] == [
        "Dice",
        "Jaccard",
        "Accuracy",
        "Recall",
        "Precision",
    ]
    assert lines[3].split()[1:] == ["0.5556", "±", "0.5092", "0.6667", "0.6667", "3"]
    assert len({len(line) for line in lines[1:12]}) == 1
    assert next(line for line in lines if line.startswith("HD95")).split()[-2:] == ["-", "2"]
    assert (
        lines[-2] == "Over 3 images with a lesion; 1 lesion missed, 1 image with one mask empty, "
        "1 distance undefined."
    )
    assert (
        lines[-1] == "1 normal image apart: false-positive rate 1.0000, "
        "mean false-positive area 0.0800 of the image."
    )


def test_tables_without_numbers() -> None:
    table = summary_table(summarize([]), "Nothing")
    assert "- ± -" in table and "nan" not in table and "normal" not in table


def test_comparison_table() -> None:
    good, bad = (summarize([image_metrics(disc(40, shift), disc(40))] * 2) for shift in (0, 100))
    lines = comparison_table({"IntraSense-Net": good, "empty mask": bad}).splitlines()
    assert lines[2].split() == ["IntraSense-Net", *["1.0000"] * 6, "2"]
    assert (
        lines[3].split()[:3] == ["empty", "mask", "0.0000"]
        and len({len(line) for line in lines}) == 1
    )


def test_overlay_colours_every_region() -> None:
    image, truth, found = (
        np.full((40, 40), 100, np.uint8),
        np.zeros((40, 40), bool),
        np.zeros((40, 40), bool),
    )
    truth[5:35, 5:25] = found[5:35, 15:35] = True
    drawn = overlay(image, truth, found)
    assert drawn.shape == (40, 40, 3) and drawn.dtype == np.uint8
    outside = ~(truth | found)
    assert (drawn[outside] == 100).all() and (image == 100).all()
    for region, rgb in (
        (truth & found, overlays.TRUE_POSITIVE),
        (found & ~truth, overlays.FALSE_POSITIVE),
        (truth & ~found, overlays.FALSE_NEGATIVE),
    ):
        rows, columns = np.nonzero(region)
        assert tuple(drawn[rows.min(), columns.min()]) == rgb
        centre = drawn[int(rows.mean()), int(columns.mean())].astype(int)
        assert tuple(centre) != rgb and np.argmax(centre) == np.argmax(rgb)
    alone = overlay(image, None, found)
    assert (alone[~found] == 100).all() and tuple(alone[5, 15]) == overlays.OUTLINE


@pytest.mark.parametrize(
    "image",
    [
        np.full((8, 9), 51, np.uint8),
        np.full((8, 9, 1), 51 * 257, np.uint16),
        np.full((8, 9, 3), 0.2),
        np.full((8, 9), 0.2, np.float16),
    ],
)
def test_to_rgb(image: NDArray[np.generic]) -> None:
    assert np.array_equal(to_rgb(image), np.full((8, 9, 3), 51, np.uint8))


def test_overlay_refuses() -> None:
    mask = disc(16)
    with pytest.raises(
        ValueError,
        match=r"prediction must have the image's size \(H, W\) = \(8, 8\), got \(16, 16\)",
    ):
        overlay(np.zeros((8, 8), np.uint8), None, mask)
    with pytest.raises(ValueError, match="target must be bool or hold 0 and 1"):
        overlay(np.zeros((16, 16), np.uint8), mask * 255, mask)
    with pytest.raises(ValueError, match="undo its normalisation"):
        overlay(np.full((16, 16), -1.5), mask, mask)
    with pytest.raises(ValueError, match=r"got shape \(3, 16, 16\)"):
        overlay(np.zeros((3, 16, 16), np.uint8), mask, mask)
    with pytest.raises(ValueError, match="got int64"):
        overlay(np.zeros((16, 16), np.int64), mask, mask)


def test_overlay_grid(tmp_path: Path) -> None:
    path = tmp_path / "o.png"
    wide = OverlayItem("$wide_{", np.zeros((30, 60, 3)), np.zeros((30, 60)), np.zeros((30, 60)))
    save_overlays(
        path,
        [item(), wide, item("a very long name that needs shortening.png")._replace(target=None)],
    )
    drawn = picture(path)
    for rgb in (
        overlays.TRUE_POSITIVE,
        overlays.FALSE_POSITIVE,
        overlays.FALSE_NEGATIVE,
        overlays.OUTLINE,
    ):
        assert holds(drawn, rgb)
    save_overlays(path, [tuple(item())], columns=("image", "errors"))
    assert picture(path).shape[1] < drawn.shape[1]
    save_overlays(path, [item()._replace(target=None)])
    alone = picture(path)
    assert holds(alone, overlays.OUTLINE) and not holds(alone, overlays.TRUE_POSITIVE)
    assert os.listdir(tmp_path) == ["o.png"]


def test_the_verdict_on_an_image_names_its_fault(seed: int) -> None:
    lesion, nothing = disc(48), np.zeros((48, 48), bool)
    cases = (
        (lesion, lesion, "Dice 1.000"),
        (lesion, nothing, "Dice 0.000"),
        (nothing, lesion, "normal: false alarm"),
        (nothing, nothing, "normal: none found"),
        (None, lesion, ""),
    )
    for target, prediction, verdict in cases:
        row = OverlayItem("case", np.zeros((48, 48)), target, prediction)
        assert overlays._verdict(row) == verdict
    rows = [image_metrics(prediction, target) for target, prediction, _ in cases[:4]]
    rows.insert(1, image_metrics(disc(48, 6), lesion))
    order = overlays.worst_to_best(rows, 5)
    assert sorted(order[:2]) == [2, 3] and order[2] == 1 and sorted(order[3:]) == [0, 4]
    many = [{"dice": value} for value in np.random.default_rng(seed).permutation(100) / 100]
    picked = [many[place]["dice"] for place in overlays.worst_to_best(many, 8)]
    assert picked == sorted(picked) and picked[0] == 0 and picked[-1] == 0.99 and len(picked) == 8


def test_overlay_grid_refuses(tmp_path: Path) -> None:
    path = tmp_path / "o.png"
    with pytest.raises(ValueError, match="1 to 64 images, got 0"):
        save_overlays(path, [])
    with pytest.raises(ValueError, match=r"unknown columns \['truth'\]"):
        save_overlays(path, [item()], columns=("image", "truth"))
    with pytest.raises(ValueError, match="case: prediction must have"):
        save_overlays(path, [item()._replace(prediction=disc(20))])
    assert not list(tmp_path.iterdir())


ROWS = [
    {
        "epoch": e,
        "train_loss": 2 / e,
        "train_bce": 1 / e,
        "train_dice": 1 / e,
        "train_whitening": -0.01,
        "val_dice": 1 - 1 / e,
        "masked_fraction_8": 0.5,
        "masked_fraction_16": 0.4,
        "learning_rate": 1e-3 / e**2,
    }
    for e in range(1, 7)
]


@pytest.mark.parametrize(
    "rows",
    [
        ROWS,
        ROWS[:1],
        [{"epoch": row["epoch"], "val_dice": row["val_dice"]} for row in ROWS],
        [{key: str(value) for key, value in row.items()} for row in ROWS],
        [
            {**ROWS[0], "val_dice": "", "train_loss": None},
            {**ROWS[1], "val_dice": float("nan"), "learning_rate": 0},
        ],
    ],
    ids=["all", "one epoch", "one panel", "text", "gaps"],
)
def test_curves(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    save_curves(tmp_path / "c.png", rows)
    assert holds(picture(tmp_path / "c.png"), (0, 114, 178)) and os.listdir(tmp_path) == ["c.png"]


def test_the_whitening_loss_can_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its curve covers most of its own axis, though it is a hundredth of the others."""
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
    rows = [{**row, "train_whitening": -0.01 / row["epoch"]} for row in ROWS]
    save_curves(tmp_path / "c.png", rows)
    panels = {axes.get_title(loc="left"): axes for axes in drawn[0].axes}
    (title,) = (title for title in panels if title.startswith("Whitening loss"))
    low, high = panels[title].get_ylim()
    assert -0.012 < low < -0.01 and 0 <= high < 0.002
    labels = [text.get_text() for text in panels["Loss"].get_legend().get_texts()]
    assert "whitening" not in labels and "total" in labels


def test_curves_refuse(tmp_path: Path) -> None:
    for rows, message in (
        ([], "no rows"),
        ([{"val_dice": 1}], "must have a column epoch"),
        ([{"epoch": 1, "seconds": 3}], "nothing to draw in the columns epoch, seconds"),
        ([{"epoch": 1, "val_dice": "good"}], "row 0 has val_dice = 'good'"),
    ):
        with pytest.raises(ValueError, match=message):
            save_curves(tmp_path / "c.png", rows)
    assert not list(tmp_path.iterdir())


def stride_maps(generator: np.random.Generator, side: int) -> StrideMaps:
    entropy = generator.normal(5, 1, size=(side, side))
    attention = generator.random((2, side, side))
    return StrideMaps(entropy, entropy < 5, generator.random((side, side)), attention)


def test_refinement_maps(tmp_path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    truth = np.zeros((64, 64), bool)
    truth[20:40, 10:30] = True
    places = positions_to_show(truth)
    maps = {stride: stride_maps(generator, 64 // stride) for stride in (16, 8)}
    maps[16].entropy[0, 0] = np.nan
    item = RefinementItem("a", np.zeros((64, 64)), truth, places, maps)
    save_refinement_maps(tmp_path / "m.png", [item] * 2)
    drawn = picture(tmp_path / "m.png")
    assert drawn.shape[1] > 800
    # The outline of the ground truth and the two positions.
    assert all(holds(drawn, colour) for colour in (GREEN, ORANGE, SKY))
    with pytest.raises(
        ValueError, match=r"a has maps at strides \[8\]; .* needs them at \[8, 16\]"
    ):
        save_refinement_maps(tmp_path / "n.png", [item, item._replace(maps={8: maps[8]})])
    crooked = maps[8]._replace(mask=maps[16].mask)
    with pytest.raises(ValueError, match=r"stride 8: .* got \(8, 8\), \(4, 4\), \(8, 8\)"):
        save_refinement_maps(tmp_path / "n.png", [item._replace(maps={8: crooked, 16: maps[16]})])
    with pytest.raises(ValueError, match=r"the truth \(8, 8\) must be as large as the image"):
        save_refinement_maps(tmp_path / "n.png", [item._replace(truth=truth[:8, :8])])
    assert os.listdir(tmp_path) == ["m.png"]


def test_positions_inside_and_outside() -> None:
    truth = np.zeros((40, 60), bool)
    truth[10:21, 30:41] = True
    (row, column), (other_row, other_column) = positions_to_show(truth)
    assert (row, column) == (15, 35)
    assert (other_row, other_column) == (15, 0)
    inside, outside = positions_to_show(np.zeros((40, 60), bool))
    assert inside == (20, 30) and outside[0] == 20 and outside[1] in (0, 59)


def test_import_takes_no_matplotlib_and_pictures_no_pyplot(tmp_path: Path) -> None:
    program = (
        "import sys; from intrasense_fast.report import curves, figures, maps, overlays, tables\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"curves.save_curves({str(tmp_path / 'c.png')!r}, [{{'epoch': 1, 'val_dice': 0.5}}])\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=root, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_large_pictures_are_drawn_reduced() -> None:
    small = OverlayItem("a", np.zeros((90, 120), np.float32), None, np.ones((90, 120), bool))
    assert drawn_size(small) is small
    image = np.zeros((2000, 4000), np.float32)
    image[:, 2000:] = 1
    mask = image > 0
    large = drawn_size(OverlayItem("b", image, mask, ~mask))
    assert np.shape(large.image) == (LARGEST_DRAWN // 2, LARGEST_DRAWN)
    assert np.asarray(large.target).mean() == 0.5 == np.asarray(large.prediction).mean()
    assert image_metrics(large.prediction, large.target)["dice"] == 0
