"""What is installed is what is in the checkout, beside Hugging Face's `kernels`; imports little."""

import ast
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

QUIET_IMPORT = """
import sys
import intrasense_fast
from intrasense_fast import FusedUnavailableError, IntraSenseNet, IntraSenseOutput, fused_status
import intrasense_fast.functional, intrasense_fast.losses, torch
unwanted = [name for name in ("triton", "matplotlib", "cv2", "kernels") if name in sys.modules]
print(intrasense_fast.__file__, unwanted, torch.cuda.is_initialized())
sys.exit(bool(unwanted) or torch.cuda.is_initialized())
"""

WITHOUT_TRITON = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name == "triton" or name.startswith("triton."):
            raise ModuleNotFoundError("No module named 'triton'", name="triton")
sys.meta_path.insert(0, Absent())
import importlib.util
find = importlib.util.find_spec
def without_triton(name, package=None):
    return None if name == "triton" else find(name, package)
importlib.util.find_spec = without_triton
import torch
from intrasense_fast import FusedUnavailableError, IntraSenseNet, fused_status
status = fused_status(torch.zeros(1))
assert not status.available and "pip install triton" in status.reason, status
net = IntraSenseNet().eval()
with torch.no_grad():
    assert net(torch.rand(1, 1, 32, 32)).shape == (1, 1, 32, 32)
try:
    IntraSenseNet(fused=True).eval()(torch.rand(1, 1, 32, 32))
except FusedUnavailableError as error:
    assert "pip install triton" in str(error), error
else:
    raise SystemExit("fused=True ran without Triton")
"""


def run(*command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TRITON_INTERPRET")}
    result = subprocess.run(
        command, cwd=cwd, env={**clean, **environment}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result


def test_the_kernels_folder_is_a_link_and_no_package_of_its_own():
    link = ROOT / "intrasense_fast" / "kernels"
    assert link.is_symlink() and os.readlink(link) == "../kernels"
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_import_takes_neither_triton_nor_matplotlib_nor_a_gpu():
    run(sys.executable, "-c", QUIET_IMPORT)


def test_everything_eager_works_without_triton():
    run(sys.executable, "-c", WITHOUT_TRITON)


def test_the_kernels_refuse_a_second_import_name():
    code = "import sys; sys.path.insert(0, '.'); import kernels._common"
    result = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode != 0 and "intrasense_fast.kernels" in result.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sdist of the tracked files -> wheel of the sdist."""
    work = tmp_path_factory.mktemp("wheel")
    checkout = work / "checkout"
    run("git", "clone", "-q", "--no-hardlinks", str(ROOT), str(checkout))
    run(sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(work / "sdist"), cwd=checkout)
    (archive,) = (work / "sdist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(work / "unpacked", filter="data")
    (source,) = (work / "unpacked").iterdir()
    pip = (
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(work / "dist"),
        str(source),
    )
    run(*pip)
    (built,) = (work / "dist").glob("*.whl")
    return built


def test_the_wheel_holds_every_module_once(wheel: Path):
    tracked = run("git", "ls-files", "intrasense_fast", "kernels").stdout.split()
    modules = {path for path in tracked if path.endswith(".py")}
    expected = {
        path if path.startswith("intrasense_fast/") else f"intrasense_fast/{path}"
        for path in modules
    }
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if name.endswith(".py")} == expected
    assert "intrasense_fast/py.typed" in names


def test_the_wheel_holds_no_proof_code(wheel: Path):
    """Neither modules of the proof system and the tuner, nor imports of what is not installed."""
    archive = zipfile.ZipFile(wheel)
    modules = [name for name in archive.namelist() if name.endswith(".py")]
    unwanted = {"_proof", "proof", "candidates", "tune", "tuning"}
    assert not [name for name in modules if unwanted & {*Path(name).with_suffix("").parts}]
    for name in modules:
        roots = imported_roots(archive.read(name).decode())
        assert not roots & {"tests", "benchmarks", "conftest", "pytest"}, name


def imported_roots(source: str) -> set[str]:
    """Top-level packages that a module imports anywhere, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


@pytest.mark.extended
def test_the_wheel_works_in_a_clean_environment_beside_hugging_face_kernels(
    wheel: Path, tmp_path: Path
):
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    purelib = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "env")}))
    # Dependencies come from this environment by path: .pth files inside it, such as an editable
    # install's, are not followed.
    (purelib / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        str(wheel),
    )
    result = run(str(python), "-c", QUIET_IMPORT, cwd=tmp_path)
    assert str(purelib) in result.stdout
    run(str(python), "-c", WITHOUT_TRITON, cwd=tmp_path)
    both = (
        "import kernels, intrasense_fast.kernels.bce_dice; "
        "assert hasattr(kernels, 'get_kernel'), kernels"
    )
    run(str(python), "-c", both, cwd=tmp_path)
    run(str(tmp_path / "env" / "bin" / "intrasense-fast"), "--help", cwd=tmp_path)
