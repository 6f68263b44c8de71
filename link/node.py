"""The client's end of the link: joins a federation and keeps a Flower ClientApp resident in this process.

The ClientApp runs in the thread that called ``join``, one instruction at a time; gRPC's own threads answer the server's
pings meanwhile, so a client may compute for as long as it likes. The stream is read and written in that same thread, on
an asyncio loop that pauses while the ClientApp runs: with gRPC's blocking interface, which hands every message
through two more threads, a round of 20 clients took 10 to 25 % longer.
"""

import asyncio
import logging
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Required, TypedDict, Unpack

import grpc  # type: ignore[import-untyped]  # grpcio ships no types
from flwr.app import Context

from foundation.errors import OtherTask, Refused, ServerGone, WireError
from foundation.origin import release
from link import link_pb2 as pb
from link import loop, replies
from link.address import Address
from link.identity.certificates import CertificateRole
from link.identity.tls import Identity, channel_credentials, what_is_wrong
from link.memory import keep_buffers
from link.proxy import Route, route_to
from link.replies import App, Reply
from link.seats import flaw_of_name
from link.wire import MAX_BODY_BYTES, METHOD, PROTOCOL, TRANSPORT, Parcel, Reader, Welcome, control_frame, heartbeat
from link.witness import HELLO, READY, Witness, kind_of, round_of

_FIRST_DELAY_S, _LAST_DELAY_S = 0.1, 5.0
"""The delay before another attempt to join doubles from the first to the last of these."""
_STOP_CHECK_S = 0.2
"""How long a set ``stop`` may go unnoticed."""
_HEARTBEAT_S = 5.0
"""Seconds between pings to the server by default."""
_VERDICT_S = 5.0
"""How long a client that has loaded another task waits for the server's refusal."""

_log = logging.getLogger("breakwater.link")


@dataclass(frozen=True)
class Prepared:
    """What a client has prepared for a run.

    Args:
        app: a ClientApp, or what answers in its place; called with every instruction and the context. An exception
            becomes an error reply, Silent no reply at all, Broken a reply that breaks on the way.
        context: of the ClientApp.
        task: what it has loaded, which the server compares with its own; "" for nothing to compare.
    """

    app: App
    context: Context
    task: str = ""


Prepare = Callable[[Welcome], Prepared]
"""Prepares for the run of a server; raises OtherTask where the task that was loaded here is not the server's."""


class Options(TypedDict, total=False):
    """What all seats of a process share; see ``join``."""

    fingerprint: Required[str]
    stop: threading.Event
    patience_s: float | None
    heartbeat_s: float
    log: Callable[[str], None]
    witness: Witness | None


def join(
    address: str,
    name: str,
    prepare: Prepare,
    worker: int | None = None,
    identity: Identity | None = None,
    **options: Unpack[Options],
) -> str:
    """Stay in the federation at ``address`` as ``name`` until the server says goodbye.

    A server that cannot be reached, or is lost, is tried again after 0.1 s, 0.2 s, ... 5 s, each with jitter.

    Args:
        address: the server's ``HOST:PORT``.
        name: of this client; 1 to 64 characters of [A-Za-z0-9._-].
        prepare: called once per run with the server's Welcome; loads the data and returns the ClientApp that stays
            resident, with its context. What it raises ends ``join``.
        worker: the seat that this client must have; None for any.
        identity: the certificate of this name, for TLS; None for an open port.
        fingerprint: of the code; must be the server's.
        stop: once set, ``join`` returns, after the instruction in hand.
        patience_s: how long the server may be away; None for ever.
        heartbeat_s: seconds between pings to the server; without an answer for as long again it is gone.
        log: takes one line for the user whenever the state of the connection changes.
        witness: is told of all that is asked and sent; None for nobody.

    Returns:
        The reason that the server gave for its goodbye, or ``"stopped"``.

    Raises:
        Refused: by the server, for good; or the name cannot be used.
        ConfigError: the address is none; the identity cannot be used, or not any more. A flaw of the server's
            certificate is logged and tried again: an intermediary must not be able to end a client.
        ServerGone: the server was away for longer than ``patience_s``.
    """
    identities = None if identity is None else {name: identity}
    return join_as_many(address, {name: worker}, prepare, identities, **options)


def join_as_many(
    address: str,
    seats: Mapping[str, int | None],
    prepare: Prepare,
    identities: Mapping[str, Identity] | None = None,
    **options: Unpack[Options],
) -> str:
    """Hold several seats from this one thread, each on a connection of its own; an error of one ends all.

    Args:
        address: see ``join``, also for the options.
        seats: the wished seat, or None, by name; at least one.
        prepare: called for each of them; their ClientApps run one instruction at a time.
        identities: the certificate of each name, for TLS; None for an open port.

    Returns:
        The reason that the server gave the first of them for its goodbye.

    Raises:
        Refused, ConfigError, ServerGone: see ``join``.
    """
    parsed = Address.parse(address, what="cannot connect to")
    terms = _Terms(parsed, route_to(parsed), **options)
    for name in seats:
        if (flaw := flaw_of_name(name)) is not None:
            raise Refused(flaw)
    keep_buffers()
    shown: Mapping[str, Identity | None] = dict.fromkeys(seats) if identities is None else identities
    nodes = [_Node(name, prepare, worker, terms, shown[name]) for name, worker in seats.items()]

    async def together() -> str:
        tasks = [asyncio.ensure_future(node.stay()) for node in nodes]
        try:
            return (await asyncio.gather(*tasks))[0]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    with asyncio.Runner(loop_factory=loop.new) as runner:
        return runner.run(together())


