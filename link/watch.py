"""The watcher's side of ``breakwater watch``: the states of a run, read from the server's port."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import grpc  # type: ignore[import-untyped]  # grpcio ships no types
from google.protobuf.message import DecodeError

from foundation.errors import ConfigError, Refused, ServerGone
from foundation.text import one_line
from link import link_pb2 as pb
from link.address import Address
from link.identity.certificates import CertificateRole
from link.identity.tls import Identity, channel_credentials, what_is_wrong
from link.proxy import Route, route_to
from link.watchers import WATCH
from link.wire import PROTOCOL, TRANSPORT, heartbeat

FIRST_S, PATIENCE_S = 5.0, 300.0
"""How long to look for a server that never answered, and for one that did."""

_FIRST_DELAY_S, _LAST_DELAY_S = 0.2, 3.0
"""The delay before another attempt doubles from the first to the last of these."""
_HEARTBEAT_S = 5.0
"""Seconds between pings; a server that answers none for as long again has gone."""
_LOOK_S = 3.0
"""Seconds to inspect an address to which no stream could be opened."""

State = dict[str, Any]


def follow(
    address: str, identity: Identity | None = None, *, first_s: float = FIRST_S, patience_s: float = PATIENCE_S
) -> Iterator[State]:
    """Yield the states of the run that the server at an address runs, until the run is over.

    A server that goes away is looked for: one that is started again with ``--resume`` goes on with the same run.
    Meanwhile the last state is yielded once more with ``away``, the reason in words. The last state of all has
    ``goodbye``, the server's reason.

    Args:
        address: HOST:PORT of the server.
        identity: a watcher's certificate, for TLS; None for an open port.
        first_s: how long the server may not be there at the beginning.
        patience_s: how long it may be away later.

    Raises:
        Refused: there is no Breakwater server at the address, or it does not accept this certificate for watching.
        ConfigError: the address is none, or the certificate cannot be used.
        ServerGone: no server has answered for too long.
    """
    server = Address.parse(address, what="cannot watch")
    route = route_to(server)
    if identity is not None and not identity.watches:
        advice = "`breakwater certs issue DIR --watcher NAME` makes one that may"
        raise ConfigError(f"--tls {identity.origin}: is the certificate of a client, which may not watch; {advice}")
    last: State | None = None
    seen, delay, reported = time.monotonic(), _FIRST_DELAY_S, ""
    suspicion = ""  # what is wrong with the process that listens there, as of the last inspection
    while True:
        reason = "the server ended the stream"
        try:
            for frame in _frames(server, route, identity):
                kind = frame.WhichOneof("kind")
                if kind == "state":
                    last, seen, delay, reported = _parsed(address, frame.state), time.monotonic(), _FIRST_DELAY_S, ""
                    yield last
                elif kind == "refusal":
                    reason = one_line(frame.refusal.reason)
                    if last is None or not frame.refusal.retry:
                        raise Refused(f"{address}: {reason}")
                elif kind == "goodbye":
                    reason = one_line(frame.goodbye.reason)
                    if frame.goodbye.final:
                        yield (last or {}) | {"goodbye": reason}
                        return
        except DecodeError:
            raise Refused(f"{address}: is no Breakwater server: what it sends cannot be read") from None
        except grpc.RpcError as error:
            before, (reason, suspicion) = suspicion, _explained(error, server, route, identity, known=last is not None)
            if suspicion and before:
                raise Refused(f"{address}: {suspicion}") from None
            if suspicion:  # a server may have begun to listen between the attempt and the look: try once more
                time.sleep(delay)
                continue
        away_s = time.monotonic() - seen
        if away_s >= (first_s if last is None else patience_s):
            raise ServerGone(f"no server at {address} for {away_s:.0f} s: {reason}")
        if last is not None and reported != reason:
            reported = reason
            yield last | {"away": reason}
        time.sleep(delay)
        delay = min(2 * delay, _LAST_DELAY_S)


def _frames(address: Address, route: Route, identity: Identity | None) -> Iterator[pb.WatchFrame]:
    """Yield what one stream brings.

    Raises:
        grpc.RpcError: it could not be opened, or broke.
        DecodeError: it brings what is no frame.
    """
    options = [("grpc.use_local_subchannel_pool", 1), *TRANSPORT, *heartbeat(_HEARTBEAT_S), *route.options]
    if identity is None:
        channel = grpc.insecure_channel(address.target, options)
    else:
        channel = grpc.secure_channel(address.target, channel_credentials(identity), options)
    with channel:
        request = pb.WatchRequest(protocol=PROTOCOL)
        for raw in channel.unary_stream(WATCH)(request.SerializeToString()):
            yield pb.WatchFrame.FromString(raw)


def _parsed(address: str, text: str) -> State:
    try:
        state = json.loads(text)
    except (ValueError, RecursionError):  # the second for what is nested without end
        state = None
    if not isinstance(state, dict):
        raise Refused(f"{address}: sends states that cannot be read; run the same version at both ends")
    return {key: value for key, value in state.items() if key not in ("away", "goodbye")}  # set on this side only


def _explained(
    error: grpc.RpcError, address: Address, route: Route, identity: Identity | None, *, known: bool
) -> tuple[str, str]:
    """Return why there is no stream and, if a process listens there that never served, what is wrong with it.

    Raises:
        Refused: there would not be one later either.
        ConfigError: our own certificate has expired.
    """
    code, details = error.code(), route.explain(one_line(error.details() or "the stream broke"))
    if code is grpc.StatusCode.UNIMPLEMENTED:
        raise Refused(f"{address}: is no Breakwater server, or one too old to be watched") from None
    if known:
        return details, ""
    if identity is not None:
        identity.check(CertificateRole.CLIENT)
    if route.proxy:  # a look of ours would go another way
        return details, ""
    try:
        socket.create_connection((address.host, address.port), _LOOK_S).close()
    except (OSError, UnicodeError) as failure:
        return route.explain(str(getattr(failure, "strerror", None) or failure)), ""
    finding = asyncio.run(what_is_wrong(address, identity, route))
    return details, finding or f"the process that listens there is no Breakwater server ({details})"
