"""What an operator declares about itself: Contract, Cost and Compilation, and their parts."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tests.proof.jobs import CompileJob

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    """One row of the contract matrix: what to make inputs of.

    shape is that of the feature map, (B, C, H, W).
    """

    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    memory_format: torch.memory_format = torch.contiguous_format
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True)
class BadInput:
    """A wrong call: `change(inputs)` returns what to pass.

    The error must be `error` and match `match`.
    """

    what: str
    change: Callable[[Inputs], dict]
    match: str
    error: type[Exception] = ValueError


@dataclass(frozen=True)
class Tolerance:
    """How far one output, or one gradient, may be from float64.

    float32, tf32: bounds in place of budget.FORWARD or BACKWARD and of budget.TF32.
    absolute: judged by absolute error. scale: the input whose norm the error is relative to.
    """

    float32: float | None = None
    tf32: float | None = None
    absolute: bool = False
    scale: str = ""


@dataclass(frozen=True)
class Contract:
    """What a call takes and gives: the contract matrix is generated from it.

    name: of the operator, its folder and its function in intrasense_fast.functional.
    make_inputs(row, generator): tensors by parameter name, on row.device, without requires_grad;
        those in `features` have row.dtype and row.memory_format, those in `parameters` stay float32
        (float64 for float64) whatever row.dtype is.
    outputs: names, in order. differentiable: names of inputs that take gradients.
    samples(row, generator): {registered operator: arguments} for opcheck.
    shapes: by what they stress; must hold "odd", "one position" and "empty batch".
    statistics: outputs that are float32 for 16-bit inputs.
    constant_outputs: outputs that give no gradient.
    maps: (input, output) names where the memory format is kept.
    option_sets: further keyword arguments; every one runs in the value rows, the first in all rows.
    tolerances: by output name, or "d_" + input name.
    per_image: whether an image's result is independent of the rest of the batch.
    reference_options(inputs, outputs): more arguments of the reference, e.g. a mask to force.
    """

    name: str
    make_inputs: Callable[[Row, torch.Generator], Inputs]
    outputs: tuple[str, ...]
    differentiable: tuple[str, ...]
    features: tuple[str, ...]
    samples: Callable[[Row, torch.Generator], dict[str, tuple]]
    shapes: Mapping[str, tuple[int, int, int, int]]
    bad_inputs: tuple[BadInput, ...]
    parameters: tuple[str, ...] = ()
    statistics: tuple[str, ...] = ()
    constant_outputs: tuple[str, ...] = ()
    maps: tuple[tuple[str, str], ...] = ()
    option_sets: tuple[Mapping, ...] = ({},)
    tolerances: Mapping[str, Tolerance] = field(default_factory=dict)
    per_image: bool = True
    reference_options: Callable[[Inputs, tuple[Tensor, ...]], dict] = lambda inputs, outputs: {}

    @property
    def public(self) -> Callable:
        """Called as f(**inputs, fused=..., **options)."""
        return getattr(importlib.import_module("intrasense_fast.functional"), self.name)

    @property
    def reference(self) -> Callable:
        """Called as f(**inputs, **options)."""
        module = importlib.import_module(f"intrasense_fast.kernels.{self.name}.reference")
        return getattr(module, self.name)

    @property
    def library(self) -> tuple[str, str]:
        """The operator's names in torch.ops.intrasense_fast."""
        return f"{self.name}_forward", f"{self.name}_backward"

    @property
    def differentiable_outputs(self) -> tuple[str, ...]:
        """Names of the outputs that give gradients."""
        return tuple(name for name in self.outputs if name not in self.constant_outputs)

    def tolerance(self, name: str) -> Tolerance:
        """Of an output, or of "d_" + an input."""
        return self.tolerances.get(name, Tolerance())


@dataclass(frozen=True)
class Bound:
    """A ratio or count that may not grow.

    Asserted on `row`, in `mode` "inference", "forward" (of training) or "backward". floor_bytes and
    useful_flops are the operator's floor there (0: not asserted); passes (distinct bytes),
    requested (bytes of every lane; 0: not asserted) and flops bound the ratio to them.
    architecture: whose tables are used. smallest: tensors of fewer elements do not count as passes
    (matrices and statistics beside the feature maps).
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
class Cost:
    """What a call may take: bounds of traffic, FLOPs and launches.

    saved_bytes(inputs): bytes the backward may keep alive, inputs included.
    """

    bounds: Callable[[], list[Bound]]
    saved_bytes: Callable[[Inputs], int]


@dataclass(frozen=True)
class Compilation:
    """What the kernels compile to.

    jobs(level): compilations for "gate" (CI) or "full" (the committed table).
    instructions(job): those the compiled code must hold, e.g. ("HGMMA", "cp.async").
    """

    jobs: Callable[[str], list[CompileJob]]
    instructions: Callable[[CompileJob], tuple[str, ...]] = lambda job: ()
