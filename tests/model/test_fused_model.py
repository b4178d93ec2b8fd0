"""IntraSenseNet(fused=True) is the same network: its values, gradients, files and
transformations."""

import copy
import itertools
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

pytest.importorskip("triton", reason="the kernels need Triton, which has wheels for Linux only")

from intrasense_fast import IntraSenseNet
from intrasense_fast.networks.refine import ChannelDecoupling, GlobalLocalPerception
from tests.support.equivalence import assert_equivalent, with_even_thresholds
from tests.support.networks import set_fused, wake

# alpha and beta so large that L_IW shows in the gradients.
SLIM = {
    "encoder": "resnet18",
    "refine_strides": (32,),
    "decoder_channels": (16, 8, 8, 8, 8),
    "window": 3,
    "alpha": 0.5,
    "beta": 0.5,
}
ROWS = {
    "GCP-dagger": {"cdr": False, "entropy_normalization": False},
    "GCP": {"cdr": False},
    "CDR": {"gcp": False},
    "both": {},
}
NCHW, LAST = torch.contiguous_format, torch.channels_last
# Every two values of any two columns meet in a row.
CASES = [
    ((32,), "skips", NCHW, "score", "decoupled", "CDR", "float32"),
    ((32,), "trunk", LAST, "relative", "decoupled", "both", "bfloat16"),
    ((32,), "skips", LAST, "nats", "input", "GCP-dagger", "float32"),
    ((32,), "skips", NCHW, "max", "decoupled", "GCP", "bfloat16"),
    ((4,), "skips", NCHW, "max", "input", "both", "float32"),
    ((8, 16), "skips", NCHW, "nats", "decoupled", "GCP", "bfloat16"),
    ((16, 32), "trunk", LAST, "score", "input", "GCP", "float32"),
    ((8, 16), "trunk", LAST, "max", "decoupled", "CDR", "float32"),
    ((16, 32), "skips", NCHW, "relative", "input", "CDR", "bfloat16"),
    ((4,), "trunk", NCHW, "score", "decoupled", "GCP-dagger", "bfloat16"),
    ((8, 16), "trunk", NCHW, "relative", "input", "GCP-dagger", "float32"),
    ((4,), "trunk", LAST, "nats", "decoupled", "CDR", "bfloat16"),
    ((16, 32), "trunk", NCHW, "nats", "decoupled", "both", "float32"),
    ((16, 32), "trunk", NCHW, "max", "input", "GCP-dagger", "bfloat16"),
    ((4,), "trunk", NCHW, "relative", "decoupled", "GCP", "bfloat16"),
    ((8, 16), "trunk", NCHW, "score", "input", "both", "float32"),
]
IN_EVERY_RUN = 2

pytestmark = pytest.mark.usefixtures("guarded")


@pytest.fixture(autouse=True)
def seeded(seed: int) -> None:
    torch.manual_seed(seed)


