"""`intrasense-fast export`: files that other programs read, checked before they are there."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from intrasense_fast.cli import main
from intrasense_fast.data.images import write_png
from intrasense_fast.data.opening import sha256_of
from intrasense_fast.errors import UsageError
from intrasense_fast.export import onnx, packages, write
from intrasense_fast.export.checks import Shape, check_file
from intrasense_fast.export.model import ExportedModel
from intrasense_fast.export.pictures import lost_dice, read_pictures
from intrasense_fast.inference.calibration import Calibration, tempered, write_calibration
from intrasense_fast.kernels import runtime
from intrasense_fast.networks import build_network, load_network, save_network
from intrasense_fast.provenance import TRAINED_ON
from tests.support.checkpoints import tiny_checkpoint
from tests.support.networks import wake
from tests.support.runs import write_pairs

DOCUMENT = Path(__file__).parents[2] / "docs" / "export.md"
WITHOUT = """import sys
for name in ("torch", "intrasense_fast", "onnx"):
    sys.modules[name] = None
"""


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("run") / "best", 64)
    digests = {"format": 1, "train": ["a" * 64, "b" * 64], "val": ["c" * 64]}
    (folder / TRAINED_ON).write_text(json.dumps(digests))
    return folder


def export(best: Path, out: Path, *flags: object) -> int:
    return main(["export", "--checkpoint", str(best), "--out", str(out), *map(str, flags)])


def images(*shape: int, rng: torch.Generator) -> torch.Tensor:
    return torch.rand(shape[0], 1, *shape[1:], generator=rng)


@pytest.fixture(scope="module")
def onnx_file(best: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnx", reason="the extra onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    out = tmp_path_factory.mktemp("exported") / "network.onnx"
    assert export(best, out, "--format", "onnx") == 0
    assert [path.name for path in out.parent.iterdir()] == ["network.onnx"]
    return out


# Any size from 32 x 32, no multiple of 32 among them.
ODD_SHAPES = [(1, 32, 32), (3, 33, 100), (16, 64, 40)]


def test_onnx_takes_any_batch_and_size(onnx_file: Path, best: Path, rng) -> None:
    run, net = onnx.read_onnx(onnx_file), load_network(best, fused=False)
    for shape in ODD_SHAPES:
        x = images(*shape, rng=rng)
        with torch.no_grad():
            wanted = net(x).sigmoid()
        # An entropy may fall on the other side of its threshold: rarely, and near its place.
        off = (run(x) - wanted).abs().gt(1e-4).flatten(1).any(1).float().mean()
        assert off <= 0.34, shape


def test_onnx_says_what_it_is(onnx_file: Path, best: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert about["architecture"] == "intrasense" and about["output"] == "probabilities"
    assert about["image_size"] == "64" and float(about["threshold"]) == 0.5
    assert about["training_images"] == "2" and about["levels"] == ""
    digest = hashlib.sha256((best / TRAINED_ON).read_bytes()).hexdigest()
    assert about["data_sha256"] == digest
    weights = hashlib.sha256((best / "model.safetensors").read_bytes()).hexdigest()
    assert about["weights_sha256"] == weights
    (image,) = session.get_inputs()
    assert image.shape == ["batch", 1, "height", "width"] and image.type == "tensor(float)"


def test_the_documented_use_needs_onnxruntime_and_numpy_alone(onnx_file: Path) -> None:
    (code,) = re.findall(r'```python title="use.py"\n(.*?)```', DOCUMENT.read_text(), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + code], cwd=onnx_file.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(250, 333) intrasense 64\n"


@pytest.mark.extended
def test_torchscript_takes_any_batch_and_size(best: Path, tmp_path: Path, rng, capsys) -> None:
    out = tmp_path / "network.pt"
    assert export(best, out, "--format", "torchscript", "--output", "logits") == 0
    assert "any batch, sizes from 32 x 32 up" in capsys.readouterr().out
    extra = {"metadata.json": ""}
    module, net = torch.jit.load(out, _extra_files=extra), load_network(best, fused=False)
    assert json.loads(extra["metadata.json"])["output"] == "logits"
    for shape in ODD_SHAPES[:2]:
        x = images(*shape, rng=rng)
        with torch.no_grad():
            off = (module(x).sigmoid() - net(x).sigmoid()).abs().gt(1e-4).flatten(1).any(1)
        assert off.float().mean() <= 0.34, shape


@pytest.mark.parametrize(
    ("flags", "temperature", "tuned"),
    [([], "0.6", "0.4"), pytest.param(["--no-calibration"], "1.0", "", marks=pytest.mark.extended)],
)
def test_probabilities_are_those_of_predict(
    flags: list[str], temperature: str, tuned: str, tmp_path: Path, seed: int, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(write, "few_shapes", lambda: [Shape(1, 32, 32)])
    # Without GCP: no entropy may fall on the other side of a threshold.
    best = tiny_checkpoint(tmp_path / "best", 32, gcp=False)
    weights = sha256_of(best / "model.safetensors")
    write_calibration(best, Calibration(0.6, 0.4, 9, 0.03, 0.01, 0.2, 0.1, 0.7, 0.8, weights))
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)
    pixels = pixels.repeat(4, 0).repeat(4, 1)
    write_png(tmp_path / "one.png", pixels)
    out, folder = tmp_path / "network.pt", tmp_path / "predicted"
    assert export(best, out, "--format", "torchscript", *flags) == 0
    assert ("temperature 0.600" in capsys.readouterr().out) == (not flags)
    extra = {"metadata.json": ""}
    module = torch.jit.load(out, _extra_files=extra)
    about = json.loads(extra["metadata.json"])
    assert (about["temperature"], about["threshold_tuned"]) == (temperature, tuned)
    image = torch.from_numpy(pixels).float()[None, None] / 255
    given = module(image).detach().numpy()[0, 0]
    shared = [str(tmp_path / "one.png"), "--checkpoint", str(best), "--out", str(folder)]
    assert main(["predict", *shared, "--probabilities", "--device", "cpu", *flags]) == 0
    with Image.open(folder / "one_probability.png") as shown:
        predicted = np.asarray(shown) / 65535
    assert given.shape == predicted.shape == (32, 32)
    assert np.abs(given - predicted).max() < 1e-4
    with torch.no_grad():
        logits = load_network(best, fused=False)(image)
    far = (logits.sigmoid() - (logits / 0.6).sigmoid()).abs().max()
    assert far > 1e-3


def test_temperature_of_far_logits_is_that_of_predict() -> None:
    logits = torch.tensor([-40.0, -2.0, 0.0, 2.0, 40.0])
    model = ExportedModel(torch.nn.Identity(), temperature=4.0)
    # By hand: sigmoid of -4, -0.5, 0, 0.5 and 4.
    wanted = torch.tensor([0.01798621, 0.37754067, 0.5, 0.62245933, 0.98201379])
    torch.testing.assert_close(model.probabilities(logits), wanted)
    given = tempered(logits.sigmoid().numpy()[None], 4.0)[0]
    np.testing.assert_allclose(given, wanted.numpy(), atol=1e-6)


@pytest.mark.slow
def test_pt2_takes_any_batch_and_multiples_of_32(best: Path, tmp_path: Path, rng) -> None:
    out = tmp_path / "network.pt2"
    assert export(best, out, "--format", "pt2") == 0
    extra = {"metadata.json": ""}
    module = torch.export.load(out, extra_files=extra).module()
    assert json.loads(extra["metadata.json"])["sizes"].startswith("multiples of 32")
    net = load_network(best, fused=False)
    for shape in [(1, 64, 64), (5, 96, 224)]:
        x = images(*shape, rng=rng)
        with torch.no_grad():
            off = (module(x) - net(x).sigmoid()).abs().gt(1e-4).flatten(1).any(1)
        assert off.float().mean() <= 0.34, shape
    for side in (70, 32):
        with pytest.raises((RuntimeError, AssertionError)):
            module(images(1, side, 64, rng=rng))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format_", "suffix"), [("onnx", "onnx"), ("torchscript", "pt"), ("pt2", "pt2")]
)
def test_every_size_at_every_batch(format_: str, suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = wake(build_network("intrasense", encoder="resnet18", decoder_channels=(16,) * 5)).eval()
    save_network(net, tmp_path / "best", {"image_size": 256})
    flags = ("--format", format_, "--check-all")
    assert export(tmp_path / "best", tmp_path / f"network.{suffix}", *flags) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["cmunet", "eanet", "ebtnet", "emcad", "microsegnet", "rolling-unet", "transunet",
             "unet", "unet-resnet50"]
)  # fmt: skip
def test_networks_export_or_say_why(name: str, tmp_path: Path, capsys) -> None:
    torch.manual_seed(0)
    net = build_network(name).eval()
    save_network(net, tmp_path / "best", {"image_size": 256})
    out = tmp_path / "network.onnx"
    code = export(tmp_path / "best", out, "--format", "onnx")
    said = capsys.readouterr()
    assert (code == 0) == out.exists()
    if code:
        assert code == 2 and said.err.count("\n") <= 2 and name in said.err


@pytest.mark.extended
@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_lower_precision_tells_what_it_costs(
    precision: str, best: Path, tmp_path: Path, capsys, seed: int
) -> None:
    pytest.importorskip("onnx", reason="the extra onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    draw = np.random.default_rng(seed)
    for index in range(3):
        pixels = draw.integers(0, 256, (8, 8), np.uint8).repeat(10, 0).repeat(10, 1)
        write_png(tmp_path / "images" / f"{index}.png", pixels)
    out = tmp_path / "lower.onnx"
    flags = ("--format", "onnx", "--precision", precision, "--calibrate", tmp_path / "images")
    assert export(best, out, *flags) == 0
    said = capsys.readouterr().out
    (dice,) = re.findall(r"with those of float32 on 3 images: (\d\.\d{4})", said)
    # Half of every mask is lesion: two that know nothing of each other have 0.5.
    assert float(dice) > 0.7 and "no ground truth" in said
    assert {path.name for path in tmp_path.iterdir()} == {"images", "lower.onnx"}
    content = pytest.importorskip("onnx").load(str(out))
    kinds = {node.op_type for node in content.graph.node}
    stored = {tensor.data_type for tensor in content.graph.initializer}
    assert "QuantizeLinear" in kinds if precision == "int8" else 10 in stored


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--format", "onnx", "--out", "x.pt"], "must end in .onnx"),
        (["--format", "pt2", "--out", "x.pt2", "--precision", "int8"], "for --format onnx alone"),
        (["--format", "onnx", "--out", "x.onnx", "--precision", "int8"], "give --calibrate FOLDER"),
        (["--format", "onnx", "--out", "x.onnx", "--calibrate", "."], "float16 or int8"),
        (["--format", "onnx", "--out", "x.onnx", "--keep-operators"], "for --format pt2 alone"),
        (["--format", "onnx", "--out", "there.onnx"], "exists, and nothing is overwritten"),
        (["--format", "pt2", "--out", "x.pt2", "--checkpoint", "nowhere"], "no such folder"),
        (["--format", "pt2", "--out", "x.pt2"] + ["--checkpoint", "b"] * 2, "got 2 checkpoints"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    flags: list[str], said: str, best: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    monkeypatch.chdir(tmp_path)
    Path("there.onnx").write_text("mine")
    checkpoint = [] if "--checkpoint" in flags else ["--checkpoint", str(best)]
    assert main(["export", *checkpoint, *flags]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there.onnx"]
    assert Path("there.onnx").read_text() == "mine"


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_names_the_extra(package: str, best, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    assert export(best, tmp_path / "network.onnx", "--format", "onnx") == 2
    error = capsys.readouterr().err
    assert f"needs the package {package}" in error and packages.EXTRA in error
    assert not list(tmp_path.iterdir())


def test_kernels_that_cannot_run_are_refused(best, tmp_path: Path, monkeypatch, capsys) -> None:
    if torch.cuda.is_available():
        pytest.skip("the kernels can run here")
    monkeypatch.setattr(runtime, "interpreting", lambda: False)
    out = tmp_path / "network.pt2"
    assert export(best, out, "--format", "pt2", "--keep-operators") == 2
    assert "--keep-operators: the kernels need" in capsys.readouterr().err and not out.exists()


@pytest.mark.slow
def test_kernels_are_kept_where_asked(best: Path, tmp_path: Path) -> None:
    if not (torch.cuda.is_available() or runtime.interpreting()):
        pytest.skip("the kernels cannot run here; set TRITON_INTERPRET=1")
    out = tmp_path / "network.pt2"
    assert export(best, out, "--format", "pt2", "--keep-operators") == 0
    nodes = torch.export.load(out).graph.nodes
    assert any("intrasense_fast" in str(node.target) for node in nodes)


def test_a_file_that_is_off_is_refused(best: Path) -> None:
    model = ExportedModel(load_network(best, fused=False))

    def run(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(x) + 2e-4

    with pytest.raises(UsageError, match=r"off by 0\.0002 in probability at 1 x 96 x 64"):
        check_file(model, run, [Shape(1, 96, 64)])
    with pytest.raises(UsageError, match=r"does not run at 2 x 96 x 64: .*\(no\)"):
        check_file(model, _fails, [Shape(2, 96, 64)])


def _fails(x: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no")


def test_what_is_lost_is_measured_where_there_is_ground_truth(tmp_path: Path, seed: int) -> None:
    folder = write_pairs(tmp_path / "pairs", 4, seed)
    pictures = read_pictures(str(folder), 32, 3, None)
    assert len(pictures.images) == len(pictures.masks) == 4 and not pictures.remark
    assert all(image.shape == (1, 3, 32, 32) for image in pictures.images)
    masks = iter(torch.from_numpy(mask).float()[None, None] for mask in pictures.masks)
    lost = lost_dice(
        lambda image: next(masks), lambda image: torch.zeros(1, 1, 32, 32), pictures, 0.5
    )
    assert (lost.images, lost.between, lost.before, lost.after) == (4, 0, 1, 0)
    assert "+1.0000 lost" in str(lost)
    with pytest.raises(UsageError, match="NaN or infinite"):
        lost_dice(torch.zeros_like, lambda image: image * torch.nan, pictures, 0.5)


def test_pictures_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--calibrate .*nowhere"):
        read_pictures(str(tmp_path / "nowhere"), 32, 1, None)
    write_png(tmp_path / "whole.png", np.zeros((40, 40), np.uint8))
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    with pytest.raises(UsageError, match=r"cut\.png"):
        read_pictures(str(tmp_path), 32, 1, None)
