"""A bad cable between two network interfaces: what goes in at one end comes out at the other late, or not at all.

It is what ``tc netem`` does, for kernels that do not have it, as a process that passes Ethernet frames on:

    python -m tests.integration.cable ONE OTHER DELAY_S LOSS

DELAY_S is for each way, LOSS the share of frames that get lost. It says "ready", and when it is ended how much it lost.
"""

import random
import select
import signal
import socket
import sys
import time
from collections import deque
from contextlib import suppress
from types import FrameType

_ALL_PROTOCOLS = 3  # linux/if_ether.h, ETH_P_ALL
_SOL_PACKET = 263  # linux/socket.h
_VNET_HEADER, _IGNORE_OUTGOING = 15, 23  # linux/if_packet.h
_RECEIVE_BUFFER_FORCE = 33  # asm-generic/socket.h: as SO_RCVBUF, beyond what the system allows to all
_LONGEST = 1 << 17
_BUFFER_BYTES = 1 << 28
_AT_ONCE = 64
"""So many frames are taken before those that are due are passed on."""


def _end(interface: str) -> socket.socket:
    """Return one end: all that comes in at the interface can be read, what is written goes out there."""
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS))
    with suppress(PermissionError):  # it is root's; long messages of many machines at once would need it
        end.setsockopt(socket.SOL_SOCKET, _RECEIVE_BUFFER_FORCE, _BUFFER_BYTES)
    end.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
    # Frames between virtual interfaces have no checksum yet and may be longer than the wire takes; this goes with them.
    end.setsockopt(_SOL_PACKET, _VNET_HEADER, 1)
    end.bind((interface, 0))
    end.setblocking(False)
    return end


def _stop(number: int, frame: FrameType | None) -> None:
    sys.exit()


def main() -> None:
    """Pass frames until terminated."""
    one, other, delay_s, loss = sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
    ends = _end(one), _end(other)
    far = dict(zip(ends, reversed(ends), strict=True))
    chance = random.Random(1)
    flight: deque[tuple[float, socket.socket, bytes]] = deque()  # when it is due, where, the frame
    passed = lost = 0
    signal.signal(signal.SIGTERM, _stop)
    print("ready", flush=True)
    try:
        while True:
            wait_s = max(0.0, flight[0][0] - time.monotonic()) if flight else None
            for end in select.select(ends, (), (), wait_s)[0]:
                for _ in range(_AT_ONCE):
                    try:
                        frame = end.recv(_LONGEST)
                    except BlockingIOError:
                        break
                    if chance.random() < loss:
                        lost += 1
                    else:
                        flight.append((time.monotonic() + delay_s, far[end], frame))
            while flight and flight[0][0] <= time.monotonic():
                _, end, frame = flight.popleft()
                passed += 1
                try:
                    end.send(frame)
                except OSError:  # its buffer is full, or the interface is down: a cable loses the frame
                    lost += 1
    finally:
        print(f"lost {lost} of {lost + passed} frames", flush=True)


if __name__ == "__main__":
    main()
