"""Non-local attention with a residual and per-position channel statistics (Eq. 2-3)."""

from intrasense_fast.kernels.nonlocal_attention.api import nonlocal_attention

__all__ = ["nonlocal_attention"]
