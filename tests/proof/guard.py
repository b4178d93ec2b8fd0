"""A guard for interpreted kernels that a GPU's memory and race checkers would envy.

`guard()` checks every lane of every load and store against the tensors of the launch, fills
masked-off lanes of loads without `other` with NaN, looks for races between programs, and runs the
programs in a shuffled order. The interpreter is repaired first (kernels/_common/interpreter.py).
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

from intrasense_fast.kernels._common.interpreter import BF16_NAN, Handle, repair_interpreter

_Builder = interpreter.InterpreterBuilder
_Executor = interpreter.GridExecutor
_EXACT = {"add": np.add, "sub": np.subtract, "mul": np.multiply}

_guard: "Guard | None" = None
_installed = False


def install() -> None:
    """Repair and hook the interpreter, once."""
    global _installed
    repair_interpreter()
    if _installed:
        return
    _installed = True
    _hook_memory()
    _hook_end_of_launch()
    _check_overflow_at_once()


def _check_overflow_at_once() -> None:
    """Integer overflow in one numpy operation a sum or product: stock triton takes fifteen of its
    own, half of a launch's time."""
    check = TritonSemantic.binary_op_sanitize_overflow_impl

    def checked(self, lhs, rhs, binary_op):
        kind = lhs.type.scalar
        if not isinstance(self.builder, _Builder):
            return check(self, lhs, rhs, binary_op)
        if kind.int_bitwidth >= 64:
            return None
        exact = _EXACT[binary_op.__name__](
            lhs.handle.data.astype(np.int64), rhs.handle.data.astype(np.int64)
        )
        if exact.min() < kind.get_int_min_value() or exact.max() > kind.get_int_max_value():
            raise OverflowError(f"int{kind.int_bitwidth} overflow in {binary_op.__name__}")
        return None

    TritonSemantic.binary_op_sanitize_overflow_impl = checked


def _hook_end_of_launch() -> None:
    call = _Executor.__call__

    def run(self, *args, **kwargs):
        result = call(self, *args, **kwargs)
        if _guard is not None:
            _guard.end()
        return result

    _Executor.__call__ = run


def _poison(pointers, shape):
    element = pointers.get_element_ty()
    if element == tl.bfloat16:
        return Handle(np.full(shape, BF16_NAN), element)
    dtype = np.dtype(interpreter._get_np_dtype(element))
    value = np.nan if dtype.kind == "f" else (True if dtype.kind == "b" else np.iinfo(dtype).max)
    return Handle(np.full(shape, value, dtype), element)


