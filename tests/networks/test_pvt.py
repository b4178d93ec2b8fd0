"""PVTv2: its blocks against plain formulas, and the loading of its weights."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import conv2d, layer_norm, multi_head_attention_forward

from intrasense_fast.networks.emcad import EMCAD
from intrasense_fast.networks.encoder_weights import EncoderWeightsError
from intrasense_fast.networks.pvt import Block, PVTv2Encoder, ReducedAttention, load_pvt_weights


def torch_attention(query: Tensor, context: Tensor, own: ReducedAttention) -> Tensor:
    """PyTorch's own multi-head attention with the weights of ours."""
    channels = query.shape[-1]
    weights = torch.cat((own.q.weight, own.kv.weight))
    biases = torch.cat((own.q.bias, own.kv.bias))
    rows, _ = multi_head_attention_forward(
        query.transpose(0, 1),
        context.transpose(0, 1),
        context.transpose(0, 1),
        channels,
        own.heads,
        weights,
        biases,
        None,
        None,
        False,
        0.0,
        own.proj.weight,
        own.proj.bias,
        need_weights=False,
    )
    return rows.transpose(0, 1)


@pytest.mark.parametrize("reduction", (1, 2))
def test_attention_equals_pytorchs(reduction: int, rng: torch.Generator):
    attention = ReducedAttention(12, 3, reduction).double()
    tokens = torch.randn(2, 24, 12, generator=rng, dtype=torch.float64)
    context = tokens
    if reduction > 1:
        image = tokens.transpose(1, 2).reshape(2, 12, 4, 6)
        reduced = conv2d(image, attention.sr.weight, attention.sr.bias, stride=2)
        context = layer_norm(reduced.flatten(2).transpose(1, 2), (12,), eps=1e-6)
        assert context.shape == (2, 6, 12)
    torch.testing.assert_close(
        attention(tokens, (4, 6)), torch_attention(tokens, context, attention)
    )


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean(rng, seed):
    torch.manual_seed(seed)
    block = Block(8, 2, 4, 1, drop_path=0.5).double()
    tokens = torch.randn(1, 4, 8, generator=rng, dtype=torch.float64).expand(64, -1, -1)
    attended = block.attn(block.norm1(tokens[:1]), (2, 2))
    kept = block._kept(attended.expand(64, -1, -1))
    dropped = kept.abs().amax((1, 2)) == 0
    assert 0 < dropped.sum() < 64
    torch.testing.assert_close(kept[~dropped], (2 * attended).expand(int((~dropped).sum()), -1, -1))
    block.eval()
    assert torch.equal(block._kept(attended), attended)


def test_stochastic_depth_grows_linearly():
    with torch.device("meta"):
        encoder = PVTv2Encoder("pvtv2_b2")
    rates = [block.drop_path for stage in encoder.stages for block in stage.blocks]
    assert rates == pytest.approx([0.1 * index / 15 for index in range(16)])


def released_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of PVTv2's own release."""
    renamed = {}
    for key, value in weights.items():
        key = re.sub(r"^patch_embed\.", "patch_embed1.", key)
        stage = re.match(r"stages\.(\d)\.(\w+)\.(.*)", key)
        if stage is not None:
            number = int(stage[1]) + 1
            part = {"downsample": "patch_embed", "blocks": "block", "norm": "norm"}[stage[2]]
            key = f"{part}{number}.{stage[3]}"
        renamed[key.replace(".dwconv.", ".dwconv.dwconv.")] = value
    return renamed


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    state = PVTv2Encoder("pvtv2_b0").state_dict()
    head = {"head.weight": torch.zeros(1000, 256), "head.bias": torch.zeros(1000)}
    return {**{key: torch.randn(value.shape) for key, value in state.items()}, **head}


@pytest.mark.parametrize("names", ("timm", "release"))
@pytest.mark.parametrize("suffix", (".pth", ".safetensors"))
def test_weights_are_loaded(names: str, suffix: str, weights: dict[str, Tensor], tmp_path: Path):
    path = tmp_path / f"pvt{suffix}"
    content = released_names(weights) if names == "release" else weights
    if suffix == ".pth":
        torch.save({"state_dict": content}, path)
    else:
        save_file(content, path)
    net = EMCAD(encoder="pvtv2_b0", encoder_weights=path)
    loaded = net.encoder.state_dict()
    assert loaded.keys() == weights.keys() - {"head.weight", "head.bias"}
    for key, value in loaded.items():
        assert torch.equal(value, weights[key]), key


def test_weights_that_do_not_fit_change_nothing(weights: dict[str, Tensor], tmp_path: Path):
    encoder = PVTv2Encoder("pvtv2_b0")
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    wrong = {
        "missing": {key: value for key, value in weights.items() if key != "stages.3.norm.bias"},
        r"\(unknown\)": {**weights, "stages.4.norm.bias": torch.zeros(1)},
        r"stages.0.norm.bias \(\(7,\) for \(32,\)\)": {
            **weights,
            "stages.0.norm.bias": torch.zeros(7),
        },
    }
    for message, content in wrong.items():
        torch.save(content, tmp_path / "wrong.pth")
        with pytest.raises(EncoderWeightsError, match=rf"{message}.*needed is pvtv2_b0"):
            load_pvt_weights(encoder, tmp_path / "wrong.pth", "pvtv2_b0")
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_files_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(EncoderWeightsError, match=r"no such file.*huggingface\.co/timm/pvt_v2_b2"):
        EMCAD(encoder_weights=tmp_path / "absent.pth")
    (tmp_path / "broken.pth").write_bytes(b"no pickle")
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("broken.pth", "broken.safetensors", "list.pth"):
        with pytest.raises(EncoderWeightsError, match=name):
            EMCAD(encoder="pvtv2_b0", encoder_weights=tmp_path / name)
    with pytest.raises(
        TypeError, match="encoder_weights must be None or the path of a file, got 3"
    ):
        EMCAD(encoder="pvtv2_b0", encoder_weights=3)
