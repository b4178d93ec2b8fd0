"""The model card of a run says what stands in its folder, and a card of somebody else is kept."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from intrasense_fast import IntraSenseNet
from intrasense_fast.data.splits import Fold, Splits
from intrasense_fast.errors import UsageError
from intrasense_fast.files import write_text
from intrasense_fast.metrics import METRICS, image_metrics, summarize
from intrasense_fast.networks.cards import CARD_FILE, write_card
from intrasense_fast.networks.checksums import digest_of
from intrasense_fast.training import checkpoint
from intrasense_fast.training.card import run_card, write_run_card

COUNT = 12


def finished_run(run: Path, seed: int, role: str = "test") -> list[dict[str, object]]:
    """The files of a run that its card is made from, of random masks: rows of per_image.csv."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(COUNT):
        truth = np.zeros((24, 24), bool)
        truth[6:18, 6:18] = i < COUNT - 2
        guess = truth ^ (rng.random(truth.shape) < rng.uniform(0.02, 0.3))
        found = image_metrics(guess, truth)
        rows.append({"role": role, "name": f"p{i}", "case": f"p{i}", "label": "", **found})
    (run / "best").mkdir(parents=True)
    with open(run / "per_image.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    splits = Splits((Fold(("a", "b", "c"), ("d",), tuple(f"p{i}" for i in range(COUNT))),), {})
    splits.save(run / "splits.json")
    config = {"data": "/home/somebody/secret/BUSI", "subset": "all", "batch_size": 4, "epochs": 9}
    config |= {"lr": 1e-4, "seed": 5, "augment": "us", "loss": "common"}
    record = {"config": config, "splits": splits.digest, "images": COUNT + 4, "layout": "busi"}
    record |= {"commit": "c0ffee", "versions": {"torch": "2.0", "intrasense_fast": "1"}}
    write_text(run / "config.json", json.dumps(record))
    best = {"image_size": 64, "fold": 0, "epoch": 7, "splits": splits.digest}
    best |= {"architecture": "intrasense", "arguments": {"window": 7}}
    write_text(run / "best" / "config.json", json.dumps(best))
    write_text(run / "best" / "trained_on.json", '{"train": [], "val": []}')
    summary = {"role": role, "IntraSense-Net": summarize(rows).as_dict()}
    summary["empty mask"] = summary["IntraSense-Net"]
    write_text(run / "summary.json", json.dumps(summary))
    return rows


def test_it_says_what_the_run_measured(tmp_path: Path, seed: int) -> None:
    pytest.importorskip("scipy", reason="intervals need the extra study")
    from scipy import stats

    rows = finished_run(tmp_path, seed)
    assert write_run_card(tmp_path)
    text = (tmp_path / "best" / CARD_FILE).read_text(encoding="utf-8")
    values = np.array([row["dice"] for row in rows[: COUNT - 2]], np.float64)
    table = dict(line.split(" | ", 1) for line in text.splitlines() if line.startswith("| "))
    assert len(table) == len(METRICS) + 1
    mean, interval, n = table["| Dice"].rstrip(" |").split(" | ")
    assert float(mean) == pytest.approx(values.mean(), abs=5.1e-4) and int(n) == COUNT - 2
    half = stats.t.ppf(0.975, COUNT - 3) * values.std(ddof=1) / np.sqrt(COUNT - 2)
    low, high = map(float, interval.split(" to "))
    # 2000 draws give the standard error to 1.6 %.
    assert (high - low) / 2 == pytest.approx(half, rel=0.08, abs=1e-3)
    for part in (
        f"{COUNT} test images, {COUNT - 2} with a lesion",
        "3 images train, 1 select the checkpoint, 12 test",
        "BUSI: 16 images, layout busi",
        digest_of(tmp_path / "best" / "trained_on.json"),
        "commit c0ffee",
        "not a medical device",
        "empty mask",
        "from_pretrained",
    ):
        assert part in text, part
    assert "somebody" not in text


def test_the_hub_reads_its_front_matter(tmp_path: Path, seed: int) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs the extra hub")
    rows = finished_run(tmp_path, seed)
    about = huggingface_hub.ModelCard(run_card(tmp_path)).data
    assert about.library_name == "intrasense-fast" and about.pipeline_tag == "image-segmentation"
    assert about.license == "other" and {"ultrasound", "intrasense-fast"} <= set(about.tags)
    (dice,) = [each for each in about.eval_results if each.metric_type == "dice"]
    mean = np.mean([row["dice"] for row in rows[: COUNT - 2]])
    assert dice.metric_value == pytest.approx(mean, abs=5.1e-5)
    assert (dice.dataset_type, dice.dataset_name) == ("busi", "BUSI")


def test_images_of_a_group_count_together(tmp_path: Path, seed: int) -> None:
    pytest.importorskip("scipy", reason="intervals need the extra study")
    finished_run(tmp_path, seed)
    one = run_card(tmp_path, {f"p{i}": "the same patient" for i in range(COUNT)})
    assert "| not given: one group |" in one and " to " not in one.split("| Dice")[1].split("\n")[0]
    pairs = run_card(tmp_path, {f"p{i}": f"{i // 2}" for i in range(COUNT)})
    assert pairs != run_card(tmp_path) and pairs == run_card(
        tmp_path, {f"p{i}": f"{i // 2}" for i in range(COUNT)}
    )


def test_without_scipy_it_says_why_there_are_no_intervals(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished_run(tmp_path, seed, role="selection")
    monkeypatch.setitem(sys.modules, "scipy", None)
    text = run_card(tmp_path)
    assert "There are no intervals" in text and "intrasense-fast[study]" in text
    assert "the figures are optimistic" in text and "There was no test image" in text


def test_a_damaged_run_is_named(tmp_path: Path, seed: int) -> None:
    finished_run(tmp_path, seed)
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(UsageError, match="its model card cannot be made") as error:
        write_run_card(tmp_path)
    assert "\n" not in str(error.value) and not (tmp_path / "best" / CARD_FILE).exists()


def test_a_card_of_somebody_else_is_kept(tmp_path: Path, seed: int) -> None:
    finished_run(tmp_path / "run", seed)
    mine = tmp_path / "run" / "best" / CARD_FILE
    mine.write_bytes(b"\xff mine \r\n")
    assert not write_run_card(tmp_path / "run") and mine.read_bytes() == b"\xff mine \r\n"
    net = IntraSenseNet(encoder="resnet18", refine_strides=(), decoder_channels=(8,) * 5)
    # A better epoch replaces the folder.
    checkpoint.save_best(tmp_path / "run", net, {})
    assert mine.read_bytes() == b"\xff mine \r\n"
    with pytest.warns(UserWarning, match=r"README.md: is yours and is kept"):
        net.save_pretrained(tmp_path / "run" / "best", overwrite=True)
    assert mine.read_bytes() == b"\xff mine \r\n"
    mine.unlink()
    net.save_pretrained(tmp_path / "run" / "best", overwrite=True)
    assert "`intrasense`" in mine.read_text()
    assert write_card(mine.parent, "---\n") and mine.read_text() == "---\n"
