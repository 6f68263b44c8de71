"""The connection guard: which peers are unauthenticated, which it disconnects, how much they may make the log say."""

import asyncio
import logging
import socket
from collections.abc import Iterator

import grpc  # type: ignore[import-untyped]  # grpcio ships no types
import pytest

from link import guard as guarding
from link.guard import LINES, MAX_HELLOS, MAX_UNAUTHENTICATED, Backoff, ConnectionGuard, NoHello, RateLimitedLog, limits
from link.seats import NoSeat


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("link.guard.time.monotonic", lambda: now[0])
    return now


class Port:
    """A port of this process, and connections to it."""

    def __init__(self, *, dual: bool = False) -> None:
        family = socket.AF_INET6 if dual else socket.AF_INET
        self._listener = socket.create_server(("" if dual else "127.0.0.1", 0), family=family, dualstack_ipv6=dual)
        self.number: int = self._listener.getsockname()[1]
        self.sockets: list[socket.socket] = [self._listener]

    def connect(self, host: str = "127.0.0.1") -> tuple[socket.socket, str]:
        """Return the client's end of a new connection, and how gRPC calls its peer."""
        client = socket.create_connection((host, self.number))
        server, _ = self._listener.accept()
        self.sockets += [client, server]
        name, port = client.getsockname()[:2]
        return client, f"ipv6:%5B{name}%5D:{port}" if ":" in name else f"ipv4:{name}:{port}"

    def close(self) -> None:
        for one in self.sockets:
            one.close()


def hung_up(client: socket.socket) -> bool:
    client.settimeout(0)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False


@pytest.fixture
def port() -> Iterator[Port]:
    made = Port()
    yield made
    made.close()


def test_a_peer_is_disconnected_when_its_time_is_over_and_a_member_is_not(port: Port, clock: list[float]) -> None:
    (client, _), (member, peer) = port.connect(), port.connect()
    guard = ConnectionGuard(lambda: [peer])
    guard.open(port.number)
    guard.scan()
    clock[0] += guarding.UNAUTHENTICATED_S
    guard.scan()
    assert not hung_up(client)
    clock[0] += 1
    guard.scan()
    assert hung_up(client)
    assert not hung_up(member)


def test_of_too_many_peers_the_oldest_go(port: Port, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarding, "MAX_UNAUTHENTICATED", 2)
    guard = ConnectionGuard(list)
    guard.open(port.number)
    clients = []
    for _ in range(4):
        clients.append(port.connect()[0])
        clock[0] += 1
        guard.scan()
    assert list(map(hung_up, clients)) == [True, True, False, False]
    assert MAX_UNAUTHENTICATED >= 100


def test_who_is_rejected_goes_at_the_next_scan_unless_it_is_a_member(port: Port) -> None:
    (one, peer), (other, other_peer) = port.connect(), port.connect()
    members = [peer]
    guard = ConnectionGuard(lambda: members)
    guard.open(port.number)
    guard.reject(peer)
    guard.reject(other_peer)
    guard.reject("unix:/tmp/nobody")
    guard.scan()
    assert (hung_up(one), hung_up(other)) == (False, True)
    members.clear()
    guard.scan()
    assert hung_up(one)


def test_nobody_is_disconnected_while_a_member_is_not_recognised(port: Port, clock: list[float]) -> None:
    client, _ = port.connect()
    guard = ConnectionGuard(lambda: ["unix:/tmp/somebody"])
    guard.open(port.number)
    for _ in range(3):
        guard.scan()
        clock[0] += 100
    assert not hung_up(client)


def test_other_sockets_and_ports_are_let_alone(port: Port) -> None:
    other = Port()
    client, peer = other.connect()
    guard = ConnectionGuard(list)
    guard.disconnect([peer])  # it knows no port yet
    guard.open(port.number)
    guard.disconnect([peer])
    assert not hung_up(client)
    other.close()


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_a_peer_is_found_by_ipv6_too_and_by_ipv4_within_it() -> None:
    port = Port(dual=True)
    guard = ConnectionGuard(list)
    guard.open(port.number)
    for host in ("::1", "127.0.0.1"):
        client, peer = port.connect(host)
        guard.disconnect([peer])
        assert hung_up(client), peer
    port.close()


