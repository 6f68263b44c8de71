"""HTTP proxies in the environment: nothing goes through one to this machine, and for others gRPC's rules hold."""

import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from deploy.certs import init, issue
from deploy.doctor.network import connecting
from link.address import Address
from server.run_folder.manifest import RunManifest
from tests.integration.fork_server import ForkServer
from tests.integration.processes import COMMAND, Process, Processes, sets, summary_of

pytestmark = pytest.mark.slow

DEAD = "http://me:hush@127.0.0.1:9"
SHORT = sets(
    "strategy.rounds=5",
    "strategy.cohort=1",
    "strategy.full_cohort=1",
    "federation.clients=1",
    "federation.byzantine=0",
    "attack.kind=none",
)


class HttpProxy:
    """An HTTP proxy that knows CONNECT: it forwards every host to this machine, or refuses.

    Args:
        answer: its status line where it refuses.
    """

    def __init__(self, answer: str = "") -> None:
        self.asked: list[str] = []
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(4096)
            self.asked.append(head.decode())
            if self._answer:
                client.sendall(f"HTTP/1.1 {self._answer}\r\nContent-Length: 0\r\n\r\n".encode())
                return
            port = int(head.split()[1].rpartition(b":")[2])
            with socket.create_connection(("127.0.0.1", port)) as server:
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                threading.Thread(target=_pump, args=(client, server), daemon=True).start()
                _pump(server, client)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy() -> Iterator[HttpProxy]:
    it = HttpProxy()
    yield it
    it.close()


@pytest.fixture
def wall() -> Iterator[HttpProxy]:
    it = HttpProxy("403 Forbidden")
    yield it
    it.close()


def behind(fork_server: ForkServer, proxy: str, *arguments: str | Path, variable: str = "http_proxy") -> Process:
    """Run a command whose environment names a proxy."""
    return fork_server.breakwater(*arguments, prelude=f"import os; os.environ[{variable!r}] = {proxy!r}")


def serve(
    fork_server: ForkServer, digits: Path, out: Path, *options: str | Path, host: str = "127.0.0.1"
) -> tuple[Process, str]:
    server = fork_server.breakwater("server", digits, "--listen", f"{host}:0", "--out", out, *SHORT, *options)
    return server, server.line(r"^listening on (\S+)")[1]


