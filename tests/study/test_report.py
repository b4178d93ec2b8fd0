"""The report of a fabricated study: its figures by another way, what is missing, and files that
stand alone."""

import csv
import json
import math
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from torch import nn

from intrasense_fast.data.splits import Splits
from intrasense_fast.errors import UsageError
from intrasense_fast.networks import build_network
from intrasense_fast.report.study import figures, write_report
from intrasense_fast.report.study.contents import complete, picked_cases
from intrasense_fast.report.study.cost import count_gmac
from intrasense_fast.report.study.folder import read_study
from intrasense_fast.report.study.predictions import open_samples, reliability
from intrasense_fast.report.study.tables import BEST, SECOND, Table, ranks

FILES = (
    "report.html tables.md tables.tex summary.csv differences.csv strata.csv cost.csv per_image.csv"
)
VOID = {"meta", "img", "br"}


@pytest.fixture(scope="module")
def reported(fabricated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The complete study with its report."""
    out = Path(shutil.copytree(fabricated, tmp_path_factory.mktemp("reported") / "out"))
    assert [path.name for path in write_report(out)] == FILES.split()
    return out


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


class Balanced(HTMLParser):
    """Collects unbalanced tags, and every address that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_summary_by_another_way(reported: Path) -> None:
    """Means and pooled Dice from the cells' own files."""
    found = {(row["label"], row["metric"]): row for row in rows(reported / "summary.csv")}
    for label in ("unet", "narrow"):
        cells = [rows(file) for file in reported.glob(f"cells/{label}-*/per_image.csv")]
        lesion = [row for cell in cells for row in cell if int(row["tp"]) + int(row["fn"]) > 0]
        row = found[label, "dice"]
        values = [float(each["dice"]) for each in lesion]
        assert float(row["mean"]) == pytest.approx(np.mean(values), abs=1e-12)
        by_seed = []
        for seed in (0, 1):
            part = [
                each
                for file in reported.glob(f"cells/{label}-s{seed}-*/per_image.csv")
                for each in rows(file)
            ]
            tp, fp, fn = (
                sum(int(each[name]) for each in part if int(each["tp"]) + int(each["fn"]) > 0)
                for name in ("tp", "fp", "fn")
            )
            by_seed.append((2 * tp, 2 * tp + fp + fn))
        top, bottom = np.sum(by_seed, 0)
        assert float(row["pooled"]) == pytest.approx(top / bottom, abs=1e-12)
        assert float(row["low"]) < float(row["mean"]) < float(row["high"])
        # 18 images of which two are normal, in pairs.
        assert (row["images"], row["groups"], row["folds"], row["seeds"]) == ("16", "9", "3", "2")
    (dice,) = (row for row in rows(reported / "differences.csv") if row["metric"] == "dice")
    means = [float(found[label, "dice"]["mean"]) for label in ("narrow", "unet")]
    assert float(dice["difference"]) == pytest.approx(means[0] - means[1], abs=1e-12)
    assert float(dice["rank_biserial"]) < 0 and float(dice["p"]) <= float(dice["p_holm"])


def test_files_stand_alone(reported: Path) -> None:
    text = (reported / "report.html").read_text(encoding="utf-8")
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    assert len(parser.addresses) == 5
    assert all(address.startswith("data:image/png;base64,") for address in parser.addresses)
    assert "http" not in text and "@import" not in text and "url(" not in text
    markdown = (reported / "tables.md").read_text(encoding="utf-8")
    for part in ("Mean over images", "Pooled", "Over folds", "Boundary", "Cost", "Strata"):
        assert part in markdown and part in text
    tex = (reported / "tables.tex").read_text(encoding="utf-8")
    assert tex.count(r"\begin{table}") == tex.count(r"\end{table}") == markdown.count("\n### ")
    assert r"\textbf{" in tex and r"\underline{" in tex


def test_per_image_holds_the_texture_index(reported: Path) -> None:
    table = rows(reported / "per_image.csv")
    assert len(table) == 2 * 2 * 18
    normal = [row for row in table if int(row["tp"]) + int(row["fn"]) == 0]
    assert len(normal) == 2 * 2 * 2 and all(row["texture_auc"] == "nan" for row in normal)
    index = [float(row["texture_auc"]) for row in table if row not in normal]
    assert all(0 <= value <= 1 for value in index)
    assert {row["group"] for row in table} == {f"pair {i}" for i in range(9)}


@pytest.mark.extended
def test_missing_cells_are_named_and_not_ranked(study_copy: Callable[[], Path]) -> None:
    out = study_copy()
    (out / "cells" / "narrow-s1-f2" / "summary.json").unlink()
    (out / "cells" / "narrow-s0-f1" / "failed.txt").write_text("Traceback\ndiverged at step 7\n")
    shutil.rmtree(out / "cells" / "narrow-s1-f0")
    shutil.rmtree(out / "cells" / "unet-s0-f0" / "best")
    study = read_study(out)
    assert complete(study) == ["unet"]
    write_report(out)
    text = (out / "report.html").read_text(encoding="utf-8")
    for line in (
        "narrow-s1-f2: unfinished",
        "narrow-s0-f1: failed: diverged at step 7",
        "narrow-s1-f0: not begun",
        "unet-s0-f0: no predictions",
    ):
        assert line in text
    assert 'class="best"' not in text and 'class="second"' not in text


def test_where_all_cells_failed_the_report_is_their_reasons(
    study_copy: Callable[[], Path],
) -> None:
    out = study_copy()
    cells = sorted((out / "cells").iterdir())
    for cell in cells:
        (cell / "summary.json").unlink()
        (cell / "failed.txt").write_text(f"diverged at step {len(cell.name)}\n")
    files = write_report(out)
    assert [file.name for file in files] == ["report.html", "tables.md", "tables.tex"]
    for file in files[:2]:
        text = file.read_text(encoding="utf-8")
        assert f"none of the {len(cells)} cells is done" in text and "nan" not in text
        assert all(f"{cell.name}: failed: diverged at step" in text for cell in cells)
    parser = Balanced()
    parser.feed((out / "report.html").read_text(encoding="utf-8"))
    assert parser.open == [] and parser.addresses == []


def test_without_images_the_figures_are_left_out(study_copy: Callable[[], Path]) -> None:
    out = study_copy()
    shutil.rmtree(out / "data")
    write_report(out)
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "the data set cannot be opened" in text and text.count("<img") == 1


def test_paper_figures_stand_beside_busi_only(study_copy: Callable[[], Path]) -> None:
    out = study_copy()
    shutil.rmtree(out / "data")
    record = json.loads((out / "study.json").read_text())
    (out / "study.json").write_text(json.dumps(record | {"layout": "busi", "data": "absent"}))
    write_report(out)
    markdown = (out / "tables.md").read_text(encoding="utf-8")
    assert "52.19" in markdown and "66.72" in markdown and "in no ranking" in markdown
    assert not any("52.19" in line for line in markdown.splitlines() if line.startswith("|"))


def test_damage_is_told(study_copy: Callable[[], Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder of a study"):
        write_report(tmp_path)
    out = study_copy()
    file = out / "cells" / "unet-s0-f0" / "per_image.csv"
    file.write_text(file.read_text().replace("test", "test", 1).replace("0.", "x.", 1))
    with pytest.raises(UsageError, match=r"per_image.csv: missing or damaged"):
        write_report(out)
    for done in out.glob("cells/*/summary.json"):
        done.unlink()
    with pytest.raises(UsageError, match="no cell of the study is done"):
        write_report(out)
    record = json.loads((out / "study.json").read_text())
    (out / "study.json").write_text(json.dumps(record | {"reference": "other"}))
    with pytest.raises(UsageError, match="reference 'other'"):
        write_report(out)


def test_reliability_is_scikit_learns(fabricated: Path, seed: int) -> None:
    samples, fault = open_samples(read_study(fabricated))
    assert fault == ""
    rng = np.random.default_rng(seed)
    names = sorted(samples)[:3]
    maps = {name: rng.random((64, 64)).astype(np.float32) for name in names}
    found = reliability(maps, samples)
    truth = np.concatenate([samples[name].load().mask.ravel() for name in names])
    scores = np.concatenate([maps[name].ravel() for name in names]).astype(float)
    frequency, confidence = calibration_curve(truth, scores, n_bins=10)
    np.testing.assert_allclose(found["frequency"], frequency, atol=1e-9)
    np.testing.assert_allclose(found["confidence"], confidence, atol=1e-9)
    gap = np.abs(frequency - confidence)
    weight = np.histogram(scores, np.linspace(0, 1, 11))[0] / len(scores)
    assert found["ece"] == pytest.approx((gap * weight).sum(), abs=1e-9)


def test_marks_and_escapes() -> None:
    nan = math.nan
    assert ranks([0.5, 0.7, 0.6, nan], "dice") == {1: BEST, 2: SECOND}
    assert ranks([5.0, 3.0, 4.0], "hd95") == {1: BEST, 2: SECOND}
    # Equal as printed: both are best.
    assert ranks([0.70001, 0.70002, 0.6], "dice") == {0: BEST, 1: BEST, 2: SECOND}
    assert ranks([0.7, 0.7], "dice") == {}
    table = Table("A & B", ["", "50 %"], [["a_b|c", "<1>"]], {(0, 1): BEST})
    assert r"a\_b" in table.latex() and r"50 \%" in table.latex() and r"A \& B" in table.latex()
    assert "&lt;1&gt;" in table.html() and 'class="best"' in table.html()
    assert "a_b\\|c" in table.markdown() and "**<1>**" in table.markdown()


def test_cases_by_rule() -> None:
    dice = np.array([0.1, 0.9, 0.5, math.nan, 0.7, 0.3])
    index = np.array([0.9, 0.8, 0.2, 0.1, 0.7, 0.6])
    names = list("abcdef")
    assert [name for name, _ in picked_cases(dice, index, names)] == ["a", "f", "c", "e", "b", "d"]


def test_gmac_of_a_convolution_by_hand() -> None:
    gmac, fault = count_gmac("tests.study.test_report:one_convolution", {}, 1)
    assert fault == "" and gmac == pytest.approx(256 * 256 * 9 / 1e9)
    gmac, fault = count_gmac("unet", {"wrong": 1}, 1)
    assert math.isnan(gmac) and "no option" in fault


# Parameters, less what is never used, and GMAC at 256 as counted from the authors' networks.
@pytest.mark.extended
@pytest.mark.parametrize(
    ("name", "options", "parameters", "gmac"),
    [
        ("rolling-unet", {"size": "M"}, 7_098_401 - 2_048, 8.27),
        ("emcad", {"encoder": "pvtv2_b2"}, 26_764_411 - 12, 5.83),
    ],
)
def test_cost_is_what_the_networks_authors_count(
    name: str, options: dict[str, str], parameters: int, gmac: float
) -> None:
    with torch.device("meta"):
        net = build_network(name, 3, 1, **options)
    assert sum(one.numel() for one in net.parameters() if one.requires_grad) == parameters
    counted, fault = count_gmac(name, options, 3)
    assert fault == "" and counted == pytest.approx(gmac, rel=0.02)


def one_convolution(in_channels: int, num_classes: int) -> nn.Module:
    """A network of one 3 x 3 convolution."""

    return nn.Conv2d(in_channels, num_classes, 3, padding=1)


def test_folds_are_the_splits(fabricated: Path) -> None:
    study = read_study(fabricated)
    splits = Splits.load(fabricated / "splits.json")
    assert all(study.fold_of()[name] == i for i, f in enumerate(splits.folds) for name in f.test)


def test_no_two_networks_have_the_same_line() -> None:
    styles = [tuple(figures._line_style(i).values()) for i in range(18)]
    assert len(set(styles)) == 18
