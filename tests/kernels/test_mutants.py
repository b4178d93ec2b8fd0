"""The lists of planted faults fit the sources, and the committed results have no survivor."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPERATORS = sorted(
    path.stem.removeprefix("mutants_") for path in Path(__file__).parent.glob("mutants_*.py")
)


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_fault_can_be_planted(operator):
    mutants = importlib.import_module(f"tests.kernels.mutants_{operator}").MUTANTS
    assert len(mutants) >= 15
    assert len({what for what, *_ in mutants}) == len(mutants)
    for what, file, old, new in mutants:
        assert old != new and (ROOT / "kernels" / operator / file).read_text().count(old) == 1, what


@pytest.mark.parametrize("operator", OPERATORS)
def test_no_fault_survived(operator):
    mutants = importlib.import_module(f"tests.kernels.mutants_{operator}").MUTANTS
    rows = json.loads(Path(__file__).with_name(f"mutants_{operator}.json").read_text())
    assert [row["fault"] for row in rows] == [what for what, *_ in mutants], (
        f"run python -m tests.kernels.mutants {operator} --write"
    )
    assert all(row["killed_by"] for row in rows)
