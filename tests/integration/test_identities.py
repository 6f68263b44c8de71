"""Identities on the live link: taken away and given back without a restart, one seat for each, and what is lost
without them.

The first tests have grid and nodes in one process, as test_tls_link.py does; the last ones start the commands.
"""

import logging
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]  # grpcio ships no types
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict

from deploy.certs import init, issue, revoke
from foundation.errors import Refused
from link import grid as grid_module
from link import link_pb2 as pb
from link.grid import StreamGrid
from link.identity.access import LISTED_FILE, REVOKED_FILE, AccessControl
from link.identity.tls import Identity, server_credentials
from link.wire import METHOD, PROTOCOL, control_frame
from tests.integration.fork_server import ForkServer
from tests.integration.processes import DIGITS, SOON_S, Process, Processes, rounds_of, sets, until
from tests.integration.test_link import Federation, Node, ask, reasons

pytestmark = pytest.mark.slow


@pytest.fixture
def processes(forked: ForkServer) -> Processes:
    return forked


@pytest.fixture
def federation(monkeypatch: pytest.MonkeyPatch) -> Iterator[Federation]:
    monkeypatch.setattr(grid_module, "_CHECK_S", 0.02)
    made = Federation()
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """What the server's log says from warnings on."""
    monkeypatch.setattr(logging.getLogger("breakwater"), "propagate", True)
    return lambda: "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    init(tmp_path / "certs", ["127.0.0.1"])
    issue(tmp_path / "certs", ["alice", "bob"])
    return tmp_path / "certs"


def guarded(federation: Federation, certs: Path, clients: int = 3) -> tuple[StreamGrid, str]:
    server = Identity.load(certs / "server")
    return federation.grid(clients, credentials=server_credentials(server), access=AccessControl.of(server))


def join(federation: Federation, address: str, certs: Path, name: str, **options: Any) -> Node:
    return federation.node(address, name, identity=Identity.load(certs / name), **options)


# --- taken away -------------------------------------------------------------------------------------------------------


def test_a_revoked_client_is_cut_off_while_it_computes_and_a_new_certificate_takes_its_seat(
    federation: Federation, certs: Path, told: Callable[[], str]
) -> None:
    begun, release = threading.Event(), threading.Event()

    def computes(message: Message, _: Context) -> Message:
        begun.set()
        release.wait(SOON_S)
        return Message(message.content, reply_to=message)

    grid, address = guarded(federation, certs)
    alice = join(federation, address, certs, "alice", app=computes)
    assert grid.wait(1, SOON_S) == 1
    bob = join(federation, address, certs, "bob")
    assert grid.wait(2, SOON_S) == 2
    seat = alice.prepared[0].worker
    replies: list[str] = []
    round_ = threading.Thread(target=lambda: replies.extend(reasons(ask(grid, list(grid.get_node_ids()), None))))
    round_.start()
    assert begun.wait(SOON_S)
    revoke(certs, ["alice"])
    round_.join(SOON_S)
    assert not round_.is_alive(), "the round does not wait for who is put out"
    assert sorted(replies)[0] == "ok"
    assert re.fullmatch(r"revoked: this certificate of 'alice' was revoked on [-0-9]+ [0-9:]+ UTC", sorted(replies)[1])
    release.set()
    outcome = alice.result()
    assert isinstance(outcome, Refused)
    assert str(outcome).startswith("alice: refused by the server: revoked: this certificate of 'alice' was revoked")
    assert "alice: cut off: revoked: this certificate of 'alice' was revoked" in told()

    assert list(grid.nodes()) == [bob.prepared[0].worker]
    assert grid.seats()[seat].name == "alice", "the seat is that of the name"
    assert isinstance(join(federation, address, certs, "alice").result(), Refused)
    assert "refused: revoked: this certificate of 'alice' was revoked" in told()
    issue(certs, ["carol"])
    assert join(federation, address, certs, "carol").prepared is not None
    until(lambda: len(grid.nodes()) == 2, "carol, on the third seat")
    assert grid.seats()[seat].name == "alice"
    issue(certs, ["alice"], renew=True)
    again = join(federation, address, certs, "alice")
    until(lambda: len(grid.nodes()) == 3, "alice with her new certificate")
    assert again.prepared[0].worker == seat
    assert reasons(ask(grid, list(grid.get_node_ids()))) == ["ok"] * 3


