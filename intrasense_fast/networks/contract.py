"""What every network returns in training mode, when it returns more than its logits."""

from typing import Any, NamedTuple

from torch import Tensor


class NetworkOutput(NamedTuple):
    """The output in training mode: logits at the input's resolution, and what else is trained.

    Attributes:
        logits: (B, num_classes, H, W), what eval mode returns.
        auxiliary_logits: further logits (B, num_classes, h, w), at the input's or other
            resolutions.
        auxiliary_loss: a scalar to add to the loss, or None.
    """

    logits: Tensor
    auxiliary_logits: tuple[Tensor, ...] = ()
    auxiliary_loss: Tensor | None = None


def check_output(network: str, output: Any) -> None:
    """Raise a TypeError unless output is the `NetworkOutput` of training mode."""
    if not isinstance(output, NetworkOutput):
        raise TypeError(
            f"{network}: own_loss needs the NetworkOutput of training mode, "
            f"got {type(output).__name__}; call net.train() before the forward pass"
        )
