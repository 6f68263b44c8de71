"""TLS between real ends: who gets in, who does not and is told why, and that it changes no bit of a run.

Grid and nodes are those of test_link.py, in one process; the last tests start the commands.
"""

import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc  # type: ignore[import-untyped]  # grpcio ships no types
import pytest

from deploy.certs import init, issue
from examples.plain_loop import trajectory
from experiment.config import load
from experiment.opened import open_experiment
from foundation.errors import ConfigError, Refused, ServerGone
from link import link_pb2 as pb
from link.identity import certificates
from link.identity.authority import Authority
from link.identity.tls import Identity, server_credentials
from link.node import join_as_many
from link.wire import METHOD, PROTOCOL, control_frame
from tests.integration.fork_server import ForkServer
from tests.integration.processes import ATTACKED, Processes, rounds_of, sets, summary_of
from tests.integration.test_link import SOON_S, Federation, ask, echoes, reasons, until
from tests.saved import x_of

pytestmark = pytest.mark.slow

AUTHORITY, OTHER = Authority.create(), Authority.create()
SERVER = AUTHORITY.issue_server(["127.0.0.1"])
ALICE, BOB = AUTHORITY.issue_client("alice"), AUTHORITY.issue_client("bob")


@pytest.fixture
def processes(forked: ForkServer) -> Processes:
    return forked


def expired(role: str) -> Identity:
    """Return a certificate of the AUTHORITY that was valid once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificates, "now", lambda: datetime.now(UTC) - timedelta(days=400))
        return AUTHORITY.issue_server(["127.0.0.1"]) if role == "server" else AUTHORITY.issue_client(role)


def unchecked(identity: Identity) -> grpc.ServerCredentials:
    """Return a server's credentials as somebody makes them who does not look at them first."""
    return grpc.ssl_server_credentials([(identity.key, identity.certificate)], identity.authority, True)


@pytest.fixture
def federation() -> Iterator[Federation]:
    made = Federation()
    try:
        yield made
    finally:
        made.end()


# --- who is who -------------------------------------------------------------------------------------------------------


def test_clients_are_who_their_certificates_say(
    federation: Federation, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("breakwater"), "propagate", True)
    caplog.set_level(logging.INFO, "breakwater.link")
    grid, address = federation.grid(3, credentials=server_credentials(SERVER))
    liar = federation.node(address, "alice", identity=BOB)
    outcome = liar.result()
    assert isinstance(outcome, Refused)
    assert str(outcome) == "alice: refused by the server: name 'alice': this client's certificate is for 'bob'"
    assert "refused: name 'alice': this client's certificate is for 'bob'" in caplog.text
    assert grid.seats() == {}, "the name is still free for the one who has it"

    federation.node(address, "alice", identity=ALICE)
    federation.node(address, "bob", identity=BOB)
    assert grid.wait(2, SOON_S) == 2
    assert {seat.name for seat in grid.seats().values()} == {"alice", "bob"}
    assert reasons(ask(grid, list(grid.get_node_ids()), what="echo")) == ["ok", "ok"]
    assert "is taken by alice, by its certificate" in caplog.text


def test_a_seat_waits_for_its_client_over_two_servers(federation: Federation) -> None:
    first, address = federation.grid(2, credentials=server_credentials(SERVER))
    node = federation.node(address, "alice", identity=ALICE, worker=None)
    assert first.wait(1, SOON_S) == 1
    first.close("back in a moment", final=False)
    renewed = AUTHORITY.issue_server(["localhost", "127.0.0.1"])
    second, _ = federation.grid(2, address, credentials=server_credentials(renewed))
    assert second.wait(1, SOON_S) == 1
    assert reasons(ask(second, list(second.get_node_ids()), what="echo")) == ["ok"]
    assert len(node.prepared) == 1


