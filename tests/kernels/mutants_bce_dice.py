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
        "loss += tl.where(mask, entropy, 0.0)\noverlap += target * probability",
        "loss += entropy\noverlap += target * probability",
    ),
    Fault(
        "probability of masked lanes counted",
        "bce_dice_partial",
        "target_sum += target\nprobability_sum += tl.where(mask, probability, 0.0)",
        "target_sum += target\nprobability_sum += probability",
    ),
    Fault(
        "log(1 + e)",
        "bce_dice_partial",
        (
            "lost = u == 1.0\n"
            "log1p = tl.log(u) * (exponential / tl.where(lost, 1.0, u - 1.0))\n"
            "log1p = tl.where(lost, exponential, log1p)"
        ),
        "log1p = tl.log(u)",
    ),
    Fault(
        "loss without the target",
        "bce_dice_partial",
        "tl.where(z > 0, z, 0.0) - z * y",
        "tl.where(z > 0, z, 0.0)",
    ),
    Fault(
        "sigmoid that overflows",
        "sigmoid",
        "tl.where(z >= 0, 1.0, e) / (1.0 + e)",
        "tl.exp(z) / (1.0 + tl.exp(z))",
    ),
    Fault(
        "sigmoid's side swapped",
        "sigmoid",
        "z >= 0",
        "z < 0",
    ),
    Fault(
        "target read with the logits' strides",
        "bce_dice_partial",
        (
            "target_at = offsets(position, target_row, target_column, W, FLAT)[:, None]\n"
            "target = tl.load(target_base + target_at, mask=mask, other=0).to(COMPUTE)"
        ),
        (
            "target_at = offsets(position, logits_row, logits_column, W, FLAT)[:, None]\n"
            "target = tl.load(target_base + target_at, mask=mask, other=0).to(COMPUTE)"
        ),
        given=(
            (
                "logits_at = offsets(position, logits_row, logits_column, W, FLAT)[:, None]\n"
                "logit = tl.load(logits_base + logits_at, mask=mask, other=0.0).to(COMPUTE)"
            ),
        ),
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
            "grad_base = GRAD_LOGITS + image * grad_batch + klass * grad_class\n"
            "grad_at = grad_base + offsets(position, grad_row, grad_column, W, FLAT)[:, None]\n"
            "logit = tl.load(logits_at, mask=mask, other=0.0).to(COMPUTE)"
        ),
        (
            "grad_base = GRAD_LOGITS + image * logits_batch + klass * logits_class\n"
            "grad_at = grad_base + offsets(position, logits_row, logits_column, W, FLAT)[:, None]\n"
            "logit = tl.load(logits_at, mask=mask, other=0.0).to(COMPUTE)"
        ),
        given=(
            (
                "logits_base = LOGITS + image * logits_batch + klass * logits_class\n"
                "logits_at = logits_base + "
                "offsets(position, logits_row, logits_column, W, FLAT)[:, None]"
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
        "_is_flat",
        "height == 1 or width == 1 or maps.stride(2) == width * maps.stride(3)",
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
        'cdiv(plane, tile["BLOCK_P"] * steps)',
        'max(1, plane // (tile["BLOCK_P"] * steps))',
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
        "compute_dtype(torch.float32)",
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
        "block, chunk, image = part_of_image(blocks, chunks)",
        "block, chunk, image = part_of_image(blocks, chunks)\nimage = image.to(tl.int32)",
    ),
    Fault(
        "logits rounded to 16 bits",
        "bce_dice_gradient",
        "tl.load(z_at, mask=inside, other=0.0)",
        "tl.load(z_at, mask=inside, other=0.0).to(tl.float16)",
    ),
]
