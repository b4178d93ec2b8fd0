"""The backward: what the output says about M and w, the Gram matrix's gradient, the map's."""

from torch import Tensor
from triton import cdiv

from intrasense_fast.kernels._common.launch import launch
from intrasense_fast.kernels.channel_decoupling import configs
from intrasense_fast.kernels.channel_decoupling.kernels.feature_gradient import (
    decoupling_feature_gradient,
    decoupling_weight_gradient,
)
from intrasense_fast.kernels.channel_decoupling.kernels.matrix_gradient import (
    decoupling_gram_gradient,
    decoupling_matrix_gradient,
    decoupling_operands,
)
from intrasense_fast.kernels.channel_decoupling.kernels.pull import (
    decoupling_pull,
    decoupling_symmetrise,
)
from intrasense_fast.kernels.channel_decoupling.kernels.square import decoupling_product
from intrasense_fast.kernels.channel_decoupling.launch.case import (
    Case,
    Mlp,
    Outputs,
    Saved,
    View,
    case_of,
    like,
    view,
)
from intrasense_fast.kernels.channel_decoupling.launch.linear import linear_gradient, matvec


def backward(
    features: Tensor,
    mlp: Mlp,
    saved: Saved,
    grads: Outputs,
    ridge: float,
    decoupled: bool,
    to_map: bool,
    to_mlp: bool,
) -> tuple[Tensor, Mlp]:
    """Gradients of the map and of the MLP.

    Args:
        features, mlp, ridge, decoupled: as in `forward`, which returned `saved`.
        grads: of its outputs.
        to_map, to_mlp: whose gradients are wanted; those that are not come back empty.
    """
    case, x, grad_out = case_of(features), view(features), view(grads.reweighted)
    grad_features, grad_mlp = backward_fake(
        features, mlp, saved, grads, ridge, decoupled, to_map, to_mlp
    )
    if case.batch == 0:
        return grad_features, Mlp(*(grad.zero_() for grad in grad_mlp))
    pull = case.empty(case.batch, case.rank, case.rank)
    if case.tall:
        grad_logit = case.empty(case.batch, 1, case.channels)
        _pull(case, x, grad_out, saved, saved.weight, pull, grad_logit, decoupled)
    else:
        grad_logit = _weight_gradient(case, x, grad_out, saved)

    reduced = mlp.reduce_weight.shape[0]
    grad_hidden = matvec(
        mlp.expand_weight.contiguous(),
        (0, 1, reduced),
        grad_logit,
        case.empty(case.batch, reduced),
        gate=saved.hidden,
        epilogue="relu_gradient",
    )
    if to_mlp:
        linear_gradient(grad_hidden[:, None], saved.squeezed, *grad_mlp[:2])
        linear_gradient(grad_logit, saved.hidden, *grad_mlp[2:])
    if not to_map:
        return grad_features, grad_mlp

    grad_squeezed = matvec(
        mlp.reduce_weight.contiguous(),
        (0, 1, case.channels),
        grad_hidden[:, None],
        case.empty(case.batch, case.channels),
    )
    if not case.tall:
        _pull(case, x, grad_out, saved, grad_squeezed, pull, saved.weight, decoupled)
    # What the squeeze sends to every position: ds / N, or M ds / N where it averaged M F.
    per_rank = saved.row_mean if decoupled else grad_squeezed
    if decoupled and case.tall:
        per_rank = case.empty(case.batch, case.rank)
        matvec(saved.matrix, case.square, grad_squeezed[:, None], per_rank)
    gram = _gram_gradient(case, saved, pull, grads, grad_squeezed, ridge, decoupled)
    operands = _operands(case, saved, *gram, features)

    out = view(grad_features)
    config = configs.apply_config(case.rank, case.long, *case.table)
    tiles_r = cdiv(case.rank, config.blocks["BLOCK_R"])
    tiles_l = cdiv(case.long, config.blocks["BLOCK_L"])
    outer = decoupled and not case.tall
    launch(
        decoupling_feature_gradient,
        (tiles_r * tiles_l * case.batch,),
        *(x.tensor, grad_out.tensor, *operands),
        *(saved.weight, per_rank, grad_squeezed, out.tensor),
        *(*x.strides, *grad_out.strides, *out.strides),
        *(case.rank, case.long, tiles_r, tiles_l),
        1.0 if outer else 1 / case.positions,
        TALL=case.tall,
        OUTER=outer,
        SPLIT=features.dtype.itemsize == 2,
        **case.over_the_map,
        **config.options(),
    )
    return grad_features, grad_mlp


def backward_fake(
    features: Tensor,
    mlp: Mlp,
    saved: Saved,
    grads: Outputs,
    ridge: float,
    decoupled: bool,
    to_map: bool,
    to_mlp: bool,
) -> tuple[Tensor, Mlp]:
    """What `backward` returns, unfilled."""
    grad_features = like(features) if to_map else features.new_empty(0)
    shapes = [parameter.shape if to_mlp else (0,) for parameter in mlp]
    grad_mlp = [p.new_empty(shape) for p, shape in zip(mlp, shapes, strict=True)]
    return grad_features, Mlp(*grad_mlp)


