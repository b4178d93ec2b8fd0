"""What README shows is there and runs."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from intrasense_fast.cli import COMMANDS, main
from intrasense_fast.data.images import write_png
from tests.support.checkpoints import tiny_checkpoint

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "kernels/README.md"]
DOCUMENTS += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
TEXT = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}


@pytest.mark.parametrize("name", TEXT)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT[name]):
        if not target.startswith("http"):
            assert (ROOT / name).parent.joinpath(target).exists(), target


def code_of(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", TEXT[name], re.DOTALL)


@pytest.mark.parametrize("name", [name for name in TEXT if code_of(name)])
def test_python_blocks_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """In a folder that holds what the documents name: a checkpoint and an image."""
    monkeypatch.chdir(tmp_path)
    tiny_checkpoint(tmp_path / "RUN" / "best")
    pixels = np.random.default_rng(seed).integers(0, 256, (50, 70), np.uint8)
    write_png("image.png", pixels)
    for code in code_of(name):
        # The front page's image size, smaller.
        names: dict[str, object] = {"__name__": "a_document"}
        exec(code.replace("256, 256", "64, 64"), names)
        if "trained" in names:
            assert names["probability"].shape == (50, 70)  # type: ignore[attr-defined]


def test_the_front_page_trains_and_predicts() -> None:
    first, *_ = code_of("README.md")
    assert first.count("256, 256") == 2
    names: dict[str, object] = {}
    exec(first.replace("256, 256", "64, 64"), names)
    total, probability = names["total"], names["probability"]
    assert isinstance(total, torch.Tensor) and torch.isfinite(total)
    assert isinstance(probability, torch.Tensor) and probability.shape == (4, 1, 64, 64)
    assert 0 <= probability.min() and probability.max() <= 1


def test_the_front_page_is_one_page() -> None:
    assert TEXT["README.md"].count("\n") <= 110


@pytest.mark.parametrize("name", TEXT)
def test_commands_and_flags_exist(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = re.findall(r"(?:intrasense-fast (\w+)|python train\.py)([^`\n]*)", TEXT[name])
    for command, rest in shown:
        assert main([command or "train", "--help"]) == 0
        explained = capsys.readouterr().out
        for flag in re.findall(r"(?<!\S)--?[a-z][\w-]*", rest.partition("#")[0]):
            assert flag in explained, (command, flag)


def test_the_front_page_shows_every_command() -> None:
    shown = re.findall(r"`(?:intrasense-fast (\w+)|python train\.py)", TEXT["README.md"])
    assert {command or "train" for command in shown} == set(COMMANDS)


def test_ci_installs_as_readme_says() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for command in ("-c constraints.txt -e '.[test", "-m pytest"):
        assert command in script and command in TEXT["README.md"]