def test_a_coalition_shows_a_certificate_for_each_seat(federation: Federation) -> None:
    grid, address = federation.grid(3, credentials=server_credentials(SERVER))
    alice = federation.node(address, "alice", identity=ALICE)
    assert grid.wait(1, SOON_S) == 1
    seats = {"m-0": None, "m-1": None}
    identities = {name: AUTHORITY.issue_client("m-0") for name in seats}
    with pytest.raises(Refused, match="m-1: refused by the server: name 'm-1': this client's certificate is for 'm-0'"):
        join_as_many(address, seats, echoes, fingerprint="code", identities=identities)
    until(lambda: list(grid.nodes()) == [alice.prepared[0].worker])


@pytest.mark.parametrize(
    "shown",
    [
        pytest.param(None, id="none"),
        pytest.param(SERVER, id="the-servers-own"),
        pytest.param(OTHER.issue_client("alice"), id="of-another-authority"),
        pytest.param(expired("alice"), id="expired"),
        pytest.param(Identity(b"", AUTHORITY.certificate, AUTHORITY.key), id="the-authoritys"),
    ],
)
def test_who_shows_no_good_certificate_does_not_get_to_say_hello(
    federation: Federation, shown: Identity | None
) -> None:
    grid, address = federation.grid(1, credentials=server_credentials(SERVER))
    pair = (None, None) if shown is None else (shown.key, shown.certificate)
    hello = control_frame(pb.Hello(protocol=PROTOCOL, name="alice", fingerprint="code"))
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(AUTHORITY.certificate, *pair)) as channel:
        with pytest.raises(grpc.RpcError) as error:
            list(channel.stream_stream(METHOD)(iter([hello]), timeout=SOON_S))
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert grid.seats() == {}
    federation.node(address, "alice", identity=ALICE)  # the server is as well as ever
    assert grid.wait(1, SOON_S) == 1


# --- what a client is told --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("credentials", "identity", "words"),
    [
        pytest.param(
            unchecked(OTHER.issue_server(["127.0.0.1"])),
            ALICE,
            "the server's certificate was issued by 'breakwater authority ",
            id="another-authority",
        ),
        pytest.param(
            unchecked(AUTHORITY.issue_server(["server.example", "10.0.0.1"])),
            ALICE,
            "the server's certificate is for 'server.example', '10.0.0.1', and not for '127.0.0.1'",
            id="another-host",
        ),
        pytest.param(unchecked(expired("server")), ALICE, "the server's certificate expired on ", id="expired"),
        pytest.param(
            unchecked(AUTHORITY.issue_client("mallory")),
            ALICE,
            "the server's certificate is not a server's certificate",
            id="a-clients",
        ),
        pytest.param(
            unchecked(replace(SERVER, authority=OTHER.certificate)),
            ALICE,
            "its certificate is good, so perhaps it does not take this client's: of another authority, or expired?",
            id="declined",
        ),
        pytest.param(None, ALICE, "it speaks no TLS; start it with --tls, or this client", id="plain-server"),
        pytest.param(
            server_credentials(SERVER),
            None,
            "it speaks TLS; give this client its certificate with --tls DIR",
            id="plain",
        ),
    ],
)
def test_why_there_is_no_stream_is_told_once_and_tried_again(
    federation: Federation, credentials: grpc.ServerCredentials | None, identity: Identity | None, words: str
) -> None:
    grid, address = federation.grid(1, credentials=credentials)
    lines: list[str] = []
    # Some four attempts: what a stranger shows must not end a client, its patience does.
    outcome = federation.node(address, "alice", identity=identity, patience_s=0.8, log=lines.append).result()
    assert isinstance(outcome, ServerGone)
    assert len(lines) == 1
    for line in (str(outcome), lines[0]):
        assert words in line
        assert "\n" not in line
        assert "ssl" not in line.lower(), "gRPC's own word is no help"
    assert grid.seats() == {}


