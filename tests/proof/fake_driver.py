"""Triton's JIT and C launcher without a GPU: on a CUDA driver whose launches are noted, not done.

    driver = install(folder)
    operator(..., fused=True)  # on CPU tensors
    driver.notes()

What is real: our launchers, Triton's argument binder, specialisation, kernel cache, launch code in
C. What is not: the compiler (a specialisation becomes a number, in milliseconds) and the GPU; no
output is ever written. For a process of its own, where TRITON_INTERPRET is 0.
"""

import ctypes
import itertools
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

SOURCE = Path(__file__).with_name("fake_libcuda.c")
BYTES = {"i1": 1, "u1": 1, "i8": 1, "u8": 1, "i16": 2, "u16": 2, "i32": 4, "u32": 4, "fp32": 4}


class Note(NamedTuple):
    """One launch as the driver was asked for it.

    kernel: its name; function: the number of its specialisation. types, arguments: of those that
    the driver gets, floats as their bits.
    """

    kernel: str
    function: int
    grid: tuple[int, ...]
    block: tuple[int, ...]
    stream: int
    types: tuple[str, ...]
    arguments: tuple[int, ...]


class _RawNote(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("stream", ctypes.c_uint64),
        ("function", ctypes.c_uint64),
        ("arguments", ctypes.c_uint64 * 96),
    )


def compiler() -> str | None:
    """The C compiler that the fake needs, if there is one."""
    return shutil.which("cc") or shutil.which("gcc")


class FakeDriver:
    """The library, its notes, and what the process believes of its device and stream."""

    def __init__(self, library: ctypes.CDLL) -> None:
        library.fake_launches.restype = ctypes.c_uint64
        library.fake_note.restype = ctypes.POINTER(_RawNote)
        library.fake_note.argtypes = (ctypes.c_uint64,)
        self.library = library
        self.stream = 0
        self.compiled: dict[int, tuple[str, tuple[str, ...]]] = {}
        self.numbers = itertools.count(1)

    def only_count(self) -> None:
        """Launches are counted from now on: for timing, in which a note would show."""
        self.library.fake_noting(0)

    def launches(self) -> int:
        """How many there have been."""
        return self.library.fake_launches()

    def notes(self, since: int) -> list[Note]:
        """The launches from number `since` on; at most the last 512 are kept."""
        return [self._note(index) for index in range(since, self.launches())]

    def _note(self, index: int) -> Note:
        raw = self.library.fake_note(index).contents
        name, types = self.compiled[raw.function]
        arguments = tuple(raw.arguments[: raw.count])
        return Note(
            name, raw.function, tuple(raw.grid), tuple(raw.block), raw.stream, types, arguments
        )

    def compile(self, source: Any, target: Any, options: Any = None, **rest: Any) -> Any:
        """In place of triton.compile: a kernel with this specialisation's number for a function."""
        from triton.compiler.compiler import make_backend
        from triton.runtime import driver

        options = {} if options is None else dict(options)
        metadata = SimpleNamespace(
            num_warps=options["num_warps"],
            num_ctas=1,
            cluster_dims=(1, 1, 1),
            shared=0,
            launch_cooperative_grid=False,
            launch_pdl=False,
            global_scratch_size=0,
            global_scratch_align=1,
            profile_scratch_size=0,
            profile_scratch_align=1,
            tensordesc_meta=None,
        )
        types = tuple(kind for kind in source.signature.values() if kind != "constexpr")
        number = next(self.numbers)
        self.compiled[number] = (source.fn.__name__, types)
        sizes = bytes(BYTES.get(kind, 8) for kind in types)
        self.library.fake_function(ctypes.c_uint64(number), len(sizes), sizes)
        return SimpleNamespace(
            src=source,
            function=number,
            metadata=metadata,
            packed_metadata=make_backend(target).pack_metadata(metadata),
            run=driver.active.launcher_cls(source, metadata),
            launch_metadata=lambda *_: None,
        )


def install(folder: Path) -> FakeDriver:
    """Build the library in `folder`, and let Triton and the operators use it from now on.

    Raises:
        RuntimeError: no C compiler, or Triton interprets.
    """
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        raise RuntimeError("the fake driver needs a process with TRITON_INTERPRET=0")
    library = _built(folder)
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
    os.environ["TRITON_CACHE_DIR"] = str(folder / "cache")
    driver = FakeDriver(ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL))

    import triton
    import triton.compiler
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.driver import CudaDriver, CudaLauncher, CudaUtils

    class Active(CudaDriver):
        def __init__(self) -> None:
            self.utils, self.launcher_cls = CudaUtils(), CudaLauncher
            self.get_device_capability = lambda device=0: (9, 0)
            self.get_current_stream = lambda device: driver.stream
            self.get_current_device = lambda: 0
            self.set_current_device = lambda device: None

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

    triton.runtime.driver.set_active(Active())
    triton.compiler.compile = driver.compile
    _believe()
    return driver


def _believe() -> None:
    """Operators take CPU tensors as they do in the interpreter, which there is none to repair."""
    from intrasense_fast.kernels import runtime
    from intrasense_fast.kernels._common import launch

    runtime.interpreting = lambda: True
    launch._repair_bfloat16 = lambda args: None


def _built(folder: Path) -> Path:
    found = compiler()
    if found is None:
        raise RuntimeError("the fake driver needs a C compiler (cc or gcc)")
    library = folder / "libcuda.so.1"
    name = "-Wl,-soname,libcuda.so.1"
    subprocess.run(
        [found, "-shared", "-fPIC", "-O1", name, "-o", library, SOURCE],
        check=True,
        capture_output=True,
    )
    link = folder / "libcuda.so"
    link.unlink(missing_ok=True)
    link.symlink_to(library.name)
    return library