def _pull(
    case: Case,
    x: View,
    grad_out: View,
    saved: Saved,
    grad_squeezed: Tensor,
    pull: Tensor,
    grad_logit: Tensor,
    decoupled: bool,
) -> None:
    """P (B, R, R) into `pull`; C <= N: also the gradient before the sigmoid into `grad_logit`."""
    batch, rank = case.batch, case.rank
    dtype, target, precision = case.table
    config = configs.pull_config(rank, case.long, case.tall, dtype, target, precision)
    tiles = cdiv(rank, config.blocks["BLOCK_R"])
    splits, share = configs.splits(tiles * tiles, rank, case.long, config.blocks["BLOCK_L"])
    pull_parts = case.empty(batch, splits, rank, rank)
    with_dot = decoupled and not case.tall
    dot_parts = case.empty(batch, splits, rank) if with_dot else case.empty(1)
    launch(
        decoupling_pull,
        (tiles * tiles * splits * batch,),
        *(x.tensor, grad_out.tensor, saved.weight, grad_squeezed, pull_parts, dot_parts),
        *(*x.strides, *grad_out.strides),
        *(rank, case.long, tiles, splits, share),
        TALL=case.tall,
        WITH_DOT=with_dot,
        **case.over_the_map,
        **config.options(),
    )
    blocks = cdiv(rank, configs.BLOCK)
    launch(
        decoupling_symmetrise,
        (blocks * batch,),
        *(pull_parts, dot_parts, saved.matrix, saved.weight, pull, grad_logit),
        *(rank, splits, blocks, 0.5 / case.positions),
        TALL=case.tall,
        WITH_DOT=with_dot,
        BLOCK=configs.BLOCK,
        COMPUTE=case.exactly["COMPUTE"],
        **configs.BLOCKWISE,
    )


def _weight_gradient(case: Case, x: View, grad_out: View, saved: Saved) -> Tensor:
    """N < C: the gradient before the sigmoid (B, parts, C)."""
    config = configs.weight_gradient_config(case.rank, case.exactly["PRECISION"])
    tiles_r = cdiv(case.rank, config.blocks["BLOCK_R"])
    tiles_l = cdiv(case.long, config.blocks["BLOCK_L"])
    grad_logit = case.empty(case.batch, tiles_r, case.long)
    launch(
        decoupling_weight_gradient,
        (tiles_r * tiles_l * case.batch,),
        *(x.tensor, grad_out.tensor, saved.matrix, saved.weight, grad_logit),
        *(*x.strides, *grad_out.strides),
        *(case.rank, case.long, tiles_r, tiles_l),
        **case.exactly,
        **config.options(),
    )
    return grad_logit


def _gram_gradient(
    case: Case,
    saved: Saved,
    pull: Tensor,
    grads: Outputs,
    grad_squeezed: Tensor,
    ridge: float,
    decoupled: bool,
) -> tuple[Tensor, Tensor]:
    """2 Gbar (B, R, R), and the largest |2 Gbar| of its tiles (B, tiles)."""
    batch, rank = case.batch, case.rank
    config = configs.matrix_config(rank, case.exactly["PRECISION"])
    blocks = cdiv(rank, config.blocks["BLOCK"])
    grid = (blocks * blocks * batch,)
    options = {**case.exactly, **config.options()}
    grad_matrix, grad_product, grad_gram = (case.empty(batch, rank, rank) for _ in range(3))
    inner_parts, largest = (case.empty(batch, blocks * blocks) for _ in range(2))
    with_squeeze = decoupled and case.tall
    launch(
        decoupling_matrix_gradient,
        grid,
        *(saved.decoupled_gram, saved.matrix, pull),
        *(grads.rank_gap.contiguous(), grads.distance.contiguous(), saved.slope),
        *(grad_squeezed, saved.mean if with_squeeze else grad_squeezed),
        *(grad_matrix, inner_parts),
        *(rank, blocks, ridge),
        WITH_SQUEEZE=with_squeeze,
        **options,
    )
    launch(
        decoupling_product, grid, grad_matrix, saved.matrix, grad_product, rank, blocks, **options
    )
    launch(
        decoupling_gram_gradient,
        grid,
        *(saved.matrix, grad_product, inner_parts, saved.trace, grad_gram, largest),
        *(rank, blocks, ridge),
        BLOCK_T=128,
        **options,
    )
    return grad_gram, largest


def _operands(
    case: Case, saved: Saved, grad_gram: Tensor, largest: Tensor, features: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """K diag(w), or K where N < C, and 2 Gbar's halves, all in the map's dtype; and their unit."""
    batch, rank = case.batch, case.rank
    split = features.dtype.itemsize == 2
    weighted_shared, high = (features.new_empty(batch, rank, rank) for _ in range(2))
    low = features.new_empty(batch, rank, rank) if split else high
    unit = case.empty(batch)
    blocks = cdiv(rank, configs.BLOCK)
    launch(
        decoupling_operands,
        (blocks * blocks * batch,),
        *(saved.matrix, saved.weight, grad_gram, largest),
        *(weighted_shared, high, low, unit),
        *(rank, largest.shape[1], blocks),
        TALL=case.tall,
        SPLIT=split,
        BLOCK=configs.BLOCK,
        BLOCK_T=128,
        COMPUTE=case.exactly["COMPUTE"],
        **configs.BLOCKWISE,
    )
    return weighted_shared, high, low, unit
