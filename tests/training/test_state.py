"""A training state with sound checksums and odd content is no traceback: the checkpoint before it
serves, and where there is none, the message says so."""

import hashlib
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from intrasense_fast.errors import UsageError, pickle_fault
from intrasense_fast.networks import build_network, register_network
from intrasense_fast.training.checkpoint import CheckpointError
from intrasense_fast.training.config import TrainConfig
from tests.support import faulty
from tests.support.runs import open_trainer, write_pairs

CONFIG = TrainConfig(
    network=faulty.NAME,
    size=32,
    batch_size=4,
    epochs=2,
    lr=1e-3,
    scheduler="cosine",
    augment="none",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("state") / "data", 12, seed=3)


@pytest.fixture(scope="module")
def trained(data: Path) -> Path:
    """A run of two epochs: last/ and previous/ are there."""
    register_network(faulty.NAME)
    faulty.reset()
    run = data.parent / "run"
    run.mkdir()
    made = open_trainer(data, run, CONFIG, print)
    torch.manual_seed(0)
    made.start(build_network(faulty.NAME))
    made.fit()
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def reseal(folder: Path, content: bytes | None = None) -> None:
    """Write a training state, and checksums that fit it."""
    file = folder / "training_state.pt"
    if content is not None:
        file.write_bytes(content)
    digests = json.loads((folder / "checksums.json").read_text())
    digests[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / "checksums.json").write_text(json.dumps(digests))


def save(state: Any, file: Path) -> None:
    """As torch.save, of what is nested deeper than Python goes by default."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20000)
    try:
        torch.save(state, file)
    finally:
        sys.setrecursionlimit(limit)


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def _set(*path: Any, to: Any) -> Callable[[dict[str, Any]], Any]:
    def change(state: dict[str, Any]) -> dict[str, Any]:
        place: Any = state
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to
        return state

    return change


ODD: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda state: [1, 2],
    "a tensor": lambda state: torch.zeros(3),
    "nothing": lambda state: {},
    "no optimizer": lambda state: {k: v for k, v in state.items() if k != "optimizer"},
    "an optimizer of two networks": lambda s: _set(
        "optimizer", "param_groups", to=s["optimizer"]["param_groups"] * 2
    )(s),
    "averages of another shape": _set("optimizer", "state", 0, "square_avg", to=torch.zeros(2, 3)),
    "a learning rate of text": _set("optimizer", "param_groups", 0, "lr", to="fast"),
    "a learning rate of NaN": _set("optimizer", "param_groups", 0, "lr", to=float("nan")),
    "a schedule of text": _set("schedule", to="cosine"),
    "a schedule that counts in words": _set("schedule", "last_epoch", to="two"),
    "a position of text": _set("position", "epoch", to="1"),
    "a position before the start": _set("position", "epoch", to=-1),
    "another key": _set("position", "colour", to=1),
    "sums of NaN": _set("position", "sums", to={"loss": float("nan")}),
    "random numbers of floats": _set("rng", to=torch.zeros(5056)),
    "too few random numbers": _set("rng", to=torch.zeros(3, dtype=torch.uint8)),
    "values of no run": _set("config", to={"lr": "fast"}),
    "nested too deep": _set("position", "sums", to=nested(3000)),
    "a configuration nested too deep": _set("config", "lr", to=nested(3000)),
}


@pytest.mark.parametrize(
    "kind",
    [
        kind if i % 3 == 0 else pytest.param(kind, marks=pytest.mark.extended)
        for i, kind in enumerate(ODD)
    ],
)
def test_odd_content_is_told_and_previous_serves(kind: str, run: Path, data: Path) -> None:
    state = torch.load(run / "last" / "training_state.pt", weights_only=True)
    save(ODD[kind](state), run / "last" / "training_state.pt")
    reseal(run / "last")
    said: list[str] = []
    found = open_trainer(data, run, CONFIG, said.append)
    found.restore()
    assert "training_state.pt: holds" in said[0], said
    assert f"Going on from {run / 'previous'}, the checkpoint before it" in said[0]
    assert found.position.total == 2 and not found.position.finished


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80\x02", b"PK\x03\x04" + bytes(100), pickle.dumps(print), pickle.dumps(nested(200))],
    ids=["empty", "cut", "zip", "code", "a list"],
)
def test_files_of_another_kind(content: bytes, run: Path, data: Path) -> None:
    for name in ("last", "previous"):
        reseal(run / name, content)
    with pytest.raises(CheckpointError, match="no checkpoint can be used") as caught:
        open_trainer(data, run, CONFIG, print).restore()
    assert not isinstance(caught.value.__cause__, RecursionError)
    # PyTorch advises to read such files all the same.
    assert "weights_only" not in str(caught.value) and "trust" not in str(caught.value)


def test_a_sound_state_of_another_run_is_no_damage(run: Path, data: Path) -> None:
    state = torch.load(run / "last" / "training_state.pt", weights_only=True)
    state["config"]["lr"] = 0.5
    torch.save(state, run / "last" / "training_state.pt")
    reseal(run / "last")
    with pytest.raises(UsageError, match=r"was made with lr = 0\.5, now 0\.001") as caught:
        open_trainer(data, run, CONFIG, print).restore()
    assert not isinstance(caught.value, CheckpointError)


def test_reasons_never_advise_to_trust_a_file(tmp_path: Path) -> None:
    file = tmp_path / "code.pt"
    torch.save({"x": print}, file)
    with pytest.raises(pickle.UnpicklingError) as caught:
        torch.load(file, weights_only=True)
    assert "weights_only" in str(caught.value)
    assert pickle_fault(caught.value).startswith("does not hold tensors and plain values alone")
