"""Whether GCP and CDR are alive: what they do to a batch, as a few numbers a stride, and the faults
in words."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

# Elements of A at a time: A itself may not fit.
CHUNK = 2**24
# Beyond these a module no longer reacts to its input, and no gradient brings it back.
ONE_HOT = 0.003
SATURATED = 0.9
FROZEN_GATE = 0.01
FROZEN_WEIGHTS = 0.002
DEAD_CHANNELS = 0.1
SWAMPED = 10.0


class StrideHealth(NamedTuple):
    """What GCP and CDR do to a batch at one stride; NaN where the module is absent or the number
    means nothing.

    Attributes:
        attention_entropy: mean entropy of the rows of A (Eq. 2) over log N: 1 = uniform, 0 =
            one-hot; NaN for N = 1.
        attention_gain: rms of A V over rms of x (Eq. 3).
        gate_saturated: share of positions whose gate (Eq. 4) is below 0.01 or above 0.99.
        gate_deviation: standard deviation of the gate between images, rms over positions; NaN for
            one image.
        masked_share: share of positions that Eq. 7 whitens.
        mask_agreement: share of pairs of images whose masks agree, mean over positions: 1 = all
            alike; NaN for one image.
        dead_channels: share of channels with w < 0.01 (Eq. 11), over images.
        weight_deviation: standard deviation of w between images, rms over channels; NaN for one
            image.
    """

    attention_entropy: float = torch.nan
    attention_gain: float = torch.nan
    gate_saturated: float = torch.nan
    gate_deviation: float = torch.nan
    masked_share: float = torch.nan
    mask_agreement: float = torch.nan
    dead_channels: float = torch.nan
    weight_deviation: float = torch.nan

    def faults(self) -> list[str]:
        """What is dead and why, in words; empty where everything lives."""
        words = []
        if self.attention_entropy < ONE_HOT:
            words.append(
                f"attention is one-hot (entropy {self.attention_entropy:.3f} of log N): each "
                f"position sees one other"
            )
        if self.attention_gain > SWAMPED:
            words.append(f"A V is {self.attention_gain:.0f} times x: the map itself is drowned")
        if self.gate_saturated > SATURATED and self.gate_deviation < FROZEN_GATE:
            words.append(
                f"the gate is a fixed pattern ({100 * self.gate_saturated:.0f} % of it 0 or 1, the "
                f"same for every image)"
            )
        if self.dead_channels > DEAD_CHANNELS:
            words.append(
                f"{100 * self.dead_channels:.0f} % of the channels are switched off (w < 0.01)"
            )
        if self.weight_deviation < FROZEN_WEIGHTS:
            words.append(
                f"the channel weights ignore the image (deviation {self.weight_deviation:.4f} "
                f"between images)"
            )
        return words


def faults(health: Mapping[int, StrideHealth]) -> list[str]:
    """One line a fault, stride by stride; empty where everything lives."""
    return [
        f"stride {stride}: {fault}"
        for stride, record in health.items()
        for fault in record.faults()
    ]


def perception_health(
    query: Tensor, key: Tensor, value: Tensor, x: Tensor, gate: Tensor, mask: Tensor
) -> dict[str, float]:
    """The numbers of GCP: query, key (B, N, d), value, x (B, N, C), gate (B, H, W), mask bool (B,
    H, W)."""
    entropy, attended = _attention(query, key, value)
    positions = query.shape[1]
    return {
        "attention_entropy": _mean(entropy) / torch.tensor(float(positions)).log().item()
        if positions > 1
        else torch.nan,
        "attention_gain": _ratio(_rms(attended), _rms(x)),
        "gate_saturated": _mean((gate < 0.01) | (gate > 0.99)),
        "gate_deviation": _deviation(gate),
        "masked_share": _mean(mask),
        "mask_agreement": _agreement(mask),
    }


def decoupling_health(weight: Tensor) -> dict[str, float]:
    """The numbers of CDR from w (B, C) of Eq. 11."""
    return {"dead_channels": _mean(weight < 0.01), "weight_deviation": _deviation(weight)}


def attention_rows(query: Tensor, key: Tensor) -> Tensor:
    """Rows of A (Eq. 2) for some queries: query (B, M, d), key (B, N, d) -> (B, M, N), float32 or
    float64."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(dtype) @ key.to(dtype).transpose(1, 2)
    return (scores / query.shape[-1] ** 0.5).softmax(-1)


def _attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy (B, N) of the rows of A, and A V (B, N, C), over chunks of queries."""
    share = max(1, CHUNK // max(1, query.shape[0] * query.shape[1]))
    entropies, attended = [], []
    for part in query.split(share, 1):
        rows = attention_rows(part, key)
        entropies.append(torch.special.entr(rows).sum(-1))
        attended.append(rows @ value.to(rows.dtype))
    return torch.cat(entropies, 1), torch.cat(attended, 1)


def _mean(values: Tensor) -> float:
    return values.float().mean().item()


def _rms(values: Tensor) -> float:
    return values.float().square().mean().sqrt().item()


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else torch.nan


def _deviation(values: Tensor) -> float:
    """Standard deviation over the first axis, rms over the others."""
    if values.shape[0] < 2:
        return torch.nan
    return values.float().var(0).mean().sqrt().item()


def _agreement(mask: Tensor) -> float:
    images = mask.shape[0]
    if images < 2:
        return torch.nan
    marked = mask.sum(0).double()
    alike = marked * (marked - 1) + (images - marked) * (images - marked - 1)
    return (alike / (images * (images - 1))).mean().item()