def test_a_client_whose_certificate_expires_while_it_waits_gives_up(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    node = federation.node("127.0.0.1:1", "alice", identity=ALICE, log=lines.append)
    until(lambda: bool(lines))
    monkeypatch.setattr(certificates, "now", lambda: datetime.now(UTC) + timedelta(days=366))
    outcome = node.result()
    assert isinstance(outcome, ConfigError)
    assert str(outcome).startswith("tls.crt: expired on ")


# --- the commands -----------------------------------------------------------------------------------------------------


def test_with_tls_a_run_ends_at_the_same_bits(processes: Processes, digits: Path, tmp_path: Path) -> None:
    changes = (*ATTACKED, "strategy.rounds=20", "compressor.kind=rand-k", "compressor.k=65")
    certs, out = tmp_path / "certs", tmp_path / "run"
    init(certs, ["127.0.0.1"])
    issue(certs, ["honest-0", "honest-1", "honest-2", "evil-0", "evil-1"])
    options = ("--listen", "127.0.0.1:0", "--out", out, "--tls", certs / "server")
    server = processes.breakwater("server", digits, *options, *sets(*changes))
    address = server.line(r"^listening on (\S+)")[1]
    coalition = ("--name", "evil", "--seats", "2", "--attack", "alie", "--tls", certs)
    clients = [processes.breakwater("client", "--connect", address, "--worker", "3", *coalition)]
    for worker in range(3):
        own = ("--worker", str(worker), "--tls", certs / f"honest-{worker}")
        clients.append(processes.breakwater("client", "--connect", address, *own))
    for process in (server, *clients):
        process.ends(0)
    assert [client.out for client in clients[:2]] == [["evil: the run is over"], ["honest-0: the run is over"]]
    assert "without TLS" not in server.said()

    config = load(digits, changes).to_toml()
    (expected,) = deque(trajectory(open_experiment(config, None, tmp_path)), maxlen=1)
    assert x_of(out).tobytes() == expected.tobytes()
    assert summary_of(out)["rejected"] == {}
    assert len(rounds_of(out)) == 20
    log = (out / "logs" / "server.log").read_text(encoding="utf-8")
    for name in ("honest-0", "honest-1", "honest-2", "evil-0", "evil-1"):
        assert f"is taken by {name}, by its certificate" in log


def test_weights_by_certified_name(processes: Processes, digits: Path, tmp_path: Path) -> None:
    """Seats follow the sorted names, a name without a weight is refused, and clients do not learn who weighs what."""
    weights = "federation.weights={mal-0=2.0, mal-1=2.5, ada=2.0, bob=2.5, cy=3.0}"
    changes = (*ATTACKED, "strategy.rounds=12", weights)
    certs, out = tmp_path / "certs", tmp_path / "run"
    init(certs, ["127.0.0.1"])
    issue(certs, ["ada", "bob", "cy", "mal-0", "mal-1", "zoe"])
    options = ("--listen", "127.0.0.1:0", "--out", out, "--tls", certs / "server")
    server = processes.breakwater("server", digits, *options, *sets(*changes))
    address = server.line(r"^listening on (\S+)")[1]
    stranger = processes.breakwater("client", "--connect", address, "--tls", certs / "zoe")
    stranger.ends(2)
    assert "'zoe': has no weight in the server's [federation] weights" in stranger.said()
    coalition = ("--name", "mal", "--seats", "2", "--attack", "alie", "--tls", certs)
    clients = [processes.breakwater("client", "--connect", address, *coalition)]
    clients += [
        processes.breakwater("client", "--connect", address, "--tls", certs / name) for name in ("cy", "ada", "bob")
    ]
    for process in (server, *clients):
        process.ends(0)
    config = load(digits, changes).to_toml()
    (expected,) = deque(trajectory(open_experiment(config, None, tmp_path)), maxlen=1)
    assert x_of(out).tobytes() == expected.tobytes()
    unweighted = load(digits, changes[:-1]).to_toml()
    (other,) = deque(trajectory(open_experiment(unweighted, None, tmp_path)), maxlen=1)
    assert x_of(out).tobytes() != other.tobytes()


def test_weights_by_name_need_tls(processes: Processes, digits: Path, tmp_path: Path) -> None:
    weights = "federation.weights={mal-0=2.0, mal-1=2.5, ada=2.0, bob=2.5, cy=3.0}"
    options = ("--listen", "127.0.0.1:0", "--out", tmp_path / "run")
    server = processes.breakwater("server", digits, *options, *sets(weights))
    server.ends(2)
    assert "[federation] weights by name: without TLS anybody can claim a name; give --tls" in server.said()