def _hook_memory() -> None:
    start, load, store, atomic = (
        _Executor._init_args_hst,
        _Builder.create_masked_load,
        _Builder.create_masked_store,
        _Builder.create_atomic_rmw,
    )
    set_dim, set_index = _Builder.set_grid_dim, _Builder.set_grid_idx

    def init_args(self, args, kwargs):
        host = start(self, args, kwargs)
        if _guard is not None:
            _guard.begin(self.fn.__name__, [*host[0], *host[1].values()])
        return host

    def masked_load(self, pointers, mask, other, *rest):
        if _guard is not None:
            _guard.check("load", pointers, mask)
            if other is None and not mask.data.all():
                other = _poison(pointers, pointers.data.shape)
        return load(self, pointers, mask, other, *rest)

    def masked_store(self, pointers, value, mask, *rest):
        if _guard is not None:
            _guard.check("store", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def atomic_rmw(self, operation, pointers, value, mask, *rest):
        if _guard is not None:
            _guard.check("atomic", pointers, mask)
        return atomic(self, operation, pointers, value, mask, *rest)

    def grid_dim(self, *sizes):
        if _guard is not None:
            _guard.grid(sizes)
        return set_dim(self, *sizes)

    def grid_index(self, *index):
        return set_index(self, *(index if _guard is None else _guard.program(index)))

    _Executor._init_args_hst = init_args
    _Builder.create_masked_load, _Builder.create_masked_store = masked_load, masked_store
    _Builder.create_atomic_rmw, _Builder.set_grid_dim, _Builder.set_grid_idx = (
        atomic_rmw,
        grid_dim,
        grid_index,
    )


class Guard:
    """The checks of one `guard()` block; one launch at a time."""

    def __init__(self, seed: int, races: bool) -> None:
        self.random, self.races = np.random.default_rng(seed), races

    def begin(self, kernel: str, arguments: list) -> None:
        self.kernel, self.current = kernel, -1
        self.touched: dict[str, list[tuple[int, np.ndarray]]] = {
            "load": [],
            "store": [],
            "atomic": [],
        }
        extents = []
        for argument in arguments:
            tensor = getattr(argument, "base", argument)
            if hasattr(tensor, "data_ptr") and tensor.numel():
                elements = 1 + sum(
                    (size - 1) * stride
                    for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
                )
                extents.append(
                    (tensor.data_ptr(), tensor.data_ptr() + elements * tensor.element_size())
                )
        extents.sort()
        self.low = np.array([low for low, _ in extents], np.uint64)
        # Views of one storage overlap: the furthest end so far belongs to all of them.
        self.high = np.maximum.accumulate(
            np.array([high for _, high in extents] or [0], np.uint64)
        )[: len(extents)]

    def grid(self, sizes: tuple[int, ...]) -> None:
        if sizes[1] > 65535 or sizes[2] > 65535:
            limit = "the second and third axes are limited to 65535 on CUDA"
            raise ValueError(f"{self.kernel}: grid {sizes}: {limit}")
        self.sizes, self.order = sizes, self.random.permutation(int(np.prod(sizes)))

    def program(self, index: tuple[int, ...]) -> tuple[int, ...]:
        self.current = int(self.order[np.ravel_multi_index(index, self.sizes)])
        return tuple(int(i) for i in np.unravel_index(self.current, self.sizes))

    def check(self, kind: str, pointers, mask) -> None:
        addresses, active = np.broadcast_arrays(pointers.data, mask.data.astype(bool))
        addresses = addresses[active].ravel()
        if not addresses.size:
            return
        size = np.uint64(max(1, pointers.get_element_ty().primitive_bitwidth // 8))
        owner = np.searchsorted(self.low, addresses, side="right") - 1
        outside = (owner < 0) | (addresses + size > self.high[np.maximum(owner, 0)])
        if outside.any():
            first = int(np.argmax(outside))
            offset = int(addresses[first]) - int(self.low[max(int(owner[first]), 0)])
            raise IndexError(
                f"{self.kernel}: out-of-bounds {kind} by program {self.current}: "
                f"{int(outside.sum())} of {addresses.size} lanes, "
                f"first at {offset} bytes from its tensor"
            )
        if self.races:
            self.touched[kind].append((self.current, np.unique(addresses)))

    def end(self) -> None:
        if not self.races:
            return
        for first, second in (
            ("store", "store"),
            ("store", "load"),
            ("store", "atomic"),
            ("atomic", "load"),
        ):
            if _clash(self._all(first), self._all(second)):
                raise RuntimeError(f"{self.kernel}: {first}/{second} race between programs")

    def _all(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """(addresses, programs) of every access of one kind."""
        entries = self.touched[kind]
        if not entries:
            return np.array([], np.uint64), np.array([], np.int64)
        return np.concatenate([a for _, a in entries]), np.concatenate(
            [np.full(a.size, p) for p, a in entries]
        )


def _clash(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> bool:
    """Whether two programs touched one address, one as in `first`, the other as in `second`."""
    (a, p), (b, q) = first, second
    if not a.size or not b.size:
        return False
    order = np.lexsort((p, a))
    a, p = a[order], p[order]
    start, stop = np.searchsorted(a, b, "left"), np.searchsorted(a, b, "right") - 1
    found = stop >= start
    # Sorted by program within an address: another one is there if the first or the last one is.
    other = (p[np.minimum(start, a.size - 1)] != q) | (p[np.maximum(stop, 0)] != q)
    return bool((found & other).any())


@contextlib.contextmanager
def guard(seed: int = 0, races: bool = True) -> Iterator[None]:
    """Check every access of every launch inside the block; `seed` fixes the programs' order.

    Raises (from the launch):
        IndexError: a lane outside the tensors of the launch (wrapped in triton's InterpreterError).
        RuntimeError: two programs of one launch touched an address, at least one of them writing.
    """
    global _guard
    install()
    outer, _guard = _guard, Guard(seed, races)
    try:
        yield
    finally:
        _guard = outer
