"""What the server's end keeps of one client's stream, and of each instruction that is on its way.

``Call`` and ``Batch`` are shared by the strategy's thread and the link's: the grid's lock guards them. A ``Stream`` is
the own of the link's thread.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from typing import Any

from flwr.app import Error, Message, RecordDict

from link import flwr_compat
from link.ledger import Ledger
from link.seats import Seat
from link.wire import CONTROL_BYTES, Payload, Reader, instruction_head

_log = logging.getLogger("breakwater.link")


class Batch:
    """The instructions of one push, and the event that all of them are settled."""

    def __init__(self, size: int) -> None:
        self.calls: list[Call] = []
        self.missing = size
        self.began = time.monotonic()
        self.waits: list[float] = []  # the seconds after which each reply came
        self.complete = threading.Event()
        if not size:
            self.complete.set()


class Call:
    """One instruction on its way, settled once: by a reply, by an error or by expiring. The grid's lock guards it."""

    def __init__(self, id_: int, message: Message, payload: Payload, batch: Batch, stream: "Stream | None") -> None:
        self.id = id_
        self.message = message
        self.message_id = str(id_)
        # These two until it is settled: a client that never answers must not keep a round's messages in memory.
        self.payload: Payload | None = payload
        self.batch: Batch | None = batch
        self.reply_bound = payload.reply_bound
        self.stream = stream
        self.settled = False
        self.reply: Message | None = None

    def head(self) -> bytes:
        """Return the envelope's fields before the content."""
        metadata = self.message.metadata
        return instruction_head(
            id_=self.id, message_type=metadata.message_type, group_id=metadata.group_id, ttl_s=metadata.ttl
        )

    def settle(self, answer: RecordDict | Error) -> None:
        """Take the answer as Flower's reply."""
        if isinstance(answer, RecordDict):
            if self.batch is not None:
                self.batch.waits.append(time.monotonic() - self.batch.began)
            self.reply = Message(answer, reply_to=self.message)
        else:
            self.reply = Message(answer, reply_to=self.message)
        flwr_compat.name_reply(self.reply, f"{self.message_id}-reply")
        self.expire()

    def fail(self, code: int, reason: str) -> None:
        """Give an error as the answer, unless there is one."""
        if not self.settled:
            self.settle(Error(code, reason))

    def expire(self) -> None:
        """Take no more answers."""
        if self.settled:
            return
        self.settled = True
        if self.stream is not None:
            self.stream.calls.discard(self)
        batch, self.batch, self.payload = self.batch, None, None
        if batch is not None:
            batch.missing -= 1
            if not batch.missing:
                batch.complete.set()


class Stream:
    """One client's live stream. Touched on the loop's thread only, but for ``calls``, which the grid's lock guards.

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
        """Count a frame that should not have come; the log hears of the first of each stream only."""
        self.strikes += 1
        if not self._complained:
            self._complained = True
            _log.warning("%s: %s (further ones of this stream are not logged)", self.seat.name, flaw)
