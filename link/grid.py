"""The server's end of the link: a Flower Grid whose nodes are the clients at the other ends of gRPC streams.

All streams are served by one thread that runs an asyncio loop; a Flower strategy calls the Grid from its own thread.
The two meet in few places: instructions cross to the loop once per push, and the strategy is woken once, when the
last reply to its push is there.

A client is sent one instruction at a time: the next one leaves when the one before it is answered, so a slow client
never works through a backlog (an instruction that has expired by then is not sent), and what is held for it is bounded.
"""

import asyncio
import logging
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import grpc  # type: ignore[import-untyped]  # grpcio ships no types

from foundation.errors import LinkError, Refused, WireError
from foundation.origin import named, release
from link import flwr_compat, loop
from link import link_pb2 as pb
from link.address import Address
from link.calls import NONE_HELD, Call, FramedGrid, Held, ReplyBound
from link.guard import HELLO_BYTES, HELLO_S, SCAN_S, Backoff, ConnectionGuard, NoHello, limits
from link.identity.access import AccessControl
from link.identity.tls import may_watch, peer_certificate, peer_name
from link.memory import keep_buffers
from link.seats import NoSeat, Seat
from link.streams import Stream
from link.transport import Judge
from link.watchers import WATCH, Watchers, only_local
from link.wire import CHUNK_BYTES, METHOD, PROTOCOL, TRANSPORT, Endless, Parcel, Reader, control_frame, heartbeat

_SEND_S = 60.0
"""Disconnect a client that has not accepted a frame, of at most 1 MiB, for this many seconds."""
_GOODBYE_S = 2.0
"""Seconds to send the goodbyes at the end."""
_CHECK_S = 1.0
"""Seconds between checks of the access lists."""
_MOST_LATE = 10_000
"""At most this many late replies are kept until ``late`` is called."""
_MOST_UNFIT = 1000
"""At most this many refused clients are kept, with the reason."""
_MAX_STRIKES = 100
"""Disconnect after this many consecutive invalid or unsolicited frames."""

_CODE = re.compile("(modified-)?[0-9a-f]{12}")
"""A fingerprint of code."""

_log = logging.getLogger("breakwater.link")


