"""What every operator declares about itself, so that the contract matrix, the bounds and the static report are generated.

An operator's `proof.py` defines `PROOF = OperatorProof(...)`. A new operator is one more name in OPERATORS.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from intrasense_fast.kernels._proof.aot import CompileJob

OPERATORS = ("nonlocal_attention", "entropy_whitening", "channel_decoupling", "bce_dice")


@dataclass(frozen=True)
class Row:
    """One row of the contract matrix: what to make inputs of. shape is that of the feature map, (B, C, H, W)."""

    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    memory_format: torch.memory_format = torch.contiguous_format
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True)
class Bound:
    """A ratio or count that may not grow: asserted on `row`, in `mode` "inference", "forward" (of training) or "backward".

    floor_bytes and useful_flops are the operator's floor there (0: not asserted); passes (distinct bytes), requested (bytes of
    every lane; 0: not asserted) and flops bound the ratio to them. architecture: whose tables are used. smallest: tensors of
    fewer elements do not count as passes (matrices and statistics beside the feature maps).
    """

    row: Row
    mode: str
    launches: int
    floor_bytes: int = 0
    passes: float = 0.0
    useful_flops: int = 0
    flops: float = 0.0
    requested: float = 0.0
    options: Mapping = field(default_factory=dict)
    architecture: str = "sm_90"
    smallest: int = 0


@dataclass(frozen=True)
class BadInput:
    """A wrong call: `change(inputs)` returns the inputs to pass; the error must be `error` and match `match`."""

    what: str
    change: Callable[[dict[str, Tensor]], dict]
    match: str
    error: type[Exception] = ValueError


@dataclass(frozen=True)
class OperatorProof:
    """One operator's declaration.

    public, reference: called as f(**inputs, **options), public also with fused=. Outputs in `outputs`' order.
    make_inputs(row, generator): tensors by parameter name, on row.device, without requires_grad; those in `features` have
        row.dtype and row.memory_format, those in `parameters` stay float32 (float64 for float64) whatever row.dtype is.
    differentiable: names of inputs that take gradients. differentiable_outputs: names of outputs that give them.
    statistics: outputs that are float32 for 16-bit inputs. maps: (input, output) names where the memory format is kept.
    shapes: contract shapes by what they stress; must hold "odd", "one position" and "empty batch".
    option_sets: further keyword arguments; every one runs in the value rows, the first in all rows.
    tolerance: overrides of budget.FORWARD / BACKWARD: {output or "d_" + input: bound}; tf32: of budget.TF32.
    absolute: outputs judged by absolute error.
    per_image: whether an image's result is independent of the rest of the batch.
    scale: output name -> input name whose norm its error is relative to.
    reference_options(inputs, outputs): extra keyword arguments of the reference, e.g. a mask to force.
    library: names of the operator's torch.ops.intrasense_fast operators; samples(row, generator): {name: args} for opcheck.
    jobs(level): compilations for "gate" (CI) or "full" (the committed table); tables: modules that hold configuration tables.
    instructions(job): names of instructions the compiled code must hold, e.g. ("HGMMA", "cp.async").
    bounds: traffic, FLOP and launch bounds. saved_bytes(inputs): bytes the backward may keep alive, inputs included.
    """

    name: str
    public: Callable
    reference: Callable
    make_inputs: Callable[[Row, torch.Generator], dict[str, Tensor]]
    outputs: tuple[str, ...]
    differentiable: tuple[str, ...]
    differentiable_outputs: tuple[str, ...]
    statistics: tuple[str, ...]
    features: tuple[str, ...]
    shapes: Mapping[str, tuple[int, int, int, int]]
    jobs: Callable[[str], list[CompileJob]]
    bounds: Callable[[], list[Bound]]
    bad_inputs: tuple[BadInput, ...]
    library: tuple[str, ...]
    samples: Callable[[Row, torch.Generator], dict[str, tuple]]
    saved_bytes: Callable[[dict[str, Tensor]], int]
    parameters: tuple[str, ...] = ()
    maps: tuple[tuple[str, str], ...] = ()
    option_sets: tuple[Mapping, ...] = ({},)
    tolerance: Mapping[str, float] = field(default_factory=dict)
    tf32: Mapping[str, float] = field(default_factory=dict)
    absolute: tuple[str, ...] = ()
    per_image: bool = True
    scale: Mapping[str, str] = field(default_factory=dict)
    reference_options: Callable[[dict[str, Tensor], tuple[Tensor, ...]], dict] = (
        lambda inputs, outputs: {}
    )
    tables: tuple[str, ...] = ()
    instructions: Callable[[CompileJob], tuple[str, ...]] = lambda job: ()


def proof_of(operator: str) -> OperatorProof:
    """The declaration of one operator.

    Raises:
        LookupError: no such operator, or it has no proof.py.
    """
    if operator not in OPERATORS:
        raise LookupError(f"no operator {operator!r}; there are {', '.join(OPERATORS)}")
    module = f"intrasense_fast.kernels.{operator}.proof"
    if importlib.util.find_spec(module) is None:
        raise LookupError(f"{operator} has no proof.py: see kernels/README.md")
    return importlib.import_module(module).PROOF


def proofs() -> list[OperatorProof]:
    """The declarations of all operators that have one, in OPERATORS' order."""
    found = []
    for operator in OPERATORS:
        try:
            found.append(proof_of(operator))
        except LookupError:
            continue
    return found
