"""From the parts of the Gram matrix to M, whatever the rank."""

from torch import Tensor
from triton import cdiv

from intrasense_fast.kernels._common.launch import launch
from intrasense_fast.kernels._common.precision import compute_dtype, exact_precision
from intrasense_fast.kernels.channel_decoupling import configs
from intrasense_fast.kernels.channel_decoupling.kernels.inverse import invert_step
from intrasense_fast.kernels.channel_decoupling.kernels.normalise import decoupling_normalise
from intrasense_fast.kernels.channel_decoupling.launch.case import Mlp, Saved


def normalised_inverse(
    gram_parts: Tensor,
    trace_parts: Tensor,
    sums: Tensor,
    mlp: Mlp,
    saved: Saved,
    ridge: float,
    scale: float,
    with_hidden: bool,
) -> Tensor:
    """Gh (B, R, R); tr G and M = (I + Gh / ridge)^-1 into `saved`, NaN for a G that is not finite.

    One launch, and above R = 64 one a block of 64. `with_hidden`: the first one also does the
    MLP's first layer, of scale times the sum of `sums`.

    Args:
        gram_parts: (B, splits, R, R), their lower triangles. trace_parts: (B, parts), of tr G.
        sums: (B, parts, C).
    """
    batch, splits, rank, _ = gram_parts.shape
    channels, reduced = mlp.expand_weight.shape
    size = min(configs.BLOCK, configs.power_of_two(rank))
    blocks = cdiv(rank, size)
    gram = gram_parts.new_empty(batch, rank, rank)
    # What a step reads it does not write: A and its panels change places, and the last one is M.
    other, panel, next_panel = saved.matrix, gram, gram
    if blocks > 1:
        other = gram_parts.new_empty(batch, rank, rank)
        panel, next_panel = (gram_parts.new_empty(batch, rank, size) for _ in range(2))
    shifted, other = (saved.matrix, other) if blocks % 2 == 0 else (other, saved.matrix)
    scratch = gram_parts.new_empty(batch, blocks, 2, size, size)
    precision = exact_precision(gram_parts.dtype, gram_parts.device)
    options = {
        **configs.inverse_tiles(rank, precision),
        "PRECISION": precision,
        "COMPUTE": compute_dtype(gram_parts.dtype),
        **configs.BLOCKWISE,
    }
    hidden_blocks = cdiv(reduced, configs.LAYER["BLOCK_R"]) if with_hidden else 0
    launch(
        decoupling_normalise,
        ((blocks * blocks + hidden_blocks) * batch,),
        *(gram_parts, trace_parts, sums),
        *(mlp.reduce_weight.contiguous(), mlp.reduce_bias.contiguous()),
        *(gram, shifted, panel, scratch, saved.trace, saved.squeezed, saved.hidden),
        *(rank, channels, reduced, trace_parts.shape[1], splits, sums.shape[1], blocks, batch),
        *(ridge, scale),
        ALONE=blocks == 1,
        BLOCK_T=128,
        **configs.LAYER,
        **options,
    )
    for step in range(blocks if blocks > 1 else 0):
        launch(
            invert_step,
            (blocks * blocks * batch,),
            *(shifted, panel, other, next_panel, scratch),
            *(rank, step, blocks, batch),
            **options,
        )
        shifted, other, panel, next_panel = other, shifted, next_panel, panel
    return gram