@dataclass(frozen=True)
class _Terms:
    """What all seats of one call have in common; see ``join``."""

    address: Address
    route: Route
    fingerprint: str
    stop: threading.Event = field(default_factory=threading.Event)
    patience_s: float | None = None
    heartbeat_s: float = _HEARTBEAT_S
    log: Callable[[str], None] = _log.info
    witness: Witness | None = None
    over: threading.Event = field(default_factory=threading.Event)
    """One of the seats has received its last goodbye: another one that has no stream then need not come back."""


class _Node:
    """What outlives one stream: who we are, and the context of the run that we prepared for."""

    def __init__(
        self, name: str, prepare: Prepare, worker: int | None, terms: _Terms, identity: Identity | None
    ) -> None:
        self._name = name
        self._identity = identity
        self._credentials = None if identity is None else channel_credentials(identity)
        self._prepare = prepare
        self._worker = worker
        self._terms = terms
        self._welcomed = False
        self._prepared: tuple[Welcome, Prepared] | None = None
        self._late: asyncio.Future[None] | None = None  # a reply that is not sent yet
        self._failure = "", ""  # why there was no stream: gRPC's message, and the finding of the inspection

    async def stay(self) -> str:
        """Serve stream after stream until the server's final goodbye."""
        terms, stop = self._terms, self._terms.stop
        delay, last_contact, complaint = _FIRST_DELAY_S, time.monotonic(), ""
        while not stop.is_set():
            outcome = await self._serve()
            if stop.is_set():
                break
            if isinstance(outcome, pb.Goodbye) and outcome.final:
                terms.over.set()
                return outcome.reason
            if terms.over.is_set():
                return "the run is over"
            if self._welcomed:
                delay, last_contact, complaint = _FIRST_DELAY_S, time.monotonic(), ""
            reason = outcome.reason if isinstance(outcome, pb.Goodbye) else outcome
            away_s = time.monotonic() - last_contact
            if terms.patience_s is not None and away_s >= terms.patience_s:
                patience = f"patience is {terms.patience_s} s"
                raise ServerGone(f"no server at {terms.address} for {away_s:.1f} s: {reason}; {patience}")
            if reason != complaint:  # log the same reason once, however many attempts it takes
                complaint = reason
                if terms.witness is not None:
                    terms.witness.lost(self._name, reason)
                terms.log(f"{self._name}: no stream to {terms.address}: {reason}; trying again until there is one")
            await _pause(delay * random.uniform(0.5, 1.0), stop)
            delay = min(2 * delay, _LAST_DELAY_S)
        return "stopped"

    async def _serve(self) -> pb.Goodbye | str:
        """Serve one stream to its end.

        Returns:
            The server's goodbye, or what ended the stream, in words.
        """
        terms, stop = self._terms, self._terms.stop
        self._welcomed = False
        async with _channel(terms, self._credentials) as channel:
            call = channel.stream_stream(METHOD)()
            watcher = asyncio.ensure_future(_cancel_once(stop, call))
            try:
                await self._write(call, Reply([control_frame(self._hello())], kind=HELLO))
                return await self._converse(call, stop)
            except WireError as error:
                return f"the server sent an invalid frame: {error.reason}"
            except grpc.aio.AioRpcError as error:
                details = str(error.details())
                return terms.route.explain(details if self._welcomed else await self._explain(details))
            except asyncio.CancelledError:
                if not stop.is_set():
                    raise
                return "stopped"
            finally:
                watcher.cancel()
                if self._late is not None:
                    self._late.cancel()
                call.cancel()

    async def _explain(self, details: str) -> str:
        """Return why there is no stream; inspect the server unless gRPC's message is explained already.

        Raises:
            ConfigError: our own certificate has expired.
        """
        if self._identity is not None:
            self._identity.check(CertificateRole.CLIENT)
        if details != self._failure[0]:
            if (finding := await what_is_wrong(self._terms.address, self._identity, self._terms.route)) is None:
                return details
            self._failure = details, finding
        return self._failure[1]

    async def _converse(self, call: Any, stop: threading.Event) -> pb.Goodbye | str:
        """Answer the server's frames until the stream ends."""
        reader = Reader(MAX_BODY_BYTES)
        coming = asyncio.ensure_future(call.read())
        while not stop.is_set():
            raw = await coming
            if raw is grpc.aio.EOF:
                return "the server ended the stream"
            frame = reader.feed(raw)
            reply = Reply()
            if isinstance(frame, Parcel):
                reply = self._answer(frame)
            elif isinstance(frame, pb.Welcome):
                try:
                    reply = _ready(self._settle_in(frame))
                except OtherTask as other:
                    await self._report(call, other)
                    raise
            elif isinstance(frame, pb.Goodbye):
                return frame
            elif isinstance(frame, pb.Refusal):
                if not frame.retry:
                    raise Refused(f"{self._name}: refused by the server: {frame.reason}")
                return frame.reason
            # The server may have ended the stream while we computed. Then writing fails, and takes with it all that is
            # not being read by then: so begin to read first, the goodbye must not be lost.
            coming = asyncio.ensure_future(call.read())
            await asyncio.sleep(0)
            if reply.delay_s:  # the server sends no other instruction before this one is answered
                self._late = asyncio.ensure_future(replies.send(partial(self._write, call), reply))
            else:
                await replies.send(partial(self._write, call), reply)
            if reply.end is not None:
                coming.cancel()
                return reply.end
        return "stopped"

    async def _write(self, call: Any, reply: Reply) -> None:
        """Write the frames of a message; the one place where they leave."""
        frames, witness = reply.frames, self._terms.witness
        if witness is not None and (frames := list(frames)) and reply.kind != HELLO:
            witness.leaving(self._name, reply.kind, reply.round, frames)
        for frame in frames:
            await call.write(frame)
        if witness is not None and reply.kind == HELLO:  # until it is written there may be no connection
            witness.leaving(self._name, reply.kind, reply.round, list(frames))

    async def _report(self, call: Any, other: OtherTask) -> None:
        """Report what was loaded here to the server, so that its log gives the reason why this client leaves.

        Raises:
            Refused: its answer.
        """
        with suppress(TimeoutError, WireError, grpc.aio.AioRpcError):
            async with asyncio.timeout(_VERDICT_S):
                await self._write(call, _ready(other.task))
                raw = await call.read()
                frame = None if raw is grpc.aio.EOF else Reader(MAX_BODY_BYTES).feed(raw)
                if isinstance(frame, pb.Refusal):
                    raise Refused(f"{self._name}: refused by the server: {frame.reason}")

    def _hello(self) -> pb.Hello:
        former = self._prepared[0].worker if self._prepared and self._worker is None else None
        code = {"fingerprint": self._terms.fingerprint, "version": release()}
        return pb.Hello(protocol=PROTOCOL, name=self._name, worker=self._worker, former=former, **code)

    def _settle_in(self, message: pb.Welcome) -> str:
        """Prepare for the run, unless that was done on an earlier stream; return what was loaded for it."""
        welcome = Welcome(
            name=self._name,
            run_id=message.run_id,
            node_id=message.node_id,
            worker=message.worker,
            clients=message.clients,
            settings=dict(message.settings),
            heartbeat_s=message.heartbeat_s,
            max_reply_bytes=message.max_reply_bytes,
        )
        self._welcomed = True
        self._terms.log(f"{self._name}: joined as worker {welcome.worker} of {welcome.clients}")
        if self._terms.witness is not None:
            self._terms.witness.connected(self._name, welcome.worker, welcome.clients)
        if self._prepared is None or _seat(self._prepared[0]) != _seat(welcome):
            self._prepared = None  # the old context's memory first
            self._prepared = welcome, self._prepare(welcome)
        return self._prepared[1].task

    def _answer(self, parcel: Parcel) -> Reply:
        """Run the ClientApp on an instruction and return its reply."""
        if self._prepared is None:
            return replies.error(parcel.id, "WireError: an instruction out of order")
        if self._terms.witness is not None:
            self._terms.witness.asked(self._name, kind_of(parcel.message_type), round_of(parcel.group_id))
        prepared = self._prepared[1]
        return replies.answer(parcel, prepared.app, prepared.context, name=self._name)


