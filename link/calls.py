"""Instructions on their way in the link's frames, and the part of a Grid that live and in-process clients share."""

import itertools
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

from flwr.app import Error, Message, RecordDict

from link import flwr_compat
from link import link_pb2 as pb
from link.ledger import Ledger
from link.seats import Seat, Seats
from link.transport import Transport
from link.wire import Payload, varint_bytes

ReplyBound = Callable[[RecordDict], int]
"""Returns a bound on the length of a reply to an instruction's content."""
Held = Mapping[str, int]
"""Seats that are kept for clients, by name."""
NONE_HELD: Held = {}
"""Never written to."""


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

    def __init__(self, id_: int, message: Message, payload: Payload, batch: Batch) -> None:
        self.id = id_
        self.message = message
        self.message_id = str(id_)
        # These two until it is settled: a client that never answers must not keep a round's messages in memory.
        self.payload: Payload | None = payload
        self.batch: Batch | None = batch
        self.reply_bound = payload.reply_bound
        self.unsettled: set[Call] | None = None  # of its stream, which it leaves when it is settled
        self.settled = False
        self.reply: Message | None = None

    def head(self) -> bytes:
        """Return the envelope's fields before the content."""
        metadata = self.message.metadata
        kind, group_id, ttl_s = metadata.message_type, metadata.group_id, metadata.ttl
        return _head(self.id, kind, group_id, ttl_s)

    def head_bytes(self) -> int:
        """Return the length of the same."""
        metadata = self.message.metadata
        return _head_bytes(varint_bytes(self.id), metadata.message_type, metadata.group_id, metadata.ttl)

    def settle(self, answer: RecordDict | Error | Message) -> None:
        """Take the answer as Flower's reply; it may be a reply to the instruction already, with content."""
        if not isinstance(answer, Error) and self.batch is not None:
            self.batch.waits.append(time.monotonic() - self.batch.began)
        self.reply = answer if isinstance(answer, Message) else Message(answer, reply_to=self.message)
        flwr_compat.name_reply(self.reply, f"{self.message_id}-reply")
        self.expire()

    def fail(self, code: int, reason: str) -> None:
        """Give an error as the answer, unless there is one."""
        if not self.settled:
            self.settle(Error(code, reason))

    def expire(self) -> None:
        """Accept no further answer."""
        if self.settled:
            return
        self.settled = True
        if self.unsettled is not None:
            self.unsettled.discard(self)
        batch, self.batch, self.payload = self.batch, None, None
        if batch is not None:
            batch.missing -= 1
            if not batch.missing:
                batch.complete.set()


def _head(id_: int, kind: str, group_id: str, ttl_s: float) -> bytes:
    return pb.Envelope(id=id_, message_type=kind, group_id=group_id, ttl_s=ttl_s).SerializeToString()


@lru_cache(maxsize=64)
def _head_bytes(id_bytes: int, kind: str, group_id: str, ttl_s: float) -> int:
    """Return the length of a head; the calls of a round have the same, unless the id takes another byte."""
    return len(_head(1 << 7 * (id_bytes - 1), kind, group_id, ttl_s))


class FramedGrid(Transport):
    """A Grid whose messages travel in the frames of ``link.wire``; a subclass carries them to the clients and back.

    Args:
        run_id: of the run; goes into every message.
        clients: n, the number of seats.
        max_reply_bytes: a reply whose envelope and body are longer together is not read.
        reply_bound: called with the content of an instruction; returns the same for a reply to it, at most
            ``max_reply_bytes``. None where all may be as long.
        held: seats that are kept for clients by name.
        closed: why a client without such a seat gets none; "" where it may take one that is free.
    """

    def __init__(
        self,
        *,
        run_id: int,
        clients: int,
        max_reply_bytes: int,
        reply_bound: ReplyBound | None = None,
        held: Held = NONE_HELD,
        closed: str = "",
    ) -> None:
        self.ledger = Ledger()
        self.max_reply_bytes = max_reply_bytes
        self.changed = threading.Condition()
        """Guards the seats and the calls; notified when a client is ready or has gone."""
        self.seating = Seats(clients, held, closed)
        self._reply_bound = reply_bound
        self._run = flwr_compat.empty_run(run_id)
        self._waits: list[float] = []
        self._pushed: dict[str, Call] = {}  # what pull_messages may ask for, by message id
        self._ids = itertools.count(1)
        flwr_compat.set_identity(run_id)

    @abstractmethod
    def carry(self, calls: Sequence[Call]) -> None:
        """Send these instructions; each is settled, now or later, by its reply or by an error."""

    def name(self, worker: int) -> str:
        """Return the name that the worker joined with."""
        with self.changed:
            return self.seating.name_of(worker) or f"worker {worker}"

    def seats(self) -> dict[int, Seat]:
        """Return every seat ever taken by worker index, ascending."""
        with self.changed:
            return self.seating.all()

    def traffic(self) -> tuple[int, int]:
        """Return (bytes up, bytes down) so far, frames and all."""
        total = self.ledger.total()
        return total.bytes_up, total.bytes_down

    def waits(self) -> Sequence[float]:
        """Return the seconds after which each reply to the last ``send_and_receive`` came; errors are not counted."""
        return self._waits

    @property
    def run(self) -> flwr_compat.Run:
        """The run, of which only the id is filled in."""
        return self._run

    def set_run(self, run: flwr_compat.Run) -> None:
        """Take Flower's description of the run; its id goes into the messages from now on."""
        self._run = run

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids of the clients that are connected and ready, in the order of their seats."""
        return list(self.nodes().values())

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send instructions; return their ids, for ``pull_messages``. A RecordDict is serialised once.

        Raises:
            WireError: a content cannot be sent; nothing was.
        """
        calls = self._push(list(messages)).calls
        with self.changed:
            self._pushed |= {call.message_id: call for call in calls}
        return [call.message_id for call in calls]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there to these instructions, each once."""
        replies = []
        with self.changed:
            for message_id in message_ids:
                call = self._pushed.get(message_id)
                if call is not None and call.reply is not None:
                    replies.append(call.reply)
                    del self._pushed[message_id]
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send instructions and wait for the replies; an instruction that is not answered in time expires.

        Args:
            messages: any number, to any nodes; a RecordDict that several of them share is serialised once.
            timeout: seconds to wait; None waits until each is answered or its client is lost.

        Returns:
            The replies in the order of their instructions; none for an instruction that expired.

        Raises:
            WireError: a content cannot be sent; nothing was.
        """
        batch = self._push(list(messages))
        batch.complete.wait(timeout)
        with self.changed:
            for call in batch.calls:
                call.expire()
            self._waits = batch.waits
        return [call.reply for call in batch.calls if call.reply is not None]

    def _push(self, messages: list[Message]) -> Batch:
        payloads: dict[int, Payload] = {}
        batch, run_id = Batch(len(messages)), self._run.run_id
        for message in messages:
            content = message.content
            if (payload := payloads.get(id(content))) is None:
                payload = payloads[id(content)] = self._payload(content)
            batch.calls.append(Call(next(self._ids), message, payload, batch))
        for call in batch.calls:
            flwr_compat.stamp(call.message, message_id=call.message_id, run_id=run_id)
        self.carry(batch.calls)
        return batch

    def _payload(self, content: RecordDict) -> Payload:
        payload = Payload(content)
        if self._reply_bound is not None:
            payload.reply_bound = min(self._reply_bound(content), self.max_reply_bytes)
        return payload
