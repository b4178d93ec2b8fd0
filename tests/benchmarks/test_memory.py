"""Saved bytes are counted, and predicted from the shapes alone."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import memory, prediction
from benchmarks.provenance import ROOT
from benchmarks.saved import saved_bytes
from intrasense_fast import IntraSenseNet
from intrasense_fast.losses import IntraSenseLoss


def test_saved_bytes_are_those_of_distinct_storages_without_parameters():
    x, weight = torch.randn(4, 8), torch.randn(8, 8, requires_grad=True)
    # The first product saves x, and weight only for a gradient that is not asked for; the second
    # saves y and weight.
    assert saved_bytes(lambda: (x @ weight) @ weight, [weight]) == 2 * 4 * 8 * 4
    assert saved_bytes(lambda: (x @ weight) @ weight) == 2 * 4 * 8 * 4 + 8 * 8 * 4
    assert saved_bytes(lambda: x @ x.T) == 0


@pytest.mark.parametrize(
    "path, strides", [("plain", ()), ("eager", (8, 16, 32)), ("eager", (32, 4))]
)
def test_prediction_of_saved_bytes_is_what_the_hooks_count(path, strides, rng):
    size = 64
    net = IntraSenseNet(
        fused=False, **({"refine_strides": strides} if strides else {"gcp": False, "cdr": False})
    )
    image, mask = (
        torch.rand(2, 1, size, size, generator=rng),
        torch.rand(2, 1, size, size, generator=rng) > 0.5,
    )
    counted = saved_bytes(
        lambda: IntraSenseLoss(fused=False)(net(image), mask), [*net.parameters(), *net.buffers()]
    )
    parts = prediction.saved(path, size, strides, batch=2)
    # BatchNorm's statistics and the gates are too small to be predicted: they weigh most on the
    # smallest image.
    assert 1.0 <= counted / sum(parts.values()) <= 1.015, parts


def test_attention_scores_grow_with_the_square_of_the_positions():
    small, large = (prediction.saved("eager", size, (4,))["scores"] for size in (256, 512))
    assert 15.9 < large / small < 16
    fused = [prediction.saved("fused", size, (4,))["scores"] for size in (256, 512)]
    assert fused[1] / fused[0] == 4


@pytest.mark.extended
def test_a_walk_writes_table_plot_and_json(tmp_path):
    command = [
        sys.executable,
        "-m",
        "benchmarks.memory",
        "--dry-run",
        "--limit-gib",
        "1",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "memory.json").read_text())["rows"]
    assert all(row["peak"] > 0 and row["holds"] for row in rows)
    assert len((tmp_path / "memory.csv").read_text().splitlines()) == 1 + len(rows)
    assert (tmp_path / "memory.png").read_bytes()[:4] == b"\x89PNG"


def test_what_would_not_fit_is_skipped_with_its_prediction(tmp_path, monkeypatch, capsys):
    measured = []
    monkeypatch.setattr(
        memory, "measured", lambda row, *rest: measured.append(row) or {"status": "out of memory"}
    )
    assert (
        memory.main(
            ["--max-size", "2048", "--min-size", "2048", "--limit-gib", "8", "--out", str(tmp_path)]
        )
        == 0
    )
    assert measured and all(
        prediction.peak(r["path"], r["mode"], 2048, r["strides"]) <= 8 * 2**30 for r in measured
    )
    assert "GiB predicted, --limit-gib 8" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without a GPU")
def test_a_sweep_of_a_gpu_that_is_not_there_is_refused(tmp_path, capsys):
    assert memory.main(["--device", "cuda", "--out", str(tmp_path)]) == 2
    assert "--device cpu" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_inference_at_1024_with_four_refined_strides_fits_in_six_gib():
    row = {
        "path": "eager",
        "mode": "inference",
        "size": 1024,
        "strides": [4, 8, 16, 32],
        "batch": 1,
    }
    code = (
        "import json, resource, sys; from benchmarks.memory import measure;"
        "found = measure(json.loads(sys.argv[1]), 'cpu'); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(row)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert 0.5 * 2**30 < int(done.stdout) <= 6 * 2**30
