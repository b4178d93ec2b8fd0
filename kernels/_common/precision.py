"""The dtypes that operators take, and in which precision they multiply and accumulate."""

from typing import Any

import torch

from intrasense_fast.kernels._common.configs import architecture

# What the operators take.
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of statistics and sums: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def dot_precision(dtype: torch.dtype, device: torch.device) -> str:
    """`input_precision` of every tl.dot over operands of `dtype`.

    float32 products are as accurate as float32 by default: "tf32x3" on NVIDIA (three tensor-core
    products), "ieee" on AMD. "tf32" only where torch.set_float32_matmul_precision("high" or
    "medium") allows it. Other dtypes have one precision.
    """
    if dtype != torch.float32 or architecture(device).startswith("gfx"):
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def exact_precision(dtype: torch.dtype, device: torch.device) -> str:
    """`input_precision` of products that are as accurate as float32 whatever torch's setting is.

    dtype: that of the feature map; the products themselves are in its statistics' dtype.
    """
    if dtype == torch.float64 or architecture(device).startswith("gfx"):
        return "ieee"
    return "tf32x3"


def compute_dtype(dtype: torch.dtype) -> Any:
    """The COMPUTE constexpr: kernels accumulate in float32.

    float64, which only the interpreter sees, stays float64.
    """
    import triton.language as tl

    return tl.float64 if dtype == torch.float64 else tl.float32