def _ready(task: str) -> Reply:
    """Return the message that a client is ready, with what it has loaded."""
    return Reply([control_frame(pb.Ready(task=task))], kind=READY)


def _seat(welcome: Welcome) -> tuple[int, int, int]:
    return welcome.run_id, welcome.worker, welcome.clients


@asynccontextmanager
async def _channel(terms: _Terms, credentials: grpc.ChannelCredentials | None) -> AsyncIterator[grpc.aio.Channel]:
    """Open a channel with a TCP connection of its own, also beside others of this process; close it in the end."""
    options = [("grpc.use_local_subchannel_pool", 1), *TRANSPORT, *heartbeat(terms.heartbeat_s), *terms.route.options]
    if credentials is None:
        channel = grpc.aio.insecure_channel(terms.address.target, options)
    else:
        channel = grpc.aio.secure_channel(terms.address.target, credentials, options)
    try:
        yield channel
    finally:
        await channel.close()


async def _cancel_once(stop: threading.Event, call: Any) -> None:
    """Cancel the call once ``stop`` is set."""
    while not stop.is_set():
        await asyncio.sleep(_STOP_CHECK_S)
    call.cancel()


async def _pause(seconds: float, stop: threading.Event) -> None:
    """Wait, but not much longer than until ``stop`` is set."""
    end = time.monotonic() + seconds
    while not stop.is_set() and (left := end - time.monotonic()) > 0:
        await asyncio.sleep(min(left, _STOP_CHECK_S))
