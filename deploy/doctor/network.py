"""Checks whether a server can listen here, and whether a Breakwater server at an address would admit this party.

The check takes no seat: its hello carries a fingerprint that no code has, and the server refuses that after it has
checked everything else. It logs the hello as refused.
"""

import asyncio
import errno
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc  # type: ignore[import-untyped]  # grpcio ships no types

from deploy.doctor.findings import Finding, ok, problem
from foundation.errors import ConfigError, WireError
from foundation.origin import named, release
from link import link_pb2 as pb
from link.address import Address
from link.identity.certificates import CertificateRole
from link.identity.tls import Identity, channel_credentials, may_watch, what_is_wrong
from link.proxy import Route, route_to
from link.wire import MAX_FRAME_BYTES, METHOD, PROTOCOL, TRANSPORT, Reader, control_frame

TCP_S = 5.0
"""Seconds that a machine may take to accept a connection."""
ANSWER_S = 10.0
"""Seconds that a server may take to answer a hello."""
_TABLE = "see the table in docs/machines.md"
NO_CODE = "doctor"
"""A fingerprint that no code has: those are hexadecimal."""


def listening(address: Address) -> Iterator[Finding]:
    """Check whether an address can be listened on."""
    try:
        address.try_to_bind()
    except OSError as error:
        yield problem("listen", f"{address}: {error.strerror}", _fix_of_listening(error, address))
    else:
        yield ok("listen", f"{address} is free")


def _fix_of_listening(error: OSError, address: Address) -> str:
    if error.errno == errno.EADDRINUSE:
        which = f"`ss -ltnp 'sport = :{address.port}'` shows which"
        return f"another process uses it ({which}); stop it, or use another port"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address; 0.0.0.0 means all its addresses"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "ports below 1024 need root; use a higher one"
    return "give an address of this machine, such as 0.0.0.0:9090"


def connecting(address: Address, tls: Path | None) -> Iterator[Finding]:
    """Check whether a Breakwater server at an address would admit this party.

    Args:
        address: of the server.
        tls: folder of the client's certificate; None for a server without TLS.
    """
    route = route_to(address)
    if not route.proxy:  # else only the proxy need reach it
        try:
            with socket.create_connection((address.host, address.port), TCP_S):
                pass
        except OSError as error:
            says = route.explain(f"{address}: {error.strerror or error}")
            yield problem("connect", says, _fix_of_connecting(error))
            return
    try:
        identity = None if tls is None else Identity.load(tls)
        if identity is not None:
            identity.check(CertificateRole.CLIENT)
    except ConfigError as error:
        says = f"{address} is reachable, but this certificate cannot be used: {error}"
        yield problem("connect", says, "see the line about tls")
        return
    yield asyncio.run(_ask(address, identity, route))


def _fix_of_connecting(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "the machine is reachable, but nothing listens: start the server, and check its port"
    if isinstance(error, TimeoutError):
        return "no answer: check the address, and that firewalls allow the port"
    if isinstance(error, socket.gaierror):
        return "this machine cannot resolve the name: check its spelling, or give the IP address"
    return "check the network between this machine and the server"


def _fix_of_proxy(route: Route) -> str:
    return f"check that the proxy allows connections to that port, or unset {route.variable}" * bool(route.proxy)


class _NoRefusal(Exception):  # noqa: N818  # the name says what happened
    """A hello was not answered by a refusal; what happened instead."""


async def _ask(address: Address, identity: Identity | None, route: Route) -> Finding:
    how = "without TLS" if identity is None else f"over TLS, both certificates valid, as {identity.name!r}"
    try:
        refusal = await _hello(address, identity, route)
    except _NoRefusal as failure:
        finding = await what_is_wrong(address, identity, route)
        says = finding or f"no Breakwater server answers: {route.explain(str(failure))}"
        fix = _TABLE if finding else _fix_of_proxy(route) or "check the port, and what listens there"
        return problem("connect", f"{address}: {says}", fix)
    if identity is not None and may_watch(identity.certificate) and "is for watching" in refusal:
        return ok("connect", f"{address}: a Breakwater server, {how}, which may only watch")
    theirs = re.search(r"this server runs ([^()]{1,64}) \(((?:modified-)?[0-9a-f]{12})\)", refusal)
    if theirs is None:
        return problem("connect", f"{address}: refused: {refusal[:300]}", _TABLE)
    from experiment.code import code_fingerprint

    if theirs[2] != code_fingerprint():
        ours = named(release(), code_fingerprint())
        says = f"a Breakwater server, {how}, but it runs {named(theirs[1], theirs[2])}, this machine {ours}"
        return problem("connect", f"{address}: {says}", "install the same version at both ends")
    return ok("connect", f"{address}: a Breakwater server of the same code, {how}")


async def _hello(address: Address, identity: Identity | None, route: Route) -> str:
    """Send a hello with the fingerprint of no code, and return the server's refusal.

    Raises:
        _NoRefusal: there is none.
    """
    options = [("grpc.use_local_subchannel_pool", 1), *TRANSPORT, *route.options]
    if identity is None:
        channel = grpc.aio.insecure_channel(address.target, options)
    else:
        channel = grpc.aio.secure_channel(address.target, channel_credentials(identity), options)
    name = "doctor" if identity is None else identity.name
    try:
        async with channel, asyncio.timeout(ANSWER_S):
            call = channel.stream_stream(METHOD)()
            try:
                await call.write(control_frame(pb.Hello(protocol=PROTOCOL, name=name, fingerprint=NO_CODE)))
                raw = await call.read()
                if raw is grpc.aio.EOF:
                    raise _NoRefusal("it ended the stream without a reply")
                frame = Reader(MAX_FRAME_BYTES).feed(raw)
            finally:
                call.cancel()
    except TimeoutError:
        raise _NoRefusal(f"no reply within {ANSWER_S:g} s") from None
    except WireError as error:
        raise _NoRefusal(f"the reply is no Breakwater message ({error.reason[:200]})") from None
    except grpc.aio.AioRpcError as error:
        raise _NoRefusal(str(error.details())[:200]) from None
    if not isinstance(frame, pb.Refusal):
        raise _NoRefusal(f"it replied with a {type(frame).__name__} instead of a refusal")
    return str(frame.reason)
