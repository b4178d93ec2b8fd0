"""When an operator must be written in plain steps: who takes it apart cannot take loops over sizes,
results in place, or gradients of its own.
"""

import torch
from torch.autograd import forward_ad


def exporting() -> bool:
    """Whether torch.export, and ONNX with it, or torch.jit.trace records a program of any size."""
    # torch 2.11 takes is_exporting() for true while it compiles.
    exported = torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()
    return exported or torch.jit.is_tracing()


def transforming() -> bool:
    """Whether a transform of torch.func, or forward-mode differentiation, is at work."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def plain_steps() -> bool:
    """Whether to write an operator in plain steps."""
    return exporting() or transforming()


def example_size(size: int) -> int:
    """A size of the example that is exported, without binding the program to it."""
    node = getattr(size, "node", None)
    return int(size) if node is None else int(node.hint)
