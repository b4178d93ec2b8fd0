"""entropy_whitening without kernels: window sums by rows, then by columns, each with a pivot."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from intrasense_fast.kernels._common.layout import memory_format, without_autocast
from intrasense_fast.kernels._common.plain import plain_steps
from intrasense_fast.kernels._common.precision import statistics_dtype
from intrasense_fast.kernels.entropy_whitening.plain import masked_whitening

# Of a map that windows are taken of at a time, on a CPU: a few such maps lie in its cache.
ELEMENTS_AT_A_TIME = 2**16
_LEAST_CHANNELS, _WIDE = 16, 32


def eager(
    features: Tensor,
    channel_mean: Tensor,
    channel_max: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    threshold: float,
    entropy_scale: str,
    window: int,
    eps: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """The path without kernels; arguments and results as entropy_whitening's."""
    with without_autocast(features):
        attended = gated(
            features,
            channel_mean,
            channel_max,
            gate_weight,
            gate_bias,
            statistics_dtype(features.dtype),
        )
        if not normalize:
            return attended.to(features.dtype), torch.zeros_like(channel_mean, dtype=torch.bool)
        mask = scaled_entropy(attended.detach(), entropy_scale) < threshold
        whiten = masked_whitening if plain_steps() else MaskedWhitening.apply
        return whiten(attended, mask, window, eps).to(features.dtype), mask


def gated(
    features: Tensor,
    channel_mean: Tensor,
    channel_max: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """F_att of Eq. 4-5 in `dtype`."""
    statistics = torch.stack([channel_mean, channel_max], 1).to(dtype)
    logit = functional.conv2d(
        statistics, gate_weight.to(dtype), gate_bias.to(dtype), padding=gate_weight.shape[-1] // 2
    )
    return torch.sigmoid(logit) * features.to(dtype)


def scaled_entropy(attended: Tensor, entropy_scale: str) -> Tensor:
    """Ent_s of Eq. 6 from F_att: (B, H, W).

    NaN, which no threshold exceeds, where the mask must be empty.
    """
    z = attended - attended.amax(1, keepdim=True)
    e = z.exp()
    total = e.sum(1)
    entropy = total.log() - e.mul_(z).sum(1) / total
    if entropy_scale == "nats":
        return entropy
    if entropy_scale == "max":
        unit = math.log(attended.shape[1]) if attended.shape[1] > 1 else torch.nan
        return entropy / unit
    if entropy_scale == "relative":
        low, high = entropy.amin((1, 2), keepdim=True), entropy.amax((1, 2), keepdim=True)
        span = high - low
        return ((entropy - low) / span).masked_fill(~(span > 1e-3), torch.nan)
    centred = entropy - entropy.mean((1, 2), keepdim=True)
    deviation = centred.square().mean((1, 2), keepdim=True).sqrt()
    return torch.sigmoid(centred / deviation).masked_fill(~(deviation > 1e-4), torch.nan)


class MaskedWhitening(torch.autograd.Function):
    """Eq. 7 from F_att (B, C, H, W) and the mask.

    Saves F_att, the windows' mean and rstd = 1 / sigma, not one map a tap. On a CPU by groups of
    channels that its caches hold: windows know nothing of other channels.
    """

    @staticmethod
    def forward(ctx, attended: Tensor, mask: Tensor, window: int, eps: float) -> Tensor:
        saved, results = [], []
        for part in _groups(attended):
            mean, variance = window_moments(part, window)
            # In place: on a CPU memory that is new costs more than the arithmetic.
            rstd = variance.add_(eps).rsqrt_()
            saved += [part, mean, rstd]
            results.append(torch.where(mask[:, None], (part - mean).mul_(rstd), part))
        ctx.save_for_backward(mask, *saved)
        ctx.window = window
        result = _joined(results, attended)
        ctx.strides = result.stride()
        return result

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "entropy_whitening has no double backward; differentiate its reference.py instead"
            )
        mask, *saved = ctx.saved_tensors
        shaped = grad
        if _in_groups(grad):
            # The same values in the layout that the map had.
            shaped = grad.contiguous(memory_format=memory_format(saved[0]))
        groups = zip(saved[::3], saved[1::3], saved[2::3], _groups(shaped), strict=True)
        results = [_gradient(*group, mask, ctx.window) for group in groups]
        # What follows adds up in the order of this layout: the gradient's, where it has one.
        expanded = 0 in grad.stride()
        like = grad.new_empty_strided(grad.shape, ctx.strides) if expanded else grad
        return _joined(results, like), None, None, None


