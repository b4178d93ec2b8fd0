"""Fresh random numbers for every test run; the seed is printed with a failure and can be given back
with --seed."""

import os
import random
import zlib
from collections.abc import Generator, Iterator

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed", type=int, default=None, help="repeat the random numbers of an earlier run"
    )


def pytest_configure(config: pytest.Config) -> None:
    given = config.getoption("--seed")
    config.seed = random.SystemRandom().randrange(2**31) if given is None else given
    # One thread here and in child processes: bits depend on their number, and -n uses the cores.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections.append(("random numbers", f"repeat with --seed {item.config.seed}"))
    return report


def pytest_report_header(config: pytest.Config) -> str:
    return f"random seed: {config.seed} (repeat with --seed {config.seed})"


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or fills the cache of whoever runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed of this test's own, fresh every run."""
    return (request.config.seed + zlib.crc32(request.node.nodeid.encode())) % 2**31


@pytest.fixture
def rng(seed: int) -> torch.Generator:
    """A CPU generator of this test's own, fresh every run."""
    return torch.Generator().manual_seed(seed)
