"""Threads for kernels that release the interpreter lock.

An array is cut into parts by its size alone, and whichever thread comes first takes the next one: how many threads
there are changes no bit of what comes out. Threads start with the first large array, so that a process which never sees
one has none; a forked child starts its own.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TypeVar, cast

T = TypeVar("T")
MOST_THREADS = 8
"""More than that wait for memory."""
THREADS = "BREAKWATER_THREADS"
"""Environment variable: how many threads a process may use for its large arrays."""
MOST_PARTS = 32

_pool: ThreadPoolExecutor | None = None
_size = 0


def threads() -> int:
    """Return how many threads share a large array: THREADS where it is set, else the processors of this process."""
    wish = os.environ.get(THREADS, "")
    if wish.isdecimal() and int(wish) > 0:
        return int(wish)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_THREADS, usable)


def spans(d: int, unit: int, most: int = MOST_PARTS) -> list[tuple[int, int]]:
    """Cut d columns into at most ``most`` parts of whole units, the last part shorter."""
    width = -(-d // (unit * most)) * unit
    return [(lo, min(lo + width, d)) for lo in range(0, d, width)]


def share(job: Callable[[int], T], parts: int) -> list[T]:
    """Run job(0) .. job(parts - 1), each once, on the calling thread and, with more than one part, its helpers.

    Returns:
        What each gave, in their order.
    """
    next_part, results = count(), [cast(T, None)] * parts

    def work() -> None:
        while (part := next(next_part)) < parts:
            results[part] = job(part)

    helpers = min(threads(), parts) - 1
    if helpers < 1:
        work()
        return results
    pool = _helpers(helpers)
    futures = [pool.submit(work) for _ in range(helpers)]
    try:
        work()
    finally:
        for future in futures:
            if not future.cancel():  # it began
                future.result()
    return results


def _helpers(wanted: int) -> ThreadPoolExecutor:
    global _pool, _size
    if _pool is None or _size < wanted:
        if _pool is not None:
            _pool.shutdown(wait=False)
        _pool, _size = ThreadPoolExecutor(wanted, "rows"), wanted
    return _pool


def _forget() -> None:
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
