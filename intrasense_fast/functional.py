"""The four operators of IntraSense-Net, usable alone: each takes tensors and `fused=`.

Also opt-in: tuned configurations of their kernels.
"""

from intrasense_fast.kernels.bce_dice import bce_dice
from intrasense_fast.kernels.channel_decoupling import channel_decoupling
from intrasense_fast.kernels.entropy_whitening import entropy_whitening
from intrasense_fast.kernels.nonlocal_attention import nonlocal_attention
from intrasense_fast.kernels.runtime import use_tuned_configs

__all__ = [
    "bce_dice",
    "channel_decoupling",
    "entropy_whitening",
    "nonlocal_attention",
    "use_tuned_configs",
]
