"""`breakwater watch`: who may look on and who may not, what it costs the run, and real processes that are watched."""

import json
import logging
import os
import queue
import shlex
import shutil
import signal
import socket
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]  # grpcio ships no types
import pytest

from deploy.certs import init, issue
from foundation.errors import BreakwaterError, ConfigError, Refused, ServerGone
from link import link_pb2 as pb
from link import watch, watchers
from link.identity.access import REVOKED_FILE, AccessControl
from link.identity.authority import Authority
from link.identity.certificates import certificates_in, now
from link.identity.tls import Identity, channel_credentials, server_credentials
from link.seats import NoSeat
from link.watch import follow
from link.watchers import MAX_WATCHERS, WATCH
from link.wire import PROTOCOL
from tests.integration.fork_server import ForkServer
from tests.integration.processes import (
    COMMAND,
    SOON_S,
    Process,
    Processes,
    free_address,
    rounds_of,
    sets,
    summary_of,
    until,
)
from tests.integration.test_link import Federation, ask, reasons
from tests.unit.server.monitor.test_exporters import scalars

pytestmark = pytest.mark.slow

AUTHORITY, OTHER = Authority.create(), Authority.create()
SERVER = AUTHORITY.issue_server(["127.0.0.1"])
ALICE, OPS = AUTHORITY.issue_client("alice"), AUTHORITY.issue_watcher("ops")
REQUEST = pb.WatchRequest(protocol=PROTOCOL).SerializeToString()


@pytest.fixture
def federation() -> Iterator[Federation]:
    made = Federation()
    try:
        yield made
    finally:
        made.end()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """States come often, and a server that is away is looked for soon."""
    monkeypatch.setattr(watchers, "EVERY_S", 0.02)
    monkeypatch.setattr(watch, "_LAST_DELAY_S", 0.2)


class Watcher:
    """A bare stream that watches: it reads when a test says so."""

    def __init__(self, address: str, identity: Identity | None = None, request: bytes = REQUEST) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        if identity is None:
            self._channel = grpc.insecure_channel(address, options)
        else:
            self._channel = grpc.secure_channel(address, channel_credentials(identity), options)
        self.call = self._channel.unary_stream(WATCH)(request, timeout=SOON_S)

    def frame(self) -> pb.WatchFrame:
        return pb.WatchFrame.FromString(next(self.call))

    def close(self) -> None:
        self.call.cancel()
        self._channel.close()


@pytest.fixture
def streams() -> Iterator[list[Watcher]]:
    """Bare streams that are closed at the end."""
    made: list[Watcher] = []
    yield made
    for one in made:
        one.close()


class Followed(threading.Thread):
    """Follows a server in a thread of its own, and keeps the states."""

    def __init__(self, address: str, identity: Identity | None = None) -> None:
        super().__init__(daemon=True)
        self.states: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.error: BaseException | None = None
        self._what = address, identity
        self.start()

    def run(self) -> None:
        try:
            for state in follow(*self._what, patience_s=SOON_S):
                self.states.put(state)
        except BaseException as error:  # the test looks at it
            self.error = error

    def until(self, key: str, value: object = None) -> dict[str, Any]:
        """Return the first state that has a key, with a value if one is given."""
        while True:
            state = self.states.get(timeout=SOON_S)
            if key in state and (value is None or state[key] == value):
                return state


# --- one process ------------------------------------------------------------------------------------------------------


def test_a_watcher_sees_the_newest_state_and_the_goodbye_and_is_no_client(federation: Federation) -> None:
    grid, address = federation.grid(2)
    seen = [0]
    one = Followed(address)  # before there is anything to see
    until(lambda: len(grid._watchers.peers()) == 1, "the watcher")
    grid.show(lambda: json.dumps({"round": seen[0]}))
    assert one.states.get(timeout=SOON_S) == {"round": 0}
    assert (grid.nodes(), grid.seats(), grid.traffic()) == ({}, {}, (0, 0)), "it is no client, and its bytes are not"
    seen[0] = 7
    one.until("round", 7)
    federation.node(address, "alice")
    assert grid.wait(1, SOON_S) == 1
    assert reasons(ask(grid, list(grid.get_node_ids()), what="echo")) == ["ok"]
    seen[0] = 8  # shown with the goodbye, however soon that comes
    grid.close("the run is over")
    assert one.until("goodbye") == {"round": 8, "goodbye": "the run is over"}
    one.join(SOON_S)
    assert one.error is None


