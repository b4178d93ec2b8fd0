"""gpu.sh without a GPU: it parses, names its stages, refuses what it does not know, and walks."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from benchmarks.provenance import ROOT

pytestmark = pytest.mark.skipif(
    shutil.which("timeout") is None, reason="gpu.sh needs bash and timeout of GNU coreutils"
)

# A process of its own: pytest-benchmark does not measure where it takes itself for a worker.
ALONE = {key: value for key, value in os.environ.items() if "XDIST" not in key}


def gpu(*arguments: str, out) -> subprocess.CompletedProcess:
    environment = {**ALONE, "PYTHON": sys.executable, "OUT": str(out)}
    return subprocess.run(
        ["bash", "benchmarks/gpu.sh", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_an_unknown_stage_is_refused_with_the_known_ones(tmp_path):
    done = gpu("speed", out=tmp_path)
    assert (
        done.returncode == 2
        and "tests ceilings ops model memory step breakdown host sanitizer" in done.stderr
    )


@pytest.mark.extended
def test_quick_stages_walk_and_say_where_they_come_from(tmp_path):
    done = gpu("--dry-run", "ceilings", "step", "host", "sanitizer", out=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    ceilings = json.loads((tmp_path / "ceilings.json").read_text())
    assert ceilings["dry_run"] and ceilings["ceilings"]["copy_gb_per_s"] > 0 and ceilings["commit"]
    step = json.loads((tmp_path / "training_step.json").read_text())
    assert step["dry_run"] and len(step["sizes"][0]["variants"]) == 4
    assert set(step["sizes"][0]["differences"].values()) == {0.0}
    host = json.loads((tmp_path / "host.json").read_text())
    assert host["dry_run"] and host["host"]
    for row in host["host"].values():
        assert row["us"]["with plans"] > 0 and row["us"]["without plans"] > 0
    checks = json.loads((tmp_path / "sanitizer.json").read_text())["checks"]
    assert {row["operator"] for row in checks} >= {"nonlocal_attention", "bce_dice"}
    assert all(row["outcome"] == "passed" for row in checks)


def test_a_stopped_benchmark_keeps_what_it_measured(tmp_path):
    """A time limit's SIGTERM ends pytest as Ctrl-C does, which writes the JSON."""
    target, probe = tmp_path / "walk.json", tmp_path / "test_probe.py"
    probe.write_text(
        "import os, signal\n\n\ndef test_stops(benchmark):\n    os.kill(os.getpid(), "
        "signal.SIGTERM)\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--rootdir={ROOT}",
        "--benchmark-only",
    ]
    done = subprocess.run(
        [
            *command,
            f"--benchmark-json={target}",
            "-k",
            "stops or as and written and forward and not compiled",
            "benchmarks/bench_bce_dice.py",
            str(probe),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**ALONE, "INTRASENSE_BENCH_QUICK": "1"},
    )
    assert "KeyboardInterrupt" in done.stdout, done.stdout + done.stderr
    assert json.loads(target.read_text())["benchmarks"]


@pytest.mark.slow
def test_every_stage_walks(tmp_path):
    done = gpu("--dry-run", out=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
