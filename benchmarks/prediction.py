"""How much memory the network needs, from its shapes: bytes saved for backward and a pass's peak.

The plain U-Net keeps a constant number of values a pixel. GCP and CDR add a few maps a refined
stride and, where attention runs eager in training, the N x N scores: 4 N^2 bytes an image,
N = H W / stride^2.
"""

from collections.abc import Sequence

from intrasense_fast.kernels.nonlocal_attention.eager import SCORES_AT_A_TIME
from intrasense_fast.networks.encoder import ENCODERS, STRIDES

# Of the default encoder, ResNet-50.
CHANNELS = ENCODERS["resnet50"].channels
# width, blocks, stride of the input, stride of the output
LAYERS = ((64, 3, 4, 4), (128, 4, 4, 8), (256, 6, 8, 16), (512, 3, 16, 32))
DECODER = (256, 128, 64, 32, 16)
PATHS = ("plain", "eager", "eager whole", "fused")
# Maps of C channels alive at once in the eager path's window sums, beside the network's own: see
# window_moments.
WHITENING_MAPS = 10
# Values a pixel of the widest moment outside the refined strides, by the bytes of a value (4:
# float32 on a CPU, 2: autocast on a GPU): the last decoder block, its input, its skips, and the
# copies and workspace that the library's convolutions make.
DECODER_VALUES = {4: 46 + 130, 2: 46 + 160}
# Training: the same moment in the backward pass, where a gradient stands beside each map.
GRADIENT_VALUES = {4: 160, 2: 75}
# Parameters of encoder and decoder: their gradients appear while what was saved goes.
PLAIN_PARAMETERS = 32_511_000


def saved(
    path: str, size: int, strides: Sequence[int], batch: int = 1, item: int = 4
) -> dict[str, int]:
    """Bytes saved for backward by a training forward with its loss, by part of the network.

    Args:
        path: one of PATHS. size: side of the square image. strides: refined strides, not used by
            "plain".
        item: bytes of a feature map's element, 4 on a CPU, 2 on a GPU (autocast); statistics,
            matrices and the eager path's scores are float32.
    """
    pixels = size * size
    parts = {
        "encoder": _encoder(pixels) * item + 64 * (pixels // 16) * 8,
        "decoder": _decoder(pixels) * item,
    }
    # Logits, target and probability of the loss, in float32.
    parts["loss"] = (3 * 4 if path != "fused" else item + 1) * pixels
    refined = [] if path == "plain" else [CHANNELS[STRIDES.index(stride)] for stride in strides]
    # Autocast keeps a copy of every convolution's weights, whatever the batch.
    weights = (
        0
        if item == 4
        else item * (PLAIN_PARAMETERS + sum(channels * channels * 5 // 4 for channels in refined))
    )
    # The layers of the re-weighting as the operator takes them, in float32.
    weights += sum(2 * channels * (channels // 16) * 4 for channels in refined)
    for name in ("projection", "scores", "whitening", "decoupling"):
        parts[name] = 0
    for stride in () if path == "plain" else strides:
        channels, positions = CHANNELS[STRIDES.index(stride)], pixels // stride**2
        depth, side = max(8, channels // 8), min(channels, positions)
        # What the projection's BatchNorm normalises.
        parts["projection"] += (2 * depth + channels) * positions * item
        if path == "fused":
            parts["projection"] += (2 * depth + 2 * channels) * positions * item
            parts["scores"] += 8 * positions
            parts["whitening"] += channels * positions * item + 13 * positions
            parts["decoupling"] += channels * positions * item + 2 * side**2 * 4
            continue
        parts["projection"] += (3 * depth + channels) * positions * item
        # Probabilities in float32, and once more in the dtype of the product with the values.
        parts["scores"] += positions**2 * (4 if item == 4 else 4 + item) + 8 * positions
        # The map before the gate, F_att, mean and 1 / sigma, in float32.
        parts["whitening"] += channels * positions * 16 + 13 * positions
        # Rows; Gram, its scaled form, M, K, S, K - S and the re-weighted M, or the product before
        # the re-weighting.
        wide = channels > positions
        parts["decoupling"] += (
            channels * positions * 4 * (2 if wide else 1) + (6 if wide else 7) * side**2 * 4
        )
    return {**{name: count * batch for name, count in parts.items()}, "weights": weights}


def peak(
    path: str, mode: str, size: int, strides: Sequence[int], batch: int = 1, item: int = 4
) -> int:
    """Bytes alive at once beyond the network and its input.

    In "inference" or "training" (forward, loss, backward).
    """
    pixels = size * size
    if mode == "training":
        kept = sum(saved(path, size, strides, batch, item).values())
        first = GRADIENT_VALUES[item] * pixels * item * batch
        if item == 2:
            # What the backward pass frees serves it again: its beginning is its widest moment.
            return kept + first
        refined = [] if path == "plain" else [CHANNELS[STRIDES.index(stride)] for stride in strides]
        gradients = 4 * (
            PLAIN_PARAMETERS + sum(channels * channels * 11 // 8 for channels in refined)
        )
        chunk = 0
        if path.startswith("eager") and strides:
            # The gradients of a chunk's scores, of its probabilities, and the product of both.
            scores = batch * (pixels // min(strides) ** 2) ** 2
            chunk = 3 * 4 * min(scores, SCORES_AT_A_TIME)
        return kept + max(first, gradients) + chunk
    moments = [
        DECODER_VALUES[item] * pixels * item * batch
        + saved("plain", size, (), batch, item)["weights"]
    ]
    kept = 0
    for stride, channels in zip(STRIDES, CHANNELS, strict=True):
        positions = pixels // stride**2
        kept += channels * positions * item * batch
        if path == "plain" or stride not in strides:
            continue
        depth = max(8, channels // 8)
        rows = (2 * depth + 6 * channels) * positions * item * batch
        if path == "fused":
            moments.append(kept + rows)
            continue
        scores = batch * positions**2
        chunk = (
            scores
            if path == "eager whole"
            else min(scores, max(SCORES_AT_A_TIME, batch * positions))
        )
        moments.append(kept + rows + 2 * chunk * 4)
        moments.append(kept + WHITENING_MAPS * channels * positions * 4 * batch)
    return max(moments)


def _encoder(pixels: int) -> int:
    """Values that the ResNet-50 keeps: inputs of convolutions and of BatchNorms, outputs of ReLUs.

    What shares storage counts once.
    """
    total = pixels + 2 * 64 * (pixels // 4) + 64 * (pixels // 16)
    for width, blocks, before, after in LAYERS:
        outer, inner = pixels // before**2, pixels // after**2
        total += 2 * width * outer + 2 * width * inner + 3 * 4 * width * inner
        total += (blocks - 1) * (4 * width + 2 * 4 * width) * inner
    return total


def _decoder(pixels: int) -> int:
    total, incoming = 0, CHANNELS[-1]
    for stride, skip, width in zip(
        (16, 8, 4, 2, 1), (*reversed(CHANNELS[:-1]), 0), DECODER, strict=True
    ):
        total += (incoming + skip + 4 * width) * (pixels // stride**2)
        incoming = width
    return total
