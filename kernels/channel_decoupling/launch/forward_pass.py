"""The forward: Gram matrix, inverse, loss terms, squeeze and MLP, output."""

from torch import Tensor
from triton import cdiv

from intrasense_fast.kernels._common.launch import launch
from intrasense_fast.kernels.channel_decoupling import configs
from intrasense_fast.kernels.channel_decoupling.kernels.apply import decoupling_apply
from intrasense_fast.kernels.channel_decoupling.kernels.gram import (
    decoupling_gram,
    decoupling_normalise,
)
from intrasense_fast.kernels.channel_decoupling.kernels.terms import (
    decoupling_finish,
    decoupling_terms,
)
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
from intrasense_fast.kernels.channel_decoupling.launch.linear import inverse, matvec


def forward(features: Tensor, mlp: Mlp, ridge: float, decoupled: bool) -> tuple[Outputs, Saved]:
    """Eq. 8-12 and the terms of Eq. 9.

    Args:
        features: (B, C, H, W), any strides.
        ridge: lambda in units of the mean energy of a direction.
        decoupled: whether Eq. 10 averages F_dec, not F.
    """
    case, x = case_of(features), view(features)
    outputs, saved = allocated(features, case, mlp, decoupled)
    gram, shifted, sums = _gram_matrix(case, x, saved, ridge, decoupled)
    saved = saved._replace(matrix=inverse(shifted, saved.matrix))
    shared = _loss_terms(case, gram, outputs, saved, ridge, decoupled)
    _squeeze_and_mlp(case, x, sums, mlp, saved, decoupled)

    out = view(outputs.reweighted)
    config = configs.apply_config(case.rank, case.long, *case.table)
    tiles_r = cdiv(case.rank, config.blocks["BLOCK_R"])
    tiles_l = cdiv(case.long, config.blocks["BLOCK_L"])
    launch(
        decoupling_apply,
        (tiles_r * tiles_l * case.batch,),
        *(x.tensor, shared, saved.weight, out.tensor),
        *(*x.strides, *out.strides),
        *(case.rank, case.long, tiles_r, tiles_l),
        TALL=case.tall,
        **case.over_the_map,
        **config.options(),
    )
    return outputs, saved


def forward_fake(
    features: Tensor, mlp: Mlp, ridge: float, decoupled: bool
) -> tuple[Outputs, Saved]:
    """What `forward` returns, unfilled."""
    return allocated(features, case_of(features), mlp, decoupled)


def allocated(features: Tensor, case: Case, mlp: Mlp, decoupled: bool) -> tuple[Outputs, Saved]:
    """Everything that `forward` returns, unfilled."""
    batch, channels, rank = case.batch, case.channels, case.rank
    outputs = Outputs(like(features), case.empty(batch), case.empty(batch))
    saved = Saved(
        matrix=case.empty(batch, rank, rank),
        decoupled_gram=case.empty(batch, rank, rank),
        trace=case.empty(batch),
        slope=case.empty(batch),
        squeezed=case.empty(batch, channels),
        hidden=case.empty(batch, mlp.reduce_weight.shape[0]),
        weight=case.empty(batch, channels),
        mean=case.empty(batch, rank) if decoupled and case.tall else case.empty(0),
        row_mean=case.empty(batch, rank) if decoupled and not case.tall else case.empty(0),
    )
    return outputs, saved