def test_a_client_that_is_not_listed_any_more_is_cut_off_and_one_that_is_listed_comes_in(
    federation: Federation, certs: Path, told: Callable[[], str]
) -> None:
    listed = certs / "server" / LISTED_FILE
    listed.write_text("alice\n", encoding="utf-8")
    grid, address = guarded(federation, certs)
    alice = join(federation, address, certs, "alice")
    assert grid.wait(1, SOON_S) == 1
    outcome = join(federation, address, certs, "bob").result()
    assert str(outcome) == "bob: refused by the server: not listed: 'bob' is not in the server's clients.txt"
    assert told().endswith("refused: not listed: 'bob' is not in the server's clients.txt")
    listed.write_text("bob\n", encoding="utf-8")
    outcome = alice.result()
    assert str(outcome) == "alice: refused by the server: not listed: 'alice' is not in the server's clients.txt"
    assert told().endswith("alice: cut off: not listed: 'alice' is not in the server's clients.txt")
    bob = join(federation, address, certs, "bob")
    assert grid.wait(1, SOON_S) == 1
    listed.write_text("b o b\n", encoding="utf-8")
    until(lambda: "the last valid version stays in force" in told(), "the complaint")
    listed.unlink()
    until(lambda: told().count("the last valid version stays in force") == 2, "the other complaint")
    assert list(grid.nodes()) == [bob.prepared[0].worker]
    assert isinstance(join(federation, address, certs, "alice").result(), Refused)


def test_who_is_put_out_before_it_was_ready_gets_no_instruction_and_gives_its_seat_back(
    federation: Federation, certs: Path
) -> None:
    grid, address = guarded(federation, certs)
    raw = federation.raw(address, Identity.load(certs / "alice"))
    assert isinstance(raw.hello("alice").receive(), pb.Welcome)
    revoke(certs, ["alice"])
    refusal = raw.receive()
    assert isinstance(refusal, pb.Refusal)
    assert refusal.reason.startswith("revoked: ")
    assert not refusal.retry
    raw.send(control_frame(pb.Ready()))
    assert raw.receive() is None
    until(lambda: grid.seats() == {}, "the end of the stream")
    assert grid.nodes() == {}


def test_who_does_not_read_is_put_out_all_the_same(
    federation: Federation, certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid_module, "_GOODBYE_S", 0.2)
    grid, address = guarded(federation, certs)
    federation.raw(address, Identity.load(certs / "alice")).ready("alice")
    assert grid.wait(1, SOON_S) == 1
    much = ArrayRecord({"a": Array("uint8", (64 << 20,), "raw", bytes(64 << 20))})
    (node,) = grid.get_node_ids()
    grid.push_messages([Message(RecordDict({"much": much}), node, "train")])
    before = grid.traffic()[1]
    until(lambda: grid.traffic()[1] > before, "the first of the frames, which nobody takes")
    revoke(certs, ["alice"])
    until(lambda: not grid.seats()[0].connected, "the end of the stream")
    assert grid.traffic()[1] < before + (64 << 20), "not all of it was sent"
    issue(certs, ["alice"], renew=True)
    join(federation, address, certs, "alice")
    assert grid.wait(1, SOON_S) == 1


def test_a_list_that_was_there_at_the_start_counts_from_the_start(federation: Federation, certs: Path) -> None:
    revoke(certs, ["alice"])
    grid, address = guarded(federation, certs)
    outcome = join(federation, address, certs, "alice").result()
    assert str(outcome).startswith("alice: refused by the server: revoked: ")
    assert grid.seats() == {}
    assert (certs / "server" / REVOKED_FILE).exists()


def test_looking_goes_on_whatever_happens_to_it(
    federation: Federation, certs: Path, monkeypatch: pytest.MonkeyPatch, told: Callable[[], str]
) -> None:
    grid, address = guarded(federation, certs)
    alice = join(federation, address, certs, "alice")
    assert grid.wait(1, SOON_S) == 1
    with monkeypatch.context() as patch:
        patch.setattr(AccessControl, "look", lambda self: 1 / 0)
        until(lambda: "a check of the connections failed; trying again" in told(), "a look that fails")
    revoke(certs, ["alice"])
    assert isinstance(alice.result(), Refused)


# --- one seat for each identity ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
def test_a_second_live_stream_of_the_same_name_is_refused_and_logged(
    federation: Federation, certs: Path, told: Callable[[], str], tls: bool
) -> None:
    grid, address = guarded(federation, certs) if tls else federation.grid(3)
    identity = Identity.load(certs / "alice") if tls else None
    federation.node(address, "alice", identity=identity)
    assert grid.wait(1, SOON_S) == 1
    issue(certs, ["alice"], renew=True)
    renewed = Identity.load(certs / "alice") if tls else None  # another certificate, the same name
    lines: list[str] = []
    second = federation.node(address, "alice", identity=renewed, log=lines.append)
    until(lambda: any("one name, one live stream" in line for line in lines), "the refusal")
    assert "refused: 'alice' is connected already: one name, one live stream" in told()
    assert second.prepared == []
    assert {seat.name for seat in grid.seats().values()} == {"alice"}
    assert len(grid.seats()) == 1
    assert reasons(ask(grid, list(grid.get_node_ids()))) == ["ok"], "the first one is not disturbed"


