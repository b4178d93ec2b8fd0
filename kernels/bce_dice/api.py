"""bce_dice: the contract, the checks and the choice of path."""

from torch import Tensor

from intrasense_fast.kernels._common.validation import (
    check_dim,
    check_shape,
    check_tensors,
    once_a_signature,
)
from intrasense_fast.kernels.bce_dice.eager import eager
from intrasense_fast.kernels.runtime import use_fused


def bce_dice(logits: Tensor, target: Tensor, *, fused: bool | None = None) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and Dice loss from logits, in one pass (Eq. 14-15).

    bce is the mean over all pixels of the batch; dice is 1 - 2 sum(y p) / (sum y + sum p) with
    p = sigmoid(logits) and sums over the whole batch, one-vs-rest for each class, averaged over the
    classes. A zero denominator gives dice 0 and no gradient; an empty batch gives 0 for both.

    Args:
        logits: (B, K, H, W), float32, float16, bfloat16 or float64 (float64 is eager on a GPU).
        target: (B, K, H, W), bool, integer or float with values in [0, 1]; soft labels are allowed.
            Values outside are the caller's error and are not looked for.
        fused: True = the Triton kernels or an error; False = the path without them; None = the
            kernels where they can run.

    Returns:
        (bce, dice): scalars, float64 for float64 logits and float32 otherwise. Gradients flow to
        `logits` only.

    Raises:
        ValueError: wrong shapes, logits that are not floating point, or two devices.
        FusedUnavailableError: fused=True where the kernels cannot run.
    """
    _check(logits, target)
    if use_fused(fused, logits, "bce_dice"):
        from intrasense_fast.kernels.bce_dice.autograd import bce_dice_fused

        return bce_dice_fused(logits, target)
    return eager(logits, target)


@once_a_signature
def _check(logits: Tensor, target: Tensor) -> None:
    check_tensors("bce_dice", logits=logits)
    if not isinstance(target, Tensor):
        raise TypeError(f"bce_dice: target must be a tensor, got {type(target).__name__}")
    check_dim("bce_dice", "logits", logits, 4, "(B, K, H, W)")
    check_shape("bce_dice", "target", target, tuple(logits.shape), "(B, K, H, W), as logits")
    if target.dtype.is_complex:
        raise ValueError(f"bce_dice: target must be bool, integer or float, got {target.dtype}")
    if target.device != logits.device:
        raise ValueError(
            f"bce_dice: target is on {target.device} and logits on {logits.device}; "
            "move them to one device with .to()"
        )
