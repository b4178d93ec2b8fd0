"""What channel_decoupling declares about itself (see tests/proof/records.py)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from intrasense_fast.kernels.channel_decoupling import launch
from tests.proof.jobs import CompileJob, recorded_jobs
from tests.proof.records import BadInput, Bound, Compilation, Contract, Cost, Row, Tolerance

PARAMETERS = ("reduce_weight", "reduce_bias", "expand_weight", "expand_bias")


def make_inputs(row: Row, generator: torch.Generator) -> dict[str, Tensor]:
    """A map whose channels share a direction, as those of a ReLU do.

    The MLP keeps its gate away from 0 and 1.
    """
    channels = row.shape[1]
    reduced = max(channels // 16, min(channels, 3))
    parameters = torch.float64 if row.dtype == torch.float64 else torch.float32
    shapes = ((reduced, channels), (reduced,), (channels, reduced), (channels,))
    features = (torch.randn(row.shape, generator=generator) + 0.5).to(row.device, row.dtype)
    weights = [
        torch.randn(shape, generator=generator).to(row.device, parameters) / shape[-1] ** 0.5
        for shape in shapes
    ]
    return {
        "features": features.contiguous(memory_format=row.memory_format),
        **dict(zip(PARAMETERS, weights, strict=True)),
    }


def samples(row: Row, generator: torch.Generator) -> dict[str, tuple]:
    """Arguments of the registered operators, for opcheck."""
    inputs = tuple(make_inputs(row, generator).values())
    call: tuple[Any, ...] = (*inputs, 10.0, True)
    features, *weights = inputs
    outputs, saved = launch.forward(features, launch.Mlp(*weights), 10.0, True)
    grads = [torch.randn(t.shape, generator=generator).to(t) for t in outputs]
    return {
        "channel_decoupling_forward": call,
        "channel_decoupling_backward": (*inputs, *saved, *grads, 10.0, True, True, True),
    }


def saved_bytes(inputs: dict[str, Tensor]) -> int:
    """The five inputs, two R x R matrices, and at most four numbers a channel and position.

    Positions are those of the smaller side.
    """
    features = inputs["features"]
    batch, channels, height, width = features.shape
    rank = min(channels, height * width)
    statistic = 8 if features.dtype == torch.float64 else 4
    numbers = batch * (2 * rank * rank + 2 * channels + inputs["reduce_bias"].numel() + rank + 2)
    return sum(t.numel() * t.element_size() for t in inputs.values()) + numbers * statistic


def launches_forward(rank: int, wide: bool, decoupled: bool) -> int:
    """Gram matrix, start of the inverse, terms, w and output; above R = 64 one a block of 64.

    Where M F is squeezed also the hidden layer, and if `wide`, N < C, a product with the map.
    """
    blocks = -(-rank // 64)
    return 5 + (blocks if blocks > 1 else 0) + decoupled * (1 + wide)


def launches_backward(wide: bool, decoupled: bool) -> int:
    """One more where w's gradient needs a product of its own, or M a product with ds."""
    return 7 + (wide or decoupled)


def bounds() -> list[Bound]:
    """Launches, passes and FLOPs on both sides of C = N.

    Matrices and statistics are smaller than the map and do not count.
    """
    found = []
    shapes = ((1, 64, 32, 64), (1, 256, 64, 64), (1, 512, 8, 8), (1, 512, 8, 24))
    cases = [(shape, torch.bfloat16) for shape in shapes] + [
        ((1, 64, 32, 32), torch.float32),
        ((1, 256, 8, 8), torch.float32),
    ]
    for shape, dtype in cases:
        # What `squeeze` changes depends neither on the dtype nor on the long axis.
        once = dtype == torch.float32 or shape == (1, 256, 64, 64)
        for squeeze in ("input",) if once else ("input", "decoupled"):
            row = Row(shape, dtype, torch.channels_last)
            _, channels, height, width = shape
            positions, size = height * width, torch.Size(shape).numel()
            rank, long, wide = (
                min(channels, positions),
                max(channels, positions),
                positions < channels,
            )
            common: dict[str, Any] = dict(smallest=size, options={"squeeze": squeeze})
            # The long axis is 16 times the rank: products over the map outweigh the R x R chain.
            counted = rank**2 * long if shape == (1, 256, 64, 64) else 0
            found += [
                Bound(
                    row,
                    "forward",
                    launches=launches_forward(rank, wide, squeeze == "decoupled"),
                    floor_bytes=3 * size * dtype.itemsize,
                    passes=1.40 if wide and squeeze == "decoupled" else 1.05,
                    useful_flops=3 * counted,
                    flops=1.30,
                    **common,
                ),
                Bound(
                    row,
                    "backward",
                    launches=launches_backward(wide, squeeze == "decoupled"),
                    floor_bytes=5 * size * dtype.itemsize,
                    passes=1.45 if wide else 1.05,
                    useful_flops=6 * counted,
                    flops=1.45,
                    **common,
                ),
            ]
    return found


