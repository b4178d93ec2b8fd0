"""The network: inference, forward, backward and a training step, beside the plain U-Net.

The plain U-Net has no GCP and no CDR.

pytest benchmarks/bench_model.py --benchmark-only                         what is quick
pytest benchmarks/bench_model.py --benchmark-only -m "slow or not slow"   on a CPU also 256 and 512
"""

import contextlib
from collections.abc import Callable
from functools import cache, lru_cache

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import CUDA, QUICK
from benchmarks.saved import saved_bytes
from intrasense_fast import IntraSenseNet
from intrasense_fast.losses import IntraSenseLoss
from intrasense_fast.training.config import TrainConfig
from intrasense_fast.training.graphed import WARM_STEPS, GraphedStep
from intrasense_fast.training.interruptions import Wholeness
from intrasense_fast.training.position import Position
from tests.proof.budget import error

PLAIN = {"gcp": False, "cdr": False}
# path -> (arguments of the network, compiled)
PATHS = {
    "plain U-Net": ({**PLAIN, "fused": False}, False),
    "fused": ({"fused": True}, False),
    "eager": ({"fused": False}, False),
    "plain U-Net compiled": ({**PLAIN, "fused": False}, True),
    "fused compiled": ({"fused": True}, True),
    "eager compiled": ({"fused": False}, True),
}
AGAINST = "plain U-Net"
MODES = ("inference", "forward", "backward", "both", "step")
GRAPHED = "trainer's step as CUDA graphs"
# A quick walk on a CPU has the loss alone fused: a whole network interpreted would take minutes.
if QUICK:
    for path, (arguments, compiled) in PATHS.items():
        small = {
            "decoder_channels": (8,) * 5,
            "refine_strides": () if arguments["fused"] and not CUDA else (4,),
        }
        PATHS[path] = ({**arguments, **small}, compiled)
# How far logits may be from the float64 network's. Masks flip in 16 bits: eager's counts twice.
ALLOWED = 5e-2 if CUDA else 1e-3


def cases() -> list:
    """(batch, size, path, mode), the most wanted first: a stage's time may run out."""
    if QUICK:
        walked = {
            "plain U-Net": MODES,
            "eager": ("step",),
            "fused": ("step",),
            "fused compiled": ("step",),
        }
        return [(2, 32, path, mode) for path, modes in walked.items() for mode in modes]
    if not CUDA:
        quick = [(2, 64, path, mode, ()) for path in ("plain U-Net", "eager") for mode in MODES]
        slow = [
            (1, size, path, mode, pytest.mark.slow)
            for size in (256, 512)
            for path in ("plain U-Net", "eager")
            for mode in ("inference", "step")
        ]
        return [pytest.param(*case[:4], marks=case[4]) for case in (*quick, *slow)]
    plain = [path for path, (_, compiled) in PATHS.items() if not compiled]
    compiled = [path for path in PATHS if path not in plain]
    sizes, wanted = (
        ((4, 256), (4, 512), (1, 1024), (1, 256), (1, 512), (4, 1024), (1, 2048)),
        ("inference", "step"),
    )
    found = [
        (batch, size, path, mode) for batch, size in sizes[:3] for path in plain for mode in wanted
    ]
    found += [(4, size, path, mode) for size in (256, 512) for path in compiled for mode in wanted]
    found += [
        (batch, size, path, mode) for batch, size in sizes[3:] for path in plain for mode in wanted
    ]
    # Last: where a capture fails, none after it succeeds. Eager's library calls cannot be captured.
    return found + [
        (batch, size, path, GRAPHED) for batch, size in sizes[:3] for path in (AGAINST, "fused")
    ]


@lru_cache(maxsize=2)
def network(
    path: str, batch: int, size: int
) -> tuple[torch.nn.Module, Callable, torch.optim.Optimizer]:
    """(the network, what is called, its optimizer): the same weights whatever the path."""
    arguments, compiled = PATHS[path]
    torch.manual_seed(0)
    net = IntraSenseNet(**arguments)
    awaken(net)
    net.to("cuda" if CUDA else "cpu", memory_format=torch.channels_last)
    called: Callable = net
    if compiled:
        torch._dynamo.reset()
        called = torch.compile(net, dynamic=False, **({} if CUDA else {"backend": "eager"}))
    optimizer = torch.optim.RMSprop(
        net.parameters(), lr=1e-4, weight_decay=1e-8, momentum=0.9, capturable=CUDA
    )
    return net, called, optimizer


