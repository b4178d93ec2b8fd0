"""The operators and their declarations, from which matrix, bounds and static report are generated.

Each is a module tests/proof/operators/<name>.py with CONTRACT, COST and COMPILATION. A new operator
is one more name in OPERATORS.
"""

import importlib
from types import ModuleType

from tests.proof.records import Compilation, Contract, Cost

OPERATORS = ("nonlocal_attention", "entropy_whitening", "channel_decoupling", "bce_dice")


def contract_of(operator: str) -> Contract:
    """Raises LookupError where there is no such operator."""
    return _declaration(operator).CONTRACT


def cost_of(operator: str) -> Cost:
    """Raises LookupError where there is no such operator."""
    return _declaration(operator).COST


def compilation_of(operator: str) -> Compilation:
    """Raises LookupError where there is no such operator."""
    return _declaration(operator).COMPILATION


def contracts() -> list[Contract]:
    """Of all operators, in OPERATORS' order."""
    return [contract_of(operator) for operator in OPERATORS]


def _declaration(operator: str) -> ModuleType:
    if operator not in OPERATORS:
        raise LookupError(f"no operator {operator!r}; there are {', '.join(OPERATORS)}")
    return importlib.import_module(f"tests.proof.operators.{operator}")
