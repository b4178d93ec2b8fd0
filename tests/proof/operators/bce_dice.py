"""What bce_dice declares about itself (see tests/proof/records.py)."""

import torch
from torch import Tensor

from intrasense_fast.kernels.bce_dice import launch
from tests.proof.jobs import CompileJob, recorded_jobs, unique
from tests.proof.records import BadInput, Bound, Compilation, Contract, Cost, Row


def make_inputs(row: Row, generator: torch.Generator) -> dict[str, Tensor]:
    """Logits and a hard mask in the logits' memory format."""
    logits = (torch.randn(row.shape, generator=generator) * 3).to(row.device, row.dtype)
    target = (torch.rand(row.shape, generator=generator) > 0.7).to(row.device)
    return {
        "logits": logits.contiguous(memory_format=row.memory_format),
        "target": target.contiguous(memory_format=row.memory_format),
    }


def samples(row: Row, generator: torch.Generator) -> dict[str, tuple]:
    """Arguments of the registered operators, for opcheck."""
    logits, target = make_inputs(row, generator).values()
    bce, dice, slope, ratio = launch.forward(logits, target)
    return {
        "bce_dice_forward": (logits, target),
        "bce_dice_backward": (
            logits,
            target,
            slope,
            ratio,
            torch.ones_like(bce),
            torch.ones_like(dice),
        ),
    }


def saved_bytes(inputs: dict[str, Tensor]) -> int:
    """Both inputs, and two numbers a class."""
    logits, target = inputs["logits"], inputs["target"]
    statistic = 8 if logits.dtype == torch.float64 else 4
    return (
        sum(t.numel() * t.element_size() for t in (logits, target))
        + 2 * logits.shape[1] * statistic
    )


def bounds() -> list[Bound]:
    """Two launches forward and one backward; e + t bytes a pixel forward, 2 e + t backward.

    Masks of one byte.
    """
    found = []
    for shape, memory_format in (
        ((2, 1, 128, 128), torch.contiguous_format),
        ((1, 4, 128, 128), torch.channels_last),
    ):
        for dtype in (torch.bfloat16, torch.float32):
            row = Row(shape, dtype, memory_format)
            pixels = torch.Size(shape).numel()
            found += [
                Bound(
                    row,
                    "forward",
                    launches=2,
                    floor_bytes=pixels * (dtype.itemsize + 1),
                    passes=1.05,
                ),
                Bound(
                    row,
                    "backward",
                    launches=1,
                    floor_bytes=pixels * (2 * dtype.itemsize + 1),
                    passes=1.05,
                ),
            ]
    return found


def jobs(level: str) -> list[CompileJob]:
    """Gate: the common cases, one of every variant. Full: every dtype, mask, layout and target."""
    half, single = torch.bfloat16, torch.float32
    whole, odd, one = (4, 1, 256, 256), (4, 3, 33, 47), (1, 1, 1, 1)
    if level == "full":
        masks = (
            (half, torch.bool),
            (half, half),
            (torch.float16, torch.uint8),
            (single, single),
            (single, torch.int64),
        )
        rows = [
            (target, shape, dtype, mask, last)
            for target in ("sm_80", "sm_86", "sm_90")
            for dtype, mask in masks
            for shape, last in (
                (whole, False),
                ((4, 4, 256, 256), True),
                (odd, False),
                (odd, True),
                (one, False),
            )
        ]
        rows += [
            (target, whole, dtype, dtype, False)
            for target in ("sm_100", "gfx942")
            for dtype in (half, single)
        ]
    else:
        rows = [("sm_90", whole, half, torch.bool, False), ("sm_86", whole, single, single, False)]
        rows += [
            ("sm_80", (4, 4, 256, 256), half, torch.bool, True),
            ("sm_90", odd, half, torch.int64, True),
        ]
        rows += [("sm_90", one, half, half, False)]
        rows += [(target, whole, half, torch.bool, False) for target in ("sm_100", "gfx942")]
    found = []
    for target, shape, dtype, mask, last in rows:
        layout = torch.channels_last if last else torch.contiguous_format
        logits = torch.empty(shape, dtype=dtype, device="meta", memory_format=layout)
        label = f"{'x'.join(map(str, shape))} {str(dtype)[6:]} {str(mask)[6:]}"
        label += " channels_last" if last else ""

        def run(logits: Tensor = logits, mask: torch.dtype = mask) -> None:
            target = torch.empty_like(logits, dtype=mask)
            bce, dice, slope, ratio = launch.forward(logits, target)
            launch.backward(logits, target, slope, ratio, bce, dice)

        found += recorded_jobs(run, target, label)
    return unique(found)


def instructions(job: CompileJob) -> tuple[str, ...]:
    """128-bit accesses where planes are dense and aligned."""
    name = job.name
    if job.target.startswith("gfx") or name == "bce_dice_finish" or "plane" not in job.divisible:
        return ()
    if not job.constexprs["FLAT"] or job.constexprs["BLOCK_K"] > 1:
        return ()
    return ("LDG.E.128", "STG.E.128") if name == "bce_dice_gradient" else ("LDG.E.128",)


BAD_INPUTS = (
    BadInput(
        "a target of another shape",
        lambda t: t | {"target": t["target"][:, :, 1:]},
        "target must have shape",
    ),
    BadInput(
        "no classes axis",
        lambda t: {name: x[:, 0] for name, x in t.items()},
        r"logits must have shape \(B, K, H, W\)",
    ),
    BadInput(
        "integer logits",
        lambda t: t | {"logits": t["logits"].int()},
        "logits must be floating point",
    ),
    BadInput(
        "a complex target",
        lambda t: t | {"target": t["target"].to(torch.complex64)},
        "target must be bool, integer",
    ),
    BadInput(
        "another device", lambda t: t | {"target": t["target"].to("meta")}, "target is on meta"
    ),
    BadInput(
        "no tensor", lambda t: t | {"target": 1.0}, "target must be a tensor, got float", TypeError
    ),
)

CONTRACT = Contract(
    name="bce_dice",
    make_inputs=make_inputs,
    outputs=("bce", "dice"),
    differentiable=("logits",),
    statistics=("bce", "dice"),
    features=("logits",),
    shapes={
        "odd": (2, 3, 5, 7),
        "one class": (2, 1, 33, 47),
        "many classes": (1, 70, 3, 5),
        "one position": (2, 2, 1, 1),
        "one row": (1, 2, 1, 9),
        "one column": (2, 2, 9, 1),
        "empty batch": (0, 2, 3, 3),
    },
    bad_inputs=BAD_INPUTS,
    samples=samples,
    per_image=False,
)

COST = Cost(bounds=bounds, saved_bytes=saved_bytes)

COMPILATION = Compilation(jobs=jobs, instructions=instructions)
