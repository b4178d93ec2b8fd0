"""The scripts under examples/ run, and do what they say."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """`python examples/NAME ARGUMENTS` in this process: what it printed."""

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        with torch.random.fork_rng():
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def largest_difference(text: str) -> float:
    return float(re.search(r"difference (\S+)", text).group(1))


def test_a_unet_of_others_takes_our_attention(run_example) -> None:
    text = run_example("attention_unet.py", "--size", "48")
    assert "logits (2, 1, 48, 48), attention learns: True" in text
    assert "6 x 6 positions" in text and largest_difference(text) <= 1e-5


def test_a_training_loop_with_our_operators_learns(run_example) -> None:
    text = run_example("training_loop.py", "--epochs", "2")
    losses = [float(value) for value in re.findall(r"loss (\S+),", text)]
    scores = [float(value) for value in re.findall(r"soft Dice (\S+)", text)]
    assert len(losses) == len(scores) == 2
    assert losses[1] < losses[0] and scores[1] > scores[0]


@pytest.mark.extended
def test_monai_slides_its_window_over_our_network(run_example) -> None:
    pytest.importorskip("monai", reason="needs MONAI: pip install monai")
    text = run_example("sliding_window.py")
    assert "image (1, 1, 128, 192), probability (1, 1, 128, 192)" in text
    assert largest_difference(text) <= 1e-5


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("attention_unet.py", ["--size", "30"], "--size must be a multiple of 8, at least 8"),
        ("training_loop.py", ["--epochs", "0"], "--epochs must be at least 1, got 0"),
        ("sliding_window.py", ["--window", "16"], "--window must be at least 32"),
    ],
)
def test_bad_arguments_are_one_line(
    run_example, capsys: pytest.CaptureFixture[str], name: str, arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_example(name, *arguments)
    assert exit_.value.code == 2 and message in capsys.readouterr().err