def test_a_watcher_stays_with_a_server_that_is_started_again(federation: Federation) -> None:
    first, address = federation.grid(1)
    first.show(lambda: '{"life": 1}')
    one = Followed(address)
    one.until("life", 1)
    first.close("back in a moment", final=False)
    assert one.until("away") == {"life": 1, "away": "back in a moment"}
    second, _ = federation.grid(1, address)
    second.show(lambda: '{"life": 2}')
    assert "away" not in one.until("life", 2)
    second.close("the run is over")
    one.until("goodbye")


def test_without_tls_only_this_machine_may_watch() -> None:
    class Peer:
        def __init__(self, peer: str) -> None:
            self.peer = lambda: peer

    for near in ("ipv4:127.0.0.1:5", "ipv4:127.9.9.9:5", "ipv6:%5B::1%5D:5", "ipv6:%5B::ffff:127.0.0.1%5D:5"):
        assert watchers.only_local(Peer(near))
    for far in ("ipv4:192.0.2.7:5", "ipv6:%5B2001:db8::1%5D:5", "ipv6:%5B::ffff:192.0.2.7%5D:5", "unix:/tmp/x", ""):
        with pytest.raises(NoSeat, match="without TLS only the server's own machine may watch"):
            watchers.only_local(Peer(far))


def test_over_tls_a_clients_certificate_may_not_watch(federation: Federation) -> None:
    _, address = federation.grid(2, credentials=server_credentials(SERVER))
    with pytest.raises(ConfigError, match="is the certificate of a client, which may not watch; `breakwater certs"):
        next(follow(address, ALICE))
    stream = Watcher(address, ALICE)  # one that does not ask itself
    try:
        refusal = stream.frame().refusal
        assert refusal.reason.startswith("this certificate is not for watching; `breakwater certs issue DIR --watcher")
        assert not refusal.retry
        assert list(stream.call) == []
    finally:
        stream.close()


def test_a_watchers_certificate_takes_no_seat(federation: Federation) -> None:
    grid, address = federation.grid(2, credentials=server_credentials(SERVER))
    outcome = federation.node(address, "ops", identity=OPS).result()
    assert isinstance(outcome, Refused)
    assert "this certificate is for watching; `breakwater certs issue DIR NAME` makes a client's" in str(outcome)
    assert grid.seats() == {}
    grid.show(lambda: '{"round": 3}')
    assert next(follow(address, OPS)) == {"round": 3}


def test_a_watcher_that_is_revoked_is_put_out_and_needs_not_be_listed(federation: Federation, tmp_path: Path) -> None:
    (tmp_path / "clients.txt").write_text("alice\n", encoding="utf-8")
    access = AccessControl(tmp_path, certificates_in(AUTHORITY.certificate, ""))
    grid, address = federation.grid(2, credentials=server_credentials(SERVER), access=access)
    grid.show(lambda: '{"round": 3}')
    one = Followed(address, OPS)
    one.until("round", 3)
    serial = certificates_in(OPS.certificate, "")[0].serial_number
    (tmp_path / REVOKED_FILE).write_bytes(AUTHORITY.revocation_list({serial: now()}, 1))
    one.join(SOON_S)
    assert isinstance(one.error, Refused)
    assert "revoked: this certificate of 'ops' was revoked on" in str(one.error)
    with pytest.raises(Refused, match="revoked: this certificate of 'ops'"):
        next(follow(address, OPS))


def test_there_are_never_more_watchers_than_may_be(federation: Federation, streams: list[Watcher]) -> None:
    grid, address = federation.grid(1)
    grid.show(lambda: "{}")
    for _ in range(MAX_WATCHERS):
        streams.append(Watcher(address))
        assert streams[-1].frame().HasField("state")
    with pytest.raises(Refused, match=f"{MAX_WATCHERS} are watching already"):
        next(follow(address))
    streams.pop().close()

    def taken() -> bool:
        streams.append(Watcher(address))
        return bool(streams[-1].frame().HasField("state"))

    until(taken, "a place that has become free")


