"""The training loss of IntraSense-Net (Eq. 13): cross-entropy, Dice and instance whitening."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from intrasense_fast.functional import bce_dice
from intrasense_fast.kernels.runtime import statistics_dtype
from intrasense_fast.networks.contract import as_output


class IntraSenseLoss(nn.Module):
    """L = w_bce L_CE + w_dice L_Dice + w_whitening L_IW (Eq. 13, with Eq. 14-15 from `bce_dice` and
    Eq. 9 from the network).

    After a call, `terms` holds the three terms {"bce", "dice", "whitening"}: detached, unweighted,
    on the logits' device, so that reading them costs no synchronisation until someone asks for a
    number. L_IW may be slightly negative: its rank gap is below zero whenever decoupling raises the
    rank.

    Args:
        weights: (bce, dice, whitening), three finite numbers >= 0.
        fused: handed to `bce_dice`: True = the Triton kernels or an error; False = eager; None =
            the kernels where they run.
    """

    def __init__(
        self, weights: tuple[float, float, float] = (1, 1, 1), fused: bool | None = None
    ) -> None:
        super().__init__()
        self.weights = _checked_weights(weights)
        self.fused = fused
        self.terms: dict[str, Tensor] = {}

    def forward(self, output: Any, target: Tensor) -> Tensor:
        """The weighted sum, a scalar: float64 for float64 logits and float32 otherwise, also under
        autocast.

        Args:
            output: logits (B, K, H, W), whose whitening term is 0, or an `IntraSenseOutput` (fields
                logits, whitening_loss), or another network's logits, heads and auxiliary losses
                (see `networks.contract`): the mean over its heads of cross-entropy and Dice, and
                its losses, share the third weight.
            target: (B, K, H, W) on the logits' device; bool, integer or float in [0, 1]. Values are
                checked only where the target lies on the CPU; looking on a GPU would stall it.

        Raises:
            TypeError: `output` is neither, or `target` is no tensor.
            ValueError: shapes that differ, or a CPU target with values outside [0, 1].
            FusedUnavailableError: fused=True where the kernels cannot run.
        """
        try:
            logits, heads, losses = as_output(output)
        except TypeError as error:
            raise TypeError(f"IntraSenseLoss: {error}") from error
        _check_target(target, logits)
        bce, dice = bce_dice(logits, target, fused=self.fused)
        auxiliary = {"whitening": bce.new_zeros(())} | {
            name: loss.to(bce.dtype) for name, loss in losses.items()
        }
        if heads:
            auxiliary["heads"] = torch.stack([self._head(head, target) for head in heads]).mean()
        self.terms = {"bce": bce.detach(), "dice": dice.detach()}
        self.terms |= {name: loss.detach() for name, loss in auxiliary.items()}
        first, *others = auxiliary.values()
        return self.weights[0] * bce + self.weights[1] * dice + self.weights[2] * sum(others, first)

    def _head(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy and Dice of further logits, resized to the target's grid."""
        resized = interpolate(logits, target.shape[-2:], mode="bilinear", align_corners=False)
        bce, dice = bce_dice(resized, target, fused=self.fused)
        return self.weights[0] * bce + self.weights[1] * dice

    def extra_repr(self) -> str:
        return f"weights={self.weights}, fused={self.fused}"


def _checked_weights(weights: tuple[float, float, float]) -> tuple[float, float, float]:
    try:
        bce, dice, whitening = (float(weight) for weight in weights)
    except (TypeError, ValueError):
        raise ValueError(
            f"IntraSenseLoss: weights must be three numbers (bce, dice, whitening), got {weights!r}"
        ) from None
    if not all(math.isfinite(weight) and weight >= 0 for weight in (bce, dice, whitening)):
        raise ValueError(
            f"IntraSenseLoss: weights must be finite and not negative, got {weights!r}"
        )
    return bce, dice, whitening


def _check_target(target: Tensor, logits: Tensor) -> None:
    if not isinstance(target, Tensor):
        raise TypeError(
            f"IntraSenseLoss: target must be a tensor, got {type(target).__name__}; use "
            f"torch.as_tensor"
        )
    if target.shape != logits.shape:
        hint = (
            "; add the class axis with target.unsqueeze(1)"
            if target.dim() == logits.dim() - 1
            else ""
        )
        raise ValueError(
            f"IntraSenseLoss: target must have the logits' shape (B, K, H, W) = "
            f"{tuple(logits.shape)}, "
            f"got {tuple(target.shape)}{hint}"
        )
    checkable = (
        target.device.type == "cpu"
        and target.dtype != torch.bool
        and not target.dtype.is_complex
        and target.numel()
    )
    if not checkable or torch.compiler.is_compiling():
        return
    # aminmax knows neither uint16, uint32 and uint64 nor 8-bit floats.
    low, high = (
        float(value) for value in target.detach().to(statistics_dtype(target.dtype)).aminmax()
    )
    if not (low >= 0 and high <= 1):
        hint = "; masks hold 0..255: divide by 255" if low >= 0 and 1 < high <= 255 else ""
        raise ValueError(
            f"IntraSenseLoss: target must lie in [0, 1], got values from {low:g} to {high:g}{hint}"
        )
