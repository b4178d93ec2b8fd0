"""An exponential moving average of a network's weights, by torch.optim.swa_utils."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from intrasense_fast.networks.selftest import STATISTICS, check_finite
from intrasense_fast.training.checkpoint import STATE_FILE


class WeightAverage:
    """The moving average of one network: w_avg <- decay w_avg + (1 - decay) w after every step.

    The first step copies. BatchNorm's running mean and variance are averaged as the weights are:
    those of the last weights belong to other activations. Other buffers are copied: among them are
    counters, tables of indices, and masks that hold infinity.

    Args:
        net: on its device and in its memory format; it is copied.
        decay: between 0 and 1.

    Attributes:
        net: the averaged network, without gradients.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self._mix = get_ema_multi_avg_fn(decay)
        self._model = AveragedModel(net, multi_avg_fn=self._mix)
        self.net: nn.Module = self._model.module.eval().requires_grad_(False)
        self._statistics = [
            value for name, value in self.net.named_buffers() if name.endswith(STATISTICS)
        ]

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Count in the weights after a step."""
        is_first = int(self._model.n_averaged) == 0
        averages = [value.clone() for value in self._statistics]
        # It averages the weights, and copies every buffer.
        self._model.update_parameters(net)
        if averages and not is_first:
            self._mix(averages, self._statistics, None)
            torch._foreach_copy_(self._statistics, averages)

    def state(self) -> dict[str, Any]:
        """Its part of a checkpoint."""
        return dict(self._model.state_dict())

    def take(self, state: Mapping[str, Any]) -> None:
        """Go on from its part of a checkpoint.

        Raises:
            ValueError, RuntimeError or another: it is of another network, or not finite.
        """
        self._model.load_state_dict(state)
        check_finite(self.net, Path(STATE_FILE))
