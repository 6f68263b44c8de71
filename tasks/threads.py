"""One thread of arithmetic in a process.

A federation is many processes, so threads inside them only get in each other's way. And BLAS cuts its sums by the
number of threads: with one thread everywhere, every process computes the same bits.
"""


def one_thread() -> None:
    """Let BLAS use one thread, for the rest of this process."""
    import threadpoolctl  # type: ignore[import-untyped]  # ships no types; comes with scikit-learn

    threadpoolctl.threadpool_limits(limits=1, user_api="blas")
