"""How fast packets are made and read, against a copy of what this must touch.

``out`` is ``compress`` and ``write_packet``, what a client does; ``in`` is ``read_reply`` (screening included) and
``decompress``, what the server does. Every byte of the vector and of the packet counts once, however often it is
touched:

- out must read the vector and write the packet into new bytes of Python, which are what a message holds. Where k random
  coordinates travel it must read the 64-byte lines that hold one: 1 - (1 - k/d)^16 of all are expected.
- in must read the packet and write the vector into a new array; of ``identity``, whose array is the packet itself, it
  must read the packet alone, but is held against a copy too.

The measure beside it is a copy that reads and writes as much into memory of the same kind: a new bytes object, or a new
array, filled from a packet-sized source; then, out, half of the vector's bytes that are left are copied onto the other
half, in, the rest of the array is filled. Best of several runs, in turn with the copies; the allocator is set as both
ends set it.

    python -m benchmarks.codec [--dims 1000000 11000000] [--runs 7]
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict

from link import codec, flwr_compat, memory
from strategies.compressors import QSGD, Identity, Masked, Natural, PermK, RandK, ScaledSign, TopK, packing
from strategies.method import Ask, Compressor, Rejected

FORMS: tuple[tuple[str, Compressor], ...] = (
    ("identity", Identity()),
    ("identity, float16", Identity(values="float16")),
    ("identity, bfloat16", Identity(values="bfloat16")),
    ("rand-k, 1 %", RandK(ratio=0.01)),
    ("rand-k, 10 %", RandK(ratio=0.1)),
    ("rand-k, 10 %, 7 levels", RandK(ratio=0.1, levels=7)),
    ("masked, 10 %", Masked(ratio=0.1)),
    ("perm-k, n = 20", PermK(parts=20)),
    ("top-k, 1 %", TopK(ratio=0.01)),
    ("top-k, 10 %", TopK(ratio=0.1)),
    ("qsgd, 1 level", QSGD(levels=1)),
    ("qsgd, 7 levels", QSGD(levels=7)),
    ("qsgd, 127 levels", QSGD(levels=127)),
    ("qsgd, 127 levels, linf", QSGD(levels=127, norm="linf")),
    ("natural", Natural()),
    ("scaled-sign", ScaledSign()),
)
LINE = 64
"""Bytes that memory is read by."""


def seconds(work: Callable[[], Any]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(work: Callable[[], Any], copy: Callable[[], Any], runs: int) -> tuple[float, float]:
    """Return the best times of ``work`` and of ``copy``, in seconds."""
    work()
    copy()
    pairs = [(seconds(work), seconds(copy)) for _ in range(runs)]
    return min(a for a, _ in pairs), min(b for _, b in pairs)


def copy_out(read: int, written: int) -> Callable[[], Any]:
    """Return what reads so many bytes and writes so many into new bytes."""
    source, rest = np.ones(min(read, written), np.uint8), np.ones(max(0, read - written), np.uint8)
    half = len(rest) // 2

    def copy() -> bytes:
        rest[:half] = rest[half : 2 * half]
        return source.tobytes()

    return copy


def copy_in(read: int, written: int) -> Callable[[], Any]:
    """Return what reads so many bytes and writes so many into a new array."""
    source = np.ones(min(read, written), np.uint8)

    def copy() -> Any:
        out = np.empty(written, np.uint8)
        out[: len(source)] = source
        out[len(source) :] = 0
        return out

    return copy


def bench(name: str, form: Compressor, d: int, runs: int) -> str:
    """Return the line of one compressor."""
    form = form.of_round(12345, 3)
    v = np.random.default_rng(0).normal(size=d).astype(np.float32)
    ask, rng = Ask(7, "difference", {"x": v}), np.random.default_rng(1)

    def out() -> RecordDict:
        return codec.write_packet(form.compress(v, rng), ask)

    instruction = Message(RecordDict(), 5, "train")
    flwr_compat.stamp(instruction, message_id="1", run_id=1)
    reply = Message(out(), reply_to=instruction)

    def take() -> Any:
        packet = codec.read_reply(reply, ask, form, v)
        assert not isinstance(packet, Rejected), packet
        return form.decompress(packet, v.dtype)

    layout = form.layout(d, v.dtype)
    size, share = layout.nbytes, 1.0
    if isinstance(form, RandK | Masked | PermK):
        share = 1.0 - (1.0 - layout.count / d) ** (LINE // v.itemsize)
    a, copy_a = measure(out, copy_out(int(share * v.nbytes), size), runs)
    b, copy_b = measure(take, copy_in(size, v.nbytes), runs)
    return (
        f"| {name:24} | {size / 1e6:6.2f} | {a * 1e3:8.2f} | {copy_a * 1e3:6.2f} | {a / copy_a:5.1f} "
        f"| {b * 1e3:8.2f} | {copy_b * 1e3:6.2f} | {b / copy_b:5.1f} |"
    )


def main() -> None:
    """Print one table for each length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="+", default=[1_000_000, 11_000_000])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--only", default="", help="compressors whose name contains this")
    options = parser.parse_args()
    flwr_compat.set_identity(1)
    memory.keep_buffers()
    for d in options.dims:
        packing.prepare(d)
        print(f"\nd = {d} float32\n")
        print("| compressor               |     MB |   out ms |   copy | times |    in ms |   copy | times |")
        print("|--------------------------|--------|----------|--------|-------|----------|--------|-------|")
        for name, form in FORMS:
            if options.only in name:
                print(bench(name, form, d, options.runs), flush=True)


if __name__ == "__main__":
    main()
