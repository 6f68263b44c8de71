"""The server's side of ``breakwater watch``: who may watch a run, and what they are sent.

A watcher has its own stream on the clients' port. It gets the run's state as JSON about twice a second, always the
newest: nothing is queued, so one that reads slowly misses states and one that does not read is dropped. It takes no
seat, it is in no roster, and its bytes are not counted as the run's.

A Byzantine client must not learn from here who was sampled or rejected. So over TLS only a certificate that was issued
for watching is accepted, and such a certificate takes no seat; without TLS only peers on the server's own machine.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from google.protobuf.message import DecodeError

from link import link_pb2 as pb
from link.guard import HELLO_BYTES, HELLO_S, ConnectionGuard, NoHello, host_of
from link.seats import NoSeat
from link.wire import PROTOCOL

WATCH = "/breakwater.link.v1.Link/Watch"
"""The gRPC method of the stream."""
MAX_WATCHERS = 8
"""How many may watch at a time."""
EVERY_S = 0.5
"""Seconds between two states."""
SLOW_S = 10.0
"""Drop a watcher that has not accepted a state for this many seconds."""

_log = logging.getLogger("breakwater.link")


class Watchers:
    """The watchers of a run. Used on the link's thread only, but for ``show``.

    Args:
        guard: limits what a peer may cost until it is admitted.
        admit: called with gRPC's context; returns the watcher's name for the log. It raises NoSeat if it may not
            watch.
        flaw: called with gRPC's context; returns why an admitted watcher may no longer watch, None while it may.
    """

    def __init__(self, guard: ConnectionGuard, admit: Callable[[Any], str], flaw: Callable[[Any], str | None]) -> None:
        self._guard = guard
        self._admit = admit
        self._flaw = flaw
        self._state: Callable[[], str] | None = None
        self._watching: dict[Any, asyncio.Event] = {}  # by context; the event is set when there is news for it
        self._refusals: dict[Any, str] = {}
        self._goodbye: pb.Goodbye | None = None

    def show(self, state: Callable[[], str]) -> None:
        """Take what returns the state from now on, a JSON object; it is called on the link's thread, and quick.

        Before that there is nothing to see, and watchers wait.
        """
        self._state = state

    def peers(self) -> list[str]:
        """Return the gRPC peers of the watchers."""
        return [context.peer() for context in self._watching]

    def look(self) -> None:
        """Disconnect watchers that may no longer watch."""
        for context, news in self._watching.items():
            flaw = self._flaw(context)
            if flaw is not None and context not in self._refusals:
                self._refusals[context] = flaw
                news.set()

    async def close(self, reason: str, final: bool, patience_s: float) -> None:
        """Send every watcher the last state and a goodbye.

        Args:
            reason: one line.
            final: the run is over; else the watchers come back.
            patience_s: how long that may take.
        """
        self._goodbye = pb.Goodbye(reason=reason, final=final)
        for news in self._watching.values():
            news.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while self._watching:
                    await asyncio.sleep(0.01)

    async def serve(self, _: object, context: Any) -> None:
        """Serve one stream from its request to its end."""
        peer = context.peer()
        try:
            raw = await self._guard.hello(context)
            if len(raw) > HELLO_BYTES:
                raise NoHello(f"a request of {len(raw)} bytes")
            request = pb.WatchRequest.FromString(raw)
        except (NoHello, DecodeError) as error:
            self._guard.warn("%s: no request to watch: %s", peer, error)
            self._guard.reject(peer)
            return
        try:
            if request.protocol != PROTOCOL:
                raise NoSeat(f"protocol version {request.protocol}: this server speaks version {PROTOCOL}")
            if len(self._watching) >= MAX_WATCHERS:
                raise NoSeat(f"{MAX_WATCHERS} are watching already, which is the limit", retry=True)
            who = self._admit(context)
        except NoSeat as refusal:
            self._guard.warn("%s: may not watch: %s", peer, refusal)
            with suppress(TimeoutError):
                async with asyncio.timeout(HELLO_S):
                    await _write(context, pb.WatchFrame(refusal=pb.Refusal(reason=str(refusal), retry=refusal.retry)))
            return
        _log.info("%s: %s watches", peer, who)
        news = self._watching[context] = asyncio.Event()
        try:
            await self._send_states(context, news)
        except TimeoutError:
            _log.warning("%s: %s has read nothing for %g s: disconnected", peer, who, SLOW_S)
            self._guard.reject(peer)
        finally:
            del self._watching[context]
            self._refusals.pop(context, None)

    async def _send_states(self, context: Any, news: asyncio.Event) -> None:
        """Send state after state until the goodbye."""
        while True:
            goodbye, refusal = self._goodbye, self._refusals.get(context)
            async with asyncio.timeout(SLOW_S):
                if refusal is not None:
                    await _write(context, pb.WatchFrame(refusal=pb.Refusal(reason=refusal)))
                    return
                if self._state is not None:
                    await _write(context, pb.WatchFrame(state=self._state()))
                if goodbye is not None:
                    await _write(context, pb.WatchFrame(goodbye=goodbye))
                    return
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await news.wait()


def only_local(context: Any) -> str:
    """Return who watches an open port, without TLS.

    Raises:
        NoSeat: it is on another machine.
    """
    host = host_of(context.peer())
    if host is None or not host.is_loopback:
        raise NoSeat("without TLS only the server's own machine may watch, by 127.0.0.1; start the server with --tls")
    return "a user of this machine"


async def _write(context: Any, frame: pb.WatchFrame) -> None:
    await context.write(frame.SerializeToString())
