"""What every compared network returns in training mode; in eval mode each returns its logits alone."""

from typing import NamedTuple

from torch import Tensor


class NetworkOutput(NamedTuple):
    """Output of a training forward with more than one tensor of logits, or with a loss of its own.

    Fields:
        logits: (B, num_classes, H, W), the prediction.
        auxiliary_logits: further logits (B, num_classes, h, w), each at its own scale.
        auxiliary_loss: scalar to be added to the loss, or None.
    """

    logits: Tensor
    auxiliary_logits: tuple[Tensor, ...] = ()
    auxiliary_loss: Tensor | None = None
