"""What channel_decoupling starts, in which order: tensors in, tensors out.

Runs on meta tensors too. Names are those of the symbol table in README.md.
"""

from intrasense_fast.kernels.channel_decoupling.launch.backward_pass import backward, backward_fake
from intrasense_fast.kernels.channel_decoupling.launch.case import Mlp, Outputs, Saved
from intrasense_fast.kernels.channel_decoupling.launch.forward_pass import forward, forward_fake

__all__ = ["Mlp", "Outputs", "Saved", "backward", "backward_fake", "forward", "forward_fake"]