def lesions(*shape: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Images with a brighter block, and the block."""
    mask = torch.zeros(shape)
    mask[..., shape[-2] // 4 : shape[-2] // 2, shape[-1] // 3 : shape[-1] // 2] = 1
    return (0.5 * torch.rand(shape) + 0.4 * mask).to(device), mask.to(device)


def test_the_cases_are_pairwise() -> None:
    columns = [set(column) for column in zip(*CASES, strict=True)]
    for (i, one), (j, other) in itertools.combinations(enumerate(columns), 2):
        assert {(case[i], case[j]) for case in CASES} == set(itertools.product(one, other))


@pytest.mark.extended
@pytest.mark.parametrize(
    "strides, placement, memory_format, scale, squeeze, row, dtype",
    [
        *CASES[:IN_EVERY_RUN],
        *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES[IN_EVERY_RUN:]),
    ],
)
def test_equivalent_to_eager(
    strides, placement, memory_format, scale, squeeze, row, dtype, device
) -> None:
    options = SLIM | ROWS[row] | {"refine_strides": strides, "placement": placement}

    def draw():
        net = wake(IntraSenseNet(**options, entropy_scale=scale, squeeze=squeeze))
        return net.to(device, memory_format=memory_format), *lesions(2, 1, 33, 47, device=device)

    net, x, target = with_even_thresholds(draw)
    print(assert_equivalent(net, x, target, amp=dtype == "bfloat16"))


@pytest.mark.slow
@pytest.mark.parametrize("amp", (torch.float32, torch.bfloat16, torch.float16))
def test_every_stride_of_a_larger_image(amp, device) -> None:
    net = wake(IntraSenseNet(refine_strides=(4, 8, 16, 32), fused=True)).to(device).eval()
    x, _ = lesions(1, 1, 97, 65, device=device)
    with torch.no_grad():
        outputs = {}
        for fused in (True, False):
            with torch.autocast(device.type, amp, enabled=amp != torch.float32):
                outputs[fused] = set_fused(net, fused)(x).double()
        truth = net.double()(x.double())
    assert truth.shape == (1, 1, 97, 65)
    mine, theirs = ((outputs[fused] - truth).norm() / truth.norm() for fused in (True, False))
    print(f"{amp}: fused {mine:.1e}, eager {theirs:.1e}")
    assert mine <= max(2 * theirs, 1e-5)


def test_checkpoints_serve_both_ways(tmp_path: Path, device) -> None:
    fused, plain = (
        wake(IntraSenseNet(**SLIM, fused=choice)).to(device).eval() for choice in (True, False)
    )
    assert fused.state_dict().keys() == plain.state_dict().keys()
    fused.save_pretrained(tmp_path / "fused")
    plain.load_state_dict(fused.state_dict())
    loaded = IntraSenseNet.from_pretrained(tmp_path / "fused", fused=False).to(device)
    x, _ = lesions(1, 1, 32, 40, device=device)
    with torch.no_grad():
        wanted, given, read = (net(x) for net in (fused, plain, loaded))
    torch.testing.assert_close(given, wanted, rtol=1e-3, atol=1e-3)
    assert torch.equal(read, given)


def test_channels_last_from_end_to_end(device) -> None:
    net = wake(IntraSenseNet(**SLIM, fused=True)).to(device, memory_format=LAST).eval()
    maps = []
    for module in (net.gcp["32"], net.cdr["32"], *net.decoder.blocks):
        module.register_forward_hook(
            lambda _m, given, out: maps.append(
                (given[0], out[0] if isinstance(out, tuple) else out)
            )
        )
    x, _ = lesions(1, 1, 40, 64, device=device)
    with torch.no_grad():
        net(x.contiguous(memory_format=LAST))
    assert len(maps) == 7
    for given, out in maps:
        assert given.is_contiguous(memory_format=LAST) and out.is_contiguous(memory_format=LAST)


@pytest.mark.slow
def test_float16_autocast_trains(device) -> None:
    net = wake(IntraSenseNet(**SLIM, fused=True)).to(device).train()
    x, target = lesions(2, 1, 32, 40, device=device)
    with torch.autocast(device.type, torch.float16):
        output = net(x)
    assert output.logits.dtype == torch.float16 and output.whitening_loss.dtype == torch.float32
    torch.nn.functional.binary_cross_entropy_with_logits(output.logits.float(), target).backward()
    assert all(
        p.grad is None or (p.grad.dtype == torch.float32 and p.grad.isfinite().all())
        for p in net.parameters()
    )


@pytest.mark.extended
@pytest.mark.parametrize("training", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_compiles_whole(training: bool, device) -> None:
    # A position beside the threshold is whitened in one path and not in the other, after a
    # rounding.
    net, x, _ = with_even_thresholds(
        lambda: (
            wake(IntraSenseNet(**SLIM, fused=True)).to(device),
            *lesions(2, 1, 32, 40, device=device),
        )
    )
    twin = copy.deepcopy(set_fused(net, True).train(training))
    torch._dynamo.reset()
    found, wanted = torch.compile(net, fullgraph=True, backend="aot_eager")(x), twin(x)
    if training:
        for output in (found, wanted):
            (output.logits.square().mean() + output.whitening_loss).backward()
        found, wanted = found.logits, wanted.logits
        for (name, one), other in zip(net.named_parameters(), twin.parameters(), strict=True):
            assert (one.grad - other.grad).norm() <= 1e-2 * other.grad.norm() + 1e-5, name
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    # torch 2.11 takes is_exporting() for true while it compiles, so that the fractions stay out of
    # the graph.
    assert torch.__version__.startswith("2.11.") or set(net.masked_fraction) == {32}


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_inductor_compiles_the_eager_path_whole(training: bool, device) -> None:
    net = wake(IntraSenseNet(**SLIM, fused=False)).to(device).train(training)
    x, _ = lesions(2, 1, 32, 40, device=device)
    torch._dynamo.reset()
    wanted = copy.deepcopy(net)(x)
    found = torch.compile(net, fullgraph=True)(x)
    if training:
        found.logits.square().mean().backward()
        found, wanted = found.logits, wanted.logits
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_exports_with_its_kernels(device) -> None:
    net = wake(IntraSenseNet(**SLIM, fused=True)).to(device).eval()
    x, _ = lesions(1, 1, 32, 40, device=device)
    with torch.no_grad():
        program = torch.export.export(net, (x,))
        torch.testing.assert_close(program.module()(x), net(x), rtol=1e-4, atol=1e-4)
    targets = {
        str(node.target) for node in program.graph.nodes if "intrasense_fast" in str(node.target)
    }
    names = ("nonlocal_attention", "entropy_whitening", "channel_decoupling")
    assert {t.split(".")[1] for t in targets} == {f"{name}_forward" for name in names}


@pytest.mark.parametrize(
    "kind", (pytest.param(GlobalLocalPerception, marks=pytest.mark.extended), ChannelDecoupling)
)
def test_recomputing_activations_changes_no_bit(kind: type, device) -> None:
    module = wake(kind(64, fused=True)).to(device)
    x = torch.randn(2, 64, 2, 3, device=device)
    found = []
    for call in (module, lambda t: checkpoint(module, t, use_reentrant=False)):
        module.zero_grad()
        features = x.clone().requires_grad_()
        out, rest = call(features)
        (out.square().sum() + (rest if rest.dtype.is_floating_point else 0)).backward()
        found.append([features.grad, *(p.grad.clone() for p in module.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_the_report_says_what_runs_where(device) -> None:
    report = IntraSenseNet(**SLIM, fused=True).to(device).fused_report()
    assert set(report) == {"nonlocal_attention", "entropy_whitening", "channel_decoupling"}
    assert all(
        path == "fused" and str(device.type) in reason.lower() for path, reason in report.values()
    )
    report = IntraSenseNet(**SLIM).to(device).fused_report()
    assert {path.path for path in report.values()} == {
        "fused" if device.type == "cuda" else "eager"
    }
    assert set(IntraSenseNet(**SLIM, gcp=False, fused=True).fused_report()) == {
        "channel_decoupling"
    }
