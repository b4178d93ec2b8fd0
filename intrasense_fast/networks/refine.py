"""The two refinement modules of IntraSense-Net: each is its parameters and the operators that use
them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from intrasense_fast.functional import channel_decoupling, entropy_whitening, nonlocal_attention
from intrasense_fast.kernels.entropy_whitening.api import entropy_map
from intrasense_fast.kernels.runtime import as_rows, from_rows, without_autocast
from intrasense_fast.networks.health import attention_rows, decoupling_health, perception_health
from intrasense_fast.networks.operator_parameters import OperatorParameters

_GATE = "gate of entropy_whitening"
_REDUCE, _EXPAND = "reduction of channel_decoupling", "expansion of channel_decoupling"


class RefinementMaps(NamedTuple):
    """What GCP sees of a batch at one stride.

    Attributes:
        entropy: (B, H, W), the scaled entropy of Eq. 6 that is compared with the threshold.
        mask: (B, H, W) bool, True where whitened; empty with normalize=False.
        gate: (B, H, W), the gate of Eq. 4.
        attention: (B, P, H, W), the rows of A (Eq. 2) at the P positions asked for; each sums to 1.
    """

    entropy: Tensor
    mask: Tensor
    gate: Tensor
    attention: Tensor


class GlobalLocalPerception(nn.Module):
    """GCP (Eq. 1-7): non-local attention, spatial gate and entropy-masked local whitening of one
    feature map.

    One 1x1 projection C -> 2 d + C gives query, key and value, d = max(8, C // 8). The gate's
    weight and bias start at zero, so that the gate starts at 1/2 everywhere.

    Args:
        channels: C.
        norm: "batch" = a BatchNorm follows the projection, in place of its bias, and another one
            normalises the gate's two statistics; "none" = the equations' letter, which adaptive
            optimisers drive into saturation within an epoch.
        normalize: False = GCP without the entropy-based normalisation (Table 4's GCP-dagger).
        entropy_scale: "score", "relative", "max" or "nats"; see `entropy_whitening`.
        threshold: tau of Eq. 6.
        window: side of the whitening window, odd.
        fused: True = the Triton kernels or an error; False = eager; None = the kernels where they
            can run.
    """

    def __init__(
        self,
        channels: int,
        *,
        norm: str = "batch",
        normalize: bool = True,
        entropy_scale: str = "score",
        threshold: float = 0.5,
        window: int = 7,
        fused: bool | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.depth = max(8, channels // 8)
        self.normalize = normalize
        self.entropy_scale = entropy_scale
        self.threshold = threshold
        self.window = window
        self.fused = fused
        width = 2 * self.depth + channels
        self.projection = nn.Conv2d(channels, width, 1, bias=norm == "none")
        self.projection_norm = nn.BatchNorm2d(width) if norm == "batch" else nn.Identity()
        self.gate_norm = nn.BatchNorm2d(2) if norm == "batch" else nn.Identity()
        self.gate = OperatorParameters(_GATE, 1, 2, 7, 7)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.gate = OperatorParameters.of(_GATE, self.gate)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Refine a map.

        Args:
            x: (B, C, H, W), NCHW or channels_last.

        Returns:
            (refined, mask): (B, C, H, W) in the projection's dtype and x's memory format, and (B,
            H, W) bool: whitened there.
        """
        return self._whitened(*self._attended(x))

    def _whitened(self, features: Tensor, mean: Tensor, maximum: Tensor) -> tuple[Tensor, Tensor]:
        """Eq. 4 to 7 of what `_attended` returns."""
        return entropy_whitening(
            features,
            mean,
            maximum,
            *self.gate(features),
            threshold=self.threshold,
            entropy_scale=self.entropy_scale,
            window=self.window,
            normalize=self.normalize,
            fused=self.fused,
        )

    @torch.no_grad()
    def maps(self, x: Tensor, positions: Sequence[tuple[int, int]] = ()) -> RefinementMaps:
        """What `forward` computes on the way; positions are (row, column) of x's own grid."""
        features, mean, maximum = self._attended(x)
        entropy = entropy_map(
            features,
            mean,
            maximum,
            *self.gate(features),
            entropy_scale=self.entropy_scale,
        )
        _, mask = self._whitened(features, mean, maximum)
        return RefinementMaps(entropy, mask, self._gate(mean, maximum), self._rows(x, positions))

    @torch.no_grad()
    def health(self, x: Tensor) -> dict[str, float]:
        """The numbers of `StrideHealth` that GCP has."""
        features, mean, maximum = self._attended(x)
        _, mask = self._whitened(features, mean, maximum)
        gate = self._gate(mean, maximum)
        return perception_health(*self._projected(x), as_rows(x), gate, mask)

    def _gate(self, mean: Tensor, maximum: Tensor) -> Tensor:
        """(B, H, W): the gate of Eq. 4."""
        statistics = torch.stack((mean, maximum), 1)
        weight, bias = (parameter.to(statistics.dtype) for parameter in self.gate(statistics))
        with without_autocast(mean):
            return conv2d(statistics, weight, bias, padding=3)[:, 0].sigmoid()

    def _rows(self, x: Tensor, positions: Sequence[tuple[int, int]]) -> Tensor:
        """(B, P, H, W): the rows of A (Eq. 2) at positions (row, column) of x's own grid."""
        batch, _, height, width = x.shape
        query, key, _ = self._projected(x)
        places = [row * width + column for row, column in positions]
        return attention_rows(query[:, places], key).view(batch, len(places), height, width)

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key (B, N, d) and value (B, N, C) of Eq. 1."""
        projected = as_rows(self.projection_norm(self.projection(x)))
        query, key, value = projected.split((self.depth, self.depth, self.channels), -1)
        return query, key, value

    def _attended(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, _, height, width = x.shape
        query, key, value = self._projected(x)
        residual = as_rows(x).to(value.dtype)
        rows, mean, maximum = nonlocal_attention(query, key, value, residual, fused=self.fused)
        statistics = torch.stack((mean, maximum), 1).view(batch, 2, height, width)
        mean, maximum = self.gate_norm(statistics).unbind(1)
        return from_rows(rows, x), mean, maximum

    def extra_repr(self) -> str:
        scale = f"entropy_scale={self.entropy_scale!r}, threshold={self.threshold}"
        scale += f", window={self.window}"
        return f"{self.channels}, normalize={self.normalize}, {scale}, fused={self.fused}"


class ChannelDecoupling(nn.Module):
    """CDR (Eq. 8-12): suppress what all channels share, re-weight the channels, and give the
    image's share of L_IW (Eq. 9).

    Args:
        channels: C; the re-weighting MLP is C -> max(1, C // 16) -> C.
        norm: "batch" = the squeeze is standardised by its running statistics and the MLP's weights
            are held multiplied by the square root of their fan-in; "none" = the equations' letter,
            whose weights soon ignore the image.
        ridge: the regularisation of Eq. 8 in units of the mean energy of a direction, > 0.
        squeeze: what Eq. 10 averages: "input" or "decoupled".
        alpha: weight of the rank gap in L_IW.
        beta: weight of the distance in L_IW.
        fused: True = the Triton kernels or an error; False = eager; None = the kernels where they
            can run.
    """

    def __init__(
        self,
        channels: int,
        *,
        norm: str = "batch",
        ridge: float = 10.0,
        squeeze: str = "input",
        alpha: float = 0.01,
        beta: float = 0.01,
        fused: bool | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.ridge = ridge
        self.squeeze = squeeze
        self.alpha = alpha
        self.beta = beta
        self.fused = fused
        reduced = max(1, channels // 16)
        self.reduce = OperatorParameters(_REDUCE, reduced, channels)
        self.expand = OperatorParameters(_EXPAND, channels, reduced)
        self.squeeze_norm = RunningStandardization(channels) if norm == "batch" else None
        if self.squeeze_norm is not None:
            with torch.no_grad():
                for held in (self.reduce, self.expand):
                    held.weight.mul_(held.weight.shape[1] ** 0.5)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.reduce = OperatorParameters.of(_REDUCE, self.reduce)
        self.expand = OperatorParameters.of(_EXPAND, self.expand)

    def forward(self, x: Tensor, *, terms: bool = True) -> tuple[Tensor, Tensor]:
        """Decouple and re-weight a map.

        Args:
            x: (B, C, H, W), NCHW or channels_last.
            terms: False = L_IW is not wanted, and may be 0.

        Returns:
            (reweighted, loss): (B, C, H, W) in x's dtype and memory format, and L_IW of this map, a
            scalar: the mean over images of alpha * rank_gap + beta * distance; it may be slightly
                negative. 0 for B = 0.
        """
        if self.squeeze_norm is not None and self.training:
            self.squeeze_norm.learn(self._squeezed(x))
        reweighted, rank_gap, distance = channel_decoupling(
            x,
            *self.mlp(x),
            ridge=self.ridge,
            squeeze=self.squeeze,
            fused=self.fused,
            terms=terms,
        )
        return reweighted, (self.alpha * rank_gap + self.beta * distance).sum() / max(1, x.shape[0])

    def mlp(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weight and bias of the two layers of Eq. 11, as layers of s, for a map x."""
        reduce_weight, reduce_bias = self.reduce(x)
        expand_weight, expand_bias = self.expand(x)
        if self.squeeze_norm is None:
            return reduce_weight, reduce_bias, expand_weight, expand_bias
        mean, deviation = self.squeeze_norm()
        # W (s - mean) / deviation + b, written as one layer of s.
        weight = reduce_weight / (reduce_weight.shape[1] ** 0.5 * deviation)
        bias = reduce_bias - (weight * mean).sum(1)
        return weight, bias, expand_weight / expand_weight.shape[1] ** 0.5, expand_bias

    def health(self, x: Tensor) -> dict[str, float]:
        """The numbers of `StrideHealth` that CDR has."""
        return decoupling_health(self.weights(x))

    @torch.no_grad()
    def weights(self, x: Tensor) -> Tensor:
        """(B, C): the weights of Eq. 11, float32 or float64."""
        squeezed = self._squeezed(x)
        reduce_weight, reduce_bias, expand_weight, expand_bias = self.mlp(x)
        with without_autocast(x):
            hidden = linear(squeezed, reduce_weight.to(squeezed), reduce_bias.to(squeezed)).relu()
            return linear(hidden, expand_weight.to(squeezed), expand_bias.to(squeezed)).sigmoid()

    @torch.no_grad()
    def _squeezed(self, x: Tensor) -> Tensor:
        """(B, C): s of Eq. 10, float32 or float64."""
        if self.squeeze == "decoupled":
            # With all weights zero w is 1/2 everywhere.
            held = (*self.reduce(x), *self.expand(x))
            zeros = [torch.zeros_like(parameter) for parameter in held]
            halved, _, _ = channel_decoupling(
                x, *zeros, ridge=self.ridge, fused=self.fused, terms=False
            )
            x = 2 * halved
        return x.mean((2, 3), dtype=torch.promote_types(x.dtype, torch.float32))

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, ridge={self.ridge}, squeeze={self.squeeze!r}, alpha={self.alpha}, "
            f"beta={self.beta}, "
            f"fused={self.fused}"
        )


class RunningStandardization(nn.Module):
    """Running mean and deviation of the squeeze of Eq. 10 between images, a channel each; nothing
    is learnt by gradient.

    Every batch of the training mode moves them by a tenth (the first ones by an even share) before
    they are used.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    last_mean: Tensor

    def __init__(self, channels: int, *, eps: float = 1e-3, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))
        self.register_buffer("last_mean", torch.full((channels,), torch.nan), persistent=False)

    def forward(self) -> tuple[Tensor, Tensor]:
        """(mean, deviation), both (C,)."""
        # A copy: the next batch moves the buffer before this one's gradients are taken, where
        # losses are added up.
        return self.running_mean.clone(), (self.running_var + self.eps).sqrt()

    @torch.no_grad()
    def learn(self, squeezed: Tensor) -> None:
        """Move towards the statistics of a batch: squeezed (B, C)."""
        if not squeezed.shape[0]:
            return
        squeezed = squeezed.to(self.running_mean.dtype)
        mean = squeezed.mean(0)
        # Activations that are computed again in the backward pass are the same batch: learnt once.
        fresh = (mean != self.last_mean).any()
        share = (1 / (self.num_batches_tracked + 1)).clamp(min=self.momentum) * fresh
        moved = mean - self.running_mean
        within = squeezed.var(0, correction=0)
        # The variance of a mixture of everything seen, each batch with its share; nothing was seen
        # before the first.
        before = torch.where(self.num_batches_tracked == 0, 0.0, self.running_var)
        self.running_var.copy_((1 - share) * (before + share * moved.square()) + share * within)
        self.running_mean.add_(share * moved)
        self.num_batches_tracked.add_(fresh)
        self.last_mean.copy_(mean)
