"""One thread of arithmetic in a process, and one thread at a time with its global random generators.

A federation is many processes, so threads inside them only get in each other's way. And BLAS cuts its sums by the
number of threads: with one thread everywhere, every process computes the same bits.
"""

import threading

GENERATORS = threading.RLock()
"""Held from the seeding of a global generator until it is restored: a process may have runs in several threads."""


def one_thread() -> None:
    """Let BLAS use one thread, for the rest of this process."""
    import threadpoolctl  # type: ignore[import-untyped]  # ships no types; comes with scikit-learn

    threadpoolctl.threadpool_limits(limits=1, user_api="blas")
