"""A replayed plan asks the driver for what the slow path asks for: grid, function, arguments.

Triton's JIT and C launcher run for it on a driver whose launches are noted, in one process of their
own (tests/proof/replays.py).
"""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="the kernels need Triton, which has wheels for Linux only")

from benchmarks.provenance import ROOT
from tests.proof.fake_driver import compiler
from tests.proof.registry import OPERATORS

pytestmark = pytest.mark.skipif(
    compiler() is None, reason="the fake driver needs a C compiler (cc or gcc)"
)

# Of a replayed call at the shape "odd": Python functions entered, and allocations (outputs and one
# workspace). They hold whatever the number of launches.
CALLS = 16
ALLOCATIONS = {
    "nonlocal_attention_forward": 7,
    "nonlocal_attention_backward": 5,
    "entropy_whitening_forward": 4,
    "entropy_whitening_backward": 6,
    "channel_decoupling_forward": 13,
    "channel_decoupling_backward": 6,
    "bce_dice_forward": 5,
    "bce_dice_backward": 1,
}


def replays(*arguments: str) -> list[dict]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.proof.replays", *arguments],
        env={**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return replays()


def check(rows: list[dict]) -> None:
    different = {row["row"]: row["differences"] for row in rows if row["differences"]}
    assert not different, different
    slow = [row["row"] for row in rows if row["launches"] and not row["planned"]]
    assert not slow, f"no plan served {slow}"


def test_replays_ask_the_driver_for_what_the_slow_path_asks_for(rows):
    check(rows)
    seen = {row["row"].split(" ")[0] for row in rows if row["planned"]}
    names = {f"{operator}_{way}" for operator in OPERATORS for way in ("forward", "backward")}
    assert seen == names
    changes = {row["row"].split(": ")[1] for row in rows if ": " in row["row"]}
    assert changes == {"unaligned", "sm_80", "high", "shared", "through run()"}


def test_host_work_of_a_replay_is_counted(rows):
    odd = [row for row in rows if " odd " in row["row"] and ": " not in row["row"]]
    for row in odd:
        name = row["row"].split(" ")[0]
        assert 0 < row["calls"] <= CALLS + 3 * row["copies"], row
        assert 0 < row["allocations"] <= ALLOCATIONS[name], row


@pytest.mark.extended
def test_replays_of_every_dtype():
    check(replays("--widen"))
