"""The encoder against an independent ResNet-50 v1.5, and the loading of its weights."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from intrasense_fast import IntraSenseNet
from intrasense_fast.networks.encoder import ResNetEncoder
from intrasense_fast.networks.encoder_weights import EncoderWeightsError, load_encoder_weights
from tests.support.seeded_weights import seeded_image, seeded_weights

FIXTURES = Path(__file__).parent / "fixtures"
ENCODER = ResNetEncoder(3)
SHAPES: dict[str, list[int]] = json.loads((FIXTURES / "resnet50.json").read_text())


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in seeded_weights(SHAPES).items()}


def test_keys_and_shapes_are_torchvisions() -> None:
    own = {key: list(value.shape) for key, value in ResNetEncoder(3).state_dict().items()}
    assert len(own) == 318
    assert own == SHAPES


def test_features_equal_an_independent_resnet50(weights: dict[str, torch.Tensor]) -> None:
    encoder = ResNetEncoder(3).eval()
    encoder.load_state_dict(weights)
    with torch.no_grad():
        maps = encoder(torch.from_numpy(seeded_image(3, 32, 64)))
    expected = np.load(FIXTURES / "resnet50.npz")
    for stride, features in zip((2, 4, 8, 16, 32), maps, strict=True):
        wanted = torch.from_numpy(expected[f"stride_{stride}"])
        assert features.shape == wanted.shape and features.dtype == torch.float32
        assert wanted.norm() > 1
        assert (features - wanted).norm() <= 1e-5 * wanted.norm()


def test_grey_encoder_equals_three_equal_channels(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(weights, tmp_path / "resnet50.pth")
    grey, colour = ResNetEncoder(1).eval(), ResNetEncoder(3).eval()
    load_encoder_weights(grey, tmp_path / "resnet50.pth")
    load_encoder_weights(colour, tmp_path / "resnet50.pth")
    image = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        for one, three in zip(grey(image), colour(image.expand(-1, 3, -1, -1)), strict=True):
            assert (one - three).norm() <= 1e-5 * three.norm()


@pytest.mark.parametrize(
    "kind",
    [
        *("plain", "module.encoder.", "nested", "safetensors"),
        *(
            pytest.param(p, marks=pytest.mark.extended)
            for p in ("classifier", "module.", "backbone.", "no counters")
        ),
    ],
)
def test_weights_of_every_packaging_load(
    kind: str, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    content: dict = dict(weights)
    path = tmp_path / "weights.pth"
    if kind == "classifier":
        content |= {"fc.weight": torch.randn(1000, 2048), "fc.bias": torch.randn(1000)}
    elif kind.endswith("."):
        content = {kind + key: value for key, value in weights.items()}
    elif kind == "nested":
        content = {
            "epoch": 3,
            "state_dict": {"module." + key: value for key, value in weights.items()},
        }
    elif kind == "no counters":
        content = {
            key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")
        }
    if kind == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file(content, path)
    else:
        torch.save(content, path)
    encoder = ResNetEncoder(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_encoder_weights(encoder, path)
    assert all(torch.equal(value, weights[key]) for key, value in encoder.state_dict().items())


def test_a_few_missing_keys_are_named(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    partial = {key: value for key, value in weights.items() if not key.startswith("layer4.2.conv3")}
    torch.save(partial, tmp_path / "partial.pth")
    with pytest.warns(UserWarning, match=r"Not in the file: layer4\.2\.conv3\.weight$"):
        load_encoder_weights(ResNetEncoder(3), tmp_path / "partial.pth")


@pytest.mark.parametrize(
    ("key", "kind", "message"),
    [
        (
            "conv1.weight",
            lambda w: w.sum(1, keepdim=True),
            r"conv1\.weight \(\(64, 1, 7, 7\) float32 for \(64, 3, 7, 7\) float32\)",
        ),
        ("conv1.weight", lambda w: w.to_sparse(), r"conv1\.weight \(.*sparse_coo for"),
        ("conv1.weight", lambda w: w.to(torch.int8), r"conv1\.weight \(.*int8 for"),
        (
            "bn1.num_batches_tracked",
            lambda w: w.expand(3),
            r"bn1\.num_batches_tracked \(\(3,\) int64 for \(\) int64\)",
        ),
    ],
)
def test_a_few_misshapen_keys_are_named_apart(
    key: str, kind: Callable, message: str, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    partial = {name: value for name, value in weights.items() if name != "layer4.2.conv3.weight"}
    torch.save({**partial, key: kind(weights[key])}, tmp_path / "partial.pth")
    encoder = ResNetEncoder(3)
    before = encoder.state_dict()[key].clone()
    with pytest.warns(
        UserWarning,
        match=r"Not in the file: layer4\.2\.conv3\.weight\. Of another shape or kind: " + message,
    ):
        load_encoder_weights(encoder, tmp_path / "partial.pth")
    assert torch.equal(encoder.state_dict()[key], before)
    assert torch.equal(encoder.layer4[2].conv2.weight, weights["layer4.2.conv2.weight"])


def test_a_sparse_first_convolution_is_not_folded(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(
        {**weights, "conv1.weight": weights["conv1.weight"].to_sparse()}, tmp_path / "sparse.pth"
    )
    with pytest.warns(UserWarning, match=r"kind: conv1\.weight"):
        load_encoder_weights(ResNetEncoder(1), tmp_path / "sparse.pth")


def test_too_few_matches_are_an_error_that_lists_them(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    partial = {key: value for key, value in weights.items() if not key.startswith("layer4")}
    torch.save(partial, tmp_path / "partial.pth")
    encoder = ResNetEncoder(3)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(
        EncoderWeightsError, match=r"only 2\d\d of ResNet-50's 265 keys.*layer4\.0\.conv1\.weight"
    ):
        load_encoder_weights(encoder, tmp_path / "partial.pth")
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


# For the second line's torch.load raises IndexError, KeyError, struct.error and TypeError.
@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint", b"PK\x03\x04truncated"]
    + [b"Repository not found\n", b"h\x00.", b"J\x00.", b"ccollections\nOrderedDict\nN\x85R."],
    ids=repr,
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files_are_named(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(EncoderWeightsError, match="damaged or of another kind"):
        load_encoder_weights(ENCODER, path)


def test_a_changed_byte_is_never_another_error(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(
        {"conv1.weight": torch.zeros(2), "epoch": 3}, path, _use_new_zipfile_serialization=False
    )
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        path.write_bytes(
            content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :]
        )
        with pytest.raises(EncoderWeightsError):
            load_encoder_weights(ENCODER, path)


def test_truncated_file(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(weights, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(EncoderWeightsError, match="damaged"):
        load_encoder_weights(ResNetEncoder(3), path)


def test_missing_file_and_other_content(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="path of a file, got 50"):
        load_encoder_weights(ENCODER, 50)  # type: ignore[arg-type]
    with pytest.raises(EncoderWeightsError, match="no such file"):
        load_encoder_weights(ResNetEncoder(3), tmp_path / "absent.pth")
    torch.save([1, 2, 3], tmp_path / "list.pth")
    with pytest.raises(EncoderWeightsError, match="needed is a state dict"):
        load_encoder_weights(ResNetEncoder(3), tmp_path / "list.pth")


def test_imagenet_comes_from_the_local_cache(
    weights: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("downloaded although the file is in the cache")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(weights, tmp_path / "hub" / "checkpoints" / "resnet50-11ad3fa6.pth")
    net = IntraSenseNet(3, encoder_weights="imagenet")
    assert torch.equal(
        net.encoder.state_dict()["layer3.1.conv2.weight"], weights["layer3.1.conv2.weight"]
    )


def test_imagenet_offline_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("network unreachable")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        EncoderWeightsError, match=r"(?s)resnet50-11ad3fa6\.pth.*TORCH_HOME.*encoder_weights=FILE"
    ):
        IntraSenseNet(encoder_weights="imagenet")


def test_load_state_dict_of_three_channels_into_one_raises_as_pytorch_does(
    weights: dict[str, torch.Tensor],
) -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        ResNetEncoder(1).load_state_dict(weights)
