"""Binary cross-entropy and Dice loss from logits (Eq. 14-15)."""

from intrasense_fast.kernels.bce_dice.api import bce_dice

__all__ = ["bce_dice"]
