r"""A U-Net whose maps at strides 8, 16 and 32 are cut off: what deep maps are worth.

PYTHONPATH=examples intrasense-fast compare --data BUSI --subset lesions --preset cpu-small \
    --networks unet-resnet50,encoder=resnet18 cut_unet:CutUNet,encoder=resnet18 \
    --seeds 3 --folds 5 --out cut

A study of GCP and CDR, which refine these maps, can tell something only where the cut costs Dice.
"""

import torch
from torch import Tensor

from intrasense_fast.networks.unet_resnet50 import UNetResNet50


class CutUNet(UNetResNet50):
    """`UNetResNet50` with its options; the decoder receives zeros at strides 8, 16 and 32."""

    architecture = "cut_unet:CutUNet"

    def forward(self, x: Tensor) -> Tensor:
        """As of `UNetResNet50`: logits (B, num_classes, H, W)."""
        height, width = self._check_input(x)
        stride2, stride4, *deep = self.encoder(self._normalized(x))
        maps = [stride2, stride4, *map(torch.zeros_like, deep)]
        return self.decoder(maps)[..., :height, :width]
