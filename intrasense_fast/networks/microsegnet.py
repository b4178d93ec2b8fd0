"""MicroSegNet (CMIG 112, 2024, arXiv 2305.19956), TransUNet with more heads; notes, section 3.

It has no attention gates: its "attention" is the weighting of pixels in the loss.
"""

import os

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intrasense_fast.networks.arguments import check_target
from intrasense_fast.networks.contract import NetworkOutput, check_output
from intrasense_fast.networks.cross_entropy import pixel_cross_entropy
from intrasense_fast.networks.transunet import DECODER_WIDTHS, TransUNet

_HARD_WEIGHT = 4.0


class MicroSegNet(TransUNet):
    """MicroSegNet; images, options and errors as for `TransUNet`.

    In training mode a `NetworkOutput` with auxiliary logits at 1/8, 1/4 and 1/2 of the input's
    sides, which are not upsampled; in eval mode logits (B, num_classes, H, W).
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 1,
        *,
        image_size: int = 256,
        encoder_weights: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(
            in_channels, num_classes, image_size=image_size, encoder_weights=encoder_weights
        )
        self.auxiliary_heads = nn.ModuleList(
            nn.Conv2d(width, num_classes, 3, padding=1) for width in DECODER_WIDTHS[:-1]
        )

    def forward(self, x: Tensor) -> NetworkOutput | Tensor:  # type: ignore[override]
        """Segment a batch (B, in_channels, image_size, image_size); errors as in `TransUNet`."""
        *coarser, finest = self.decoded(x)
        logits = self.head(finest)
        if not self.training:
            return logits
        pairs = zip(self.auxiliary_heads, coarser, strict=True)
        return NetworkOutput(logits, tuple(head(one) for head, one in pairs))

    def own_loss(  # type: ignore[override]
        self, output: NetworkOutput, target: Tensor, non_expert: Tensor | None = None
    ) -> Tensor:
        """Binary cross-entropy, summed over the four scales.

        AG-BCE is mean(l (w h + 1 - h)) / (1 + w) with w = 4, l half the cross-entropy, and h = 1 on
        the hard pixels: where expert and non-expert differ, dilated by a square of 1, 2, 3, 4 at
        1/8, 1/4, 1/2, 1/1. Without non-expert masks, which BUSI, dataset B and DDTI do not have, it
        would be a tenth of the mean cross-entropy; then this is the mean cross-entropy itself.
        Masks are resized bilinearly and cut at 0.5: the published truncation shrinks them.

        Args:
            output: of training mode.
            target: the expert's masks (B, num_classes, H, W), values in [0, 1].
            non_expert: the other masks, of the same shape, or None.

        Raises:
            TypeError: an output of eval mode, or no tensor as target.
            ValueError: a target of another shape.
        """
        check_output("MicroSegNet", output)
        check_target("MicroSegNet", target, output.logits)
        if non_expert is not None:
            check_target("MicroSegNet (non_expert)", non_expert, output.logits)
        scales = (*output.auxiliary_logits, output.logits)
        loss = torch.zeros((), device=output.logits.device)
        for dilation, logits in enumerate(scales, start=1):
            size = (logits.shape[-2], logits.shape[-1])
            expert = _resized_mask(target, size)
            cross_entropy = pixel_cross_entropy(logits, expert)
            if non_expert is not None:
                different = expert != _resized_mask(non_expert, size)
                hard = _dilated(different.to(cross_entropy.dtype), dilation)
                weight = 1 + (_HARD_WEIGHT - 1) * hard
                cross_entropy = 0.5 * cross_entropy * weight / (1 + _HARD_WEIGHT)
            loss = loss + cross_entropy.mean()
        return loss


def _resized_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """The mask at a scale's size: as it is, or 0 and 1 from bilinear values cut at 0.5."""
    if mask.shape[-2:] == size:
        return mask.float()
    resized = F.interpolate(mask.float(), size, mode="bilinear", align_corners=False)
    return (resized >= 0.5).float()


def _dilated(mask: Tensor, side: int) -> Tensor:
    """The maximum over `side` x `side` positions, that begin side // 2 before and above each."""
    before, after = side // 2, side - 1 - side // 2
    return F.max_pool2d(F.pad(mask, (before, after, before, after)), side, 1)