class Context:
    """A gRPC context on which a frame comes when it is told."""

    def __init__(self) -> None:
        self.frame: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    async def read(self) -> object:
        return await self.frame


def test_one_hello_too_many_ends_the_wait_for_the_oldest() -> None:
    async def play() -> None:
        guard, contexts = ConnectionGuard(list), [Context() for _ in range(MAX_HELLOS + 1)]
        waits = [asyncio.ensure_future(guard.hello(context)) for context in contexts]
        with pytest.raises(NoHello, match="others are waiting"):
            await waits[0]
        contexts[-1].frame.set_result(b"hello")
        assert await waits[-1] == b"hello"
        contexts[1].frame.set_result(grpc.aio.EOF)
        with pytest.raises(NoHello, match="the stream ended"):
            await waits[1]
        guard.close()
        for wait in waits[2:-1]:
            with pytest.raises(NoHello):
                await wait

    asyncio.run(play())


def test_who_says_nothing_is_waited_for_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarding, "HELLO_S", 0.01)

    async def play() -> None:
        with pytest.raises(NoHello, match=r"nothing within 0\.01 s"):
            await ConnectionGuard(list).hello(Context())

    asyncio.run(play())


def test_unauthenticated_peers_fill_no_log(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    limited = RateLimitedLog()
    with caplog.at_level(logging.WARNING, "breakwater.link"):
        for i in range(LINES + 30):
            limited.warn("peer %d", i)
        assert len(caplog.messages) == LINES
        clock[0] += 3600
        limited.warn("another")
    assert caplog.messages[LINES:] == ["30 more lines about unauthenticated peers were not logged", "another"]


def test_who_leaves_while_it_is_sent_something_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    ConnectionGuard(list).open(0)
    grpcs = logging.getLogger("grpc._cython.cygrpc")
    for method in ("Watch", "Session"):
        grpcs.error("ExecuteBatchError raised in core by servicer method [/breakwater.link.v1.Link/%s]", method)
    grpcs.error("Unexpected [KeyError] raised by servicer method [/breakwater.link.v1.Link/Watch]")
    (record,) = caplog.records
    assert "KeyError" in record.getMessage()


def test_who_is_cut_off_again_is_kept_out_for_longer(clock: list[float]) -> None:
    backoff = Backoff()
    backoff.check("a")
    assert [backoff.add("a") for _ in range(11)] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    backoff.check("b")
    with pytest.raises(NoSeat, match=r"'a' was cut off for what it sent: it may come back in 300 s") as refusal:
        backoff.check("a")
    assert refusal.value.retry
    clock[0] += 301
    backoff.check("a")
    clock[0] += 2 * 3600
    assert backoff.add("a") == 1


def test_names_that_come_and_go_fill_no_memory(clock: list[float]) -> None:
    backoff = Backoff()
    for i in range(5000):
        backoff.add(f"name-{i}")
    backoff.check("name-0")
    with pytest.raises(NoSeat):
        backoff.check("name-4999")


def test_connections_leave_descriptors_for_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    raised = []
    monkeypatch.setattr("link.guard.resource.setrlimit", lambda _, limit: raised.append(limit))
    for soft, hard, clients, wanted in [
        (1 << 20, 1 << 20, 10, 10 + guarding.ROOM),
        (256, 1 << 20, 10, 10 + guarding.ROOM),
        (256, 512, 10, 512 - 128 - 50),
        (-1, -1, 10, 10 + guarding.ROOM),
        (100, 100, 10, 1),
    ]:
        monkeypatch.setattr(guarding, "_descriptors", lambda: list(range(50)))
        monkeypatch.setattr("link.guard.resource.getrlimit", lambda _, limit=(soft, hard): limit)
        assert dict(limits(clients))["grpc.max_allowed_incoming_connections"] == wanted
    assert raised == [(10 + guarding.ROOM + 128 + 50, 1 << 20), (512, 512), (100, 100)]
