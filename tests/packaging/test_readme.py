"""What README shows is there and runs."""

import re
from pathlib import Path

import pytest
import torch

from intrasense_fast.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]
TEXT = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "CONTRIBUTING.md", "kernels/README.md")
}


@pytest.mark.parametrize("name", TEXT)
def test_links_lead_somewhere(name: str) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", TEXT[name])
    assert targets
    for target in targets:
        if not target.startswith("http"):
            assert (ROOT / name).parent.joinpath(target).exists(), target


def test_the_python_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT["README.md"], re.DOTALL)
    assert code.count("256, 256") == 2
    names: dict[str, object] = {}
    exec(code.replace("256, 256", "64, 64"), names)
    total, probability = names["total"], names["probability"]
    assert isinstance(total, torch.Tensor) and torch.isfinite(total)
    assert isinstance(probability, torch.Tensor) and probability.shape == (4, 1, 64, 64)
    assert 0 <= probability.min() and probability.max() <= 1


def test_commands_and_flags_exist(capsys: pytest.CaptureFixture[str]) -> None:
    shown = re.findall(r"`python (?:-m intrasense_fast (\w+)|train\.py)([^`]*)`", TEXT["README.md"])
    assert {name or "train" for name, _ in shown} == set(COMMANDS)
    for name, rest in shown:
        assert main([name or "train", "--help"]) == 0
        explained = capsys.readouterr().out
        for flag in re.findall(r"(?<!\S)--?[\w-]+", rest):
            assert flag in explained, (name, flag)


def test_ci_installs_as_readme_says() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for command in ("-c constraints.txt -e '.[test", "-m pytest"):
        assert command in script and command in TEXT["README.md"]
