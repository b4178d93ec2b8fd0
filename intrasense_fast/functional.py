"""The four operators of IntraSense-Net, usable alone: each takes tensors and `fused=`.

Also: tuned configurations of their kernels (opt-in), and launch plans: their switch and counts.
"""

from intrasense_fast.kernels.bce_dice import bce_dice
from intrasense_fast.kernels.channel_decoupling import channel_decoupling
from intrasense_fast.kernels.entropy_whitening import entropy_whitening
from intrasense_fast.kernels.nonlocal_attention import nonlocal_attention
from intrasense_fast.kernels.runtime import (
    launch_plan_status,
    use_launch_plans,
    use_tuned_configs,
)

__all__ = [
    "bce_dice",
    "channel_decoupling",
    "entropy_whitening",
    "launch_plan_status",
    "nonlocal_attention",
    "use_launch_plans",
    "use_tuned_configs",
]
