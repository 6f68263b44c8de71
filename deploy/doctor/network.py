"""Whether a server can listen here, and whether there is a Breakwater server at an address that takes this party.

To ask a server takes no seat: the hello carries a fingerprint that no code has, and the server says so after it has
looked at everything else. It logs the hello as refused.
"""

import asyncio
import errno
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc  # type: ignore[import-untyped]  # grpcio ships no types

from deploy.doctor.findings import Finding, ok, problem
from foundation.errors import ConfigError, WireError
from link import link_pb2 as pb
from link.address import Address
from link.identity.certificates import Role
from link.identity.tls import Identity, channel_credentials, may_watch, what_is_wrong
from link.proxy import Route, route_to
from link.wire import MAX_FRAME_BYTES, METHOD, PROTOCOL, TRANSPORT, Reader, control_frame

TCP_S = 5.0
"""How long a machine may take to accept a connection."""
ANSWER_S = 10.0
"""How long a server may take to answer a hello."""
_TABLE = "docs/machines.md has a table of these"
NO_CODE = "doctor"
"""The fingerprint of no code: those of code are hexadecimal."""


def listening(address: Address) -> Iterator[Finding]:
    """Look whether an address can be listened on."""
    try:
        address.try_to_bind()
    except OSError as error:
        yield problem("listen", f"{address}: {error.strerror}", _mend_of_listening(error, address))
    else:
        yield ok("listen", f"{address} is free")


def _mend_of_listening(error: OSError, address: Address) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"another process has it (`ss -ltnp 'sport = :{address.port}'` says which); end that, or take another port"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address; 0.0.0.0 is all that it has"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "ports below 1024 are root's; take a higher one"
    return "give an address of this machine, such as 0.0.0.0:9090"


def connecting(address: Address, tls: Path | None) -> Iterator[Finding]:
    """Look whether a Breakwater server is at an address and would take this party.

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
            says = route.told(f"{address}: {error.strerror or error}")
            yield problem("connect", says, _mend_of_connecting(error))
            return
    try:
        identity = None if tls is None else Identity.load(tls)
        if identity is not None:
            identity.check(Role.CLIENT)
    except ConfigError as error:
        yield problem("connect", f"{address} is reached, but not with this certificate: {error}", "see the line on tls")
        return
    yield asyncio.run(_ask(address, identity, route))


def _mend_of_connecting(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "the machine is there, but nothing listens: start the server, and look at its port"
    if isinstance(error, TimeoutError):
        return "nothing answers: a firewall, or the wrong address; the server's must let the port in"
    if isinstance(error, socket.gaierror):
        return "no such name is known here: look at its spelling, or give the IP address"
    return "look at the network between here and there"


def _mend_of_proxy(route: Route) -> str:
    return f"ask whether the proxy lets connections through to that port, or unset {route.variable}" * bool(route.proxy)


@dataclass(frozen=True)
class _Answer:
    """What came of a hello: the server's refusal, or why there is none."""

    refusal: str = ""
    failure: str = ""


async def _ask(address: Address, identity: Identity | None, route: Route) -> Finding:
    answer = await _hello(address, identity, route)
    how = "without TLS" if identity is None else f"by TLS, certificates good both ways, as {identity.name!r}"
    if not answer.refusal:
        finding = await what_is_wrong(address, identity, route)
        says = finding or f"no Breakwater server answers: {route.told(answer.failure)}"
        mend = _TABLE if finding else _mend_of_proxy(route) or "look at the port, and at what listens there"
        return problem("connect", f"{address}: {says}", mend)
    if identity is not None and may_watch(identity.certificate) and "is for watching" in answer.refusal:
        return ok("connect", f"{address}: a Breakwater server, {how}, who may watch only")
    theirs = re.search(r"this server runs '([0-9a-f]{12})'", answer.refusal)
    if theirs is None:
        return problem("connect", f"{address}: refused: {answer.refusal[:300]}", _TABLE)
    from experiment.code import code_fingerprint

    if theirs[1] != code_fingerprint():
        return problem(
            "connect",
            f"{address}: a Breakwater server, {how}, but its code is {theirs[1]} and that here {code_fingerprint()}",
            "check out the same version at both ends",
        )
    return ok("connect", f"{address}: a Breakwater server of the same code, {how}")


async def _hello(address: Address, identity: Identity | None, route: Route) -> _Answer:
    """Say hello with the fingerprint of no code and return the answer."""
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
                    return _Answer(failure="it ended the stream without a word")
                frame = Reader(MAX_FRAME_BYTES).feed(raw)
            finally:
                call.cancel()
    except TimeoutError:
        return _Answer(failure=f"nothing came within {ANSWER_S:g} s")
    except WireError as error:
        return _Answer(failure=f"what came is no message of ours ({error.reason[:200]})")
    except grpc.aio.AioRpcError as error:
        return _Answer(failure=str(error.details())[:200])
    if not isinstance(frame, pb.Refusal):
        return _Answer(failure=f"a {type(frame).__name__} came where a refusal was due")
    return _Answer(refusal=frame.reason)
