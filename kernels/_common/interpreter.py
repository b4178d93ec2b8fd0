"""Triton's interpreter repaired: correct bfloat16, and no work done twice a launch.

Of triton 3.6 to 3.9: bfloat16 casts round to nearest even and tl.dot takes bfloat16 (unrepaired it
returns garbage silently); other arithmetic on bfloat16 is refused, as kernels must compute in
float32.
"""

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

Handle = interpreter.TensorHandle
_Builder = interpreter.InterpreterBuilder
_Executor = interpreter.GridExecutor
BF16_NAN = np.uint16(0x7FC0)

_repaired = False


def repair_interpreter() -> None:
    """Patch the interpreter once. Only where TRITON_INTERPRET=1 was set before triton's import."""
    global _repaired
    if _repaired:
        return
    _repaired = True
    _repair_bfloat16()
    _repair_index()
    _skip_repeated_patching()


def _widen(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _round(values: np.ndarray) -> np.ndarray:
    """float32 to the bits of bfloat16, to nearest even."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    rounded = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), BF16_NAN, rounded)


def _is_bf16(handle) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _repair_bfloat16() -> None:
    cast, fp_to_fp, dot = _Builder.cast_impl, _Builder.create_fp_to_fp, _Builder.create_dot
    apply = interpreter.ReduceScanOpInterface.apply

    def cast_impl(self, source, dtype):
        scalar = dtype.scalar
        if _is_bf16(source) and scalar == tl.bfloat16:
            return Handle(source.data, scalar)
        if _is_bf16(source):
            return Handle(_widen(source.data).astype(interpreter._get_np_dtype(scalar)), scalar)
        if scalar == tl.bfloat16:
            return Handle(_round(source.data.astype(np.float32)), scalar)
        return cast(self, source, dtype)

    def create_fp_to_fp(self, source, dtype, rounding):
        nearest = rounding in (None, interpreter._ir.ROUNDING_MODE.RTNE)
        if nearest and (_is_bf16(source) or dtype.scalar == tl.bfloat16):
            return cast_impl(self, source, dtype)
        return fp_to_fp(self, source, dtype, rounding)

    def create_dot(self, a, b, *rest):
        a, b = (Handle(_widen(x.data), tl.float32) if _is_bf16(x) else x for x in (a, b))
        return dot(self, a, b, *rest)

    def refusing(original):
        def operation(self, *handles):
            if any(isinstance(handle, Handle) and _is_bf16(handle) for handle in handles):
                raise TypeError("arithmetic on bfloat16 in a kernel: cast to tl.float32 first")
            return original(self, *handles)

        return operation

    def reduce_or_scan(self, values):
        for value in values if isinstance(values, tuple) else (values,):
            if getattr(value, "dtype", None) == tl.bfloat16:
                raise TypeError(
                    "reduction or scan on bfloat16 in a kernel: cast to tl.float32 first"
                )
        return apply(self, values)

    _Builder.cast_impl, _Builder.create_fp_to_fp, _Builder.create_dot = (
        cast_impl,
        create_fp_to_fp,
        create_dot,
    )
    _Builder.binary_op, _Builder.unary_op = (
        refusing(_Builder.binary_op),
        refusing(_Builder.unary_op),
    )
    if not hasattr(_Builder, "get_bf16"):
        _Builder.get_bf16 = lambda self, value: self.create_fp_trunc(
            self.get_fp32(value), tl.bfloat16
        )
    interpreter.ReduceScanOpInterface.apply = reduce_or_scan


def _repair_index() -> None:
    """numpy >= 2.4 refuses the one-element arrays that triton <= 3.6 uses as integers."""
    original = interpreter._patch_lang_tensor

    def patch(tensor, scope):
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    interpreter._patch_lang_tensor = patch


def _skip_repeated_patching() -> None:
    """Once a launch is enough: stock triton patches tl on every nested call, 0.5 ms each."""
    call, patch = _Executor.__call__, interpreter._patch_lang
    seen: list[set[int]] = []

    class Nothing:
        def restore(self):
            pass

    def patch_once(function):
        if seen and id(function.__globals__) in seen[-1]:
            return Nothing()
        if seen:
            seen[-1].add(id(function.__globals__))
        return patch(function)

    def run(self, *args, **kwargs):
        seen.append(set())
        try:
            return call(self, *args, **kwargs)
        finally:
            seen.pop()

    _Executor.__call__, interpreter._patch_lang = run, patch_once
