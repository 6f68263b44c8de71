"""What the server's end keeps of one client's stream."""

import asyncio
import logging
import time
from collections import deque
from typing import Any

from link.calls import Call
from link.ledger import Ledger
from link.seats import Seat
from link.wire import CONTROL_BYTES, Reader

_log = logging.getLogger("breakwater.link")


class Stream:
    """One client's live stream. Used on the link's thread only, except ``calls``, which the grid's lock guards.

    Args:
        seat: the client's.
        context: gRPC's.
        ledger: counts what is sent.
        max_reply_bytes: how long a reply may be where its instruction does not say.
    """

    def __init__(self, seat: Seat, context: Any, ledger: Ledger, max_reply_bytes: int) -> None:
        self.seat = seat
        self.context = context
        self.certificate = b""  # what the client has shown, as PEM, where the grid has lists to look it up in
        self.reader = Reader(CONTROL_BYTES)
        self.queue: deque[Call] = deque()  # instructions to send
        self.busy: Call | None = None  # the one that the client has
        self.calls: set[Call] = set()  # all that are not settled
        self.wake = asyncio.Event()  # something to send
        self.gone = asyncio.Event()
        self.cut = asyncio.Event()  # the stream ends now, whatever is on its way
        self.goodbye: bytes | None = None
        self.strikes = 0
        self.sending_since: float | None = None  # monotonic; None while nothing is
        self._ledger = ledger
        self._max_reply_bytes = max_reply_bytes
        self._complained = False

    async def send(self, frame: bytes) -> None:
        """Count and send one frame."""
        self._ledger.down(self.seat.name, len(frame))
        self.sending_since = time.monotonic()
        await self.context.write(frame)
        self.sending_since = None

    def enqueue(self, call: Call) -> None:
        """Put an instruction behind the others; of these the expired ones go, else they pile up at a silent client."""
        while self.queue and self.queue[0].settled:
            self.queue.popleft()
        self.queue.append(call)
        self.wake.set()

    def hold(self, call: Call) -> None:
        """Note that the client gets this instruction; from now on its reply may come, and be as long as that may be."""
        self.busy = call
        self.reader.max_bytes = self._max_reply_bytes if call.reply_bound is None else call.reply_bound

    def free(self) -> None:
        """Note that the client has answered what it had, so that it gets the next instruction."""
        self.busy = None
        self.reader.max_bytes = CONTROL_BYTES
        if self.queue:
            self.wake.set()

    def strike(self, flaw: str) -> None:
        """Count an invalid or unsolicited frame; only the first of a stream is logged."""
        self.strikes += 1
        if not self._complained:
            self._complained = True
            _log.warning("%s: %s (later ones on this stream are not logged)", self.seat.name, flaw)