def test_a_local_run_uses_no_proxy(processes: Processes, digits: Path, tmp_path: Path) -> None:
    dead = [f"{name}={DEAD}" for name in ("grpc_proxy", "https_proxy", "http_proxy", "HTTP_PROXY", "ALL_PROXY")]
    out = tmp_path / "run"
    run = processes.start("env", *dead, COMMAND, "run", digits, "--out", out, *SHORT)
    run.ends(0)
    assert summary_of(out)["status"] == "finished"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_client_watcher_and_doctor_use_no_proxy_to_this_machine(
    host: str, forked: ForkServer, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, address = serve(forked, digits, tmp_path / "run", host=host)
    assert address.startswith(f"{host}:")
    with monkeypatch.context() as environment:
        environment.setenv("grpc_proxy", DEAD)
        (finding,) = connecting(Address.parse(address), None)
    assert finding.says.startswith(f"{address}: a Breakwater server of the same code")
    watch = behind(forked, DEAD, "watch", address, "--json")
    watch.line('"status": "waiting"')
    client = behind(forked, DEAD, "client", "--connect", address, "--name", "a")
    for each in (client, watch, server):
        each.ends(0)


def test_an_ipv6_address_works_everywhere_with_a_certificate_for_it(
    forked: ForkServer, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", DEAD)
    certs = tmp_path / "certs"
    init(certs, ["::1"])
    issue(certs, ["alice"])
    issue(certs, ["ops"], watcher=True)
    server, address = serve(forked, digits, tmp_path / "run", "--tls", certs / "server", host="[::1]")
    assert re.fullmatch(r"\[::1\]:[0-9]+", address)
    with pytest.raises(OSError, match="Address already in use"):
        Address.parse(address).try_to_bind()
    (finding,) = connecting(Address.parse(address), certs / "alice")
    assert finding.says.startswith(f"{address}: a Breakwater server of the same code, over TLS")
    (finding,) = connecting(Address.parse(address), None)
    assert "it speaks TLS; give this client its certificate" in finding.says
    watch = behind(forked, DEAD, "watch", address, "--json", "--tls", certs / "ops")
    watch.line('"status": "waiting"')
    client = behind(forked, DEAD, "client", "--connect", address, "--tls", certs / "alice")
    for each in (client, watch, server):
        each.ends(0)
    assert RunManifest.read(tmp_path / "run").listen == address


def test_another_host_is_reached_through_a_proxy(
    forked: ForkServer, digits: Path, tmp_path: Path, proxy: HttpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    init(tmp_path / "certs", ["server.invalid"])
    issue(tmp_path / "certs", ["alice"])
    issue(tmp_path / "certs", ["ops"], watcher=True)
    server, address = serve(forked, digits, tmp_path / "run", "--tls", tmp_path / "certs" / "server")
    elsewhere = f"server.invalid:{address.rpartition(':')[2]}"
    given, tls = f"http://me:hush@{proxy.address}", tmp_path / "certs"
    with monkeypatch.context() as environment:
        environment.setenv("http_proxy", given)
        (finding,) = connecting(Address.parse(elsewhere), tls / "alice")
    assert finding.says.startswith(f"{elsewhere}: a Breakwater server of the same code, over TLS")
    watch = behind(forked, given, "watch", elsewhere, "--json", "--tls", tls / "ops", variable="https_proxy")
    watch.line('"status": "waiting"')
    client = behind(forked, given, "client", "--connect", elsewhere, "--tls", tls / "alice")
    for each in (client, watch, server):
        each.ends(0)
    assert len(proxy.asked) >= 3
    for head in proxy.asked:
        assert head.startswith(f"CONNECT {elsewhere} HTTP/1.")
        assert "Proxy-Authorization" in head


@pytest.mark.parametrize("there", [True, False])
def test_a_proxy_that_refuses_or_is_not_there_is_named_with_its_variable(
    there: bool, forked: ForkServer, wall: HttpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, server = wall.address if there else "127.0.0.1:9", "server.invalid:9090"
    given = f"http://me:hush@{proxy}"
    client = behind(
        forked, given, "client", "--connect", server, "--name", "a", "--patience", "0", variable="https_proxy"
    )
    watch = behind(forked, given, "watch", server, "--patience", "0", variable="https_proxy")
    monkeypatch.setenv("https_proxy", given)
    (finding,) = connecting(Address.parse(server), None)
    for each in (client, watch):
        each.ends(1)
    for said in (client.said(), watch.said(), str(finding)):
        assert f"(through the proxy {proxy} that https_proxy names; " in said
        assert ("403" in said) is there
        assert "hush" not in said
    assert finding.level == "problem"


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("HTTPS_PROXY", "http://127.0.0.1:9", "directly: gRPC does not read HTTPS_PROXY, only https_proxy"),
        ("http_proxy", "127.0.0.1:9", "directly: http_proxy is not http://HOST:PORT, the only proxies that gRPC uses"),
    ],
)
def test_a_proxy_that_grpc_does_not_use_is_said_to_be_of_no_use(
    variable: str, value: str, told: str, forked: ForkServer
) -> None:
    if any(name in os.environ for name in ("grpc_proxy", "https_proxy", "http_proxy") if name != variable):
        pytest.skip("this machine has a proxy of its own")
    client = behind(
        forked, value, "client", "--connect", "server.invalid:9090", "--name", "a", "--patience", "0", variable=variable
    )
    client.ends(1)
    assert told in client.said()
