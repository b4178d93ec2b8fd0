"""Configurations measured on a GPU take the tables' place only where they belong."""

import json

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton, which has wheels for Linux only")

import triton

from benchmarks.tuning import search
from intrasense_fast.errors import UsageError
from intrasense_fast.functional import nonlocal_attention, use_tuned_configs
from intrasense_fast.kernels._common import tuned
from intrasense_fast.kernels.nonlocal_attention import configs
from intrasense_fast.kernels.nonlocal_attention.reference import nonlocal_attention as reference

QUESTION = (16, 32, torch.float32, "sm_90", "tf32x3", True)


@pytest.fixture(autouse=True)
def shipped_tables():
    yield
    use_tuned_configs(None)


def saved(tmp_path, **changes):
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    row = {
        "blocks": configs.forward_config(*QUESTION).blocks | {"BLOCK_M": 16},
        "num_warps": 2,
        "num_stages": 1,
    }
    content = {
        "gpu": here,
        "triton": triton.__version__,
        "configs": {tuned.question(configs.forward_config, QUESTION): row},
    }
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps(content | changes))
    return path


def test_a_tuned_configuration_is_used_and_given_up_again(tmp_path, device, rng):
    before = configs.forward_config(*QUESTION)
    assert use_tuned_configs(saved(tmp_path)) == 1
    assert (
        configs.forward_config(*QUESTION).blocks["BLOCK_M"] == 16
        and configs.forward_config(*QUESTION).num_warps == 2
    )
    assert (
        configs.forward_config(16, 48, *QUESTION[2:]).blocks["BLOCK_M"] == before.blocks["BLOCK_M"]
    )
    q, k = (torch.randn(2, 20, 16, generator=rng).to(device) for _ in range(2))
    v, x = (torch.randn(2, 20, 32, generator=rng).to(device) for _ in range(2))
    actual, expected = (
        nonlocal_attention(q, k, v, x, fused=True),
        reference(*(t.double() for t in (q, k, v, x))),
    )
    assert (actual[0] - expected[0]).norm() <= 1e-5 * expected[0].norm()
    assert use_tuned_configs(None) == 0
    assert configs.forward_config(*QUESTION) == before


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"gpu": "another GPU"}, "tune again"),
        ({"triton": "0.0"}, "tune again"),
        ({"configs": {"x": {}}}, "no file of tuned"),
    ],
    ids=("gpu", "triton", "rows"),
)
def test_a_file_from_elsewhere_is_refused(changes, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        use_tuned_configs(saved(tmp_path, **changes))
    assert configs.forward_config(*QUESTION).blocks["BLOCK_M"] != 16


def test_a_truncated_or_missing_file_is_refused(tmp_path):
    path = saved(tmp_path)
    path.write_text(path.read_text()[:40])
    for wrong in (path, tmp_path / "none.json"):
        with pytest.raises(UsageError, match="no file of tuned configurations"):
            use_tuned_configs(wrong)


def test_only_what_beats_the_table_over_all_shapes_is_chosen():
    def row(config, time, shape, problem=""):
        config = config and {"blocks": {"A": config}, "num_warps": 4, "num_stages": 1}
        return {"question": "q", "shape": [shape], "config": config, "us": time, "problem": problem}

    rows = [row(None, 10.0, 1), row(16, 9.0, 1), row(32, 5.0, 1), row(64, None, 1, "spills")]
    rows += [row(None, 10.0, 2), row(16, 9.5, 2), row(32, 50.0, 2), row(64, 1.0, 2)]
    assert search.chosen(rows)["q"]["blocks"] == {"A": 16}
    assert search.chosen([row(None, 1.0, 1), row(16, 2.0, 1)]) == {}


@pytest.mark.parametrize("name", search.subjects())
def test_every_subject_can_be_answered(name):
    subject = search.subjects()[name]
    assert all(list(subject.candidates(shape)) for shape in subject.shapes)
    module = __import__(
        f"intrasense_fast.kernels.{name.split('.')[0]}.configs", fromlist=["configs"]
    )
    assert hasattr(getattr(module, subject.function), "__wrapped__"), (
        f"{subject.function} is not tunable"
    )


def test_the_tuner_needs_a_gpu(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit):
        search.main([])
    assert "torch sees no GPU" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        search.main(["nothing"])
    assert "nonlocal_attention.forward" in capsys.readouterr().err