def _gradient(
    attended: Tensor, mean: Tensor, rstd: Tensor, grad: Tensor, mask: Tensor, window: int
) -> Tensor:
    """Eq. 7 backward, s = rstd, n = count: g s - box(g s / n) - the sum over the windows i that
    hold j of q_i (x_j - mean_i), q = g y s^2 / n."""
    height, width = attended.shape[-2:]
    masked = mask[:, None]
    g = torch.where(masked, grad * rstd, 0)
    rows, columns = _counts(height, window, attended), _counts(width, window, attended)
    count = rows[:, None] * columns
    share = g / count
    q = torch.where(masked, share * (attended - mean) * rstd * rstd, 0)
    # A window with a value that is not finite sends NaN by its q; a pivot must send none where q
    # is 0.
    attended = torch.where(attended.isfinite(), attended, 0)
    moment = torch.where(masked, mean, 0)
    # Rows first, each with its own pivot p = x at (row, column of j): sums of q and of
    # q (mean - p) - g s / n; then columns.
    scratch = moment - attended
    row_q, row_first = q.clone(), torch.addcmul(-share, q, scratch)
    for here, there in _shifts(width, window):
        row_q[..., here].add_(q[..., there])
        row_first[..., here].sub_(share[..., there])
        distance = _difference(moment[..., there], attended[..., here], scratch[..., here])
        row_first[..., here].addcmul_(q[..., there], distance)
    result = torch.where(masked, g, grad).add_(row_first)
    for here, there in _shifts(height, window):
        result[..., here, :].add_(row_first[..., there, :])
        distance = _difference(
            attended[..., there, :], attended[..., here, :], scratch[..., here, :]
        )
        result[..., here, :].addcmul_(row_q[..., there, :], distance)
    return result


def _groups(values: Tensor) -> list[Tensor]:
    """A map (B, C, H, W) by groups of channels on a CPU; elsewhere, and in traces, the map itself.

    Narrow maps have their channels side by side: a row of theirs is too short to be fast alone.
    """
    batch, _, height, width = values.shape
    if not _in_groups(values):
        return [values]
    if width < _WIDE:
        values = values.contiguous(memory_format=torch.channels_last)
    group = max(_LEAST_CHANNELS, ELEMENTS_AT_A_TIME // max(1, batch * height * width))
    return list(values.split(group, 1))


def _in_groups(values: Tensor) -> bool:
    on_cpu = values.device.type == "cpu" and not torch.compiler.is_compiling()
    return on_cpu and values.shape[1] >= _LEAST_CHANNELS


def _joined(parts: list[Tensor], like: Tensor) -> Tensor:
    """What `_groups` took apart, in the layout of `like`."""
    if len(parts) == 1 and (parts[0].stride() == like.stride() or parts[0].device.type != "cpu"):
        return parts[0]
    joined = torch.empty_like(like)
    for place, part in zip(joined.split(parts[0].shape[1], 1), parts, strict=True):
        place.copy_(part)
    return joined


def window_moments(values: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over the window's positions inside the map, without cancellation.

    Rows of the window first, each with its centre as pivot, then the rows' (count, mean, M2)
    merged, the centre's row as pivot: windows do not mix, so that a NaN stays inside those that
    hold it, and an offset costs no accuracy.
    """
    height, width = values.shape[-2:]
    count, rows = _counts(width, window, values), _counts(height, window, values)[:, None]
    first, second = torch.zeros_like(values), torch.zeros_like(values)
    scratch = torch.empty_like(values)
    # add_, not +=, which also copies the slice onto itself.
    for here, there in _shifts(width, window):
        difference = _difference(values[..., there], values[..., here], scratch[..., here])
        first[..., here].add_(difference)
        second[..., here].addcmul_(difference, difference)
    shift = first / count
    # The pivot is in the window, so its own share of the sum, shift^2, bounds what is subtracted:
    # nothing cancels.
    row_second = second.addcmul_(first, shift, value=-1)
    row_mean = shift.add_(values)
    first, second, merged = first.zero_(), torch.zeros_like(values), row_second.clone()
    for here, there in _shifts(height, window):
        difference = _difference(
            row_mean[..., there, :], row_mean[..., here, :], scratch[..., here, :]
        )
        first[..., here, :].add_(difference)
        second[..., here, :].addcmul_(difference, difference)
        merged[..., here, :].add_(row_second[..., there, :])
    shift = first / rows
    second = second.addcmul_(first, shift, value=-1)
    return shift.add_(row_mean), merged.div_(count * rows).add_(second.div_(rows))


def _difference(one: Tensor, other: Tensor, place: Tensor) -> Tensor:
    """one - other, in `place` but in traces, which take no such place."""
    return one - other if torch.compiler.is_compiling() else torch.sub(one, other, out=place)


def _shifts(size: int, window: int) -> list[tuple[slice, slice]]:
    """For each offset but zero of the window along an axis: where it stays inside, and reads."""
    radius = min(window // 2, size - 1)
    return [
        (
            slice(max(0, -offset), min(size, size - offset)),
            slice(max(0, offset), min(size, size + offset)),
        )
        for offset in range(-radius, radius + 1)
        if offset
    ]


def _counts(size: int, window: int, like: Tensor) -> Tensor:
    """How many positions of the window lie inside, for each position along an axis of `size`."""
    position = torch.arange(size, device=like.device)
    radius = window // 2
    last = torch.clamp(position + radius, max=size - 1)
    first = torch.clamp(position - radius, min=0)
    return (last - first + 1).to(like.dtype)
