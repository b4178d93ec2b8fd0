"""The front door: help, unknown commands, errors as one line, and the exit codes of signals."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from intrasense_fast import cli
from intrasense_fast.console import progress, show_next
from intrasense_fast.errors import UsageError
from intrasense_fast.version import __version__

ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], int]], int]:
    """Run the command line with `predict` replaced by a function."""

    def run(function: Callable[[], int]) -> int:
        module = SimpleNamespace(add_arguments=lambda parser: None, run=lambda args: function())
        plain = cli.importlib.import_module
        monkeypatch.setattr(
            cli.importlib,
            "import_module",
            lambda name: module if name.endswith("commands.predict") else plain(name),
        )
        return cli.main(["predict"])

    return run


def fail(error: BaseException) -> Callable[[], int]:
    def function() -> int:
        raise error

    return function


def kill(number: signal.Signals) -> Callable[[], int]:
    def function() -> int:
        os.kill(os.getpid(), number)
        time.sleep(10)
        raise AssertionError(f"{number.name} stopped nothing")

    return function


def test_help_and_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "intrasense_fast", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0 and all(name in done.stdout for name in cli.COMMANDS), done.stderr
    done = subprocess.run(
        [sys.executable, "train.py", "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0 and "--encoder-weights" in done.stdout, done.stderr
    assert cli.main(["--version"]) == 0


@pytest.mark.parametrize(
    ("arguments", "usage", "message"),
    [
        ([], "intrasense-fast ", "required: COMMAND"),
        (["fly"], "intrasense-fast ", "there is no command 'fly'"),
        (["trian"], "intrasense-fast ", "did you mean train?"),
        (
            ["predict"],
            "intrasense-fast predict ",
            "required: IMAGE|CLIP|FOLDER, --checkpoint, --out",
        ),
        (["train", "--no-such-flag"], "intrasense-fast train ", "arguments: --no-such-flag"),
        (["train", "--epoch", "3"], "intrasense-fast train ", "did you mean --epochs?"),
        (["verify", "--lay=x", "."], "intrasense-fast verify ", "did you mean --layout?"),
    ],
    ids=str,
)
def test_bad_usage_is_2_and_shows_the_usage_of_its_command(
    arguments: list[str], usage: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"usage: {usage}") and message in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "--lr", "fast"],
            "intrasense-fast train: error: argument --lr: invalid float value: 'fast'; "
            "see intrasense-fast train --help",
        ),
        (
            ["phantom", "--out", "x", "-n", "few"],
            "intrasense-fast phantom: error: argument -n/--count: invalid int value: 'few'; "
            "see intrasense-fast phantom --help",
        ),
    ],
)
def test_a_bad_value_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err == message + "\n"


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"usage: intrasense-fast {name}" in shown and "python -m" not in shown
    assert cli.main([name, "--version"]) == 0
    assert capsys.readouterr().out == f"intrasense-fast {__version__}\n"


def test_nothing_imports_a_command() -> None:
    """Commands are ends: only the front door reaches them, by name."""
    folder = ROOT / "intrasense_fast"
    for file in [*folder.rglob("*.py"), ROOT / "train.py"]:
        text = file.read_text(encoding="utf-8")
        allowed = ("arguments", "places", "studies") if file.parent.name == "commands" else ()
        imports = re.findall(r"from intrasense_fast\.commands(?:\.(\w+))? import", text)
        assert set(imports) <= set(allowed), file


@pytest.mark.parametrize("title", ["epoch 100/100", "predict", "selection"])
def test_a_progress_bar_keeps_its_bar_at_80_columns(title: str) -> None:
    stream = io.StringIO()
    with progress(1000, title, "step", ncols=80, file=stream, ascii=" #") as bar:
        bar.set_postfix({"loss": "616642.675", "Dice": "0.209"}, refresh=False)
        bar.update(500)
        bar.refresh()
        text = str(bar)
    assert len(text) <= 80
    assert text.split("|")[1].count("#") >= 4 and "Dice=0.209" in text


def test_the_next_command_can_be_typed(capsys: pytest.CaptureFixture[str]) -> None:
    show_next("train", "--data", "my data")
    assert capsys.readouterr().out == "next: intrasense-fast train --data 'my data'\n"


def test_results_of_commands_are_exit_codes(command: Callable[[Callable[[], int]], int]) -> None:
    assert [command(lambda code=code: code) for code in (0, 1)] == [0, 1]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UsageError("--size must be at least 32"), "predict: --size must be at least 32"),
        (PermissionError(13, "Permission denied", "a.png"), "predict: a.png: Permission denied"),
        (
            OSError(28, "No space left on device", "out.png"),
            "predict: out.png: No space left on device",
        ),
    ],
)
def test_errors_are_one_line_and_2(
    error: Exception,
    message: str,
    command: Callable[[Callable[[], int]], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(fail(error)) == 2
    assert capsys.readouterr().err.strip() == message


def test_a_fault_of_ours_is_not_hidden(command: Callable[[Callable[[], int]], int]) -> None:
    with pytest.raises(ZeroDivisionError):
        command(fail(ZeroDivisionError()))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(
    number: signal.Signals, code: int, command: Callable[[Callable[[], int]], int]
) -> None:
    # A process that was started in the background may ignore SIGINT.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        before = signal.getsignal(signal.SIGTERM)
        assert command(kill(number)) == code
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGINT, ours)
