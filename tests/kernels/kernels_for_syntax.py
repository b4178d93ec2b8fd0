"""One kernel written in several ways, for test_witnesses.py."""

import triton
import triton.language as tl
from triton import language


@triton.jit
def scaled(x, FACTOR: tl.constexpr):
    """What a helper's docstring says does not matter."""
    return x * FACTOR


@triton.jit
def kernel(X, Y, n, SIZE: tl.constexpr):
    """Y = 2 X."""
    i = tl.arange(0, SIZE)
    inside = i < n
    tl.store(Y + i, scaled(tl.load(X + i, mask=inside, other=0.0), 2), mask=inside)


@triton.jit
def times(value, BY: tl.constexpr):
    return value * BY


# fmt: off
@triton.jit
def same(source, target, count, BLOCK: tl.constexpr):
    # Other names, another layout, another alias, a helper of another name called by keyword.
    index = language.arange(
        0, BLOCK)
    valid = (index < count)
    language.store(
        target + index,
        times(BY=2, value=language.load(source + index, mask=valid, other=0.0)), mask=valid)
# fmt: on


@triton.jit
def rearranged(X, Y, n, SIZE: tl.constexpr):
    """Another tree, the same Triton IR: names for what was nested, in the same order."""
    i = tl.arange(0, SIZE)
    inside = i < n
    target = Y + i
    x = tl.load(X + i, mask=inside, other=0.0)
    doubled = scaled(x, 2)
    tl.store(target, doubled, mask=inside)


@triton.jit
def tripled(x, FACTOR: tl.constexpr):
    return x * FACTOR * 1.5


@triton.jit
def other_helper(X, Y, n, SIZE: tl.constexpr):
    """As `kernel`, but what its helper does differs."""
    i = tl.arange(0, SIZE)
    inside = i < n
    tl.store(Y + i, tripled(tl.load(X + i, mask=inside, other=0.0), 2), mask=inside)


@triton.jit
def swapped(X, Y, n, SIZE: tl.constexpr):
    """As `kernel`, but for two names."""
    i = tl.arange(0, SIZE)
    inside = i < n
    tl.store(X + i, scaled(tl.load(Y + i, mask=inside, other=0.0), 2), mask=inside)


@triton.jit
def unbounded(X, Y, n, SIZE: tl.constexpr):
    """As `kernel`, but for a bound."""
    i = tl.arange(0, SIZE)
    inside = i <= n
    tl.store(Y + i, scaled(tl.load(X + i, mask=inside, other=0.0), 2), mask=inside)
