"""Launchers of channel_decoupling: tensors in, tensors out, nothing else. They also run on meta tensors."""

import torch
from torch import Tensor
from triton import cdiv

from intrasense_fast.kernels._common.configs import architecture
from intrasense_fast.kernels._common.launch import launch
from intrasense_fast.kernels._common.precision import compute_dtype, dot_precision, statistics_dtype
from intrasense_fast.kernels.channel_decoupling import configs
from intrasense_fast.kernels.channel_decoupling.apply import (
    decoupling_apply,
    decoupling_feature_gradient,
    decoupling_weight_gradient,
)
from intrasense_fast.kernels.channel_decoupling.gram import (
    decoupling_gram,
    decoupling_normalise,
    decoupling_pull,
    decoupling_symmetrise,
)
from intrasense_fast.kernels.channel_decoupling.launchers import (
    View,
    inverse,
    like,
    linear_gradient,
    matrix_precision,
    matvec,
    sizes,
    splits,
    view,
)
from intrasense_fast.kernels.channel_decoupling.matrices import (
    decoupling_finish,
    decoupling_gram_gradient,
    decoupling_matrix_gradient,
    decoupling_operands,
    decoupling_product,
    decoupling_terms,
)


def forward(
    features: Tensor, reduce_weight: Tensor, reduce_bias: Tensor, expand_weight: Tensor, expand_bias: Tensor,
    ridge: float, decoupled: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Eq. 8-12 and the terms of Eq. 9.

    Args:
        features: (B, C, H, W), any strides. reduce_weight (C_r, C), reduce_bias (C_r,), expand_weight (C, C_r),
        expand_bias (C,). decoupled: what Eq. 10 averages, F_dec or F.

    Returns:
        reweighted (B, C, H, W), rank_gap (B,), distance (B,); and for the backward: M (B, R, R), S = M (I - M) (B, R, R),
        tr G and tr S / ||S||^2 (2, B), the MLP's input (B, C), hidden layer (B, C_r) and output (B, C), and, empty unless
        `decoupled`, the mean of F (C <= N) or M 1 / N (N < C) (B, R).
    """
    batch, channels, height, width = features.shape
    tall, rank, long = sizes(features)
    dtype, compute = statistics_dtype(features.dtype), compute_dtype(features.dtype)
    out = like(features)
    rank_gap, distance = (features.new_empty(batch, dtype=dtype) for _ in range(2))
    scalars = features.new_empty(2, batch, dtype=dtype)
    squeezed = features.new_empty(batch, channels, dtype=dtype)
    extra = features.new_empty((batch, rank) if decoupled else 0, dtype=dtype)
    x = view(features)
    precision, exact = (
        f(features.dtype, features.device) for f in (dot_precision, matrix_precision)
    )
    target = architecture(features.device)

    config = configs.gram_config(rank, long, features.dtype, target, precision)
    tiles = cdiv(rank, config.blocks["BLOCK_R"])
    pairs = tiles * (tiles + 1) // 2
    count, share = splits(pairs, rank, long, config.blocks["BLOCK_L"])
    part = features.new_empty(batch, count, rank, rank, dtype=dtype)
    trace = features.new_empty(batch, count * tiles, dtype=dtype)
    with_sum = tall or not decoupled
    sums = features.new_empty(batch, count if tall else tiles, channels, dtype=dtype)
    launch(
        decoupling_gram, ((pairs + tiles if with_sum else pairs) * count * batch,),
        x.tensor, part, trace, sums, *x.strides, rank, long, pairs, tiles, count, share,
        TALL=tall, WITH_SUM=with_sum, PRECISION=precision, COMPUTE=compute, **config.options(),
    )  # fmt: skip

    blocks = cdiv(rank, configs.BLOCK)
    gh, shifted, kept = (features.new_empty(batch, rank, rank, dtype=dtype) for _ in range(3))
    launch(
        decoupling_normalise, (blocks * blocks * batch,),
        part, trace, gh, shifted, scalars[0], rank, tiles, count, blocks, ridge,
        BLOCK=configs.BLOCK, BLOCK_T=128, COMPUTE=compute, num_warps=8, num_stages=1,
    )  # fmt: skip
    matrix = inverse(shifted)

    config = configs.matrix_config(rank, exact)
    blocks = cdiv(rank, config.blocks["BLOCK"])
    terms = features.new_empty(batch, 4, blocks * blocks, dtype=dtype)
    shared = features.new_empty(batch, rank, rank)
    launch(
        decoupling_terms, (blocks * blocks * batch,), matrix, gh, kept, shared, terms, rank, blocks, ridge,
        PRECISION=exact, COMPUTE=compute, **config.options(),
    )  # fmt: skip
    with_rowsum = decoupled and not tall
    rows = cdiv(rank, 32) if with_rowsum else 1
    launch(
        decoupling_finish, (rows * batch,),
        terms, scalars[0], matrix, rank_gap, distance, scalars[1], extra if with_rowsum else rank_gap,
        rank, blocks * blocks, rows, 1 / rank,
        WITH_ROWSUM=with_rowsum, BLOCK=32, BLOCK_T=128, COMPUTE=compute, num_warps=4, num_stages=1,
    )  # fmt: skip

    positions = height * width
    square = (rank * rank, rank, 1)
    reduce_weight, expand_weight = reduce_weight.contiguous(), expand_weight.contiguous()
    reduced = reduce_weight.shape[0]
    if decoupled and tall:
        squeezed = matvec(matrix, square, sums, channels, scale=1 / positions, kept=extra)
    elif decoupled:
        squeezed = matvec(x.tensor, (x.batch, x.long, x.rank), extra[:, None], channels)
    if decoupled:
        hidden = matvec(
            reduce_weight,
            (0, channels, 1),
            squeezed[:, None],
            reduced,
            bias=reduce_bias.contiguous(),
            epilogue="relu",
        )
    else:
        hidden = matvec(
            reduce_weight, (0, channels, 1), sums, reduced, scale=1 / positions, bias=reduce_bias.contiguous(), kept=squeezed,
            epilogue="relu",
        )  # fmt: skip
    weight = matvec(
        expand_weight,
        (0, reduced, 1),
        hidden[:, None],
        channels,
        bias=expand_bias.contiguous(),
        epilogue="sigmoid",
    )

    config = configs.apply_config(rank, long, features.dtype, target, precision)
    tiles_r, tiles_l = cdiv(rank, config.blocks["BLOCK_R"]), cdiv(long, config.blocks["BLOCK_L"])
    launch(
        decoupling_apply, (tiles_r * tiles_l * batch,),
        x.tensor, shared, weight, out, *x.strides, *view(out).strides, rank, long, tiles_r, tiles_l,
        TALL=tall, PRECISION=precision, COMPUTE=compute, **config.options(),
    )  # fmt: skip
    return out, rank_gap, distance, matrix, kept, scalars, squeezed, hidden, weight, extra


def forward_fake(
    features: Tensor, reduce_weight: Tensor, reduce_bias: Tensor, expand_weight: Tensor, expand_bias: Tensor,
    ridge: float, decoupled: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """What `forward` returns, unfilled."""
    batch, channels, _, _ = features.shape
    dtype = statistics_dtype(features.dtype)
    _, rank, _ = sizes(features)
    shapes = (
        [(batch,)] * 2
        + [(batch, rank, rank)] * 2
        + [(2, batch), (batch, channels), (batch, reduce_weight.shape[0])]
    )
    shapes += [(batch, channels), (batch, rank) if decoupled else (0,)]
    return like(features), *(features.new_empty(shape, dtype=dtype) for shape in shapes)


def weight_gradient(
    x: View, d: View, matrix: Tensor, weight: Tensor, rank: int, long: int
) -> Tensor:
    """N < C: the gradient before the sigmoid (B, parts, C)."""
    batch, dtype = weight.shape[0], matrix.dtype
    precision = matrix_precision(dtype, matrix.device)
    config = configs.weight_gradient_config(rank, precision)
    tiles_r, tiles_l = cdiv(rank, config.blocks["BLOCK_R"]), cdiv(long, config.blocks["BLOCK_L"])
    out = weight.new_empty(batch, tiles_r, long)
    launch(
        decoupling_weight_gradient, (tiles_r * tiles_l * batch,),
        x.tensor, d.tensor, matrix, weight, out, *x.strides, *d.strides, rank, long, tiles_r, tiles_l,
        PRECISION=precision, COMPUTE=compute_dtype(dtype), **config.options(),
    )  # fmt: skip
    return out


def backward(
    features: Tensor, reduce_weight: Tensor, reduce_bias: Tensor, expand_weight: Tensor, expand_bias: Tensor,
    matrix: Tensor, kept: Tensor, scalars: Tensor, squeezed: Tensor, hidden: Tensor, weight: Tensor, extra: Tensor,
    grad_out: Tensor, grad_gap: Tensor, grad_distance: Tensor, ridge: float, decoupled: bool, to_map: bool, to_mlp: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the five tensors of `forward`, whose other arguments it returned (README.md).

    to_map, to_mlp: whether the map's and the MLP's are wanted; those that are not come back empty.
    """
    batch, channels, height, width = features.shape
    tall, rank, long = sizes(features)
    grads = [features.new_empty(0) for _ in range(5)]
    if batch == 0:
        if to_mlp:
            grads[1:] = [
                torch.zeros_like(t)
                for t in (reduce_weight, reduce_bias, expand_weight, expand_bias)
            ]
        if to_map:
            grads[0] = like(features)
        return _five(grads)
    compute, target, positions = (
        compute_dtype(features.dtype),
        architecture(features.device),
        height * width,
    )
    precision, exact = (
        f(features.dtype, features.device) for f in (dot_precision, matrix_precision)
    )
    x, d = view(features), view(grad_out)
    blocks = cdiv(rank, configs.BLOCK)
    config = configs.pull_config(rank, long, tall, features.dtype, target, precision)
    tiles = cdiv(rank, config.blocks["BLOCK_R"])
    count, share = splits(tiles * tiles, rank, long, config.blocks["BLOCK_L"])
    symmetric = torch.empty_like(matrix)

    def pull(ds: Tensor) -> Tensor:
        """P, and the gradient before the sigmoid (B, 1, C) where C <= N."""
        part = matrix.new_empty(batch, count, rank, rank)
        with_dot = decoupled and not tall
        dot = matrix.new_empty((batch, count, rank) if with_dot else 1)
        before = torch.empty_like(weight) if tall else weight
        launch(
            decoupling_pull, (tiles * tiles * count * batch,),
            x.tensor, d.tensor, weight, ds, part, dot, *x.strides, *d.strides, rank, long, tiles, count, share,
            TALL=tall, WITH_DOT=with_dot, PRECISION=precision, COMPUTE=compute, **config.options(),
        )  # fmt: skip
        launch(
            decoupling_symmetrise, (blocks * batch,), part, dot, matrix, weight, symmetric, before, rank, count, blocks,
            0.5 / positions,
            TALL=tall, WITH_DOT=with_dot, BLOCK=configs.BLOCK, COMPUTE=compute, num_warps=8, num_stages=1,
        )  # fmt: skip
        return before[:, None]

    before = pull(weight) if tall else weight_gradient(x, d, matrix, weight, rank, long)
    reduce_weight, expand_weight = reduce_weight.contiguous(), expand_weight.contiguous()
    reduced = reduce_weight.shape[0]
    grad_hidden = matvec(
        expand_weight, (0, 1, reduced), before, reduced, gate=hidden, epilogue="relu_gradient"
    )
    if to_mlp:
        grads[1:3] = linear_gradient(grad_hidden[:, None], squeezed, reduce_weight, reduce_bias)
        grads[3:] = linear_gradient(before, hidden, expand_weight, expand_bias)
    if not to_map:
        return _five(grads)

    ds = matvec(reduce_weight, (0, 1, channels), grad_hidden[:, None], channels)
    if not tall:
        pull(ds)
    square = (rank * rank, rank, 1)
    # What the squeeze sends to every position: ds / N, or M ds / N where it averaged M F.
    short = (
        matvec(matrix, square, ds[:, None], rank)
        if tall and decoupled
        else extra
        if decoupled
        else ds
    )

    bar, product, gradient = (torch.empty_like(matrix) for _ in range(3))
    config = configs.matrix_config(rank, exact)
    side = cdiv(rank, config.blocks["BLOCK"])
    inner, largest = (matrix.new_empty(batch, side * side) for _ in range(2))
    options = dict(PRECISION=exact, COMPUTE=compute, **config.options())
    grid = (side * side * batch,)
    launch(
        decoupling_matrix_gradient, grid,
        kept, matrix, symmetric, grad_gap.contiguous(), grad_distance.contiguous(), scalars[1], ds, extra if decoupled else ds,
        bar, inner, rank, side, ridge, WITH_SQUEEZE=tall and decoupled, **options,
    )  # fmt: skip
    launch(decoupling_product, grid, bar, matrix, product, rank, side, **options)
    launch(
        decoupling_gram_gradient, grid, matrix, product, inner, scalars[0], gradient, largest, rank, side, ridge,
        BLOCK_T=128, **options,
    )  # fmt: skip
    split = features.dtype.itemsize == 2
    shared, high = (features.new_empty(batch, rank, rank) for _ in range(2))
    low = features.new_empty(batch, rank, rank) if split else high
    unit = matrix.new_empty(batch)
    launch(
        decoupling_operands, (blocks * blocks * batch,),
        matrix, weight, gradient, largest, shared, high, low, unit, rank, side * side, blocks,
        TALL=tall, SPLIT=split, BLOCK=configs.BLOCK, BLOCK_T=128, COMPUTE=compute, num_warps=8, num_stages=1,
    )  # fmt: skip

    grad_features = like(features)
    config = configs.apply_config(rank, long, features.dtype, target, precision)
    tiles_r, tiles_l = cdiv(rank, config.blocks["BLOCK_R"]), cdiv(long, config.blocks["BLOCK_L"])
    outer = decoupled and not tall
    launch(
        decoupling_feature_gradient, (tiles_r * tiles_l * batch,),
        x.tensor, d.tensor, shared, high, low, unit, weight, short, ds, grad_features,
        *x.strides, *d.strides, *view(grad_features).strides, rank, long, tiles_r, tiles_l, 1.0 if outer else 1 / positions,
        TALL=tall, OUTER=outer, SPLIT=split, PRECISION=precision, COMPUTE=compute, **config.options(),
    )  # fmt: skip
    return _five([grad_features, *grads[1:]])


def _five(grads: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    features, reduce_weight, reduce_bias, expand_weight, expand_bias = grads
    return features, reduce_weight, reduce_bias, expand_weight, expand_bias


def backward_fake(
    features: Tensor, reduce_weight: Tensor, reduce_bias: Tensor, expand_weight: Tensor, expand_bias: Tensor,
    matrix: Tensor, kept: Tensor, scalars: Tensor, squeezed: Tensor, hidden: Tensor, weight: Tensor, extra: Tensor,
    grad_out: Tensor, grad_gap: Tensor, grad_distance: Tensor, ridge: float, decoupled: bool, to_map: bool, to_mlp: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """What `backward` returns, unfilled."""
    parameters = (reduce_weight, reduce_bias, expand_weight, expand_bias)
    grads = [t.new_empty(t.shape) if to_mlp else features.new_empty(0) for t in parameters]
    return like(features) if to_map else features.new_empty(0), *grads
