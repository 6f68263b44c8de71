"""The server's end of the link: a Flower Grid whose nodes are the clients at the other ends of gRPC streams.

All streams are served by one thread that runs an asyncio loop; a Flower strategy calls the Grid from its own thread.
The two meet in few places: instructions cross to the loop once per push, and the strategy is woken once, when the
last reply to its push is there.

A client is sent one instruction at a time: the next one leaves when the one before it is answered, so a slow client
never works through a backlog (an instruction that has expired by then is not sent), and what is held for it is bounded.
"""

import asyncio
import itertools
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import grpc  # type: ignore[import-untyped]  # grpcio ships no types
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from link import flwr_compat, loop
from link import link_pb2 as pb
from link.errors import LinkError, Refused, WireError
from link.ledger import Ledger
from link.memory import keep_buffers
from link.seats import NoSeat, Seat, Seats
from link.streams import Batch, Call, Stream
from link.tls import peer_name
from link.wire import (
    CHUNK_BYTES,
    MAX_FRAME_BYTES,
    METHOD,
    PROTOCOL,
    TRANSPORT,
    Parcel,
    Payload,
    Reader,
    control_frame,
    heartbeat,
)

__all__ = ["Seat", "StreamGrid"]

_HELLO_S = 10.0
"""Seconds that a stranger has to say hello."""
_GOODBYE_S = 2.0
"""Seconds that the goodbyes have to get out at the end."""
_MAX_STRIKES = 100
"""So many frames in a row that nobody asked for or that are no frames end a stream."""

_log = logging.getLogger("breakwater.link")


