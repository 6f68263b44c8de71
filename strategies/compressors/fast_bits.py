"""What the compiled loops share: bits of a word, random words, parts of a long vector.

Importing numba takes most of a second, so only ``packing.load_loops`` imports this and the modules above it.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]  # it has no types
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from strategies import parallel
from strategies.compilation import compiled

U32, U64 = np.uint32, np.uint64
_LEAST = 1 << 20
"""So many numbers, with little done with each, are worth a part of their own: a thread takes 50 us to begin."""
_MOST_PARTS = 8
T = TypeVar("T")


def shared(n: int, unit: int, job: Callable[[int, int], T], work: int = 1) -> list[T]:
    """Run job(lo, hi) on parts of 0 .. n-1 of whole units, in several threads if n is large; return what each gives.

    Parts follow from n alone, and each must write what no other does, so nothing depends on how many threads there are.

    Args:
        n: how many numbers there are.
        unit: all parts but the last are multiples of it.
        job: what releases the interpreter lock.
        work: how much is done with each number; 1 is a few instructions.
    """
    most = min(_MOST_PARTS, n * work // (2 * _LEAST) * 2)
    if most < 2:
        return [job(0, n)]
    parts = parallel.spans(n, unit, most)
    return parallel.share(lambda p: job(*parts[p]), len(parts))


def fixed(array: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only view: numba would compile a loop twice, for arrays that may be written to and for others."""
    view = array.view()
    view.flags.writeable = False
    return view


_instruction: Callable[[Callable[..., Any]], Any] = intrinsic
"""Makes one machine instruction callable, for which Python has no operator."""


@_instruction
def lowest_bit(context: Any, word: Any) -> Any:
    """Return the place of the lowest bit that is set in a word of 64 bits; 64 if none is."""
    zero = ir.Constant(ir.IntType(1), 0)
    return types.uint64(types.uint64), lambda context, builder, signature, args: builder.cttz(args[0], zero)


@_instruction
def _ones(context: Any, word: Any) -> Any:
    """Return how many bits of a word of 64 are set."""
    return types.uint64(types.uint64), lambda context, builder, signature, args: builder.ctpop(args[0])


@_instruction
def high_product(context: Any, a: Any, b: Any) -> Any:
    """Return the upper 64 bits of a product of 64 bits each."""

    def instructions(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), instructions


def bit_count(words: NDArray[np.uint64]) -> int:
    """Return how many bits are set."""
    return int(_bit_count(fixed(words)))


@compiled
def _bit_count(words: Any) -> Any:
    count = U64(0)
    for w in range(len(words)):
        count += _ones(words[w])
    return np.int64(count)


@compiled
def word64(seed: Any, i: Any) -> Any:
    """Return word i of the SplitMix64 stream, see ``coordinates.words``."""
    z = seed + (i + U64(1)) * U64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> U64(27))) * U64(0x94D049BB133111EB)
    return z ^ (z >> U64(31))


@compiled
def word32(low: Any, high: Any, i: Any) -> Any:
    """Return word i of ``carriers.uniform_bits`` in 32 bits for a seed's two halves."""
    z = U32(U32(i) + low)
    z = U32((z ^ (z >> U32(16))) * U32(0x7FEB352D))
    z = U32((z ^ (z >> U32(15))) + high)
    z = U32(z * U32(0x846CA68B))
    return U32(z ^ (z >> U32(16)))