def awaken(net: torch.nn.Module) -> None:
    """Gates start at zero, where their path would be invisible."""
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)


def autocast() -> contextlib.AbstractContextManager:
    return torch.autocast("cuda", torch.bfloat16) if CUDA else contextlib.nullcontext()


@cache
def logits_error(path: str) -> float:
    """Of the path's logits on a small training batch, against the same network in float64."""
    arguments, compiled = PATHS[path]
    torch.manual_seed(0)
    net = IntraSenseNet(**arguments)
    awaken(net)
    exact = IntraSenseNet(**{**arguments, "fused": False}).double()
    exact.load_state_dict(net.state_dict())
    x = torch.rand(2, 1, *((32, 64) if QUICK else (64, 96)), dtype=torch.float64)
    device = "cuda" if CUDA else "cpu"
    net, exact, x = net.to(device), exact.to(device), x.to(device)
    called = (
        torch.compile(net, dynamic=False, **({} if CUDA else {"backend": "eager"}))
        if compiled
        else net
    )
    with torch.no_grad():
        truth = exact(x).logits
        with autocast():
            found = called(x.float()).logits
    return error(found, truth) if found.isfinite().all() else float("inf")


@cache
def products(path: str, size: int) -> int:
    """FLOPs of the products of one image's forward, counted on tensors without memory."""
    arguments = {**PATHS[path][0], "fused": False}
    with torch.device("meta"):
        net, x = IntraSenseNet(**arguments).eval(), torch.empty(1, 1, size, size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(x)
    return counter.get_total_flops()


def calls(path: str, mode: str, image: Tensor, mask: Tensor) -> Callable[[], object]:
    net, called, optimizer = network(path, *image.shape[::3])
    loss = IntraSenseLoss(fused="fused" in path)
    parameters = list(net.parameters())

    def training_loss() -> Tensor:
        net.train()
        with autocast():
            output = called(image)
        return loss(output, mask)

    def inference() -> Tensor:
        net.eval()
        with torch.no_grad(), autocast():
            return called(image)

    def step() -> None:
        training_loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    if mode == GRAPHED:
        return _graphed(path, net, image, mask.float())
    if mode == "backward":
        total = training_loss()
        return lambda: torch.autograd.grad(total, parameters, retain_graph=True)
    return {
        "inference": inference,
        "forward": training_loss,
        "both": lambda: torch.autograd.grad(training_loss(), parameters),
        "step": step,
    }[mode]


def _graphed(path: str, net: torch.nn.Module, image: Tensor, mask: Tensor) -> Callable[[], object]:
    """The trainer's own step with --cuda-graph, recorded."""
    config = TrainConfig(
        amp="bf16" if CUDA else "off", channels_last=True, fused="fused" in path, cuda_graph=True
    )
    step = GraphedStep(net.train(), config, image.device, steps=10**6, whole=Wholeness())
    for _ in range(WARM_STEPS + 1):
        step(image, mask, Position())
    return lambda: step(image, mask, Position())


@pytest.mark.parametrize("batch, size, path, mode", cases())
def test_model(timed, device, batch, size, path, mode):
    worst = logits_error(path)
    eager = logits_error(AGAINST if "plain" in path else "eager")
    torch.manual_seed(1)
    image = torch.rand(batch, 1, size, size, device=device)
    mask = torch.rand(batch, 1, size, size, device=device) > 0.7
    try:
        function = calls(path, mode, image, mask)
        saved = (
            None
            if mode in ("inference", GRAPHED)
            else saved_bytes(calls(path, "forward", image, mask))
        )
        function()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        pytest.skip(f"out of memory at {batch} x {size} x {size}: benchmarks.memory marks it")
    times = {"inference": 1, "forward": 1, "backward": 2}.get(mode, 3)
    timed(
        function,
        group=f"model {mode} {batch}x{size}x{size}",
        error=worst,
        allowed=max(ALLOWED, 2 * eager if CUDA and eager < 0.5 else 0),
        useful_flops=times * batch * products(path, size),
        against=AGAINST,
        busy=mode != GRAPHED,
        rival=None if path == AGAINST else calls(AGAINST, mode, image, mask),
        operator="model",
        path=path,
        mode=mode,
        shape=[batch, 1, size, size],
        dtype="bfloat16" if CUDA else "float32",
        saved_bytes=saved,
        interpreted="fused" in path and not CUDA,
    )
