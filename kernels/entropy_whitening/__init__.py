"""Spatial gate, entropy mask and masked local whitening (Eq. 4-7)."""

from intrasense_fast.kernels.entropy_whitening.api import entropy_whitening

__all__ = ["entropy_whitening"]
