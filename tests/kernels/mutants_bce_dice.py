"""Faults planted in bce_dice (see mutants.py): at least one a kernel."""

from tests.proof.faults import Fault

TESTS = [
    "tests/kernels/test_bce_dice.py",
    "tests/contract/test_contract.py",
    "tests/contract/test_bounds.py",
    "-k",
    "bce_dice",
]

FAULTS = [
    Fault(
        "mask of the positions dropped",
        "bce_dice_partial",
        "(at < plane)[:, None]",
        "(at >= 0)[:, None]",
    ),
    Fault(
        "mask of the classes dropped",
        "bce_dice_gradient",
        "(k < K)[None, :]",
        "(k >= 0)[None, :]",
    ),
    Fault(
        "positions bound off by one",
        "bce_dice_gradient",
        "(at < plane)[:, None]",
        "(at < plane - 1)[:, None]",
    ),
    Fault(
        "forward positions bound off by one",
        "bce_dice_partial",
        "(at < plane)[:, None]",
        "(at < plane - 1)[:, None]",
    ),
    Fault(
        "loss of masked lanes counted",
        "bce_dice_partial",
        "tl.where(inside, tl.where(z > 0, z, 0.0) - z * y + log1p, 0.0)",
        "tl.where(z > 0, z, 0.0) - z * y + log1p",
    ),
    Fault(
        "probability of masked lanes counted",
        "bce_dice_partial",
        "tl.where(inside, p, 0.0)",
        "p",
    ),
    Fault(
        "log(1 + e)",
        "bce_dice_partial",
        "tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))",
        "tl.log(u)",
    ),
    Fault(
        "loss without the target",
        "bce_dice_partial",
        "tl.where(z > 0, z, 0.0) - z * y",
        "tl.where(z > 0, z, 0.0)",
    ),
    Fault(
        "sigmoid that overflows",
        "probability",
        "tl.where(z >= 0, 1.0, e) / (1.0 + e)",
        "tl.exp(z) / (1.0 + tl.exp(z))",
    ),
    Fault(
        "sigmoid's side swapped",
        "probability",
        "z >= 0",
        "z < 0",
    ),
    Fault(
        "target read with the logits' strides",
        "bce_dice_partial",
        ("tl.load(y_base + offsets(at, y_row, y_column, W, FLAT)[:, None], mask=inside, other=0)"),
        ("tl.load(y_base + offsets(at, z_row, z_column, W, FLAT)[:, None], mask=inside, other=0)"),
        given=("offsets(at, z_row, z_column, W, FLAT)",),
    ),
    Fault(
        "target's class stride from the logits",
        "bce_dice_partial",
        (
            "z_base = Z + image * z_batch + k.to(tl.int64)[None, :] * z_class\n"
            "y_base = Y + image * y_batch + k.to(tl.int64)[None, :] * y_class"
        ),
        (
            "z_base = Z + image * z_batch + k.to(tl.int64)[None, :] * z_class\n"
            "y_base = Y + image * y_batch + k.to(tl.int64)[None, :] * z_class"
        ),
    ),
    Fault(
        "gradient stored with the logits' strides",
        "bce_dice_gradient",
        (
            "d_at = DZ + image * d_batch + klass * d_class + offsets(at, d_row, d_column, W, "
            "FLAT)[:, None]\n"
            "z = tl.load(z_at, mask=inside, other=0.0).to(COMPUTE)"
        ),
        (
            "d_at = DZ + image * z_batch + klass * z_class + offsets(at, z_row, z_column, W, "
            "FLAT)[:, None]\n"
            "z = tl.load(z_at, mask=inside, other=0.0).to(COMPUTE)"
        ),
        given=(
            (
                "z_at = Z + image * z_batch + klass * z_class + offsets(at, z_row, z_column, W, "
                "FLAT)[:, None]"
            ),
        ),
    ),
    Fault(
        "row and column swapped",
        "offsets",
        "(at // W).to(tl.int64) * row + (at % W).to(tl.int64) * column",
        "(at // W).to(tl.int64) * column + (at % W).to(tl.int64) * row",
    ),
    Fault(
        "any plane taken for a flat one",
        "_flat",
        "height == 1 or width == 1 or tensor.stride(2) == width * tensor.stride(3)",
        "True",
    ),
    Fault(
        "one column walked by its column stride",
        "_strides",
        "row if tensor.shape[3] == 1 else column",
        "column",
    ),
    Fault(
        "blocks not advanced",
        "bce_dice_partial",
        ("guess += tl.where(inside, p, 0.0)\nat += BLOCK_P"),
        "guess += tl.where(inside, p, 0.0)",
    ),
    Fault(
        "blocks overlap",
        "bce_dice_partial",
        "block * (steps * BLOCK_P)",
        "block * BLOCK_P",
    ),
    Fault(
        "last block not started",
        "forward",
        "cdiv(plane, block_p * steps)",
        "max(1, plane // (block_p * steps))",
    ),
    Fault(
        "partial sums of two images on one place",
        "bce_dice_partial",
        "PART + k * parts + image * blocks",
        "PART + k * parts",
    ),
    Fault(
        "last partial dropped",
        "bce_dice_finish",
        "(r < parts)[None, :]",
        "(r < parts - 1)[None, :]",
    ),
    Fault(
        "area without the target",
        "bce_dice_finish",
        "area += tl.load(at + 2 * quantity, mask=inside, other=0.0).to(tl.float64)",
        "",
    ),
    Fault(
        "zero denominator unguarded",
        "bce_dice_finish",
        "tl.where(both == 0, 1.0, both)",
        "both",
    ),
    Fault(
        "empty class costs one",
        "bce_dice_finish",
        "tl.where(empty, 0.0, 1.0 - 2.0 * ratio)",
        "tl.where(k >= K, 0.0, 1.0 - 2.0 * ratio)",
        given=("k >= K",),
    ),
    Fault(
        "classes past the end cost one",
        "bce_dice_finish",
        "(both == 0) | (k >= K)",
        "(both == 0) & (k < 0)",
    ),
    Fault(
        "slope not averaged over the classes",
        "bce_dice_finish",
        "tl.where(empty, 0.0, 2.0 / divisor) / K",
        "tl.where(empty, 0.0, 2.0 / divisor)",
    ),
    Fault(
        "dice not averaged over the classes",
        "bce_dice_finish",
        (
            "tl.store(BCE, (tl.sum(total, 0) / count).to(BCE.dtype.element_ty))\n"
            "tl.store(DICE, (tl.sum(dice, 0) / K).to(DICE.dtype.element_ty))"
        ),
        (
            "tl.store(BCE, (tl.sum(total, 0) / count).to(BCE.dtype.element_ty))\n"
            "tl.store(DICE, tl.sum(dice, 0).to(DICE.dtype.element_ty))"
        ),
    ),
    Fault(
        "gradient of the sum instead of the mean",
        "bce_dice_gradient",
        "tl.load(GBCE).to(COMPUTE) / count",
        "tl.load(GBCE).to(COMPUTE)",
    ),
    Fault(
        "ratio forgotten",
        "bce_dice_gradient",
        "ratio[None, :] - y",
        "0.0 - y",
    ),
    Fault(
        "p (1 - p) forgotten",
        "bce_dice_gradient",
        "slope[None, :] * (ratio[None, :] - y) * spread",
        "slope[None, :] * (ratio[None, :] - y)",
    ),
    Fault(
        "incoming gradients swapped",
        "_BceDice.backward",
        "_backward(*ctx.saved_tensors, grad_bce, grad_dice)",
        "_backward(*ctx.saved_tensors, grad_dice, grad_bce)",
    ),
    Fault(
        "float64 computed in float32",
        "backward",
        "compute_dtype(logits.dtype)",
        "tl.float32",
    ),
    Fault(
        "empty input launched",
        "forward",
        "logits.numel() == 0",
        "logits.dim() == 0",
    ),
    Fault(
        "image index in 32 bits",
        "bce_dice_gradient",
        "(pid // (blocks * chunks)).to(tl.int64)",
        "pid // (blocks * chunks)",
    ),
    Fault(
        "logits rounded to 16 bits",
        "bce_dice_gradient",
        "tl.load(z_at, mask=inside, other=0.0)",
        "tl.load(z_at, mask=inside, other=0.0).to(tl.float16)",
    ),
]