def test_a_certified_client_gets_one_seat_whatever_it_claims(federation: Federation, certs: Path) -> None:
    grid, address = guarded(federation, certs)
    alice = Identity.load(certs / "alice")
    join(federation, address, certs, "alice")
    assert grid.wait(1, SOON_S) == 1
    credentials = grpc.ssl_channel_credentials(alice.authority, alice.key, alice.certificate)
    claims: list[dict[str, Any]] = [
        {"name": "bob"},
        {"name": "Alice"},
        {"name": "alice "},
        {"name": ""},
        {"name": "alice", "worker": 1},
        {"name": "zoe", "former": 2},
    ]
    with grpc.secure_channel(address, credentials) as channel:
        for claim in claims:
            hello = control_frame(pb.Hello(**{"protocol": PROTOCOL, "fingerprint": "code", **claim}))
            (answer,) = channel.stream_stream(METHOD)(iter([hello]), timeout=SOON_S)
            assert pb.Frame.FromString(answer).WhichOneof("kind") == "refusal", claim
    assert len(grid.seats()) == 1


def test_without_certificates_one_party_takes_every_seat_that_is_free(federation: Federation) -> None:
    grid, address = federation.grid(3)
    for name in ("alice", "alice-2", "alice-3"):
        federation.node(address, name)
    assert grid.wait(3, SOON_S) == 3, "which is what the server's warning says"


# --- the commands -----------------------------------------------------------------------------------------------------


def client(processes: Processes, address: str, certs: Path, name: str) -> Process:
    return processes.breakwater("client", "--connect", address, "--tls", certs / name)


def test_a_client_is_taken_out_of_a_run_and_let_in_again_without_a_restart(
    processes: Processes, certs: Path, tmp_path: Path
) -> None:
    config, out = tmp_path / "digits.toml", tmp_path / "run"
    config.write_text(DIGITS, encoding="utf-8")
    issue(certs, ["carol"])
    changes = ("federation.clients=3", "federation.start_with=3", "strategy.cohort=3")
    options: list[str | Path] = ["--tls", certs / "server", "--out", out, *sets(*changes)]
    server = processes.breakwater("server", config, "--listen", "127.0.0.1:0", *options)
    address = server.line(r"^listening on (\S+)")[1]
    clients = {name: client(processes, address, certs, name) for name in ("alice", "bob", "carol")}
    until(lambda: len(rounds_of(out)) > 5, "some rounds of all")
    seats = {name: int(process.line(r"joined as worker (\d)")[1]) for name, process in clients.items()}

    def counts(name: str) -> bool:
        return any(seats[name] in line["accepted"] for line in rounds_of(out)[-20:])

    said = processes.breakwater("certs", "revoke", certs, "bob")
    said.ends(0)
    assert said.out[0] == "'bob': 1 certificate revoked"
    clients["bob"].ends(2)
    assert (
        clients["bob"]
        .err[-1]
        .startswith("breakwater: error: bob: refused by the server: revoked: this certificate of 'bob' was revoked on ")
    )
    server.line(r"^bob: cut off: revoked: this certificate of 'bob' was revoked on ")
    until(lambda: not counts("bob"), "rounds without bob")

    issue(certs, ["bob"], renew=True)
    clients["bob"] = client(processes, address, certs, "bob")
    assert int(clients["bob"].line(r"joined as worker (\d)")[1]) == seats["bob"]
    until(lambda: counts("bob"), "bob counts again")

    (certs / "server" / LISTED_FILE).write_text("alice # and\nbob\n", encoding="utf-8")
    clients["carol"].ends(2)
    assert clients["carol"].err[-1] == (
        "breakwater: error: carol: refused by the server: not listed: 'carol' is not in the server's clients.txt"
    )
    (certs / "server" / REVOKED_FILE).write_text("garbage", encoding="utf-8")
    server.line(
        r"server/ca\.crl: must hold whole lists of revoked certificates .*; the last valid version stays in force$"
    )
    until(lambda: counts("alice") and counts("bob"), "the run goes on with those who may")
    server.ctrl_c()
    server.ends(130)
    for name in ("alice", "bob"):
        clients[name].ctrl_c()
        clients[name].wait()
    rejected = [entry for line in rounds_of(out) for entry in line["rejected"]]
    assert {entry["reason"].partition(":")[0] for entry in rejected} <= {"revoked", "not listed", "not connected"}
    assert {entry["client"] for entry in rejected} <= {"bob", "carol"}
