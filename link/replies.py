"""How the client's end answers an instruction: with the frames of a reply, or with what is left of one."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import grpc  # type: ignore[import-untyped]  # grpcio ships no types
from flwr.app import Context, Error, Message, RecordDict

from foundation.errors import Broken, Silent
from foundation.faults import Fault
from link import flwr_compat
from link import link_pb2 as pb
from link.codec import PacketReply
from link.wire import Parcel, Payload, control_frame, error_frame, reply_head
from link.witness import BROKEN, ERROR, PASS, kind_of, round_of

App = Callable[[Message, Context], Message]
"""A ClientApp, or what answers in its place."""
_MAX_REASON = 500
"""The longest text, in characters, of an exception that goes to the server."""

_log = logging.getLogger("breakwater.link")


@dataclass(frozen=True)
class Reply:
    """How an instruction is answered.

    Args:
        frames: what to send, made on the way.
        delay_s: seconds to wait before.
        end: the stream ends after them, in these words or with this goodbye; None if it goes on.
        kind: what is sent, see ``link.witness``.
        round: that it belongs to; None for none.
        whole: the app's reply and its payload, where the frames are theirs and nothing is wrong.
    """

    frames: Iterable[bytes] = ()
    delay_s: float = 0.0
    end: pb.Goodbye | str | None = None
    kind: str = ""
    round: int | None = None
    whole: tuple[Message, Payload] | None = None


def answer(parcel: Parcel, app: App, context: Context, *, name: str) -> Reply:
    """Run the ClientApp on an instruction; return its reply, whatever it does.

    Args:
        parcel: the instruction.
        app: the resident ClientApp.
        context: of this node and run.
        name: the client's, for the log.
    """
    reply = _answer(parcel, app, context, name)
    return replace(reply, kind=reply.kind or kind_of(parcel.message_type), round=round_of(parcel.group_id))


def _answer(parcel: Parcel, app: App, context: Context, name: str) -> Reply:
    if not isinstance(parcel.answer, RecordDict):
        return error(parcel.id, "WireError: an instruction out of order")
    try:
        instruction = flwr_compat.instruction(
            parcel.answer,
            run_id=context.run_id,
            node_id=context.node_id,
            message_id=str(parcel.id),
            message_type=parcel.message_type,
            group_id=parcel.group_id,
            ttl_s=parcel.ttl_s,
        )
    except Exception as raised:  # Flower knows no such message
        return _raised(parcel.id, name, raised)
    return answer_to(instruction, parcel.id, app, context, name=name)


def answer_to(instruction: Message, id_: int, app: App, context: Context, *, name: str) -> Reply:
    """Return the same, where the instruction is there as Flower's message; without its kind and round.

    Args:
        instruction: to the client.
        id_: of the instruction on the link.
        app: as above.
        context: as above.
        name: as above.
    """
    try:
        reply: Message = app(instruction, context)
        if reply.has_error():
            return Reply([error_frame(id_, reply.error)], kind=ERROR)
        payload = reply.payload() if isinstance(reply, PacketReply) else Payload(reply.content)
        return Reply(whole(payload, id_), whole=(reply, payload))
    except Silent:
        return Reply([control_frame(pb.Pass(id=id_))], kind=PASS)
    except Broken as wish:
        return replace(broken(wish, id_), kind=BROKEN)
    except Exception as raised:  # whatever the app raises is its answer; the node lives on
        return _raised(id_, name, raised)


def _raised(id_: int, name: str, raised: Exception) -> Reply:
    _log.error("%s: the ClientApp raised", name, exc_info=raised)
    return error(id_, f"{type(raised).__name__}: {raised}"[:_MAX_REASON])


async def send(write: Callable[[Reply], Awaitable[None]], reply: Reply) -> None:
    """Send a reply when it is time; do nothing if the stream has ended."""
    if reply.delay_s:
        await asyncio.sleep(reply.delay_s)
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        await write(reply)


def whole(payload: Payload, id_: int) -> Iterator[bytes]:
    """Yield the frames of a reply that is well."""
    yield payload.envelope(reply_head(id_))
    yield from payload.chunks()


def error(id_: int, reason: str) -> Reply:
    """Return the reply of a ClientApp that raised."""
    return Reply([error_frame(id_, Error(flwr_compat.APP_RAISED, reason))], kind=ERROR)


def broken(wish: Broken, id_: int) -> Reply:
    """Return the reply that breaks as the ClientApp wishes (``foundation.faults``)."""
    frames = whole(Payload(wish.content), id_)
    match wish.how:
        case Fault.LATE:
            return Reply(frames, delay_s=wish.delay_s)
        case Fault.TRUNCATED:
            return Reply(_cut(frames))
        case Fault.GARBAGE:  # wire type 7, which protobuf does not have; some other bytes would be a frame by chance
            return Reply([b"\xff" + random.Random(id_).randbytes(63)])
        case Fault.DISCONNECT:
            reason = "broke off in the middle of a reply"
            return Reply([_begun(id_)], end=pb.Goodbye(reason=reason, final=True) if wish.last else reason)
        case _:
            raise ValueError(f"{wish.how}: no fault of the link")


def _cut(frames: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the frames, the last one cut in the middle."""
    *complete, last = frames
    yield from complete
    yield last[: len(last) // 2]


def _begun(id_: int) -> bytes:
    """Return the envelope of a reply whose body is still to come."""
    record = pb.Record(name="p", config=pb.ConfigRecord(items=[pb.Item(key="", body_bytes=64)]))
    return control_frame(pb.Envelope(id=id_, content=pb.Content(records=[record], body_bytes=64)))
