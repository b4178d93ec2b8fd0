"""What entropy_whitening declares about itself (see tests/proof/records.py)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from intrasense_fast.kernels._common.precision import statistics_dtype
from intrasense_fast.kernels.entropy_whitening import launch
from tests.proof.jobs import CompileJob, recorded_jobs, unique
from tests.proof.records import BadInput, Bound, Compilation, Contract, Cost, Row

STATISTICS = ("channel_mean", "channel_max")
PARAMETERS = ("gate_weight", "gate_bias")
# threshold, entropy_scale, window, eps, normalize
DEFAULTS = (0.5, "score", 7, 1e-3, True)


def make_inputs(row: Row, generator: torch.Generator) -> dict[str, Tensor]:
    """A map, its own statistics over the channels, and a gate that is far from constant."""
    dtype = statistics_dtype(row.dtype)
    features = (torch.randn(row.shape, generator=generator) + 0.5).to(row.dtype)
    statistics = (features.to(dtype).mean(1), features.to(dtype).amax(1))
    gate = (0.1 * torch.randn(1, 2, 7, 7, generator=generator), torch.randn(1, generator=generator))
    return {
        "features": features.to(row.device).contiguous(memory_format=row.memory_format),
        **{
            name: t.to(row.device, dtype)
            for name, t in zip(STATISTICS + PARAMETERS, statistics + gate, strict=True)
        },
    }


def samples(row: Row, generator: torch.Generator) -> dict[str, tuple]:
    """Arguments of the registered operators, for opcheck."""
    inputs = tuple(make_inputs(row, generator).values())
    call: tuple[Any, ...] = (*inputs, *DEFAULTS)
    whitened, mask, gate = launch.forward(*call)
    grad = torch.randn(whitened.shape, generator=generator).to(whitened)
    return {
        "entropy_whitening_forward": call,
        "entropy_whitening_backward": (*inputs, mask, gate, grad, *DEFAULTS[2:], True),
    }


def saved_bytes(inputs: dict[str, Tensor]) -> int:
    """The five inputs, and a byte and a number a position: the mask and the gate."""
    statistics = inputs["channel_mean"]
    positions = statistics.numel() * (1 + statistics_dtype(inputs["features"].dtype).itemsize)
    return sum(t.numel() * t.element_size() for t in inputs.values()) + positions


def bounds() -> list[Bound]:
    """Launches, passes and requested bytes.

    Maps of one number a position are smaller than a feature map and do not count. A wide window's
    backward passes a float32 map twice for every masked position. The last row masks all of them.
    """
    found = []
    half, single = torch.bfloat16, torch.float32
    cases: tuple[tuple[torch.dtype, dict[str, Any], float], ...] = (
        (half, {"window": 3}, 1.10),
        (single, {"window": 3, "entropy_scale": "relative"}, 1.10),
        (half, {"window": 3, "entropy_scale": "max", "threshold": 0.97}, 1.10),
        (half, {"window": 3, "normalize": False}, 1.10),
        (half, {}, 2.75),
        (single, {"window": 15}, 2.75),
        (half, {"entropy_scale": "nats", "threshold": 10.0}, 4.05),
    )
    for dtype, options, passes in cases:
        row = Row((1, 64, 12, 16), dtype, torch.channels_last)
        size = torch.Size(row.shape).numel()
        statistics = options.get("normalize", True) and options.get("entropy_scale", "score") in (
            "score",
            "relative",
        )
        narrow = options.get("window", 7) <= 3
        common: dict[str, Any] = dict(smallest=size, options=options)
        found += [
            Bound(
                row,
                "forward",
                launches=4 if statistics else 2,
                floor_bytes=2 * size * dtype.itemsize,
                passes=1.55 if statistics else 1.05,
                requested=7.0 if narrow else 0.0,
                **common,
            ),
            Bound(
                row,
                "backward",
                launches=4 if narrow else 5,
                floor_bytes=3 * size * dtype.itemsize,
                passes=passes,
                **common,
            ),
        ]
    return found


def launches(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    windows: tuple[int, ...],
    scales: tuple[str, ...],
) -> Callable[[], None]:
    """Every launch of one shape on meta tensors, for recorded_jobs."""

    def run() -> None:
        batch, _, height, width = shape
        features = torch.empty(shape, dtype=dtype, device="meta", memory_format=torch.channels_last)
        mean, top = (torch.empty(batch, height, width, device="meta") for _ in range(2))
        inputs = (
            features,
            mean,
            top,
            torch.empty(1, 2, 7, 7, device="meta"),
            torch.empty(1, device="meta"),
        )
        for window in windows:
            for scale in scales:
                whitened, mask, gate = launch.forward(*inputs, 0.5, scale, window, 1e-3, True)
            saved = launch.Saved(*inputs, mask, gate)
            launch.backward(saved, whitened, window, 1e-3, True, True)

    return run


def jobs(level: str) -> list[CompileJob]:
    """Gate: narrow and wide windows where they are meant to run, and one of every variant.

    Full: every dtype and target.
    """
    half, single = torch.bfloat16, torch.float32
    wide, thin, odd, one = (4, 512, 32, 32), (4, 64, 64, 64), (4, 77, 33, 47), (2, 1, 1, 1)
    score, nats, both = ("score",), ("nats",), ("score", "nats")
    rows: list[tuple[str, tuple[int, int, int, int], torch.dtype, tuple[int, ...], tuple[str, ...]]]
    if level == "full":
        rows = [(target, wide, half, (3, 7, 15), both) for target in ("sm_80", "sm_86", "sm_90")]
        rows += [(target, wide, single, (3, 7), score) for target in ("sm_80", "sm_90")]
        rows += [("sm_86", wide, single, (7,), score), ("sm_90", wide, single, (7,), nats)]
        rows += [
            ("sm_90", wide, half, (7,), ("relative",)),
            ("sm_90", wide, torch.float16, (7,), score),
        ]
        rows += [
            ("sm_80", odd, half, (3,), score),
            ("sm_90", odd, half, (7,), both),
            ("sm_90", thin, half, (7,), score),
        ]
        rows += [("sm_90", one, half, (7,), score)]
    else:
        rows = [
            ("sm_90", wide, half, (3, 7), both),
            ("sm_80", thin, single, (3,), score),
            ("sm_86", wide, half, (15,), nats),
        ]
        rows += [("sm_90", odd, half, (7,), score), ("sm_90", one, half, (7,), score)]
    rows += [(target, wide, half, (7,), score) for target in ("sm_100", "gfx942")]
    found = []
    for target, shape, dtype, windows, scales in rows:
        label = f"{'x'.join(map(str, shape))} {str(dtype)[6:]}"
        found += recorded_jobs(launches(shape, dtype, windows, scales), target, label)
    return unique(found)


def instructions(job: CompileJob) -> tuple[str, ...]:
    """128-bit accesses wherever a kernel touches feature maps and the channels are aligned.

    4 channels a thread for moments.
    """
    name = job.name
    # A tile's row is 16 bytes a thread of 4 warps of 32, so 8 on gfx942.
    if "FEATURES" not in job.signature or not job.constexprs["EVEN_C"] or job.target == "gfx942":
        return ()
    if name == "channel_entropy":
        return ("LDG.E.128",)
    if name == "whiten_gather" or job.signature["FEATURES"] == "*fp32":
        return ("LDG.E.128", "STG.E.128")
    return ("STG.E.128",) if name == "whiten_moments" else ()


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
        "a mean of another map",
        lambda t: t | {"channel_mean": t["channel_mean"][:, 1:]},
        "channel_mean must have shape",
    ),
    BadInput(
        "a maximum a channel",
        lambda t: t | {"channel_max": t["channel_max"][:, None]},
        "channel_max must have shape",
    ),
    BadInput(
        "a gate of even side",
        lambda t: t | {"gate_weight": t["gate_weight"][..., 1:, 1:]},
        "with k odd",
    ),
    BadInput(
        "a gate of one statistic",
        lambda t: t | {"gate_weight": t["gate_weight"][:, :1]},
        "gate_weight must have shape",
    ),
    BadInput(
        "a bias too long",
        lambda t: t | {"gate_bias": t["gate_bias"].repeat(2)},
        "gate_bias must have shape",
    ),
    BadInput(
        "another device",
        lambda t: t | {"gate_bias": t["gate_bias"].to("meta")},
        "gate_bias is on meta",
    ),
    BadInput(
        "an even window", lambda t: t | {"window": 6}, "window must be an odd integer >= 1, got 6"
    ),
    BadInput(
        "a negative window",
        lambda t: t | {"window": -3},
        "window must be an odd integer >= 1, got -3",
    ),
    BadInput(
        "a window that is no integer",
        lambda t: t | {"window": 7.0},
        "window must be an odd integer >= 1, got 7.0",
    ),
    BadInput(
        "a negative threshold",
        lambda t: t | {"threshold": -0.1},
        "threshold must be finite and >= 0, got -0.1",
    ),
    BadInput(
        "an infinite threshold",
        lambda t: t | {"threshold": float("inf")},
        "threshold must be finite and >= 0, got inf",
    ),
    BadInput("no eps", lambda t: t | {"eps": 0.0}, "eps must be finite and > 0, got 0.0"),
    BadInput(
        "an unknown scale",
        lambda t: t | {"entropy_scale": "bits"},
        "entropy_scale must be one of .*, got 'bits'",
    ),
    BadInput(
        "no tensor",
        lambda t: t | {"channel_max": 1.0},
        "channel_max must be a tensor, got float",
        TypeError,
    ),
)

CONTRACT = Contract(
    name="entropy_whitening",
    make_inputs=make_inputs,
    outputs=("whitened", "mask"),
    differentiable=("features", *STATISTICS, *PARAMETERS),
    constant_outputs=("mask",),
    features=("features",),
    parameters=PARAMETERS,
    maps=(("features", "whitened"),),
    shapes={
        "odd": (2, 20, 3, 5),
        "several tiles": (1, 32, 5, 17),
        "several chunks": (1, 70, 2, 3),
        "a map smaller than the window": (1, 16, 2, 3),
        "one position": (2, 6, 1, 1),
        "one channel": (1, 1, 3, 3),
        "one column": (1, 9, 5, 1),
        "empty batch": (0, 8, 3, 3),
    },
    option_sets=(
        {},
        {"window": 3, "entropy_scale": "relative"},
        {"window": 15, "entropy_scale": "max", "threshold": 0.93},
        {"window": 5, "entropy_scale": "nats", "threshold": 2.8, "eps": 1e-2},
        {"window": 1},
        {"normalize": False},
    ),
    reference_options=lambda inputs, outputs: {"mask": outputs[1]},
    bad_inputs=BAD_INPUTS,
    samples=samples,
)

COST = Cost(bounds=bounds, saved_bytes=saved_bytes)

COMPILATION = Compilation(jobs=jobs, instructions=instructions)
