"""The lists of planted faults fit the sources, and the committed results have no survivor."""

import importlib
import json
from pathlib import Path

import pytest

from tests.proof.faults import Fault, FaultError, function_in, planted
from tests.proof.syntax import canonical

ROOT = Path(__file__).parents[2]
OPERATORS = sorted(
    path.stem.removeprefix("mutants_") for path in Path(__file__).parent.glob("mutants_*.py")
)


def faults_of(operator: str) -> list[Fault]:
    return importlib.import_module(f"tests.kernels.mutants_{operator}").FAULTS


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_fault_can_be_planted(operator):
    """Each where it says and nowhere else, and each changes what the function does."""
    faults = faults_of(operator)
    assert len(faults) >= 15
    assert len({fault.what for fault in faults}) == len(faults)
    for fault in faults:
        path, text = planted(fault, ROOT / "kernels" / operator)
        before = function_in(path, path.read_text(), fault.function)
        after = function_in(path, text, fault.function)
        assert canonical(before) != canonical(after), fault.what


@pytest.mark.parametrize("operator", OPERATORS)
def test_no_fault_survived(operator):
    rows = json.loads(Path(__file__).with_name(f"mutants_{operator}.json").read_text())
    assert [row["fault"] for row in rows] == [fault.what for fault in faults_of(operator)], (
        f"run python -m tests.kernels.mutants {operator} --write"
    )
    assert all(row["killed_by"] for row in rows)


SOURCE = """
import triton.language as tl

@triton.jit
def kernel(X, Y, n, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    inside = i < n
    X += n
    x = tl.load(X + i, mask=inside, other=0.0)
    tl.store(Y + i, x + 1.0, mask=inside)
"""
RENAMED = """
import triton.language as tl

@triton.jit
def kernel(source, target, count, BLOCK: tl.constexpr):
    # Another layout, another file, other names.
    index = tl.arange(
        0, BLOCK,
    )
    valid = index < count
    source += count
    value = tl.load(source + index, mask=valid, other=0.0)
    tl.store(target + index, value + 1.0, mask=valid)
"""


FITTING = {
    "an expression": Fault("", "kernel", "i < n", "i < n + 1"),
    "a statement dropped": Fault("", "kernel", "X += n", ""),
    "one of several": Fault("", "kernel", "P + i", "P", place=(2, 2)),
    "another local name": Fault("", "kernel", "x + 1.0", "x + n", given=("i < n",)),
}


@pytest.mark.parametrize("fault", FITTING.values(), ids=FITTING)
def test_a_fault_does_not_depend_on_names_and_layout(fault, tmp_path):
    trees = []
    for place, source in (("one", SOURCE), ("other/kernels", RENAMED)):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        (folder / "any.py").write_text(source)
        path, text = planted(fault, tmp_path / place.split("/")[0])
        trees.append(canonical(function_in(path, text, "kernel")))
        assert trees[-1] != canonical(function_in(path, source, "kernel"))
    assert trees[0] == trees[1]


@pytest.mark.parametrize(
    "fault, message",
    [
        (Fault("", "kernel", "tl.store(Y + i, x, mask=inside)", "pass"), "found 0 times, not 1"),
        (Fault("", "kernel", "P + i", "P"), "found 2 times, not 1"),
        (Fault("", "kernel", "x + 1.0", "x + n"), "nothing quoted says what n is"),
        (Fault("", "other", "x + 1.0", "x"), "no function of that name"),
    ],
    ids=("absent", "several", "unbound", "no function"),
)
def test_a_fault_that_does_not_fit_is_refused(fault, message, tmp_path):
    (tmp_path / "any.py").write_text(SOURCE)
    with pytest.raises(FaultError, match=message):
        planted(fault, tmp_path)
