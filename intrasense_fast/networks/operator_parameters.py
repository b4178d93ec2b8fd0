"""The weight and the bias that an operator takes, held as what they are: no layer of PyTorch."""

import math

import torch
from torch import Tensor, nn


class OperatorParameters(nn.Module):
    """Weight and bias of one step inside an operator, under the names that a layer would give them.

    Calling it returns both. The operator applies them, so that it is no `nn.Linear` or `nn.Conv2d`:
    what replaces or quantises layers by their type leaves it alone or names it, and hooks,
    parametrisations and adapters of its parameters work, since every forward of its owner calls it.

    Args:
        owner: the operator's argument that they are, for messages: "gate of entropy_whitening".
        shape: of the weight; outputs first, as `nn.Linear` and `nn.Conv2d` have it. Drawn as they
            draw it, from the same random numbers in the same order.
    """

    def __init__(self, owner: str, *shape: int) -> None:
        super().__init__()
        self.owner = owner
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(shape[0]))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(weight, bias).

        Args:
            features: the map that the operator works on: what hooks and adapters see as the input.
        """
        return self.weight, self.bias

    @classmethod
    def of(cls, owner: str, held: nn.Module) -> "OperatorParameters":
        """`held` itself, or what a layer holds, in a network pickled when layers held it."""
        if not isinstance(held, (nn.Linear, nn.Conv2d)):
            return held  # type: ignore[return-value]
        taken = cls.__new__(cls)
        nn.Module.__init__(taken)
        taken.owner, taken.weight, taken.bias = owner, held.weight, held.bias  # type: ignore[assignment]
        return taken.train(held.training)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, the {self.owner}: parameters, no layer"