class StreamGrid(FramedGrid):
    """A Flower Grid over one gRPC stream per client; ``listen`` opens it, ``close`` ends it.

    Nothing that a client sends raises here: a flawed reply becomes an error reply whose reason begins with the kind of
    flaw (``undecodable:``, ``oversize:``, ``out of order:``), a lost client gives ``disconnected:``, one that is not
    there ``not connected:``. An unasked or late reply is dropped.

    Args:
        run_id: of the run; goes into every message.
        clients: n, the number of seats.
        welcome: called with name and seat of a client that comes; what it returns is the ``settings`` of the client's
            Welcome. It runs on the link's thread, so it must be quick; it may raise Refused.
        fingerprint: of the code.
        same_code: refuse a client whose code has another fingerprint.
        max_reply_bytes: a reply whose envelope and body are longer together is not read.
        reply_bound: called with the content of an instruction; returns the same for a reply to it, at most
            ``max_reply_bytes``. None where all may be as long.
        heartbeat_s: seconds between pings to a client; without an answer for as long again it is gone.
        credentials: for TLS, see ``link.identity.tls``: a client then has the name of its certificate, and can claim no
            other. None for an open port.
        access: who may take part, by certificate, so with ``credentials`` only: a client that may not, or no longer
            may, is sent the reason and cut off (``revoked:``, ``not listed:``). It keeps its seat. None accepts
            every client that ``credentials`` accept.
        held: seats that are kept for clients by name, from an earlier server of the same run.
        closed: why a client without such a seat gets none; "" where it may take one that is free.
        judge: called with the name of a client that is ready and what it has loaded; returns why it cannot take part,
            or None. It runs on the link's thread, so it must be quick, and must not raise. None accepts every client.
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
        access: AccessControl | None = None,
        held: Held = NONE_HELD,
        closed: str = "",
        reply_bound: ReplyBound | None = None,
        judge: Judge = None,
        same_code: bool = True,
    ) -> None:
        super().__init__(
            run_id=run_id,
            clients=clients,
            max_reply_bytes=max_reply_bytes,
            reply_bound=reply_bound,
            held=held,
            closed=closed,
        )
        self._clients = clients
        self._welcome = welcome
        self._fingerprint = fingerprint
        self._judge = judge
        self._same_code = same_code
        self._reports: dict[int, str] = {}  # what clients have loaded, by seat; guarded by ``changed``
        self._heartbeat_s = heartbeat_s
        self._credentials = credentials
        self._access = access
        self._late: deque[str] = deque(maxlen=_MOST_LATE)  # guarded by ``changed``, as the next two
        self._unfit: dict[str, str] = {}  # why a client was not taken when it was ready, by name
        self._ready: dict[int, Stream] = {}  # by node id
        self._streams: set[Stream] = set()  # the loop's own, as what follows
        self._guard = ConnectionGuard(
            lambda: [*(stream.context.peer() for stream in self._streams), *self._watchers.peers()]
        )
        self._watchers = Watchers(self._guard, self._admit_watcher, self._flaw_of_watcher)
        self._backoff = Backoff()
        self._checks: list[asyncio.Task[None]] = []
        self._server: grpc.aio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # --- life ---------------------------------------------------------------------------------------------------------

    def listen(self, address: str) -> str:
        """Open the port and take clients from now on.

        Args:
            address: ``HOST:PORT``; port 0 is any that is free.

        Returns:
            The same with the port that was bound.

        Raises:
            ConfigError: it is no address.
            LinkError: it cannot be bound.
        """
        if self._loop is not None:
            raise LinkError(f"cannot listen on {address!r}: this grid has a port already")
        wanted = Address.parse(address, listens=True, what="cannot listen on")
        try:
            wanted.try_to_bind()
        except OSError as error:
            raise LinkError(f"cannot listen on {address!r}: {error.strerror}") from error
        keep_buffers()
        self._loop = loop.acquire()
        try:
            port = asyncio.run_coroutine_threadsafe(self._serve(str(wanted)), self._loop).result()
        except RuntimeError as error:
            self._loop = None
            loop.release()
            raise LinkError(f"cannot listen on {address!r}: {error}") from error
        self.address = str(replace(wanted, port=port))
        return self.address

    def close(self, reason: str, *, final: bool = True) -> None:
        """Say goodbye to all clients and end the server and its thread; a second call does nothing.

        Args:
            reason: sent to the clients, one line.
            final: the run is over, clients end; else they come back to this address.
        """
        with self.changed:
            running, self._loop = self._loop, None
        if running is None:
            return
        asyncio.run_coroutine_threadsafe(self._shut_down(reason, final), running).result()
        loop.release()

    def nodes(self) -> dict[int, int]:
        """Return the node ids of the clients that are connected and ready by worker index, ascending."""
        with self.changed:
            return dict(sorted((stream.seat.worker, node) for node, stream in self._ready.items()))

    def reports(self) -> dict[str, str]:
        """Return what clients report that they have loaded, by name, of those that are or were ready."""
        with self.changed:
            seats = self.seating.all()
            return {seats[worker].name: report for worker, report in self._reports.items() if worker in seats}

    def expected(self) -> frozenset[str]:
        """Return the clients of the allow-list; none without one."""
        return frozenset() if self._access is None else self._access.listed

    def late(self) -> list[str]:
        """Return the names of the clients whose reply came after its instruction had expired, since the last call."""
        with self.changed:
            late = list(self._late)
            self._late.clear()
        return late

    def unfit(self) -> dict[str, str]:
        """Return why clients could not take part for what they have loaded, by name; who came back fit is not there."""
        with self.changed:
            return dict(self._unfit)

    def complaints(self) -> str:
        """Return in one line which clients came with another task than the server's."""
        counted = Counter(self.unfit().values())
        return "; ".join(f"{n} refused: {reason}" for reason, n in counted.most_common(3))

    def show(self, state: Callable[[], str]) -> None:
        """Show watchers this state from now on; see ``link.transport``."""
        self._watchers.show(state)

    def vacate(self, name: str) -> None:
        """Give up the seat of a client that is away for good; one that is connected, or unknown, keeps what it has."""
        with self.changed:
            self.seating.vacate(name)

    def wait(self, count: int, timeout: float) -> int:
        """Wait until ``count`` clients are ready, at most ``timeout`` seconds; return how many are."""
        with self.changed:
            self.changed.wait_for(lambda: len(self._ready) >= count, timeout)
            return len(self._ready)

    def carry(self, calls: Sequence[Call]) -> None:
        """Hand instructions to their clients' streams; one whose client is not connected fails at once."""
        sent: list[tuple[Stream, Call]] = []
        with self.changed:
            running = self._loop
            for call in calls:
                node = call.message.metadata.dst_node_id
                if (stream := self._ready.get(node)) is None:
                    call.fail(flwr_compat.NODE_UNAVAILABLE, f"not connected: node {node}")
                else:
                    call.unsettled = stream.calls
                    stream.calls.add(call)
                    sent.append((stream, call))
        if running is not None:
            running.call_soon_threadsafe(_dispatch, sent)

    # --- on the loop's thread -----------------------------------------------------------------------------------------

    async def _serve(self, address: str) -> int:
        own = heartbeat(self._heartbeat_s), limits(self._clients)
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0), *TRANSPORT, *chain(*own)])
        service, method = METHOD.strip("/").split("/")
        handlers = {method: grpc.stream_stream_rpc_method_handler(self._session)}
        # The request of a watcher is read as a hello is, within the same time.
        handlers[WATCH.rpartition("/")[2]] = grpc.stream_stream_rpc_method_handler(self._watchers.serve)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        if self._credentials is None:
            port: int = self._server.add_insecure_port(address)
        else:
            port = self._server.add_secure_port(address, self._credentials)
        await self._server.start()
        self._guard.open(port)
        self._checks = [asyncio.ensure_future(_repeat(SCAN_S, self._check_connections))]
        if self._access is not None:
            self._checks.append(asyncio.ensure_future(_repeat(_CHECK_S, partial(self._check_access, self._access))))
        return port

    async def _session(self, _: object, context: Any) -> None:
        """Serve one stream from hello to end."""
        if (stream := await self._greet(context)) is None:
            return
        tasks = [asyncio.ensure_future(work) for work in (self._read(stream), self._write(stream), stream.cut.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._detach(stream)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _greet(self, context: Any) -> Stream | None:
        """Answer the first frame of a stream; return the stream if its client is taken."""
        try:
            raw = await self._guard.hello(context)
            hello = Reader(HELLO_BYTES).feed(raw)
            if not isinstance(hello, pb.Hello):
                raise NoHello(f"a {type(hello).__name__} in its place")
        except (WireError, NoHello) as error:
            self._guard.warn("%s: no hello: %s", context.peer(), error)
            self._guard.reject(context.peer())
            return None
        try:
            self._backoff.check(hello.name)
            seat, settings = self._admit(hello, context)
        except NoSeat as refusal:
            self._guard.warn("%s: refused: %s", context.peer(), refusal)
            with suppress(TimeoutError):  # do not wait for a peer that does not read
                async with asyncio.timeout(HELLO_S):
                    await context.write(control_frame(pb.Refusal(reason=str(refusal), retry=refusal.retry)))
            return None
        how = "not authenticated" if self._credentials is None else "by its certificate"
        _log.info("%s: seat %d is taken by %s, %s", context.peer(), seat.worker, seat.name, how)
        stream = Stream(seat, context, self.ledger, self.max_reply_bytes)
        stream.certificate = peer_certificate(context)
        self.ledger.up(seat.name, len(raw))
        welcome = pb.Welcome(node_id=seat.node_id, worker=seat.worker, clients=self._clients, settings=settings)
        welcome.run_id, welcome.chunk_bytes = self.run.run_id, CHUNK_BYTES
        welcome.heartbeat_s, welcome.max_reply_bytes = self._heartbeat_s, self.max_reply_bytes
        try:
            async with asyncio.timeout(HELLO_S):
                await stream.send(control_frame(welcome))
        except BaseException as error:
            self._detach(stream)
            if isinstance(error, TimeoutError):
                self._guard.warn("%s: %s does not read its welcome", context.peer(), seat.name)
                return None
            raise
        self._streams.add(stream)
        return stream

    def _admit(self, hello: pb.Hello, context: Any) -> tuple[Seat, Mapping[str, str]]:
        if hello.protocol != PROTOCOL:
            raise NoSeat(f"protocol version {hello.protocol}: this server speaks version {PROTOCOL}")
        if self._credentials is not None and (certified := peer_name(context)) != hello.name:
            raise NoSeat(f"name {hello.name[:80]!r}: this client's certificate is for {certified!r}")
        if self._access is not None and (flaw := self._access.flaw_of(peer_certificate(context))) is not None:
            raise NoSeat(flaw)
        if self._credentials is not None and may_watch(peer_certificate(context)):
            raise NoSeat("this certificate is for watching; `breakwater certs issue DIR NAME` makes a client's")
        if hello.fingerprint != self._fingerprint and (self._same_code or not _CODE.fullmatch(hello.fingerprint)):
            theirs, ours = named(hello.version, hello.fingerprint), named(release(), self._fingerprint)
            raise NoSeat(f"other code: {theirs}; this server runs {ours}: run the same version at both ends")
        worker = hello.worker if hello.HasField("worker") else None
        former = hello.former if hello.HasField("former") else None
        with self.changed:
            seat = self.seating.take(hello.name, worker=worker, former=former)
        try:
            return seat, self._welcome(seat.name, seat.worker)
        except BaseException as error:
            with self.changed:
                self.seating.leave(seat.name)
            if isinstance(error, Refused):
                raise NoSeat(str(error)) from error
            raise

    def _admit_watcher(self, context: Any) -> str:
        """Return who wants to watch, for the log.

        Raises:
            NoSeat: it may not.
        """
        if self._credentials is None:
            return only_local(context)
        if not may_watch(peer_certificate(context)):
            raise NoSeat("this certificate is not for watching; `breakwater certs issue DIR --watcher NAME` makes one")
        if (flaw := self._flaw_of_watcher(context)) is not None:
            raise NoSeat(flaw)
        return f"{peer_name(context)}, by its certificate,"

    def _flaw_of_watcher(self, context: Any) -> str | None:
        return None if self._access is None else self._access.flaw_of(peer_certificate(context), watches=True)

    def _check_access(self, access: AccessControl) -> None:
        """Cut off clients and watchers that are no longer allowed."""
        access.look()
        for stream in list(self._streams):
            flaw = access.flaw_of(stream.certificate)
            if flaw is not None and stream.goodbye is None:
                self._cut_off(stream, flaw)
        self._watchers.look()

    def _cut_off(self, stream: Stream, reason: str) -> None:
        """End a client's stream for good: what it sends counts no more, and all it gets is the reason."""
        _log.warning("%s: cut off: %s", stream.seat.name, reason)
        self._unready(stream, reason)
        self._refuse(stream, reason)

    def _unready(self, stream: Stream, reason: str) -> None:
        """Take a client from those that are ready; what it has not answered fails."""
        with self.changed:
            if self._ready.get(stream.seat.node_id) is stream:
                del self._ready[stream.seat.node_id]
            for call in list(stream.calls):
                call.fail(flwr_compat.NODE_UNAVAILABLE, reason)
            self.changed.notify_all()

    def _turn_away(self, stream: Stream, flaw: str) -> None:
        """Refuse a client that is ready for another task than this server's."""
        self._guard.warn("%s: refused: %s", stream.seat.name, flaw)
        with self.changed:
            if stream.seat.name in self._unfit or len(self._unfit) < _MOST_UNFIT:
                self._unfit[stream.seat.name] = flaw
        self._refuse(stream, flaw)

    def _refuse(self, stream: Stream, reason: str) -> None:
        """Let a stream end with a refusal."""
        stream.goodbye = control_frame(pb.Refusal(reason=reason))
        stream.wake.set()
        asyncio.get_running_loop().call_later(_GOODBYE_S, self._hang_up, stream)  # also if the client does not read

    def _hang_up(self, stream: Stream) -> None:
        """End a stream that has not ended by itself, and its connection."""
        if not stream.gone.is_set():
            stream.cut.set()
            self._guard.reject(stream.context.peer())

    def _check_connections(self) -> None:
        """Disconnect unauthenticated peers, and clients that do not read."""
        late = time.monotonic() - _SEND_S
        for stream in list(self._streams):
            if stream.sending_since is not None and stream.sending_since < late and not stream.cut.is_set():
                self._back_off(stream, f"it has read nothing for {_SEND_S:g} s")
                stream.cut.set()
        self._guard.scan()

    def _back_off(self, stream: Stream, reason: str) -> None:
        """Note that a client's stream ends for what it did: its connection ends too, and it is refused for a while."""
        seconds = self._backoff.add(stream.seat.name)
        _log.warning("%s: cut off: %s; it may come back in %g s", stream.seat.name, reason, seconds)
        self._guard.reject(stream.context.peer())

    async def _read(self, stream: Stream) -> None:
        """Take what a client sends, until it ends the stream or has misbehaved too often."""
        while stream.strikes < _MAX_STRIKES:
            raw = await stream.context.read()
            if raw is grpc.aio.EOF:
                return
            self.ledger.up(stream.seat.name, len(raw))
            try:
                frame = stream.reader.feed(raw)
            except Endless as error:
                self._back_off(stream, error.reason)
                return
            except WireError as error:
                self._answer(stream, stream.busy, error.reason)
                continue
            if isinstance(frame, Parcel):
                self._answer(stream, stream.busy if stream.busy and stream.busy.id == frame.id else None, frame)
            elif isinstance(frame, pb.Ready):
                if stream.goodbye is not None:
                    continue
                if self._ready.get(stream.seat.node_id) is stream:
                    stream.strike("out of order: it is ready already")
                    continue
                flaw = None if self._judge is None else self._judge(stream.seat.name, frame.task)
                if flaw is not None:
                    self._turn_away(stream, flaw)
                    continue
                with self.changed:
                    self._unfit.pop(stream.seat.name, None)
                    self.seating.confirm(stream.seat.name)
                    self._reports[stream.seat.worker] = frame.task
                    self._ready[stream.seat.node_id] = stream
                    self.changed.notify_all()
            elif isinstance(frame, pb.Pass):
                if stream.busy and stream.busy.id == frame.id:
                    stream.free()
                else:
                    stream.strike(f"unsolicited pass {frame.id}")
            elif frame is not None:
                self._answer(stream, stream.busy, f"out of order: a {type(frame).__name__} from a client")
        self._back_off(stream, f"{stream.strikes} consecutive invalid or unsolicited frames")

    def _answer(self, stream: Stream, call: Call | None, answer: Parcel | str) -> None:
        """Take a client's reply, or the flaw of what it sent, as the answer to the instruction that it has."""
        if isinstance(answer, str):
            stream.strike(answer)
        elif call is None:
            stream.strike(f"unsolicited reply {answer.id}")
        else:
            stream.strikes = 0
        if call is None:
            return
        stream.free()
        with self.changed:
            if isinstance(answer, str):
                call.fail(flwr_compat.BAD_REPLY, answer)
            elif not call.settled:
                call.settle(answer.answer)
            else:
                self._late.append(stream.seat.name)

    async def _write(self, stream: Stream) -> None:
        """Send a client its instructions one at a time, and goodbye in the end."""
        while stream.goodbye is None:
            await stream.wake.wait()
            stream.wake.clear()
            while stream.busy is None and stream.queue and stream.goodbye is None:
                call = stream.queue.popleft()
                payload = call.payload
                if payload is None:  # it has expired
                    continue
                stream.hold(call)
                await stream.send(payload.envelope(call.head()))
                for chunk in payload.shared_chunks:
                    await stream.send(chunk)
                del payload
        await stream.send(stream.goodbye)

    def _detach(self, stream: Stream) -> None:
        """Forget a stream that has ended; what it had not answered fails."""
        self._streams.discard(stream)
        seat = stream.seat
        with self.changed:
            if not self.seating.leave(seat.name):
                self.ledger.forget(seat.name)  # else names that come and go would fill it
            self._unready(stream, f"disconnected: worker {seat.worker} ({seat.name})")
        stream.gone.set()

    async def _shut_down(self, reason: str, final: bool) -> None:
        for check in self._checks:
            check.cancel()
        self._guard.close()
        streams = list(self._streams)
        for stream in streams:
            stream.goodbye = control_frame(pb.Goodbye(reason=reason, final=final))
            stream.wake.set()
        goodbyes = [stream.gone.wait() for stream in streams]
        gone = asyncio.gather(self._watchers.close(reason, final, _GOODBYE_S), *goodbyes)
        with suppress(TimeoutError):
            await asyncio.wait_for(gone, _GOODBYE_S)
        for stream in streams:  # one that has stopped may hold half an instruction of any length: it gets no goodbye
            stream.cut.set()
        self._guard.disconnect(stream.context.peer() for stream in streams if not stream.gone.is_set())
        if self._server is not None:
            await self._server.stop(_GOODBYE_S)


async def _repeat(seconds: float, check: Callable[[], None]) -> None:
    """Run a check again and again, also after it has failed: later changes must still be noticed."""
    while True:
        await asyncio.sleep(seconds)
        try:
            check()
        except Exception:
            _log.exception("a check of the connections failed; trying again")


def _dispatch(sent: list[tuple[Stream, Call]]) -> None:
    """Queue instructions on their streams; on the link's thread."""
    for stream, call in sent:
        if not call.settled:
            stream.enqueue(call)
