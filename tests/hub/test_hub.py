"""Checkpoints go to the Hub and come back the same, checked like any other; errors are one line."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from intrasense_fast import IntraSenseNet
from intrasense_fast.cli import main
from intrasense_fast.data.images import write_png
from intrasense_fast.networks import hub as hub_module
from intrasense_fast.networks import load_network
from intrasense_fast.networks.checksums import write_checksums
from intrasense_fast.networks.hub import FILES, HubError, locate, push_checkpoint
from intrasense_fast.networks.selftest import write_selftest
from tests.support.checkpoints import tiny_checkpoint
from tests.support.fake_hub import Hub, commit_of, fake_hub, use_hub

reason = "needs the extra hub: pip install 'intrasense-fast[hub]'"
huggingface_hub = pytest.importorskip("huggingface_hub", reason=reason)
NAME = "me/breast"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as RUN/last is: network, checksums, self-test, and a training state that stays."""
    folder = tiny_checkpoint(tmp_path_factory.mktemp("run") / "best")
    write_selftest(IntraSenseNet.from_pretrained(folder), folder, 32)
    (folder / "trained_on.json").write_text('{"format": 1, "train": [], "val": []}\n')
    (folder / "training_state.pt").write_bytes(b"a pickle")
    write_checksums(folder)
    return folder


def files_of(checkpoint: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.name in FILES}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with fake_hub() as hub:
        use_hub(monkeypatch, hub.url, tmp_path / "cache")
        monkeypatch.chdir(tmp_path)
        yield hub


@pytest.fixture
def filled(hub: Hub, checkpoint: Path) -> Hub:
    files = files_of(checkpoint)
    hub.repositories[NAME] = [files | {"evil.py": b"raise SystemExit", "pytorch_model.bin": b"0"}]
    return hub


def one_line(error: pytest.ExceptionInfo[ValueError], *parts: str) -> None:
    text = str(error.value)
    assert "\n" not in text and all(part in text for part in parts), text


def test_a_network_goes_there_and_comes_back(hub: Hub) -> None:
    net = IntraSenseNet(encoder="resnet18", refine_strides=(32,), decoder_channels=(8,) * 5)
    net.to(torch.bfloat16).eval()
    address = net.push_to_hub(NAME, {"image_size": 48}, message="first")
    assert address == f"{hub.url}/{NAME}/commit/{commit_of(NAME, 1)}"
    assert sorted(hub.files(NAME)) == ["README.md", "config.json", "model.safetensors"]
    assert json.loads(hub.files(NAME)["config.json"])["image_size"] == 48
    again = IntraSenseNet.from_pretrained(NAME, fused=False)
    assert again.config == net.config and not again.training and again.fused is False
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


@pytest.mark.extended
def test_a_checkpoint_goes_with_its_card_and_without_its_state(hub: Hub, checkpoint: Path) -> None:
    push_checkpoint(checkpoint, NAME)
    assert sorted(hub.files(NAME)) == sorted(files_of(checkpoint))
    assert hub.files(NAME) == files_of(checkpoint)


@pytest.mark.extended
def test_a_card_of_somebody_else_on_the_hub_is_kept(hub: Hub, checkpoint: Path) -> None:
    hub.repositories[NAME] = [{"README.md": b"# mine\n"}]
    push_checkpoint(checkpoint, NAME)
    assert hub.files(NAME)["README.md"] == b"# mine\n" and "config.json" in hub.files(NAME)


def test_only_known_files_are_downloaded(filled: Hub, checkpoint: Path) -> None:
    located = locate(NAME)
    assert located.repository == NAME and located.commit == commit_of(NAME, 0)
    assert sorted(path.name for path in located.folder.iterdir()) == sorted(files_of(checkpoint))
    assert not [line for line in filled.requests if "evil" in line or ".bin" in line]


def test_revisions_are_told_apart(filled: Hub) -> None:
    first = dict(filled.files(NAME))
    config = json.loads(first["config.json"]) | {"image_size": 64}
    changed = {k: v for k, v in first.items() if k != "checksums.json"}
    filled.repositories[NAME].append(changed | {"config.json": json.dumps(config).encode()})
    sizes = [
        json.loads((locate(*arguments).folder / "config.json").read_text())["image_size"]
        for arguments in ((NAME,), (NAME, commit_of(NAME, 0)), (f"{NAME}@{commit_of(NAME, 0)}",))
    ]
    assert sizes == [64, 32, 32]
    with pytest.raises(HubError) as error:
        IntraSenseNet.from_pretrained(NAME, revision="v9")
    one_line(error, NAME, "has no revision 'v9'")


