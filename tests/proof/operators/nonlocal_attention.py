"""What nonlocal_attention declares about itself (see tests/proof/records.py)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from intrasense_fast.kernels._common.layout import as_rows
from intrasense_fast.kernels.nonlocal_attention import launch, reference
from tests.proof.jobs import CompileJob, recorded_jobs, unique
from tests.proof.records import BadInput, Bound, Compilation, Contract, Cost, Row

WIDTHS = (64, 128, 256, 512, 1024, 2048)


def depth_of(channels: int) -> int:
    """Width of query and key in the contract: as in the model, d = C // 8, but down to 1."""
    return max(1, channels // 8)


def separate_maxima(query: Tensor, key: Tensor, value: Tensor, residual: Tensor) -> None:
    """Let the maximum of every position lead by more than rounding, in place.

    Where two channels are as good as equal, float64 itself sends the maximum's gradient to another
    one, and an error there says nothing. Exact ties have a test of their own.
    """
    features, *_ = reference.nonlocal_attention(
        *(t.double() for t in (query, key, value, residual))
    )
    residual += torch.zeros_like(residual).scatter_(
        -1, features.argmax(-1, keepdim=True), residual.abs().mean().item() / 4
    )


def make_inputs(row: Row, generator: torch.Generator) -> dict[str, Tensor]:
    """query, key and value as views of one projection of a feature map.

    residual is the map itself, its maxima separate.
    """
    batch, channels, height, width = row.shape
    depth = depth_of(channels)

    def rows(count: int) -> Tensor:
        features = torch.randn(batch, count, height, width, generator=generator).to(
            row.device, row.dtype
        )
        return as_rows(features.contiguous(memory_format=row.memory_format))

    query, key, value = rows(2 * depth + channels).split([depth, depth, channels], -1)
    inputs = {"query": query, "key": key, "value": value, "residual": rows(channels)}
    if batch and row.device.type != "meta":
        separate_maxima(**inputs)
    return inputs


def samples(row: Row, generator: torch.Generator) -> dict[str, tuple]:
    """Arguments of the registered operators, for opcheck."""
    inputs = make_inputs(row, generator)
    query, key, value, residual = inputs.values()
    features, mean, top, argmax, lse, attended = launch.forward(query, key, value, residual, True)
    saved = (
        query,
        key,
        value,
        attended,
        lse,
        argmax,
        torch.randn_like(features),
        torch.randn_like(mean),
        torch.randn_like(top),
    )
    return {
        "nonlocal_attention_forward": (*inputs.values(), True),
        "nonlocal_attention_backward": (*saved, True, True),
    }


def saved_bytes(inputs: dict[str, Tensor]) -> int:
    """q, k, v and A V, one float and one int32 a row."""
    query, value = inputs["query"], inputs["value"]
    statistic = 8 if query.dtype == torch.float64 else 4
    rows = query.shape[0] * query.shape[1]
    return (2 * query.numel() + 2 * value.numel()) * query.element_size() + rows * (statistic + 4)


def _bounds_at(channels: int, positions: tuple[int, int]) -> list[Bound]:
    row = Row((1, channels, *positions), torch.bfloat16, torch.channels_last)
    count, depth = positions[0] * positions[1], max(8, channels // 8)
    floor, pair = count * (2 * depth + 3 * channels) * 2, 2 * count**2
    narrow, chunked = channels == 64, channels > 128
    forward: dict[str, Any] = dict(
        floor_bytes=floor,
        useful_flops=pair * (depth + channels),
        flops=1.35 if channels == 2048 else 1.15,
    )
    return [
        Bound(row, "inference", launches=1 + chunked, passes=1.15 if narrow else 1.10, **forward),
        Bound(row, "forward", launches=1 + chunked, passes=1.45 if narrow else 1.40, **forward),
        Bound(
            row,
            "backward",
            launches=4,
            useful_flops=pair * (3 * depth + 2 * channels),
            flops=1.30 if narrow else 1.25,
        ),
    ]


def bounds() -> list[Bound]:
    """Launches, passes and FLOPs at every width; N a multiple of every tile."""
    found = [
        bound
        for width in WIDTHS
        for bound in _bounds_at(width, (16, 16) if width < 1024 else (8, 16))
    ]
    widest = replace(found[-1], architecture="sm_86", flops=1.45)
    return [*found, widest]


def launches(
    depth: int, channels: int, dtype: torch.dtype, positions: int, saves: tuple[bool, ...]
) -> Callable[[], None]:
    """Every launch of one shape on meta tensors, for recorded_jobs."""

    def run() -> None:
        projection = torch.empty(4, positions, 2 * depth + channels, dtype=dtype, device="meta")
        query, key, value = projection.split([depth, depth, channels], -1)
        residual = torch.empty(4, positions, channels, dtype=dtype, device="meta")
        for save in saves:
            launch.forward(query, key, value, residual, save)
        features, mean, top, argmax, lse, attended = launch.forward(
            query, key, value, residual, True
        )
        saved = launch.Saved(query, key, value, attended, lse, argmax)
        launch.backward(saved, features, mean, top, True, True)

    return run


def jobs(level: str) -> list[CompileJob]:
    """Gate: the widest and the narrowest shape where they are meant to run, and every variant once.

    Full: everything.
    """
    half, single = torch.bfloat16, torch.float32
    if level == "full":
        shapes = [(max(8, width // 8), width) for width in WIDTHS] + [(512, 512)]
        rows = [
            (target, shape, dtype, 4096)
            for target in ("sm_80", "sm_86", "sm_90")
            for dtype in (half, torch.float16, single)
            for shape in shapes
        ]
        rows += [
            (target, shape, dtype, 4095)
            for target in ("sm_80", "sm_86", "sm_90")
            for dtype in (half, single)
            for shape in ((10, 77), (300, 1000))
        ]
        rows += [(target, (64, 512), half, 4096) for target in ("sm_100", "sm_120")]
        rows += [("gfx942", (32, 256), dtype, 4096) for dtype in (half, single)]
        saves: tuple[bool, ...] = (True, False)
    else:
        rows = [
            ("sm_90", (8, 64), half, 4096),
            ("sm_90", (64, 512), half, 4096),
            ("sm_90", (256, 2048), half, 4096),
        ]
        rows += [
            ("sm_80", (8, 64), half, 4096),
            ("sm_86", (256, 2048), half, 4096),
            ("sm_80", (32, 256), single, 4096),
        ]
        rows += [
            ("sm_90", (10, 77), half, 4095),
            ("sm_90", (1, 1), half, 1),
            ("sm_100", (32, 256), half, 4096),
            ("sm_120", (64, 512), half, 4096),
        ]
        rows += [("gfx942", (32, 256), half, 4096), ("gfx942", (32, 256), single, 4096)]
        saves = (True,)
    found = []
    for target, (depth, channels), dtype, positions in rows:
        label = f"d={depth} C={channels} N={positions} {str(dtype)[6:]}"
        found += recorded_jobs(launches(depth, channels, dtype, positions, saves), target, label)
    return unique(found)


def instructions(job: CompileJob) -> tuple[str, ...]:
    """Tensor cores and asynchronous copies in matrix kernels, 128-bit accesses in the others.

    Where alignment allows.
    """
    name, blocks = job.name, job.constexprs
    # A size of 1 is a constant, not an argument.
    aligned = all(
        size in job.divisible for size in ("C", "size") if size in job.signature or size in blocks
    )
    if job.target.startswith("gfx") or not aligned:
        return ()
    if name in ("attention_prepare", "attention_reduce"):
        return ("LDG.E.128", "STG.E.128")
    if "PRECISION" not in blocks:
        return ()
    stationary = blocks["BLOCK_M" if name == "attention_forward" else "BLOCK_N"]
    tensor_cores = blocks["PRECISION"] != "ieee" or job.signature["QUERY"] != "*fp32"
    needed = ("cp.async",) if job.options["num_stages"] > 1 else ()
    return (
        (*needed, "HGMMA")
        if job.target == "sm_90" and stationary >= 64 and tensor_cores
        else needed
    )


BAD_INPUTS = (
    BadInput(
        "key of another depth",
        lambda t: t | {"key": t["key"][..., :-1]},
        r"key must have shape \(B, N, d\)",
    ),
    BadInput(
        "value with fewer positions",
        lambda t: t | {"value": t["value"][:, 1:]},
        "value must have shape",
    ),
    BadInput(
        "residual of another width",
        lambda t: t | {"residual": t["residual"][..., 1:]},
        "residual must have shape",
    ),
    BadInput(
        "a map instead of rows", lambda t: t | {"query": t["query"][None]}, "query must have shape"
    ),
    BadInput("two dtypes", lambda t: t | {"value": t["value"].double()}, "float64.*float32"),
    BadInput("integers", lambda t: t | {"query": t["query"].int()}, "query must be floating point"),
    BadInput("another device", lambda t: t | {"key": t["key"].to("meta")}, "key is on meta"),
    BadInput(
        "no channels",
        lambda t: t | {name: t[name][..., :0] for name in ("value", "residual")},
        "C must be at least 1",
    ),
    BadInput(
        "no depth",
        lambda t: t | {"query": t["query"][..., :0], "key": t["key"][..., :0]},
        "d must be at least 1",
    ),
    BadInput(
        "no positions",
        lambda t: {name: tensor[:, :0] for name, tensor in t.items()},
        "N must be at least 1",
    ),
    BadInput(
        "no tensor", lambda t: t | {"query": 1.0}, "query must be a tensor, got float", TypeError
    ),
)

CONTRACT = Contract(
    name="nonlocal_attention",
    make_inputs=make_inputs,
    outputs=("features", "channel_mean", "channel_max"),
    differentiable=("query", "key", "value", "residual"),
    statistics=("channel_mean", "channel_max"),
    features=("query", "key", "value", "residual"),
    shapes={
        "odd": (2, 20, 5, 7),
        "aligned rows": (1, 64, 5, 7),
        "several tiles": (1, 72, 13, 11),
        "several chunks": (4, 520, 3, 3),
        "one position": (8, 6, 1, 1),
        "one channel": (16, 1, 3, 3),
        "empty batch": (0, 8, 3, 3),
    },
    bad_inputs=BAD_INPUTS,
    samples=samples,
)

COST = Cost(bounds=bounds, saved_bytes=saved_bytes)

COMPILATION = Compilation(jobs=jobs, instructions=instructions)
