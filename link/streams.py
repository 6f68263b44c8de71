"""What the server's end keeps of one client's stream, and of each instruction that is on its way.

``Call`` and ``Batch`` are shared by the strategy's thread and the link's: the grid's lock guards them. A ``Stream`` is
the own of the link's thread.
"""

import asyncio
import logging
import threading
from collections import deque
from typing import Any

from flwr.app import Error, Message, RecordDict

from link import flwr_compat
from link.ledger import Ledger
from link.seats import Seat
from link.wire import Payload, Reader, instruction_head

_log = logging.getLogger("breakwater.link")


class Batch:
    """The instructions of one push, and the event that all of them are settled."""

    def __init__(self, size: int) -> None:
        self.calls: list[Call] = []
        self.missing = size
        self.complete = threading.Event()
        if not size:
            self.complete.set()


class Call:
    """One instruction on its way, settled once: by a reply, by an error or by expiring. The grid's lock guards it."""

    def __init__(self, id_: int, message: Message, payload: Payload, batch: Batch, stream: "Stream | None") -> None:
        self.id = id_
        self.message = message
        self.message_id = str(id_)
        self.payload = payload
        self.batch = batch
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
        self.batch.missing -= 1
        if not self.batch.missing:
            self.batch.complete.set()


class Stream:
    """One client's live stream. Touched on the loop's thread only, but for ``calls``, which the grid's lock guards."""

    def __init__(self, seat: Seat, context: Any, ledger: Ledger, reader: Reader) -> None:
        self.seat = seat
        self.context = context
        self.reader = reader
        self.queue: deque[Call] = deque()  # instructions to send
        self.busy: Call | None = None  # the one that the client has
        self.calls: set[Call] = set()  # all that are not settled
        self.wake = asyncio.Event()  # something to send
        self.gone = asyncio.Event()
        self.goodbye: bytes | None = None
        self.strikes = 0
        self._ledger = ledger
        self._complained = False

    async def send(self, frame: bytes) -> None:
        """Count and send one frame."""
        self._ledger.down(self.seat.name, len(frame))
        await self.context.write(frame)

    def free(self) -> None:
        """Note that the client has answered what it had, so that it gets the next instruction."""
        self.busy = None
        if self.queue:
            self.wake.set()

    def strike(self, flaw: str) -> None:
        """Count a frame that should not have come; the log hears of the first of each stream only."""
        self.strikes += 1
        if not self._complained:
            self._complained = True
            _log.warning("%s: %s (further ones of this stream are not logged)", self.seat.name, flaw)