class StreamGrid(Grid):
    """A Flower Grid over one gRPC stream per client; ``listen`` opens it, ``close`` ends it.

    Nothing that a client sends raises here: a flawed reply becomes an error reply whose reason begins with the kind of
    flaw (``undecodable:``, ``oversize:``, ``out of order:``), a lost client gives ``disconnected:``, one that is not
    there ``not connected:``. An unasked or late reply is dropped.

    Args:
        run_id: of the run; goes into every message.
        clients: n, the number of seats.
        welcome: called with name and seat of a client that comes; what it returns is the ``settings`` of the client's
            Welcome. It runs on the link's thread, so it must be quick; it may raise Refused.
        fingerprint: of the code; a client with another one is refused.
        max_reply_bytes: a reply whose envelope and body are longer together is not read.
        heartbeat_s: seconds between pings to a client; without an answer for as long again it is gone.
        credentials: for TLS, see ``link.tls``: a client then has the name of its certificate, and can claim no other.
            None for an open port.
    """

    def __init__(
        self,
        *,
        run_id: int,
        clients: int,
        welcome: Callable[[str, int], Mapping[str, str]],
        fingerprint: str,
        max_reply_bytes: int,
        heartbeat_s: float = 5.0,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self.ledger = Ledger()
        self._run = flwr_compat.empty_run(run_id)
        self._clients = clients
        self._welcome = welcome
        self._fingerprint = fingerprint
        self._max_reply_bytes = max_reply_bytes
        self._heartbeat_s = heartbeat_s
        self._credentials = credentials
        self._changed = threading.Condition()  # guards what follows, and tells of ready clients
        self._seats = Seats(clients)
        self._ready: dict[int, Stream] = {}  # by node id
        self._pushed: dict[str, Call] = {}  # what pull_messages may ask for, by message id
        self._ids = itertools.count(1)
        self._streams: set[Stream] = set()  # the loop's own
        self._server: grpc.aio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        flwr_compat.set_identity(run_id)

    # --- life ---------------------------------------------------------------------------------------------------------

    def listen(self, address: str) -> str:
        """Open the port and take clients from now on.

        Args:
            address: ``HOST:PORT``; port 0 is any that is free.

        Returns:
            The same with the port that was bound.

        Raises:
            LinkError: it cannot be bound.
        """
        if self._loop is not None:
            raise LinkError(f"cannot listen on {address!r}: this grid has a port already")
        host = _probe(address)
        keep_buffers()
        self._loop = loop.acquire()
        try:
            port = asyncio.run_coroutine_threadsafe(self._serve(address), self._loop).result()
        except RuntimeError as error:
            self._loop = None
            loop.release()
            raise LinkError(f"cannot listen on {address!r}: {error}") from error
        return f"{host}:{port}"

    def close(self, reason: str, *, final: bool = True) -> None:
        """Say goodbye to all clients and end the server and its thread; a second call does nothing.

        Args:
            reason: what the clients are told, one line.
            final: the run is over, clients end; else they come back to this address.
        """
        with self._changed:
            running, self._loop = self._loop, None
        if running is None:
            return
        asyncio.run_coroutine_threadsafe(self._shut_down(reason, final), running).result()
        loop.release()

    def seats(self) -> dict[int, Seat]:
        """Return every seat ever taken by worker index, ascending."""
        with self._changed:
            return self._seats.all()

    def nodes(self) -> dict[int, int]:
        """Return the node ids of the clients that are connected and ready by worker index, ascending."""
        with self._changed:
            streams = sorted(self._ready.values(), key=lambda stream: stream.seat.worker)
        return {stream.seat.worker: stream.seat.node_id for stream in streams}

    def traffic(self) -> tuple[int, int]:
        """Return (bytes up, bytes down) so far, frames and all."""
        total = self.ledger.total()
        return total.bytes_up, total.bytes_down

    def vacate(self, name: str) -> None:
        """Give up the seat of a client that is away for good; one that is connected, or unknown, keeps what it has."""
        with self._changed:
            self._seats.vacate(name)

    def wait_for(self, count: int, timeout: float) -> int:
        """Wait until so many clients are ready, at most ``timeout`` seconds; return how many are."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._ready) >= count, timeout)
            return len(self._ready)

    # --- Flower's Grid ------------------------------------------------------------------------------------------------

    @property
    def run(self) -> flwr_compat.Run:
        """The run, of which only the id is filled in."""
        return self._run

    def set_run(self, run: flwr_compat.Run) -> None:
        """Take Flower's description of the run; its id goes into the messages from now on."""
        self._run = run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return an instruction for a node; the same as building the Message oneself."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids of the clients that are connected and ready, in the order of their seats."""
        return list(self.nodes().values())

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send instructions; return their ids, that ``pull_messages`` takes. A RecordDict is serialised once.

        Raises:
            WireError: a content cannot be sent; nothing was.
        """
        calls = self._push(list(messages)).calls
        with self._changed:
            self._pushed |= {call.message_id: call for call in calls}
        return [call.message_id for call in calls]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there to these instructions, each once."""
        replies = []
        with self._changed:
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
        with self._changed:
            for call in batch.calls:
                call.expire()
        return [call.reply for call in batch.calls if call.reply is not None]

    def _push(self, messages: list[Message]) -> Batch:
        payloads: dict[int, Payload] = {}
        for message in messages:
            if id(message.content) not in payloads:
                payloads[id(message.content)] = Payload(message.content)
        batch = Batch(len(messages))
        with self._changed:
            running = self._loop
            for message in messages:
                number = next(self._ids)
                stream = self._ready.get(message.metadata.dst_node_id)
                call = Call(number, message, payloads[id(message.content)], batch, stream)
                flwr_compat.stamp(message, message_id=call.message_id, run_id=self._run.run_id)
                batch.calls.append(call)
                if stream is None:
                    call.fail(flwr_compat.NODE_UNAVAILABLE, f"not connected: node {message.metadata.dst_node_id}")
                else:
                    stream.calls.add(call)
        if running is not None:
            running.call_soon_threadsafe(_dispatch, batch.calls)
        return batch

    # --- on the loop's thread -----------------------------------------------------------------------------------------

    async def _serve(self, address: str) -> int:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0), *TRANSPORT, *heartbeat(self._heartbeat_s)])
        service, method = METHOD.strip("/").split("/")
        handler = grpc.stream_stream_rpc_method_handler(self._session)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        if self._credentials is None:
            port: int = self._server.add_insecure_port(address)
        else:
            port = self._server.add_secure_port(address, self._credentials)
        await self._server.start()
        return port

    async def _session(self, _: object, context: Any) -> None:
        """Serve one stream from hello to end."""
        stream = await self._greet(context)
        if stream is None:
            return
        tasks = [asyncio.ensure_future(self._read(stream)), asyncio.ensure_future(self._write(stream))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._detach(stream)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _greet(self, context: Any) -> Stream | None:
        """Answer the first frame of a stream; return the stream if its client is taken."""
        reader = Reader(MAX_FRAME_BYTES)
        try:
            raw = await asyncio.wait_for(context.read(), _HELLO_S)
            hello = reader.feed(raw) if raw is not grpc.aio.EOF else None
        except (WireError, TimeoutError) as error:
            _log.warning("%s: no hello: %s", context.peer(), error)
            return None
        if not isinstance(hello, pb.Hello):
            return None
        try:
            seat, settings = self._admit(hello, context)
        except NoSeat as refusal:
            _log.warning("%s: refused: %s", context.peer(), refusal)
            await context.write(control_frame(pb.Refusal(reason=str(refusal), retry=refusal.retry)))
            return None
        how = "by its word alone" if self._credentials is None else "by its certificate"
        _log.info("%s: seat %d is taken by %s, %s", context.peer(), seat.worker, seat.name, how)
        stream = Stream(seat, context, self.ledger, Reader(self._max_reply_bytes))
        self.ledger.up(seat.name, len(raw))
        try:
            await stream.send(
                control_frame(
                    pb.Welcome(
                        run_id=self._run.run_id,
                        node_id=seat.node_id,
                        worker=seat.worker,
                        clients=self._clients,
                        settings=settings,
                        heartbeat_s=self._heartbeat_s,
                        max_reply_bytes=self._max_reply_bytes,
                        chunk_bytes=CHUNK_BYTES,
                    )
                )
            )
        except BaseException:
            self._detach(stream)
            raise
        self._streams.add(stream)
        return stream

    def _admit(self, hello: pb.Hello, context: Any) -> tuple[Seat, Mapping[str, str]]:
        if hello.protocol != PROTOCOL:
            raise NoSeat(f"protocol version {hello.protocol}: this server speaks version {PROTOCOL}")
        if self._credentials is not None and (certified := peer_name(context)) != hello.name:
            raise NoSeat(f"name {hello.name[:80]!r}: this client's certificate is for {certified!r}")
        if hello.fingerprint != self._fingerprint:
            raise NoSeat(
                f"code fingerprint {hello.fingerprint[:64]!r}: this server runs {self._fingerprint!r}; "
                "run the same version at both ends"
            )
        with self._changed:
            seat = self._seats.take(
                hello.name,
                worker=hello.worker if hello.HasField("worker") else None,
                former=hello.former if hello.HasField("former") else None,
            )
        try:
            return seat, self._welcome(seat.name, seat.worker)
        except BaseException as error:
            with self._changed:
                self._seats.leave(seat.name)
            if isinstance(error, Refused):
                raise NoSeat(str(error)) from error
            raise

    async def _read(self, stream: Stream) -> None:
        """Take what a client sends, until it ends the stream or has misbehaved too often."""
        while stream.strikes < _MAX_STRIKES:
            raw = await stream.context.read()
            if raw is grpc.aio.EOF:
                return
            self.ledger.up(stream.seat.name, len(raw))
            try:
                frame = stream.reader.feed(raw)
            except WireError as error:
                self._answer(stream, stream.busy, error.reason)
                continue
            if isinstance(frame, Parcel):
                self._answer(stream, stream.busy if stream.busy and stream.busy.id == frame.id else None, frame)
            elif isinstance(frame, pb.Ready):
                with self._changed:
                    self._seats.confirm(stream.seat.name)
                    self._ready[stream.seat.node_id] = stream
                    self._changed.notify_all()
            elif isinstance(frame, pb.Pass):
                if stream.busy and stream.busy.id == frame.id:
                    stream.free()
            elif frame is not None:
                self._answer(stream, stream.busy, f"out of order: a {type(frame).__name__} from a client")
        _log.warning("%s: cut off after %d frames that nobody asked for", stream.seat.name, stream.strikes)

    def _answer(self, stream: Stream, call: Call | None, answer: Parcel | str) -> None:
        """Take a client's reply, or the flaw of what it sent, as the answer to the instruction that it has."""
        if isinstance(answer, str):
            stream.strike(answer)
        elif call is None:
            stream.strike(f"a reply that nobody waits for, number {answer.id}")
        else:
            stream.strikes = 0
        if call is None:
            return
        stream.free()
        with self._changed:
            if isinstance(answer, str):
                call.fail(flwr_compat.BAD_REPLY, answer)
            elif not call.settled:
                call.settle(answer.answer)

    async def _write(self, stream: Stream) -> None:
        """Send a client its instructions one at a time, and goodbye in the end."""
        while stream.goodbye is None:
            await stream.wake.wait()
            stream.wake.clear()
            while stream.busy is None and stream.queue and stream.goodbye is None:
                call = stream.queue.popleft()
                if call.settled:
                    continue
                stream.busy = call
                await stream.send(call.payload.envelope(call.head()))
                for chunk in call.payload.shared_chunks:
                    await stream.send(chunk)
        await stream.send(stream.goodbye)

    def _detach(self, stream: Stream) -> None:
        """Forget a stream that has ended; what it had not answered fails."""
        self._streams.discard(stream)
        seat = stream.seat
        with self._changed:
            self._seats.leave(seat.name)
            if self._ready.get(seat.node_id) is stream:
                del self._ready[seat.node_id]
            for call in list(stream.calls):
                call.fail(flwr_compat.NODE_UNAVAILABLE, f"disconnected: worker {seat.worker} ({seat.name})")
            self._changed.notify_all()
        stream.gone.set()

    async def _shut_down(self, reason: str, final: bool) -> None:
        streams = list(self._streams)
        for stream in streams:
            stream.goodbye = control_frame(pb.Goodbye(reason=reason, final=final))
            stream.wake.set()
        gone = asyncio.gather(*(stream.gone.wait() for stream in streams))
        with suppress(TimeoutError):
            await asyncio.wait_for(gone, _GOODBYE_S)
        if self._server is not None:
            await self._server.stop(_GOODBYE_S)


def _dispatch(calls: list[Call]) -> None:
    """Hand instructions to their streams; on the loop's thread."""
    for call in calls:
        if call.stream is not None and not call.settled:
            call.stream.queue.append(call)
            call.stream.wake.set()


def _probe(address: str) -> str:
    """Return the host of ``HOST:PORT`` if it can be bound: gRPC does not say why it cannot."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise LinkError(f"cannot listen on {address!r}: must be HOST:PORT with a port from 0 to 65535")
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        raise LinkError(f"cannot listen on {address!r}: {error.strerror}") from error
    return host
