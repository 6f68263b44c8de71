"""Lets the C allocator keep the memory of message buffers between rounds, and give back that of a flood.

Left alone, glibc gives a buffer of some megabytes back to the kernel when it is freed, and the kernel clears each page
of the next one: with messages of 4 MB that took a third of a client's time per round (8.3 in place of 13 ms of CPU).
"""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LONGEST_KEPT = 32 << 20  # the largest value that mallopt takes
_KEPT = 64 << 20


def give_back() -> None:
    """Give memory that is free, but lies between what is in use, back to the system.

    After thousands of connections that came and went it may be hundreds of megabytes. Where the C library has no
    malloc_trim, it does nothing.
    """
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def keep_buffers() -> None:
    """Reuse freed buffers of up to 32 MiB, and keep up to 64 MiB of free memory at the end of a heap.

    It is for the whole process. Where the C library has no mallopt, it does nothing.
    """
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_MMAP_THRESHOLD, _LONGEST_KEPT)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
