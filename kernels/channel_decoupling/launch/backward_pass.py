"""The backward: what the output says about M and w, the Gram matrix's gradient, the map's."""

import math

import torch
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
from intrasense_fast.kernels.channel_decoupling.launch.linear import matvec, mlp_gradient


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
    expand_weight = mlp.expand_weight.contiguous()
    if case.tall:
        grad_logit, hidden_parts = _pull(
            case, x, grad_out, saved, expand_weight, saved.weight, pull, decoupled
        )
    else:
        grad_logit, hidden_parts = _weight_gradient(case, x, grad_out, saved, expand_weight)

    grad_squeezed = case.empty(case.batch, case.channels)
    mlp_gradient(
        mlp,
        saved,
        grad_logit,
        hidden_parts,
        grad_mlp if to_mlp else None,
        grad_squeezed if to_map else None,
    )
    if not to_map:
        return grad_features, grad_mlp

    if not case.tall:
        _pull(case, x, grad_out, saved, expand_weight, grad_squeezed, pull, decoupled)
    # What the squeeze sends to every position: ds / N, or M ds / N where it averaged M F.
    per_rank = saved.row_mean if decoupled else grad_squeezed
    if decoupled and case.tall:
        per_rank = case.empty(case.batch, case.rank)
        matvec(saved.matrix, case.square, grad_squeezed, per_rank)
    operands = _operands(case, saved, pull, grads, grad_squeezed, ridge, decoupled, features)

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
    expand_weight: Tensor,
    grad_squeezed: Tensor,
    pull: Tensor,
    decoupled: bool,
) -> tuple[Tensor, Tensor]:
    """P (B, R, R) into `pull`.

    C <= N: returns the gradient before the sigmoid (B, 1, C) and parts of the hidden layer's
    (B, parts, C_r); else nothing of use.
    """
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
    reduced = expand_weight.shape[1]
    grad_logit = case.empty(batch, 1, rank) if case.tall else pull
    hidden_parts = case.empty(batch, blocks, reduced) if case.tall else pull
    launch(
        decoupling_symmetrise,
        (blocks * batch,),
        *(pull_parts, dot_parts, saved.matrix, saved.weight, expand_weight),
        *(pull, grad_logit, hidden_parts),
        *(rank, reduced, splits, blocks, 0.5 / case.positions),
        TALL=case.tall,
        WITH_DOT=with_dot,
        BLOCK=configs.BLOCK,
        BLOCK_H=configs.BLOCK_H,
        COMPUTE=case.exactly["COMPUTE"],
        **configs.BLOCKWISE,
    )
    return grad_logit, hidden_parts


def _weight_gradient(
    case: Case, x: View, grad_out: View, saved: Saved, expand_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """N < C: the gradient before the sigmoid (B, parts, C), the hidden layer's (B, parts, C_r)."""
    config = configs.weight_gradient_config(case.rank, case.exactly["PRECISION"])
    tiles_r = cdiv(case.rank, config.blocks["BLOCK_R"])
    tiles_l = cdiv(case.long, config.blocks["BLOCK_L"])
    reduced = expand_weight.shape[1]
    grad_logit = case.empty(case.batch, tiles_r, case.long)
    hidden_parts = case.empty(case.batch, tiles_r * tiles_l, reduced)
    launch(
        decoupling_weight_gradient,
        (tiles_r * tiles_l * case.batch,),
        *(x.tensor, grad_out.tensor, saved.matrix, saved.weight, expand_weight),
        *(grad_logit, hidden_parts),
        *(*x.strides, *grad_out.strides),
        *(case.rank, case.long, reduced, tiles_r, tiles_l),
        BLOCK_H=configs.BLOCK_H,
        **case.exactly,
        **config.options(),
    )
    return grad_logit, hidden_parts


def _operands(
    case: Case,
    saved: Saved,
    pull: Tensor,
    grads: Outputs,
    grad_squeezed: Tensor,
    ridge: float,
    decoupled: bool,
    features: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """K diag(w), or K where N < C, and 2 Gbar's halves, all in the map's dtype; and their unit."""
    batch, rank = case.batch, case.rank
    config = configs.matrix_config(rank, case.exactly["PRECISION"])
    blocks = cdiv(rank, config.blocks["BLOCK"])
    grid = (blocks * blocks * batch,)
    options = {**case.exactly, **config.options()}
    grad_matrix, grad_product = (case.empty(batch, rank, rank) for _ in range(2))
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
        decoupling_product,
        grid,
        *(grad_matrix, saved.matrix, grad_product, largest),
        *(rank, blocks),
        **options,
    )
    split = features.dtype.itemsize == 2
    weighted_shared, high = (features.new_empty(batch, rank, rank) for _ in range(2))
    low = features.new_empty(batch, rank, rank) if split else high
    unit = case.empty(batch)
    launch(
        decoupling_gram_gradient,
        grid,
        *(saved.matrix, grad_product, inner_parts, largest, saved.trace, saved.weight),
        *(weighted_shared, high, low, unit),
        *(rank, blocks, ridge, math.sqrt(rank)),
        TALL=case.tall,
        SPLIT=split,
        # float16 ends at 2^16: its largest entries lie near there, its smallest halves far below.
        HEADROOM=14 if features.dtype == torch.float16 else 0,
        BLOCK_T=128,
        **options,
    )
    return weighted_shared, high, low, unit
