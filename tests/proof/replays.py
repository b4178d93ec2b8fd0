"""What a replayed plan asks the driver for, against the slow path: see `differences`.

python -m tests.proof.replays [--widen]: every operator on the shapes of its contract, a line of
JSON a row: {"row", "launches", "planned", "differences"} and of a replay "calls" of Python
functions, "allocations", "copies". Of the shape "odd" also changes that need a plan of their own.
A process of its own (fake_driver.py).
"""

import contextlib
import importlib
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from tests.proof.fake_driver import FakeDriver, Note, install

FORMATS = (torch.contiguous_format, torch.channels_last)


class Asked(NamedTuple):
    """A call's launches with addresses that other tensors' launches can be compared with.

    launches: grid, block, stream, function and arguments, a pointer as (what, which, offset,
    its remainder by 16). pieces: [start, end) of every tensor that was written or read.
    """

    launches: list[tuple]
    pieces: list[tuple[int, int]]


def twins(args: Sequence[Any]) -> list[Any]:
    """The arguments in other memory: the same strides and alignment, and sharing as they share."""
    copies: dict[int, Tensor] = {}
    return [_twin(arg, copies) if isinstance(arg, Tensor) else arg for arg in args]


def _twin(tensor: Tensor, copies: dict[int, Tensor]) -> Tensor:
    if not tensor.numel():
        return tensor.new_empty(tensor.shape)
    storage = tensor.untyped_storage()
    start = storage.data_ptr()
    if start not in copies:
        # An odd place, as far from 16-byte alignment as the original.
        memory = torch.empty(storage.nbytes() + 272, dtype=torch.uint8)
        skipped = 256 + (start - memory.data_ptr()) % 16
        copies[start] = memory[skipped:]
    memory = copies[start]
    offset = memory.storage_offset() + tensor.data_ptr() - start
    twin = torch.empty(0, dtype=tensor.dtype)
    size = tensor.element_size()
    if offset % size:
        raise ValueError(f"{tensor.dtype} at {offset} bytes")
    return twin.set_(memory.untyped_storage(), offset // size, tensor.shape, tensor.stride())


def asked(driver: FakeDriver, run: Callable[[], Any], args: Sequence[Any]) -> tuple[Asked, Any]:
    """What `run()`, which takes `args`, asks for; and what it returns.

    Memory of a call must not be used twice in it: the caller keeps temporaries alive.
    """
    since = driver.launches()
    result = run()
    notes = driver.notes(since)
    outputs = [result] if isinstance(result, Tensor) else list(result)
    places = {}
    for what, tensors in (("output", outputs), ("input", [a for a in args if _is_tensor(a)])):
        for index, tensor in reversed(list(enumerate(tensors))):
            begin = tensor.data_ptr()
            if begin:
                places[(what, index)] = (begin, begin + _extent(tensor))
    temporary: dict[int, int] = {}
    launches = [_launch(note, places, temporary) for note in notes]
    return Asked(launches, sorted(places.values())), result


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _extent(tensor: Tensor) -> int:
    if not tensor.numel():
        return 0
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return (1 + sum((size - 1) * stride for size, stride in pairs)) * tensor.element_size()


def _launch(note: Note, places: dict, temporary: dict[int, int]) -> tuple:
    arguments = [
        _place(value, places, temporary) if kind.startswith("*") else (kind, value)
        for kind, value in zip(note.types, note.arguments, strict=True)
    ]
    return (note.kernel, note.function, note.grid, note.block, note.stream, tuple(arguments))


def _place(address: int, places: dict, temporary: dict[int, int]) -> tuple:
    """Exact starts first: views of one storage overlap."""
    owners = [key for key, (begin, _) in places.items() if begin == address]
    owners += [key for key, (begin, end) in places.items() if begin < address < end]
    if owners:
        return (*owners[0], address - places[owners[0]][0], address % 16)
    return ("temporary", temporary.setdefault(address, len(temporary)), 0, address % 16)


def differences(
    driver: FakeDriver, planner: Any, args: Sequence[Any]
) -> tuple[list[str], int, bool]:
    """How a recorded and a replayed call differ from the slow path, how many launches, if planned.

    The replay gets the arguments' twins: the same key at other addresses, on another stream.
    """
    from intrasense_fast.kernels._common.launch import Launch, recording

    kept: list[Launch] = []

    def keep(launch: Launch) -> None:
        kept.append(launch)
        launch.start()

    def slowly() -> Any:
        with recording(keep):
            return planner(*args)

    slow, _ = asked(driver, slowly, args)
    first, _ = asked(driver, lambda: planner(*args), args)
    before = planner.status()
    other = twins(args)
    driver.stream = 7
    again, _ = asked(driver, lambda: planner(*other), other)
    driver.stream = 0
    planned = planner.status().replayed == before.replayed + 1
    again = again._replace(launches=[(*n[:4], n[4] - 7, n[5]) for n in again.launches])
    found = []
    for what, one in (("recorded", first), ("replayed", again)):
        # Where nothing keeps temporaries, one address may have served two of them.
        if (what == "replayed" and planned) and one.launches != slow.launches:
            found += [f"{what}: {_first_difference(slow.launches, one.launches)}"]
        elif _without_temporaries(one.launches) != _without_temporaries(slow.launches):
            found += [f"{what}: {_first_difference(slow.launches, one.launches)}"]
    if planned:
        found += _overlaps(planner, kept)
    return found, len(slow.launches), planned


def _without_temporaries(launches: list[tuple]) -> list[tuple]:
    return [(*launch[:5], [a for a in launch[5] if a[0] != "temporary"]) for launch in launches]


def _first_difference(slow: list[tuple], other: list[tuple]) -> str:
    for index, (one, two) in enumerate(itertools.zip_longest(slow, other)):
        if one != two:
            return f"launch {index}: {one} became {two}"
    return "none"


def _overlaps(planner: Any, kept: list) -> list[str]:
    """Pieces of the workspace that are too small or shared, by the temporaries' own sizes."""
    from intrasense_fast.kernels._common.steps import Pointer

    plan = next(reversed(planner.plans.values()))
    steps = [step for step in plan.steps if hasattr(step, "arguments")]
    last = len(plan.outputs) + planner.tensors
    pieces: dict[int, int] = {}
    for step, launch in zip(steps, kept, strict=True):
        tensors = [a for a in launch.args if isinstance(a, Tensor)]
        pointers = [a for a in step.arguments if isinstance(a, Pointer)]
        for pointer, tensor in zip(pointers, tensors, strict=True):
            if pointer.slot == last:
                storage = tensor.untyped_storage()
                begin = pointer.offset - (tensor.data_ptr() - storage.data_ptr())
                pieces[begin] = max(pieces.get(begin, 0), begin + storage.nbytes())
    found, end = [], 0
    for begin, finish in sorted(pieces.items()):
        if begin < end:
            found.append(f"the workspace's bytes {begin} to {end} belong to two tensors")
        end = max(end, finish)
    if end > plan.workspace:
        found.append(f"the workspace ends at {plan.workspace}, its last tensor at {end}")
    return found


def rows(widen: bool) -> Any:
    """(contract, what, Row) of the contract matrix; widened: every dtype and format."""
    from tests.proof.records import Row
    from tests.proof.registry import contracts

    everything = (torch.float32, torch.bfloat16, torch.float16)
    for contract in contracts():
        for what, shape in contract.shapes.items():
            # TF32 is float32's: the settings are tried on "odd".
            dtypes = everything if widen or what == "odd" else (torch.bfloat16,)
            for memory_format in FORMATS:
                for dtype in dtypes:
                    row = Row(shape, dtype, memory_format)
                    yield contract, f"{contract.name} {what} {memory_format} {dtype}", row


def unaligned(args: Sequence[Any]) -> list[Any]:
    """The arguments in memory that starts 8 bytes beyond a multiple of 16."""
    return [_moved(arg) if isinstance(arg, Tensor) else arg for arg in args]


def _moved(tensor: Tensor) -> Tensor:
    if not tensor.numel():
        return tensor
    count = _extent(tensor) // tensor.element_size()
    skipped = 8 // tensor.element_size()
    memory = torch.empty(count + skipped, dtype=tensor.dtype)
    return memory.as_strided(tensor.shape, tensor.stride(), skipped)


def shared(args: Sequence[Any]) -> list[Any]:
    """The same tensor for all that have one shape, strides and dtype."""
    first: dict[tuple, Tensor] = {}
    same = lambda t: first.setdefault((t.shape, t.stride(), t.dtype), t)
    return [same(arg) if isinstance(arg, Tensor) else arg for arg in args]


@contextlib.contextmanager
def _high() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def host_work(planner: Any, args: Sequence[Any]) -> dict[str, int]:
    """What a replay does on the host, in counts that do not jitter."""
    count = 0

    def profile(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(profile)
    try:
        planner(*args)
    finally:
        sys.setprofile(None)
    plan = next(reversed(planner.plans.values()))
    copies = sum(type(step).__name__ == "CopyStep" for step in plan.steps)
    allocations = len(plan.outputs) + bool(plan.workspace)
    return {"calls": count, "allocations": allocations, "copies": copies}


def main(widen: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        driver = install(Path(folder))
        for contract, what, row in rows(widen):
            importlib.import_module(f"intrasense_fast.kernels.{contract.name}.autograd")
            generator = torch.Generator().manual_seed(0)
            for name, args in contract.samples(row, generator).items():
                _print_rows(driver, name, what, args, changed=row.shape == contract.shapes["odd"])


def _print_rows(
    driver: FakeDriver, name: str, what: str, args: Sequence[Any], changed: bool
) -> None:
    from intrasense_fast.kernels._common import plan, steps
    from intrasense_fast.kernels._common.configs import assume

    planner = plan._planners[name]

    def show(label: str, args: Sequence[Any]) -> None:
        found, launches, planned = differences(driver, planner, args)
        row = {"row": label, "launches": launches, "planned": planned, "differences": found}
        work = host_work(planner, args) if planned else {}
        print(json.dumps(row | work), flush=True)

    show(f"{name} {what}", args)
    if not changed:
        return
    # Beside a plan that must not serve them.
    show(f"{name} {what}: unaligned", unaligned(args))
    show(f"{name} {what}: shared", shared(args))
    with assume("sm_80"):
        show(f"{name} {what}: sm_80", args)
    with _high():
        show(f"{name} {what}: high", args)
    with mock.patch.object(steps, "_is_direct", lambda run: False):
        plan.enable(True)
        show(f"{name} {what}: through run()", args)
    plan.enable(True)
    show(f"{name} {what}: shared", shared(args))
    show(f"{name} {what}", args)


if __name__ == "__main__":
    main("--widen" in sys.argv[1:])