def test_a_watcher_that_reads_nothing_is_dropped_and_costs_the_run_nothing(
    federation: Federation,
    streams: list[Watcher],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(logging.getLogger("breakwater"), "propagate", True)
    monkeypatch.setattr(watchers, "SLOW_S", 0.5)
    grid, address = federation.grid(1)
    asked = [0]

    def state() -> str:
        asked[0] += 1
        return json.dumps({"long": 100_000 * "x"})

    grid.show(state)
    federation.node(address, "alice")
    assert grid.wait(1, SOON_S) == 1
    streams.append(Watcher(address))
    answered = 0
    while "has read nothing for 0.5 s: disconnected" not in caplog.text:
        assert reasons(ask(grid, list(grid.get_node_ids()), what="echo")) == ["ok"]
        answered += 1
    assert answered > 3
    assert asked[0] < 100, "states are missed and not queued"


@pytest.mark.parametrize("request_", [b"\xff\xff\xff", 5000 * b"\x08"], ids=["nonsense", "endless"])
def test_who_asks_nonsense_is_shown_out(federation: Federation, streams: list[Watcher], request_: bytes) -> None:
    grid, address = federation.grid(1)
    streams.append(Watcher(address, request=request_))
    assert list(streams[0].call) == []
    federation.node(address, "alice")
    assert grid.wait(1, SOON_S) == 1


def test_who_speaks_another_version_is_told(federation: Federation, streams: list[Watcher]) -> None:
    _, address = federation.grid(1)
    streams.append(Watcher(address, request=pb.WatchRequest(protocol=99).SerializeToString()))
    assert streams[0].frame().refusal.reason == f"protocol version 99: this server speaks version {PROTOCOL}"


def test_an_address_that_is_no_server_is_told_in_one_line(federation: Federation) -> None:
    def told(kind: type[BreakwaterError], address: str, identity: Identity | None = None) -> str:
        with pytest.raises(kind) as error:
            next(follow(address, identity, first_s=0.0))
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "must be HOST:PORT with a port from 1 to 65535" in told(ConfigError, "nonsense")
    assert "Connection refused" in told(ServerGone, free_address())
    _, plain = federation.grid(1)
    _, secured = federation.grid(1, credentials=server_credentials(SERVER))
    assert "it speaks TLS; give this client its certificate with --tls DIR" in told(Refused, secured)
    assert "it speaks no TLS" in told(Refused, plain, OPS)
    assert "the server's certificate was issued by" in told(Refused, secured, OTHER.issue_watcher("ops"))
    with socket.create_server(("127.0.0.1", 0)) as web:
        threading.Thread(target=_speak_http, args=(web,), daemon=True).start()
        assert "that listens there is no Breakwater server" in told(Refused, f"127.0.0.1:{web.getsockname()[1]}")
    other = grpc.server(ThreadPoolExecutor(1))
    port = other.add_insecure_port("127.0.0.1:0")
    other.start()
    try:
        assert "is no Breakwater server, or one too old to be watched" in told(Refused, f"127.0.0.1:{port}")
    finally:
        other.stop(None).wait()


def _speak_http(web: socket.socket) -> None:
    """Answer everybody as a web server does, until the socket is closed."""
    while True:
        try:
            connection, _ = web.accept()
        except OSError:
            return
        with connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


# --- real processes ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    with ForkServer() as one:
        yield one


def states(process: Process) -> list[dict[str, Any]]:
    return [json.loads(line) for line in process.out]


def test_a_server_with_tls_is_watched_through_a_restart(fork_server: ForkServer, digits: Path, tmp_path: Path) -> None:
    certs, out, address = tmp_path / "certs", tmp_path / "run", free_address()
    init(certs, ["127.0.0.1"])
    issue(certs, ["alice", "bob"])
    issue(certs, ["ops"], watcher=True)
    watched = ("-q", "--log-format", "json", "--tensorboard", "--metrics-port", "0")
    changes = ("federation.clients=2", "strategy.cohort=2", "checkpoint.every=20", "evaluation.every=10")
    server = fork_server.breakwater(
        "server", digits, "--listen", address, "--out", out, "--tls", certs / "server", *watched, *sets(*changes)
    )
    clients = [
        fork_server.breakwater(
            "client", "--connect", address, "--tls", certs / name, "--log-format", "json", "--log-file", tmp_path / name
        )
        for name in ("alice", "bob")
    ]
    watching = fork_server.breakwater("watch", address, "--tls", certs / "ops", "--json", "--patience", str(SOON_S))
    watching.line('"status": "running", .*"round": [1-9]')
    spy = fork_server.breakwater("watch", address, "--tls", certs / "alice")
    spy.ends(2)
    assert "is the certificate of a client, which may not watch" in spy.said()

    log = out / "logs" / "server.log"
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    (url,) = (line["message"].split()[-1] for line in lines if line["message"].startswith("metrics for Prometheus"))
    with urllib.request.urlopen(url, timeout=SOON_S) as answer:  # noqa: S310  # our own server's
        text = answer.read().decode()
    assert "breakwater_connected_clients 2.0\n" in text
    assert 'rule="cm"' in text
    assert {line["run_id"] for line in lines[1:]} == {str(json.loads((out / "run.json").read_text())["run_id"])}
    until(lambda: len(rounds_of(out)) > 45, "a checkpoint")

    server.send(signal.SIGTERM)  # stops the server, and not the run
    server.ends(130)
    assert not server.out, "it was to be quiet"
    watching.line('"away": ')
    before = len(rounds_of(out))
    server = fork_server.breakwater("server", "--resume", out, "--tensorboard", *watched[:3])
    until(lambda: (last := states(watching)[-1])["round"] > before and "away" not in last, "the next server's rounds")
    server.ctrl_c()  # ends the run
    server.ends(130)
    watching.ends(0)
    last = states(watching)[-1]
    assert last["status"] == "interrupted"
    assert last["line"].startswith(f"interrupted after {summary_of(out)['rounds']} rounds")
    sampled = sum(len(line["cohort"]) for line in rounds_of(out))
    assert sampled - 2 <= last["all"]["sampled"] <= sampled, "of both lives, but for the round that was interrupted"
    for client, name in zip(clients, ("alice", "bob"), strict=True):
        client.ends(0)
        assert json.loads((tmp_path / name).read_text(encoding="utf-8").splitlines()[-1])["process"] == name
    shown = scalars(out / "tensorboard")
    written = rounds_of(out)
    for tag, key in (("round/bytes_up", "bytes_up"), ("model/loss", "loss")):
        told = {line["round"]: pytest.approx(line[key]) for line in written if key in line}
        told = {round_: told[round_] for round_ in told.keys() - ({written[-1]["round"]} - shown[tag].keys())}
        shown[tag].pop(0, None)  # the model before the first round
        assert shown[tag] == told, "all but the round, perhaps, that the interrupt fell into"


def test_a_local_run_is_watched_by_its_address_and_by_its_folder(
    processes: Processes, fork_server: ForkServer, digits: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run = processes.breakwater(
        "run", digits, "--out", out, "-q", *sets("federation.byzantine=2", "attack.kind=bf", "evaluation.every=1")
    )
    until((out / "run.json").exists, "the address")
    address = json.loads((out / "run.json").read_text(encoding="utf-8"))["listen"]
    watching = [fork_server.breakwater("watch", what) for what in (address, out)]
    for one in watching:
        one.line(r"^byz-vr-marina-pp/cm  round \d+/1000000  loss .*  accuracy .* up  .* down$")
    leaving = fork_server.breakwater("watch", address)
    leaving.line("round")
    leaving.ctrl_c()
    leaving.ends(130)
    assert leaving.err == ["breakwater: interrupted"]
    run.send(signal.SIGINT)
    run.ends(130)
    for one in watching:
        one.ends(0)
        assert one.out[-1].startswith("interrupted after ")
        assert one.out[-1].endswith(f"run folder {out}")
    assert run.out == [], "it was to be quiet"
    again = fork_server.breakwater("watch", out)
    again.ends(0)
    assert again.out[-1] == watching[0].out[-1]


def test_a_terminal_shows_the_view_and_the_news_and_is_left_as_it_was(
    processes: Processes, digits: Path, tmp_path: Path
) -> None:
    script = shutil.which("script")
    if script is None:
        pytest.skip("needs script (util-linux), which makes a terminal")
    out = tmp_path / "run"
    command = "exec " + shlex.join([str(COMMAND), "run", str(digits), "--out", str(out)])  # some shells would stay
    terminal = processes.start("env", "TERM=xterm", script, "-qefc", command, "/dev/null")
    terminal.line("round [1-9][0-9]*/1000000")
    os.kill(processes.holding(out / "logs" / "client-1.log"), signal.SIGKILL)
    terminal.line(r"client-1 was killed by SIGKILL; the run continues without it \(log: ")
    terminal.line("connected 4/5")
    (launcher,) = (
        pid for pid, line in processes.living().items() if f"{COMMAND} run " in line and "script" not in line
    )
    os.kill(launcher, signal.SIGINT)
    terminal.ends(130)
    said = "".join(terminal.out)
    assert "interrupted" in said
    assert said.rindex("\x1b[?25h") > said.rindex("\x1b[?25l"), "the cursor is shown again"
    assert "client-1 was killed" in (out / "logs" / "server.log").read_text(encoding="utf-8")


def test_what_cannot_be_watched_so_is_told_before_the_run(
    fork_server: ForkServer, digits: Path, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = fork_server.breakwater(
            "server", digits, "--listen", "127.0.0.1:0", "--out", tmp_path / "run", "--metrics-port", str(port)
        )
        server.ends(2)
    assert server.err == [
        f"breakwater: error: --metrics-port: 127.0.0.1:{port} cannot be bound: Address already in use; choose another "
        "port"
    ]
    empty = fork_server.breakwater("watch", tmp_path)
    empty.ends(2)
    assert "holds no run (config.toml and metrics.jsonl); give HOST:PORT, or a run folder" in empty.said()