def test_the_cache_serves_offline(filled: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    net = load_network(NAME)
    calls = len(filled.requests)
    again = IntraSenseNet.from_pretrained(NAME, local_files_only=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    offline = load_network(NAME)
    assert len(filled.requests) == calls
    for other in (again, offline):
        assert torch.equal(net.decoder.head.weight, other.decoder.head.weight)
    with pytest.raises(HubError) as error:
        load_network("me/other")
    one_line(error, "me/other", "no whole copy", "offline was asked for", str(Path.cwd() / "cache"))


def test_a_hand_made_cache_serves(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    sha = "0123456789" * 4
    place = tmp_path / "cache" / "models--me--breast"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(sha)
    (place / "snapshots").mkdir()
    (place / "snapshots" / sha).symlink_to(checkpoint)
    assert (
        IntraSenseNet.from_pretrained(NAME, local_files_only=True).config["encoder"] == "resnet18"
    )
    assert not hub.requests


def test_a_local_folder_comes_first(filled: Hub, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "me").mkdir()
    (tmp_path / "me" / "breast").symlink_to(checkpoint)
    located = locate(NAME)
    assert located == (Path(NAME), "", "") and str(located) == NAME and not filled.requests
    with pytest.raises(HubError) as error:
        locate(NAME, "main")
    one_line(error, NAME, "is a folder here", "'main'")


@pytest.mark.parametrize(
    "name", ["run/best", "run/last", "here/missing", "a/b/c", "/a/b", "..", "x"]
)
def test_paths_are_no_names_of_the_hub(hub: Hub, tmp_path: Path, name: str) -> None:
    (tmp_path / "here").mkdir()
    with pytest.raises(ValueError):
        load_network(name)
    assert not hub.requests


def damaged_config(files: dict[str, bytes]) -> None:
    files["config.json"] = files["config.json"].replace(b'"resnet18"', b'"resnet99"')
    del files["checksums.json"]


def foreign_code(files: dict[str, bytes]) -> None:
    config = json.loads(files["config.json"]) | {"architecture": "evil:Net"}
    files["config.json"] = json.dumps(config).encode()
    del files["checksums.json"]


def of_another_library(files: dict[str, bytes]) -> None:
    files["config.json"] = b'{"model_type": "bert"}'


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda files: files.update({"model.safetensors": b"short"}), "checksum"),
        (lambda files: files.pop("model.safetensors"), "model.safetensors"),
        (damaged_config, "describes no network that can be built"),
        (foreign_code, "code from outside this package"),
        (of_another_library, '"architecture" is missing'),
    ],
)
def test_what_arrives_is_checked(filled: Hub, damage, message: str) -> None:
    damage(filled.files(NAME))
    with pytest.raises(ValueError) as error:
        load_network(NAME)
    one_line(error, f"{NAME} of the Hub: ", message)


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (401, "RepoNotFound", "no such repository on"),
        (404, "RepoNotFound", "no such repository on"),
        (403, "GatedRepo", "asks for consent"),
        (403, "Forbidden", "no permission"),
    ],
)
def test_refusals_are_one_line(hub: Hub, status: int, code: str, message: str) -> None:
    hub.refused[NAME] = status, code
    with pytest.raises(HubError) as error:
        IntraSenseNet.from_pretrained(NAME)
    one_line(error, f"{NAME}: ", message, hub.url)


def test_without_a_network_one_line_says_so(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    use_hub(monkeypatch, url, tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HubError) as error:
        IntraSenseNet.from_pretrained(NAME)
    one_line(error, NAME, f"{url} cannot be reached")
    with pytest.raises(HubError) as error:
        push_checkpoint(checkpoint, NAME)
    one_line(error, NAME, url)


def test_nothing_is_pushed_without_permission_name_or_network(
    hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    hub.read_only = True
    with pytest.raises(HubError) as error:
        push_checkpoint(checkpoint, NAME)
    one_line(error, NAME, "no permission", "hf auth login")
    calls = len(hub.requests)
    for name in ("breast", "me/breast@main", "me/b/c"):
        with pytest.raises(HubError) as error:
            push_checkpoint(checkpoint, name)
        one_line(error, name, "owner/name")
    with pytest.raises(ValueError) as error:
        push_checkpoint(tmp_path / "nothing", NAME)
    one_line(error, "no such folder")
    assert len(hub.requests) == calls and not hub.repositories


def test_without_the_library_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(HubError) as error:
        IntraSenseNet.from_pretrained(NAME)
    one_line(error, NAME, "no such folder here", "pip install 'intrasense-fast[hub]'")


def test_the_record_of_training_images_travels() -> None:
    from intrasense_fast.provenance import TRAINED_ON

    assert TRAINED_ON in hub_module.FILES


@pytest.mark.extended
def test_the_library_takes_its_own_variables(checkpoint: Path, tmp_path: Path) -> None:
    """HF_ENDPOINT, HF_HUB_CACHE and HF_HUB_OFFLINE, in processes of their own."""
    import os

    code = """
import sys
from intrasense_fast import IntraSenseNet
for name in sys.argv[1:]:
    print(IntraSenseNet.from_pretrained(name).config["encoder"], flush=True)
"""

    def run(*names: str, **more: str) -> subprocess.CompletedProcess[str]:
        variables = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "cache"), **more}
        root = str(Path(__file__).parents[2])
        return subprocess.run(
            [sys.executable, "-c", code, *names],
            env=variables | {"PYTHONPATH": root},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    with fake_hub() as hub:
        hub.repositories[NAME] = [files_of(checkpoint)]
        first = run(NAME, HF_ENDPOINT=hub.url)
    assert first.stdout == "resnet18\n", first.stderr
    offline = run(NAME, "me/other", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert offline.stdout == "resnet18\n" and offline.returncode, offline.stderr
    assert "me/other: " in offline.stderr and "offline was asked for" in offline.stderr


@pytest.mark.extended
def test_commands_take_a_name_and_say_so(
    filled: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
        write_png(tmp_path / "data" / name / "p.png", pixels // 128 * 255)
    image = str(tmp_path / "data" / "images" / "p.png")
    assert main(["predict", image, "--checkpoint", NAME, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert f"checkpoint: {NAME} of the Hub, commit {commit_of(NAME, 0)[:10]}, in " in shown
    data = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "table")]
    assert main(["evaluate", "--checkpoint", f"{NAME}@main", *data]) == 0
    assert capsys.readouterr().out.count("of the Hub") == 1
    assert main(["predict", image, "--checkpoint", "me/none", "--out", str(tmp_path / "no")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("predict: --checkpoint me/none: ") and error.count("\n") == 1
    assert not (tmp_path / "no").exists()
