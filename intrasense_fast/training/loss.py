"""The loss that a run trains with: the common one, or the network's own."""

import torch
from torch import Tensor, nn

from intrasense_fast.errors import UsageError
from intrasense_fast.functional import bce_dice
from intrasense_fast.losses import IntraSenseLoss
from intrasense_fast.networks.contract import as_output
from intrasense_fast.training.config import TrainConfig

OWN = "own"


class OwnLoss(nn.Module):
    """`network.own_loss`, with cross-entropy and Dice of the logits in `terms` for the log alone.

    Args:
        network: has `own_loss(output, target)`, a scalar.
        fused: handed to `bce_dice`, for the log.
    """

    def __init__(self, network: nn.Module, fused: bool | None = None) -> None:
        super().__init__()
        # In a tuple, so that the network is no part of this module.
        self._network = (network,)
        self.fused = fused
        self.terms: dict[str, Tensor] = {}

    def forward(self, output: object, target: Tensor) -> Tensor:
        """The network's own loss, a scalar.

        Args:
            output: of the network in training mode.
            target: (B, K, H, W), values in [0, 1].
        """
        with torch.no_grad():
            bce, dice = bce_dice(as_output(output).logits.detach(), target, fused=self.fused)
        self.terms = {"bce": bce, "dice": dice, "whitening": bce.new_zeros(())}
        return self._network[0].own_loss(output, target)  # type: ignore[operator]


def loss_of(config: TrainConfig, network: nn.Module) -> IntraSenseLoss | OwnLoss:
    """The loss that `config` names, for this network.

    Raises:
        UsageError: the network has no loss of its own.
    """
    if config.loss == OWN:
        if not has_own_loss(network):
            raise UsageError(
                f"--loss own: the network {config.network} has no loss beside the common one; "
                "leave --loss out, or give your own network a method own_loss(output, target)"
            )
        return OwnLoss(network, fused=config.fused)
    return IntraSenseLoss(config.loss_weights, fused=config.fused)


def has_own_loss(network: nn.Module) -> bool:
    """Has the network a method own_loss(output, target)?"""
    return callable(getattr(network, "own_loss", None))
