"""The forward: Gram matrix, inverse, loss terms, squeeze and MLP, output."""

from torch import Tensor
from triton import cdiv

from intrasense_fast.kernels._common.launch import launch
from intrasense_fast.kernels.channel_decoupling import configs
from intrasense_fast.kernels.channel_decoupling.kernels.apply import decoupling_apply
from intrasense_fast.kernels.channel_decoupling.kernels.gram import decoupling_gram
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
from intrasense_fast.kernels.channel_decoupling.launch.inverse import normalised_inverse
from intrasense_fast.kernels.channel_decoupling.launch.linear import matvec


def forward(features: Tensor, mlp: Mlp, ridge: float, decoupled: bool) -> tuple[Outputs, Saved]:
    """Eq. 8-12 and the terms of Eq. 9.

    Args:
        features: (B, C, H, W), any strides.
        ridge: lambda in units of the mean energy of a direction.
        decoupled: whether Eq. 10 averages F_dec, not F.
    """
    case, x = case_of(features), view(features)
    outputs, saved = allocated(features, case, mlp, decoupled)
    gram_parts, trace_parts, sums = _gram_matrix(case, x, decoupled)
    gram = normalised_inverse(
        *(gram_parts, trace_parts, sums, mlp, saved),
        ridge=ridge,
        scale=1 / case.positions,
        with_hidden=not decoupled,
    )
    shared, term_parts = _terms(case, gram, sums, outputs, saved, ridge, decoupled)
    if decoupled:
        _decoupled_squeeze(case, x, mlp, saved)
    _finish(case, term_parts, mlp, outputs, saved)

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


def _gram_matrix(case: Case, x: View, decoupled: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Parts of G (B, splits, R, R), of its trace (B, parts) and of the squeeze (B, parts, C)."""
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
    return gram_parts, trace_parts, sums


def _terms(
    case: Case,
    gram: Tensor,
    sums: Tensor,
    outputs: Outputs,
    saved: Saved,
    ridge: float,
    decoupled: bool,
) -> tuple[Tensor, Tensor]:
    """K (B, R, R) in the map's dtype, and the parts of Eq. 9's terms; S into `saved`.

    If `decoupled`, also the mean and M mean, or where N < C M 1 / N.
    """
    batch, rank = case.batch, case.rank
    config = configs.matrix_config(rank, case.exactly["PRECISION"])
    blocks = cdiv(rank, config.blocks["BLOCK"])
    term_parts = case.empty(batch, 4, blocks * blocks)
    shared = outputs.reweighted.new_empty(batch, rank, rank)
    squeeze, mean, sent = "none", saved.trace, saved.trace
    if decoupled and case.tall:
        squeeze, mean, sent = "mean", saved.mean, saved.squeezed
    elif decoupled:
        squeeze, sent = "row_mean", saved.row_mean
    launch(
        decoupling_terms,
        (blocks * blocks * batch,),
        *(saved.matrix, gram, saved.decoupled_gram, shared, term_parts, sums, mean, sent),
        *(rank, blocks, sums.shape[1], ridge, 1 / case.positions),
        SQUEEZE=squeeze,
        **case.exactly,
        **config.options(),
    )
    return shared, term_parts


def _decoupled_squeeze(case: Case, x: View, mlp: Mlp, saved: Saved) -> None:
    """Eq. 10 of F_dec where N < C (C <= N: it is there already), and the hidden layer."""
    if not case.tall:
        matvec(x.tensor, (x.batch, x.long, x.rank), saved.row_mean, saved.squeezed)
    matvec(
        mlp.reduce_weight.contiguous(),
        (0, case.channels, 1),
        saved.squeezed,
        saved.hidden,
        bias=mlp.reduce_bias.contiguous(),
    )


def _finish(case: Case, term_parts: Tensor, mlp: Mlp, outputs: Outputs, saved: Saved) -> None:
    """Eq. 9's terms and slope from their parts, and w from the hidden layer."""
    blocks = cdiv(case.channels, configs.LAYER["BLOCK_R"])
    launch(
        decoupling_finish,
        (blocks * case.batch,),
        *(term_parts, saved.trace, saved.hidden),
        *(mlp.expand_weight.contiguous(), mlp.expand_bias.contiguous()),
        *(outputs.rank_gap, outputs.distance, saved.slope, saved.weight),
        *(case.rank, case.channels, mlp.reduce_weight.shape[0], term_parts.shape[2], blocks),
        BLOCK_T=128,
        COMPUTE=case.exactly["COMPUTE"],
        **configs.LAYER,
        **configs.VECTORS,
    )
