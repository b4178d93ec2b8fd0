"""The front door: help, unknown commands, errors as one line, and the exit codes of signals."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from intrasense_fast import cli
from intrasense_fast.errors import UsageError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], int]], int]:
    """Run the command line with `predict` replaced by a function."""

    def run(function: Callable[[], int]) -> int:
        module = SimpleNamespace(add_arguments=lambda parser: None, run=lambda args: function())
        monkeypatch.setitem(cli.COMMANDS, "predict", ("replaced", "replaced"))
        plain = cli.importlib.import_module
        monkeypatch.setattr(
            cli.importlib,
            "import_module",
            lambda name: module if name == "replaced" else plain(name),
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


@pytest.mark.parametrize("arguments", [[], ["fly"], ["predict"], ["train", "--no-such-flag"]])
def test_bad_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("command_", list(cli.COMMANDS))
def test_every_command_explains_itself(command_: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command_, "--help"]) == 0
    assert "--" in capsys.readouterr().out


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