def launches(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    layout: torch.memory_format,
    squeezes: tuple[bool, ...],
) -> Callable[[], None]:
    """Every launch of one shape on meta tensors; `squeezes`: what `decoupled` is."""

    def run() -> None:
        _, channels, _, _ = shape
        features = torch.empty(shape, dtype=dtype, device="meta", memory_format=layout)
        reduced = max(1, channels // 16)
        shapes = ((reduced, channels), (reduced,), (channels, reduced), (channels,))
        mlp = launch.Mlp(*(torch.empty(size, device="meta") for size in shapes))
        for decoupled in squeezes:
            outputs, saved = launch.forward(features, mlp, 10.0, decoupled)
            launch.backward(features, mlp, saved, outputs, 10.0, decoupled, True, True)

    return run


# Target, shape, dtype, layout, what `decoupled` is, whether kernels of fixed tiles are compiled.
Wanted = tuple[
    str, tuple[int, int, int, int], torch.dtype, torch.memory_format, tuple[bool, ...], bool
]
# Kernels whose tiles a table chooses; those of the others are fixed.
OVER_THE_MAP = ("gram", "pull", "apply", "feature_gradient", "weight_gradient")
# That one of these is 1 or divisible by 16 changes no tile's code.
COUNTS = {
    "tiles",
    "tiles_r",
    "tiles_l",
    "splits",
    "share",
    "parts",
    "blocks",
    "pairs",
    "step",
    "hidden_blocks",
    "sum_parts",
    "logit_parts",
    "hidden_parts",
    "reduce_tiles",
    "reduce_blocks",
    "expand_tiles",
    "expand_blocks",
    "squeeze_blocks",
    "BATCH",
    "ROWS",
    "COLUMNS",
    "C",
    "C_R",
    "L",
}


def distinct(jobs: list[CompileJob]) -> list[CompileJob]:
    """The first job of every kernel, tile, flag, dtype, unit stride and target.

    With R divisible by 16 and without.
    """
    found: dict[str, CompileJob] = {}
    for job in jobs:
        fixed = {
            name: value
            for name, value in job.constexprs.items()
            if name not in COUNTS and not name.startswith("matrix_")
        }
        pointers = [kind for kind in job.signature.values() if kind.startswith("*")]
        key = (
            job.kernel,
            sorted(fixed.items()),
            job.options,
            pointers,
            "R" in job.divisible,
            job.target,
        )
        found.setdefault(repr(key), job)
    return list(found.values())


def jobs(level: str) -> list[CompileJob]:
    """Gate: both sides of C = N where they are meant to run, and one of every variant.

    Full: every tile of every table.
    """
    half, single, last, first = (
        torch.bfloat16,
        torch.float32,
        torch.channels_last,
        torch.contiguous_format,
    )
    tall, middle, broad, wide = (
        (4, 64, 64, 64),
        (4, 512, 32, 32),
        (4, 1024, 16, 16),
        (4, 2048, 8, 8),
    )
    odd, odd_wide, odd_halves = (4, 77, 33, 47), (4, 150, 9, 9), (4, 150, 33, 47)
    other, one, both = (False,), (True,), (False, True)
    rows: list[Wanted] = [
        ("sm_90", middle, half, last, one, True),
        ("sm_90", wide, half, last, one, False),
        ("sm_90", broad, single, last, one, False),
        ("sm_80", tall, single, last, other, True),
        ("sm_86", odd, half, first, other, False),
        ("sm_100", broad, half, last, other, False),
        ("gfx942", tall, single, last, other, False),
    ]
    if level == "full":
        rows += [("sm_90", tall, half, last, both, False), ("sm_90", wide, half, last, other, True)]
        rows += [
            ("sm_90", odd_wide, half, last, one, True),
            ("sm_90", tall, single, last, other, True),
        ]
        rows += [("sm_90", shape, half, last, one, False) for shape in (broad, odd)]
        rows += [("sm_90", shape, half, first, one, False) for shape in (middle, broad)]
        rows += [("sm_90", shape, single, last, one, False) for shape in (odd, odd_wide)]
        rows += [
            ("sm_80", middle, half, last, one, True),
            ("sm_80", broad, single, last, one, False),
        ]
        rows += [
            ("sm_80", shape, half, last, one, False) for shape in (tall, wide, broad, odd, odd_wide)
        ]
        rows += [("sm_80", shape, single, last, one, False) for shape in (odd, odd_wide)]
        rows += [("sm_86", shape, half, last, one, False) for shape in (tall, middle, broad)]
        rows += [
            ("sm_86", broad, single, last, one, False),
            ("sm_86", middle, half, last, one, True),
        ]
        rows += [("sm_120", middle, half, last, one, False)]
        rows += [
            (target, odd_halves, half, last, other, True) for target in ("sm_80", "sm_86", "sm_90")
        ]
    found = []
    for target, shape, dtype, layout, squeezes, whole in rows:
        label = f"{'x'.join(map(str, shape))} {str(dtype)[6:]}"
        label += " channels_last" if layout == last else ""
        row = recorded_jobs(launches(shape, dtype, layout, squeezes), target, label)
        found += [
            job for job in row if whole or job.kernel.split(":decoupling_")[-1] in OVER_THE_MAP
        ]
    return distinct(found)


def instructions(job: CompileJob) -> tuple[str, ...]:
    """Asynchronous copies and Hopper's tensor cores in matrix kernels.

    Where alignment and the tile's height allow them.
    """
    fixed = job.constexprs
    if job.target.startswith("gfx") or "PRECISION" not in fixed:
        return ()
    needed = ("cp.async",) if job.options["num_stages"] > 1 and "R" in job.divisible else ()
    narrow = fixed["PRECISION"] != "ieee" or job.signature.get("X") in ("*bf16", "*fp16")
    # A block that is inverted alone takes no large product.
    if fixed.get("ALONE"):
        return needed
    rows = next(fixed[name] for name in ("SIZE", "BLOCK_R", "BLOCK") if name in fixed)
    return (*needed, "HGMMA") if job.target == "sm_90" and narrow and rows >= 64 else needed


BAD_INPUTS = (
    BadInput(
        "rows instead of a map",
        lambda t: t | {"features": t["features"][0]},
        r"features must have shape \(B, C, H, W\)",
    ),
    BadInput(
        "no channels", lambda t: t | {"features": t["features"][:, :0]}, "C must be at least 1"
    ),
    BadInput(
        "no positions", lambda t: t | {"features": t["features"][..., :0]}, "W must be at least 1"
    ),
    BadInput(
        "integer features",
        lambda t: t | {"features": t["features"].int()},
        "features must be floating point",
    ),
    BadInput(
        "an MLP of another width",
        lambda t: t | {"reduce_weight": t["reduce_weight"][:, 1:]},
        "reduce_weight must have",
    ),
    BadInput(
        "no hidden layer",
        lambda t: t | {"reduce_weight": t["reduce_weight"][:0]},
        "C_r must be at least 1",
    ),
    BadInput(
        "a transposed layer",
        lambda t: t | {"expand_weight": t["expand_weight"].T},
        "expand_weight must have shape",
    ),
    BadInput(
        "a bias too long",
        lambda t: t | {"expand_bias": t["expand_bias"].repeat(2)},
        "expand_bias must have shape",
    ),
    BadInput(
        "another device",
        lambda t: t | {"reduce_bias": t["reduce_bias"].to("meta")},
        "reduce_bias is on meta",
    ),
    BadInput(
        "a negative ridge",
        lambda t: t | {"ridge": -1.0},
        "ridge must be a finite number > 0, got -1.0",
    ),
    BadInput(
        "a ridge that is no number",
        lambda t: t | {"ridge": float("nan")},
        "ridge must be a finite number > 0, got nan",
    ),
    BadInput(
        "an unknown squeeze",
        lambda t: t | {"squeeze": "output"},
        "squeeze must be one of .*, got 'output'",
    ),
    BadInput(
        "no tensor",
        lambda t: t | {"features": 1.0},
        "features must be a tensor, got float",
        TypeError,
    ),
)

CONTRACT = Contract(
    name="channel_decoupling",
    make_inputs=make_inputs,
    outputs=("reweighted", "rank_gap", "distance"),
    differentiable=("features", *PARAMETERS),
    statistics=("rank_gap", "distance"),
    features=("features",),
    parameters=PARAMETERS,
    maps=(("features", "reweighted"),),
    shapes={
        "odd": (2, 20, 5, 7),
        "fewer positions than channels": (2, 21, 3, 5),
        "as many": (1, 12, 3, 4),
        "blocks of the inverse": (1, 70, 8, 10),
        "blocks of the inverse, fewer positions": (1, 90, 7, 10),
        "one position": (2, 6, 1, 1),
        "one channel": (1, 1, 3, 3),
        "empty batch": (0, 8, 3, 3),
    },
    option_sets=(
        {},
        {"squeeze": "decoupled"},
        {"ridge": 0.5},
        {"ridge": 300.0, "squeeze": "decoupled"},
    ),
    tolerances={
        "reweighted": Tolerance(float32=5e-6, tf32=5e-4, scale="features"),
        "rank_gap": Tolerance(absolute=True),
        "distance": Tolerance(absolute=True),
        **{f"d_{name}": Tolerance(float32=5e-4) for name in PARAMETERS},
    },
    bad_inputs=BAD_INPUTS,
    samples=samples,
)

COST = Cost(bounds=bounds, saved_bytes=saved_bytes)

COMPILATION = Compilation(jobs=jobs, instructions=instructions)
