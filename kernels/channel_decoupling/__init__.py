"""Channel decoupling and re-weighting, with the two terms of the whitening loss (Eq. 8-12)."""

from intrasense_fast.kernels.channel_decoupling.api import channel_decoupling

__all__ = ["channel_decoupling"]
