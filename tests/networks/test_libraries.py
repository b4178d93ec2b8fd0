"""Networks of other libraries by name: with stand-ins for libraries that are not here, and with the
libraries where they are."""

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from intrasense_fast import networks
from intrasense_fast.cli import main
from intrasense_fast.losses import IntraSenseLoss
from intrasense_fast.networks import build_network, load_network, register_network, save_network
from intrasense_fast.networks.contract import NetworkOutput

ONE = ("--quick", "--epochs", "1", "--device", "cpu", "--size", "32", "--batch-size", "2")


class Unet(nn.Module):
    """As smp's: logits at the image's size."""

    def __init__(
        self, encoder_name: str, encoder_weights: str | None, in_channels: int, classes: int
    ) -> None:
        super().__init__()
        if encoder_name != "resnet50":
            raise KeyError(f"Wrong encoder name `{encoder_name}`")
        assert encoder_weights is None
        self.conv = nn.Conv2d(in_channels, classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class DynUNet(nn.Module):
    """As MONAI's: a stack of heads in training mode with deep supervision."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: list[int],
        strides: list[int],
        upsample_kernel_size: list[int],
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        assert spatial_dims == 2 and len(kernel_size) == len(strides)
        self.deep_supervision = deep_supervision
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        # MONAI's network holds its blocks under two names.
        self.skip_layers = nn.Sequential(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.conv(x)
        stacked = self.training and self.deep_supervision
        return torch.stack((logits, 2 * logits, 3 * logits), 1) if stacked else logits


class SegmenterConfig:
    """As transformers': keeps whatever it is given."""

    def __init__(self, *, num_channels: int = 3, depth: int = 1, **others: Any) -> None:
        self.num_channels, self.depth, self.num_labels = num_channels, depth, others["num_labels"]


class SegmenterForSemanticSegmentation(nn.Module):
    """As transformers': an object with logits at a quarter of the size."""

    config_class = SegmenterConfig

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.conv = nn.Conv2d(config.num_channels, config.num_labels, 4, 4)

    def forward(self, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.conv(x))


class QueriesForSegmentation(SegmenterForSemanticSegmentation):
    """Masks of queries, which are no logits of classes."""

    def forward(self, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(masks_queries_logits=self.conv(x))


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, classes in (
        ("segmentation_models_pytorch", (Unet,)),
        ("monai.networks.nets", (DynUNet,)),
        ("transformers", (SegmenterForSemanticSegmentation, QueriesForSegmentation)),
    ):
        module = ModuleType(name)
        vars(module).update({cls.__name__: cls for cls in classes})
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(networks, "_registered", {})


def test_outputs_of_each_library_become_the_contracts(
    libraries: None, seed: int, rng: torch.Generator
) -> None:
    torch.manual_seed(seed)
    x = torch.rand(2, 3, 32, 48, generator=rng)
    plain = build_network("smp:Unet/resnet50", 3, 2)
    assert torch.equal(plain(x), plain.net.conv(x))
    deep = build_network("monai:DynUNet", 3, 2, deep_supervision=True)
    output, logits = deep(x), deep.net.conv(x)
    assert isinstance(output, NetworkOutput) and torch.equal(output.logits, logits)
    assert [torch.equal(head, k * logits) for k, head in enumerate(output.auxiliary_logits, 2)] == [
        True,
        True,
    ]
    assert IntraSenseLoss()(output, torch.zeros(2, 2, 32, 48)).isfinite()
    assert torch.equal(deep.eval()(x), logits)
    quarter = build_network("transformers:Segmenter", 3, 2)
    wanted = interpolate(quarter.net.conv(x), (32, 48), mode="bilinear", align_corners=False)
    assert wanted.shape == (2, 2, 32, 48) and torch.equal(quarter(x), wanted)


@pytest.mark.parametrize(
    ("output", "came"),
    [
        (torch.zeros(2, 5, 32, 32), r"a tensor of shape \(2, 5, 32, 32\)"),
        ([torch.zeros(2, 1, 32, 32), torch.tensor(0.5)], r"a tensor of shape \(\)"),
        ([], "nothing"),
        (SimpleNamespace(pooled=0), "SimpleNamespace"),
    ],
    ids=["classes", "loss", "empty", "object"],
)
def test_other_outputs_are_refused_in_one_line(
    libraries: None, output: object, came: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = build_network("smp:Unet/resnet50")
    monkeypatch.setattr(net.net, "forward", lambda x: output)
    with pytest.raises(TypeError, match=rf"smp:Unet/resnet50: needed are logits .*{came}"):
        net(torch.rand(2, 1, 32, 32))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("smp:Unet", {}, "must be written as in smp:Unet/resnet50"),
        ("monai:DynUNet/resnet50", {}, "must be written as in monai:DynUNet"),
        ("monai:", {}, "must be written as in monai:DynUNet"),
        ("smp:Unnet/resnet50", {}, "has no network Unnet, did you mean Unet"),
        ("smp:Unet/resnet5", {}, "cannot be built .*Wrong encoder name `resnet5`"),
        ("monai:DynUNet", {"stride": [1]}, "cannot be built .*stride"),
        ("transformers:Segmentor", {}, "no network Segmentor, did you mean Segmenter"),
        ("transformers:Segmenter", {"depths": 2}, "no option 'depths', did you mean 'depth'"),
        ("smp:Unet/resnet50", {"encoder_weights": "imagenet"}, "encoder_weights are not read"),
    ],
    ids=str,
)
def test_bad_names_and_options(
    libraries: None, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        build_network(name, **options)


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("smp:Unet/resnet50", "segmentation_models_pytorch", "segmentation-models-pytorch"),
        ("monai:DynUNet", "monai.networks.nets", "monai"),
        ("transformers:Segformer", "transformers", "transformers"),
    ],
)
def test_a_missing_library_is_one_line(
    name: str,
    module: str,
    package: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # type: ignore[arg-type]
    run = tmp_path / "run"
    assert main(["train", *ONE, "--network", name, "--out", str(run)]) == 2
    shown = capsys.readouterr().err
    assert f"{name}: needs the package {package}, which cannot be imported here" in shown
    assert f"pip install {package}" in shown and "Traceback" not in shown
    assert not run.exists()


def test_a_checkpoint_needs_the_networks_name(
    libraries: None, tmp_path: Path, rng: torch.Generator
) -> None:
    net = build_network("monai:DynUNet", deep_supervision=True).eval()
    with torch.no_grad():
        net.net.conv.weight.normal_(generator=rng)
    save_network(net, tmp_path / "net")
    with pytest.raises(ValueError, match=r"code from outside.*give --network monai:DynUNet"):
        load_network(tmp_path / "net")
    register_network("monai:DynUNet")
    loaded = load_network(tmp_path / "net")
    assert loaded.config == {
        "in_channels": 1,
        "num_classes": 1,
        "kernel_size": [3, 3, 3, 3, 3, 3],
        "strides": [1, 2, 2, 2, 2, 2],
        "upsample_kernel_size": [2, 2, 2, 2, 2],
        "deep_supervision": True,
    }
    x = torch.rand(2, 1, 32, 32, generator=rng)
    assert torch.equal(loaded(x), net(x))


def test_what_cannot_be_adapted_is_told_before_anything_is_written(
    libraries: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queries = ["--network", "transformers:QueriesForSegmentation"]
    assert main(["train", *ONE, *queries, "--out", str(tmp_path / "run")]) == 2
    shown = capsys.readouterr().err
    assert "it returned SimpleNamespace" in shown and not (tmp_path / "run").exists()


@pytest.mark.extended
@pytest.mark.parametrize(
    ("module", "name", "options"),
    [
        ("segmentation_models_pytorch", "smp:Unet/resnet50", {}),
        ("monai", "monai:DynUNet", {"deep_supervision": True}),
        ("monai", "monai:AttentionUnet", {}),
        ("monai", "monai:SegResNetDS", {"dsdepth": 2}),
        ("transformers", "transformers:Segformer", {}),
    ],
)
def test_real_libraries(
    module: str,
    name: str,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    rng: torch.Generator,
    tmp_path: Path,
) -> None:
    try:
        importlib.import_module(module)
    except Exception as error:
        pytest.skip(f"{module} cannot be imported here: {error}")
    monkeypatch.setattr(networks, "_registered", {})
    net, x = build_network(name, 1, 1, **options), torch.rand(2, 1, 64, 64, generator=rng)
    target = (torch.rand(2, 1, 64, 64, generator=rng) > 0.5).float()
    IntraSenseLoss()(net(x), target).backward()
    assert any(one.grad is not None for one in net.parameters())
    save_network(net.eval(), tmp_path / "net")
    register_network(name)
    logits = load_network(tmp_path / "net")(x)
    assert logits.shape == (2, 1, 64, 64) and torch.equal(logits, net(x))
