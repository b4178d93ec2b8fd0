"""torch.hub finds the network, also in an archive that lost its symbolic links."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from intrasense_fast import IntraSenseNet
from tests.support.checkpoints import tiny_checkpoint

ROOT = Path(__file__).parents[2]

ARCHIVED = """
import sys, torch
net = torch.hub.load(sys.argv[1], "intrasensenet", source="local", encoder="resnet18",
                     refine_strides=(32,))
import intrasense_fast, intrasense_fast.kernels.bce_dice as operator
assert intrasense_fast.__file__.startswith(sys.argv[1]), intrasense_fast.__file__
assert operator.__file__.startswith(sys.argv[1] + "/kernels/"), operator.__file__
with torch.no_grad():
    print(tuple(net.eval()(torch.rand(1, 1, 32, 32)).shape))
"""


def load(*arguments: object, **options: object) -> torch.nn.Module:
    return torch.hub.load(
        str(ROOT), "intrasensenet", *arguments, source="local", trust_repo=True, **options
    )


def test_a_new_network_and_a_trained_one(tmp_path: Path) -> None:
    net = load(encoder="resnet18", refine_strides=(32,), fused=False)
    assert isinstance(net, IntraSenseNet) and net.config["refine_strides"] == [32]
    folder = tiny_checkpoint(tmp_path / "net")
    trained, same = load(str(folder), fused=False), IntraSenseNet.from_pretrained(folder)
    assert trained.fused is False and not trained.training
    assert torch.equal(trained.decoder.head.bias, same.decoder.head.bias)
    with pytest.raises(ValueError, match="no such folder"):
        load(str(tmp_path / "nothing"))


@pytest.mark.extended
def test_an_archive_without_links_works(tmp_path: Path) -> None:
    files = subprocess.run(
        ["git", "ls-files", "-z", "intrasense_fast", "kernels", "hubconf.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")[:-1]
    for name in [*files, "hubconf.py"]:
        target = tmp_path / "archive" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        # As zip files hold a link: its target as text.
        source = ROOT / name
        target.write_bytes(b"../kernels" if source.is_symlink() else source.read_bytes())
    assert (tmp_path / "archive" / "intrasense_fast" / "kernels").is_file()
    run = subprocess.run(
        [sys.executable, "-P", "-c", ARCHIVED, str(tmp_path / "archive")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "(1, 1, 32, 32)"