def _gram_matrix(
    case: Case, x: View, saved: Saved, ridge: float, decoupled: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gh and I + Gh / ridge (B, R, R), the parts of the squeeze's sums; tr G into `saved`."""
    batch, rank = case.batch, case.rank
    config = configs.gram_config(rank, case.long, *case.table)
    tiles = cdiv(rank, config.blocks["BLOCK_R"])
    pairs = tiles * (tiles + 1) // 2
    splits, share = configs.splits(pairs, rank, case.long, config.blocks["BLOCK_L"])
    gram_parts = case.empty(batch, splits, rank, rank)
    trace_parts = case.empty(batch, splits * tiles)
    sums = case.empty(batch, splits if case.tall else tiles, case.channels)
    with_sum = case.tall or not decoupled
    programs = pairs + tiles if with_sum else pairs
    launch(
        decoupling_gram,
        (programs * splits * batch,),
        *(x.tensor, gram_parts, trace_parts, sums),
        *x.strides,
        *(rank, case.long, pairs, tiles, splits, share),
        TALL=case.tall,
        WITH_SUM=with_sum,
        **case.over_the_map,
        **config.options(),
    )
    blocks = cdiv(rank, configs.BLOCK)
    gram, shifted = case.empty(batch, rank, rank), case.empty(batch, rank, rank)
    launch(
        decoupling_normalise,
        (blocks * blocks * batch,),
        *(gram_parts, trace_parts, gram, shifted, saved.trace),
        *(rank, tiles, splits, blocks, ridge),
        BLOCK=configs.BLOCK,
        BLOCK_T=128,
        COMPUTE=case.exactly["COMPUTE"],
        **configs.BLOCKWISE,
    )
    return gram, shifted, sums


def _loss_terms(
    case: Case, gram: Tensor, outputs: Outputs, saved: Saved, ridge: float, decoupled: bool
) -> Tensor:
    """K (B, R, R) in the map's dtype; S, slope, row_mean and Eq. 9's terms where they belong."""
    batch, rank = case.batch, case.rank
    config = configs.matrix_config(rank, case.exactly["PRECISION"])
    blocks = cdiv(rank, config.blocks["BLOCK"])
    term_parts = case.empty(batch, 4, blocks * blocks)
    shared = outputs.reweighted.new_empty(batch, rank, rank)
    launch(
        decoupling_terms,
        (blocks * blocks * batch,),
        *(saved.matrix, gram, saved.decoupled_gram, shared, term_parts),
        *(rank, blocks, ridge),
        **case.exactly,
        **config.options(),
    )
    with_row_mean = decoupled and not case.tall
    rows = cdiv(rank, 32) if with_row_mean else 1
    launch(
        decoupling_finish,
        (rows * batch,),
        *(term_parts, saved.trace, saved.matrix, outputs.rank_gap, outputs.distance, saved.slope),
        saved.row_mean if with_row_mean else outputs.rank_gap,
        *(rank, blocks * blocks, rows, 1 / rank),
        WITH_ROW_MEAN=with_row_mean,
        BLOCK=32,
        BLOCK_T=128,
        COMPUTE=case.exactly["COMPUTE"],
        **configs.VECTORS,
    )
    return shared


def _squeeze_and_mlp(
    case: Case, x: View, sums: Tensor, mlp: Mlp, saved: Saved, decoupled: bool
) -> None:
    """Eq. 10-11: fills squeezed, hidden and weight, and mean where M averages it."""
    channels, mean = case.channels, 1 / case.positions
    reduced = mlp.reduce_weight.shape[0]
    if decoupled and case.tall:
        matvec(saved.matrix, case.square, sums, saved.squeezed, scale=mean, vector=saved.mean)
    elif decoupled:
        matvec(x.tensor, (x.batch, x.long, x.rank), saved.row_mean[:, None], saved.squeezed)
    matvec(
        mlp.reduce_weight.contiguous(),
        (0, channels, 1),
        saved.squeezed[:, None] if decoupled else sums,
        saved.hidden,
        scale=1.0 if decoupled else mean,
        vector=None if decoupled else saved.squeezed,
        bias=mlp.reduce_bias.contiguous(),
        epilogue="relu",
    )
    matvec(
        mlp.expand_weight.contiguous(),
        (0, reduced, 1),
        saved.hidden[:, None],
        saved.weight,
        bias=mlp.expand_bias.contiguous(),
        epilogue="sigmoid",
    )
