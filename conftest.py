"""Kernels run in Triton's interpreter where there is no GPU: decided before anything imports
triton."""

import os
import shutil
import subprocess
from pathlib import Path


def _has_gpu() -> bool:
    if Path("/dev/kfd").exists():
        return True
    return (
        shutil.which("nvidia-smi") is not None
        and subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0
    )


if "TRITON_INTERPRET" not in os.environ and not _has_gpu():
    os.environ["TRITON_INTERPRET"] = "1"

import contextlib  # noqa: E402
import importlib.util  # noqa: E402
from collections.abc import Iterator  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

from intrasense_fast.kernels.runtime import use_launch_plans  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HAS_TRITON = importlib.util.find_spec("triton") is not None


# Tests that run only where -m names them.
LEFT_OUT = {
    "slow": "minutes under the interpreter",
    "extended": "more shapes, seeds and faults of what the others cover",
}


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [f"left out: {why} (-m {name})" for name, why in _left_out(config).items()]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if INTERPRETED:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA or ROCm GPU"))
    unwanted = _left_out(config)
    left = [item for item in items if any(map(item.get_closest_marker, unwanted))]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]
    # A file's tests share its fixtures, in one process (pyproject.toml): the longest files first.
    items.sort(key=lambda item: "tests/training/" not in item.nodeid)


def _left_out(config: pytest.Config) -> dict[str, str]:
    """Markers whose tests do not run: those that -m does not name."""
    asked = config.getoption("-m")
    return {name: why for name, why in LEFT_OUT.items() if name not in asked}


@pytest.fixture
def device() -> torch.device:
    """Where fused operators run: the GPU, or the CPU under the interpreter."""
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture
def guarded(seed: int) -> Iterator[None]:
    """Every launch is checked (bounds, races, shuffled order) and fresh memory holds NaN, so that
    an unwritten element shows.

    Automatic in tests/kernels and tests/contract; elsewhere: @pytest.mark.usefixtures("guarded").
    """
    with contextlib.ExitStack() as stack:
        if not INTERPRETED:
            # Budgets of float32 are for float32 convolutions: cuDNN's are TF32 unless told
            # otherwise.
            stack.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
        if INTERPRETED and HAS_TRITON:
            from tests.proof.guard import guard

            stack.enter_context(guard(seed))
        stack.enter_context(_filled_with_nan())
        # Tests change what tables read: no plan outlives its test.
        use_launch_plans(True)
        yield


@contextlib.contextmanager
def _filled_with_nan() -> Iterator[None]:
    import torch.utils.deterministic as settings

    deterministic, fill = (
        torch.are_deterministic_algorithms_enabled(),
        settings.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        settings.fill_uninitialized_memory = fill
