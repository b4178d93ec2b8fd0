"""IntraSenseNet against a composition of the specifications, and every option of its public
surface."""

import copy
import itertools
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from intrasense_fast import FusedUnavailableError, IntraSenseNet, IntraSenseOutput
from intrasense_fast.kernels import runtime
from intrasense_fast.kernels.channel_decoupling.reference import channel_decoupling
from intrasense_fast.kernels.entropy_whitening.reference import entropy_whitening
from intrasense_fast.kernels.nonlocal_attention.reference import nonlocal_attention
from intrasense_fast.losses import IntraSenseLoss
from tests.support.networks import wake

SMALL = {"encoder": "resnet18"}
TABLE_4 = {
    "baseline": {"gcp": False, "cdr": False},
    "GCP-dagger": {"cdr": False, "entropy_normalization": False},
    "GCP": {"cdr": False},
    "CDR": {"gcp": False},
    "both": {},
}


@pytest.fixture(autouse=True)
def seeded(seed: int) -> None:
    torch.manual_seed(seed)


def normalized(rows: Tensor, norm: torch.nn.BatchNorm2d, training: bool) -> Tensor:
    """BatchNorm of rows (B, N, C) by its definition."""
    mean, variance = norm.running_mean, norm.running_var
    if training:
        mean, variance = rows.mean((0, 1)), rows.var((0, 1), correction=0)
    return (rows - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def specified(net: IntraSenseNet, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and L_IW of `net` from its parameters, its encoder's stages, the references and plain
    PyTorch."""
    config, height, width = net.config, *x.shape[-2:]
    x = pad(x, (0, -width % 32, 0, -height % 32), mode="replicate")
    x = (x - net.input_mean) / net.input_std
    maps, losses = [], []
    for stride in (2, 4, 8, 16, 32):
        x = net.encoder.stage(stride, x)
        refined = x
        batch, channels, rows, columns = x.shape
        if stride in config["refine_strides"] and config["gcp"]:
            gcp = net.gcp[str(stride)]
            depth = max(8, channels // 8)
            flat = x.flatten(2).transpose(1, 2)
            projected = flat @ gcp.projection.weight.flatten(1).T
            if config["module_norm"] == "batch":
                projected = normalized(projected, gcp.projection_norm, net.training)
            else:
                projected = projected + gcp.projection.bias
            q, k, v = projected.split((depth, depth, channels), -1)
            attended, mean, maximum = nonlocal_attention(q, k, v, flat)
            if config["module_norm"] == "batch":
                statistics = torch.stack((mean, maximum), -1)
                mean, maximum = normalized(statistics, gcp.gate_norm, net.training).unbind(-1)
            refined, _ = entropy_whitening(
                attended.transpose(1, 2).reshape(x.shape),
                mean.view(batch, rows, columns),
                maximum.view(batch, rows, columns),
                gcp.gate.weight,
                gcp.gate.bias,
                threshold=config["entropy_threshold"],
                entropy_scale=config["entropy_scale"],
                window=config["window"],
                normalize=config["entropy_normalization"],
            )
        if stride in config["refine_strides"] and config["cdr"]:
            cdr = net.cdr[str(stride)]
            reduce_weight, reduce_bias = cdr.reduce.weight, cdr.reduce.bias
            expand_weight = cdr.expand.weight
            if config["module_norm"] == "batch":
                norm = cdr.squeeze_norm
                deviation = (norm.running_var + norm.eps).sqrt()
                reduce_weight = reduce_weight / channels**0.5 / deviation
                reduce_bias = reduce_bias - reduce_weight @ norm.running_mean
                expand_weight = expand_weight / reduce_bias.numel() ** 0.5
            refined, gap, distance = channel_decoupling(
                refined,
                reduce_weight,
                reduce_bias,
                expand_weight,
                cdr.expand.bias,
                ridge=config["ridge"],
                squeeze=config["squeeze"],
            )
            losses.append((config["alpha"] * gap + config["beta"] * distance).mean())
        maps.append(refined)
        if config["placement"] == "trunk":
            x = refined
    *skips, x = maps
    for block, skip in zip(net.decoder.blocks, [*reversed(skips), None], strict=True):
        x = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
        x = block.conv1(x if skip is None else torch.cat((x, skip), 1))
        x = torch.relu(block.bn2(block.conv2(torch.relu(block.bn1(x)))))
    logits = net.decoder.head(x)[..., :height, :width]
    return logits, torch.stack(losses).mean() if losses else torch.zeros((), dtype=logits.dtype)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "placement": "trunk",
            "refine_strides": (8, 16),
            "entropy_scale": "nats",
            "entropy_threshold": 5.0,
        },
        {
            "refine_strides": (4, 8),
            "squeeze": "decoupled",
            "entropy_scale": "max",
            "window": 3,
            "alpha": 0.5,
            "beta": 0.2,
        },
        {"refine_strides": (16,), "entropy_scale": "relative", "ridge": 1.0, "num_classes": 3},
        pytest.param(
            {"in_channels": 3, "entropy_normalization": False, "refine_strides": (16, 8)},
            marks=pytest.mark.extended,
        ),
        {"refine_strides": ()},
        {"module_norm": "none", "refine_strides": (8, 32)},
        pytest.param({"gcp": False, "refine_strides": (8, 16)}, marks=pytest.mark.extended),
        {"cdr": False, "refine_strides": (8, 32)},
    ],
    ids=str,
)
def test_outputs_and_gradients_equal_the_specification(options: dict) -> None:
    net = wake(IntraSenseNet(**SMALL, **options, fused=False)).double().train()
    x = torch.rand(2, net.config["in_channels"], 33, 47, dtype=torch.float64)
    x.requires_grad_()
    output = net(x)
    assert isinstance(output, IntraSenseOutput)
    assert (
        output.logits.shape == (2, net.config["num_classes"], 33, 47)
        and output.whitening_loss.shape == ()
    )
    direction = torch.randn_like(output.logits)
    found = torch.autograd.grad(
        _objective(output, direction), [x, *net.parameters()], allow_unused=True
    )
    logits, loss = specified(net, x)
    wanted = torch.autograd.grad(
        _objective((logits, loss), direction), [x, *net.parameters()], allow_unused=True
    )
    assert torch.isfinite(output.logits).all()
    assert (output.logits - logits).norm() <= 1e-9 * logits.norm()
    assert abs(output.whitening_loss - loss) <= 1e-9
    names = ["x", *(name for name, _ in net.named_parameters())]
    largest = max(gradient.norm() for gradient in wanted if gradient is not None)
    for name, one, other in zip(names, found, wanted, strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            assert (one - other).norm() <= 1e-7 * other.norm() + 1e-12 * largest, name


def _objective(output: tuple[Tensor, Tensor], direction: Tensor) -> Tensor:
    return (output[0] * direction).sum() + 100 * output[1] + 0 * output[0].sum()


@pytest.mark.extended
@pytest.mark.parametrize("row", TABLE_4)
def test_rows_of_table_4_train(row: str) -> None:
    net = IntraSenseNet(**SMALL, refine_strides=(8, 16), **TABLE_4[row]).train()
    image, mask = torch.rand(4, 1, 64, 64), torch.zeros(4, 1, 64, 64)
    mask[..., 16:40, 16:40] = 1
    image = 0.3 * image + 0.5 * mask
    loss = IntraSenseLoss()
    optimizer = torch.optim.RMSprop(net.parameters(), lr=3e-4)
    values = []
    for _ in range(5):
        optimizer.zero_grad()
        value = loss(net(image), mask)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert all(map(torch.isfinite, map(torch.tensor, values)))
    assert min(values[2:]) < values[0]
    gap = loss.terms["whitening"].item()
    assert (gap != 0) == net.config["cdr"]


def test_keys_do_not_depend_on_fused_and_gcp_dagger_has_gcps_parameters() -> None:
    keys = [set(IntraSenseNet(fused=fused).state_dict()) for fused in (True, False, None)]
    assert keys[0] == keys[1] == keys[2]
    assert {"input_mean", "input_std"} < keys[0]
    assert set(IntraSenseNet(entropy_normalization=False).state_dict()) == keys[0]


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 96), (50, 130)])
def test_any_size_equals_replicated_padding(size: tuple[int, int]) -> None:
    net = wake(IntraSenseNet(**SMALL)).eval()
    x = torch.rand(1, 1, *size)
    with torch.no_grad():
        logits = net(x)
        padded = net(pad(x, (0, -size[1] % 32, 0, -size[0] % 32), mode="replicate"))
    assert logits.shape == (1, 1, *size)
    torch.testing.assert_close(logits, padded[..., : size[0], : size[1]], rtol=0, atol=0)


def test_an_image_does_not_depend_on_its_batch() -> None:
    net = wake(IntraSenseNet(**SMALL)).double().eval()
    x = torch.rand(3, 1, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        together, alone = net(x), torch.cat([net(image[None]) for image in x])
    assert (together - alone).norm() <= 1e-9 * alone.norm()


def test_channels_last_is_kept_and_equal() -> None:
    net = wake(IntraSenseNet(**SMALL)).double().eval()
    x = torch.rand(2, 1, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        expected = net(x)
        found = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert (found - expected).norm() <= 1e-9 * expected.norm()


def test_masked_fraction_and_diagnose_agree_with_the_mask() -> None:
    net = wake(IntraSenseNet(**SMALL, refine_strides=(4, 8, 16, 32))).train()
    x = torch.rand(2, 1, 64, 64)
    net(x)
    fractions = net.masked_fraction
    assert list(fractions) == [4, 8, 16, 32]
    assert all(0 <= value <= 1 and not value.requires_grad for value in fractions.values())
    before = {key: value.clone() for key, value in net.state_dict().items()}
    maps = net.diagnose(x)
    assert net.masked_fraction is fractions
    assert net.training and all(
        torch.equal(value, before[key]) for key, value in net.state_dict().items()
    )
    net.eval()(x)
    for stride, (entropy, mask, _gate, _attention) in maps.items():
        assert entropy.shape == mask.shape == (2, 64 // stride, 64 // stride)
        # NaN, an image whose entropies are all alike, is below no threshold.
        clear = ~((entropy - 0.5).abs() <= 1e-4)
        assert clear.any() and torch.equal((entropy < 0.5)[clear], mask[clear])
        assert float(net.masked_fraction[stride]) == pytest.approx(mask.float().mean().item())


def test_a_plain_unet_has_no_refinement() -> None:
    net = IntraSenseNet(gcp=False, cdr=False)
    assert net.fused_report() == {} and not any(
        key.startswith(("gcp", "cdr")) for key in net.state_dict()
    )
    output = net(torch.rand(2, 1, 32, 32))
    assert output.whitening_loss == 0 and net.masked_fraction == {}


def test_empty_batch() -> None:
    net = IntraSenseNet().eval()
    assert net(torch.rand(0, 1, 40, 40)).shape == (0, 1, 40, 40)
    output = net.train()(torch.rand(0, 1, 64, 64))
    assert output.logits.shape == (0, 1, 64, 64) and output.whitening_loss == 0
    assert net.masked_fraction.keys() == {8, 16, 32} and all(
        value.isnan() for value in net.masked_fraction.values()
    )


@pytest.fixture
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "interpreting", lambda: False)


@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16])
def test_autocast_keeps_statistics_and_loss_in_float32(amp: torch.dtype) -> None:
    net = wake(IntraSenseNet(**SMALL)).train()
    with torch.autocast("cpu", amp):
        output = net(torch.rand(2, 1, 32, 32))
    assert output.logits.dtype == amp and output.whitening_loss.dtype == torch.float32
    loss = IntraSenseLoss()(output, torch.zeros(2, 1, 32, 32))
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in net.parameters())


@pytest.mark.usefixtures("no_interpreter")
def test_fused_on_a_cpu_says_why() -> None:
    net = IntraSenseNet(fused=True)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(FusedUnavailableError, match=r"need.* a CUDA or ROCm GPU.*fused=None"):
        net.train()(torch.rand(2, 1, 64, 64))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert {path.path for path in net.fused_report().values()} == {"unavailable"}
    report = IntraSenseNet(fused=False).fused_report()
    assert report["nonlocal_attention"] == ("eager", "fused=False was asked for")
    assert set(report) == {"nonlocal_attention", "entropy_whitening", "channel_decoupling"}


@pytest.mark.usefixtures("no_interpreter")
def test_fused_has_one_source_of_truth() -> None:
    net = IntraSenseNet(**SMALL, fused=True, refine_strides=(32,)).eval()
    x = torch.rand(1, 1, 32, 32)
    net.fused = False
    assert net.fused is False and {path.path for path in net.fused_report().values()} == {"eager"}
    net(x)
    net.fused = True
    assert {path.path for path in net.fused_report().values()} == {"unavailable"}
    with pytest.raises(FusedUnavailableError):
        net(x)
    with pytest.raises(ValueError, match="fused must be True, False or None, got 1"):
        net.fused = 1
    assert net.fused is True


@pytest.mark.slow
def test_compiles_whole() -> None:
    net = wake(
        IntraSenseNet(**SMALL, refine_strides=(16, 32), decoder_channels=(16, 8, 8, 8, 8))
    ).train()
    twin = copy.deepcopy(net)
    x = torch.rand(2, 1, 64, 64)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    found, wanted = compiled(x), twin(x)
    (found.logits.square().mean() + found.whitening_loss).backward()
    (wanted.logits.square().mean() + wanted.whitening_loss).backward()
    for (name, one), other in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert (one.grad - other.grad).norm() <= 1e-2 * other.grad.norm() + 1e-5, name
    torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-3, atol=1e-3)
    assert set(net.masked_fraction) == {16, 32}
    # A second size makes torch compile for any size.
    other = torch.rand(2, 1, 64, 96)
    torch.testing.assert_close(compiled(other).logits, twin(other).logits, rtol=1e-3, atol=1e-3)


def test_a_network_pickled_before_fused_was_a_property_keeps_it() -> None:
    net = IntraSenseNet(**SMALL, refine_strides=(32,), decoder_channels=(8,) * 5, fused=False)
    state = net.__getstate__()
    state["fused"] = state.pop("_fused")
    old = IntraSenseNet.__new__(IntraSenseNet)
    old.__setstate__(state)
    assert old.fused is False and old.fused_report()["nonlocal_attention"].path == "eager"


def test_exports_in_eval_mode() -> None:
    net = wake(IntraSenseNet(**SMALL, refine_strides=(16, 32))).eval()
    x = torch.rand(2, 1, 64, 96)
    program = torch.export.export(net, (x,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), net(x), rtol=1e-4, atol=1e-4)


def test_copies_pickles_and_checkpoints() -> None:
    net = wake(IntraSenseNet(**SMALL, refine_strides=(32,))).train()
    x = torch.rand(2, 1, 64, 64, requires_grad=True)
    net(x)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert all(
            torch.equal(one, other)
            for one, other in zip(net.parameters(), twin.parameters(), strict=True)
        )
    gcp = net.gcp["32"]
    features = torch.randn(2, 512, 3, 2, requires_grad=True)
    (plain,) = torch.autograd.grad(gcp(features)[0].square().sum(), features)
    (recomputed,) = torch.autograd.grad(
        checkpoint(gcp, features, use_reentrant=False)[0].square().sum(), features
    )
    assert torch.equal(plain, recomputed)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 64, 64), r"shape \(B, 1, H, W\), got \(2, 3, 64, 64\)"),
        ((1, 64, 64), r"got \(1, 64, 64\)"),
        ((2, 1, 31, 64), "H and W >= 32, got 31 x 64"),
        ((1, 1, 32, 20), "H and W >= 32, got 32 x 20"),
        ((1, 1, 32, 32), "BatchNorm a single position"),
    ],
)
def test_wrong_input_is_named(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IntraSenseNet()(torch.rand(shape))


def test_integer_images_are_an_error() -> None:
    with pytest.raises(ValueError, match="divide 8-bit images by 255"):
        IntraSenseNet()(torch.zeros(2, 1, 64, 64, dtype=torch.uint8))


def test_images_that_are_no_tensor_are_an_error() -> None:
    with pytest.raises(TypeError, match=r"x must be a tensor, got ndarray; use torch\.as_tensor"):
        IntraSenseNet()(np.zeros((2, 1, 64, 64), np.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 2}, "in_channels must be 1 or 3, got 2"),
        ({"num_classes": 0}, "num_classes"),
        ({"refine_strides": (2, 8)}, r"refine_strides must be some of \(4, 8, 16, 32\)"),
        ({"refine_strides": (8, 8)}, "free of duplicates"),
        ({"placement": "decoder"}, "placement must be one of"),
        ({"entropy_scale": "bits"}, "entropy_scale must be one of"),
        ({"entropy_threshold": -0.1}, "entropy_threshold must be finite"),
        ({"entropy_threshold": float("nan")}, "entropy_threshold must be finite"),
        ({"window": 4}, "window must be an odd integer"),
        ({"ridge": 0.0}, "ridge must be finite and > 0"),
        ({"squeeze": "output"}, "squeeze must be one of"),
        ({"alpha": float("inf")}, "alpha must be finite"),
        ({"decoder_channels": (16, 8)}, "decoder_channels must be five integers"),
        ({"fused": "yes"}, "fused must be True, False or None"),
        ({"fused": 1}, "fused must be True, False or None, got 1"),
        ({"fused": 0}, "fused must be True, False or None, got 0"),
        ({"in_channels": 1.0}, r"in_channels must be 1 or 3, got 1\.0"),
        ({"in_channels": True}, "in_channels must be 1 or 3, got True"),
        ({"num_classes": "2"}, "num_classes must be an integer >= 1 .*, got '2'"),
        ({"refine_strides": 8}, r"refine_strides must be some of \(4, 8, 16, 32\), got 8"),
        ({"refine_strides": (8.0,)}, r"refine_strides must be some of .*, got \(8\.0,\)"),
        ({"refine_strides": ([8],)}, r"refine_strides must be some of .*, got \(\[8\],\)"),
        ({"refine_strides": np.array(8)}, r"refine_strides must be some of .*, got array\(8\)"),
        ({"placement": ["skips"]}, "placement must be one of"),
        ({"gcp": "no"}, "gcp must be True or False, got 'no'"),
        ({"cdr": 2}, "cdr must be True or False, got 2"),
        ({"entropy_normalization": None}, "entropy_normalization must be True or False"),
        (
            {"entropy_threshold": None},
            "entropy_threshold must be finite and >= 0, a number such as 0.5, got None",
        ),
        ({"window": 7.0}, "window must be an odd integer"),
        ({"ridge": "10"}, "ridge must be finite and > 0, a number such as 10.0, got '10'"),
        ({"ridge": True}, "ridge must be finite and > 0"),
        ({"ridge": 10**400}, "ridge must be finite and > 0"),
        ({"alpha": None}, "alpha must be finite, a number such as 0.01, got None"),
        ({"beta": 1j}, "beta must be finite"),
        ({"decoder_channels": 16}, "decoder_channels must be five integers"),
        ({"decoder_channels": (16.0, 8, 8, 8, 8)}, "decoder_channels must be five integers"),
    ],
    ids=str,
)
def test_impossible_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IntraSenseNet(**options)


def test_every_flag_builds() -> None:
    for strides, placement, gcp, cdr in itertools.product(
        ((32,), (4, 16)), ("skips", "trunk"), (True, False), (True, False)
    ):
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("error")
            net = IntraSenseNet(refine_strides=strides, placement=placement, gcp=gcp, cdr=cdr)
        assert set(net.gcp) == ({str(s) for s in strides} if gcp else set())
        assert set(net.cdr) == ({str(s) for s in strides} if cdr else set())
