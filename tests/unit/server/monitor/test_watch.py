"""Watchers' certificates, and a run folder that is followed; the link's side is in tests/integration/test_watch.py."""

import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client.process import ClientOptions, run_client
from deploy.certs import init, issue, revoke
from deploy.cli import main
from foundation.errors import ConfigError, Refused, ServerGone
from link import watch
from link.identity.authority import Authority
from link.identity.certificates import CertificateRole
from link.identity.tls import Identity, may_watch
from server.monitor import follow as following
from server.monitor.follow import follow_folder
from server.monitor.live import LiveRun, State, Title
from server.run_folder import CONFIG, METRICS, SUMMARY

CONFIG_TEXT = """
[federation]
clients = 4
[task]
kind = "digits"
[strategy]
kind = "robust-sgd"
rounds = 10
gamma = 0.1
"""


# --- certificates ---


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    init(tmp_path / "certs", ["127.0.0.1"])
    return tmp_path / "certs"


def test_a_watchers_certificate_is_told_from_a_clients(certs: Path) -> None:
    assert main(["certs", "issue", str(certs), "--watcher", "ops", "boss"]) == 0
    issue(certs, ["alice"])
    ops, alice = (Identity.load(certs / name) for name in ("ops", "alice"))
    ops.check(CertificateRole.CLIENT)
    assert (ops.name, ops.watches, alice.watches) == ("ops", True, False)
    assert [may_watch(one.certificate) for one in (ops, alice, Identity.load(certs / "server"))] == [True, False, False]
    assert not may_watch(b"")
    assert not may_watch(ops.certificate + ops.certificate), "one certificate, not several"


def test_a_client_cannot_be_called_so_that_it_may_watch() -> None:
    for name in ("urn:breakwater:watcher:x", "watcher", "x,URI:urn:breakwater:watcher:x"):
        try:
            made = Authority.create().issue_client(name)
        except ConfigError:
            continue
        assert not made.watches


def test_a_certificate_is_renewed_as_what_it_is(certs: Path) -> None:
    issue(certs, ["ops"], watcher=True)
    issue(certs, ["alice"])
    with pytest.raises(ConfigError, match="ops: is the certificate of a watcher; add --watcher to renew it"):
        issue(certs, ["ops"], renew=True)
    with pytest.raises(ConfigError, match="alice: is the certificate of a client; leave --watcher out to renew it"):
        issue(certs, ["alice"], renew=True, watcher=True)
    (line,) = issue(certs, ["ops"], renew=True, watcher=True)
    assert "the certificate of watcher 'ops'" in line
    assert Identity.load(certs / "ops").watches
    assert "'ops': 2 certificates revoked" in revoke(certs, ["ops"])


def test_a_client_that_is_given_a_watchers_certificate_is_told_before_it_connects(certs: Path) -> None:
    issue(certs, ["ops"], watcher=True)
    with pytest.raises(ConfigError, match="is a watcher's certificate, which takes no part"):
        run_client(ClientOptions(connect="127.0.0.1:1", name="ops", tls=certs / "ops"))


# --- a run folder ---


def line(round_: int, **more: Any) -> str:
    numbers = {"bytes_up": 10, "bytes_down": 20, "round_s": 0.1, "lam": None, "step_norm": 1.0}
    told = {"round": round_, "cohort": [0, 1], "accepted": [0], "rejected": [{"client": "b", "reason": "silent: x"}]}
    return json.dumps({**told, "clipped": [], **numbers, **more}) + "\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(following, "EVERY_S", 0.001)
    (tmp_path / CONFIG).write_text(CONFIG_TEXT, encoding="utf-8")
    (tmp_path / METRICS).write_text(line(1) + line(2, loss=0.5, accuracy=0.75), encoding="utf-8")
    return tmp_path


@pytest.fixture
def states(folder: Path) -> Iterator[State]:
    return follow_folder(folder)


def test_a_run_folder_is_followed_as_it_grows_and_to_its_end(folder: Path, states: Iterator[State]) -> None:
    state = next(states)
    assert (state["status"], state["round"], state["loss"], state["up"]) == ("running", 2, 0.5, 20)
    with (folder / METRICS).open("a", encoding="utf-8") as file:
        file.write(line(3) + line(4)[:20])
        file.flush()
        assert next(states)["round"] == 3, "a line that is being written is let alone"
        file.write(line(4)[20:])
    assert next(states)["all"]["sampled"] == 8
    summary = {"status": "finished", "rounds": 4, "loss": 0.25, "accuracy": 0.5, "wall_s": 1.0}
    (folder / SUMMARY).write_text(json.dumps(summary | {"bytes_up": 40, "bytes_down": 80}), encoding="utf-8")
    (last,) = states
    assert last["status"] == "finished"
    assert last["line"].startswith("finished after 4 rounds in 1.0 s  loss 0.25  accuracy 50.0 %")


@pytest.mark.parametrize(("status", "exit_status"), [("finished", 0), ("diverged", 0), ("stalled", 1)])
def test_watching_a_run_that_stalled_is_no_success(folder: Path, status: str, exit_status: int) -> None:
    summary = {
        "status": status,
        "rounds": 2,
        "loss": 0.25,
        "accuracy": 0.5,
        "wall_s": 1.0,
        "bytes_up": 1,
        "bytes_down": 1,
    }
    (folder / SUMMARY).write_text(json.dumps(summary), encoding="utf-8")
    assert main(["watch", str(folder)]) == exit_status


def test_a_server_that_goes_back_to_a_checkpoint_is_followed_back(folder: Path, states: Iterator[State]) -> None:
    assert next(states)["round"] == 2
    (folder / METRICS).write_text(line(1), encoding="utf-8")
    state = next(states)
    assert (state["round"], state["all"]["sampled"], state["loss"]) == (1, 2, None)


def test_a_run_that_nobody_runs_is_away_and_one_that_is_locked_is_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_STILL_S", 0.0)
    if not Path("/proc/locks").exists():
        pytest.skip("needs /proc/locks to see who runs a run")
    states = follow_folder(folder, patience_s=0.2)
    next(states)
    assert "no server runs this now; `breakwater server --resume" in next(states)["away"]
    with (folder / METRICS).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "away" not in next(states)
    with pytest.raises(ServerGone, match="no server has run this for"):
        list(states)


def test_what_is_no_run_folder_is_told_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / METRICS).write_text('{"round": 1}\n', encoding="utf-8")
    assert main(["watch", str(folder)]) == 2
    assert "metrics.jsonl: not a round: " in capsys.readouterr().err
    (folder / METRICS).unlink()
    assert main(["watch", str(folder)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# --- a hostile server ---


@pytest.fixture
def state() -> State:
    title = Title(run="a", method="m", rule="cm", task="digits", attack=None, clients=4, byzantine=1, rounds=9)
    return LiveRun(title, lambda: 4).state()


@pytest.mark.parametrize(
    "text", [100_000 * "[", "[]", "5", "", '"x"'], ids=["deep", "list", "number", "nothing", "text"]
)
def test_what_is_no_object_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(Refused, match=r"^a:1: sends states that cannot be read; run the same version at both ends$"):
        watch._parsed("a:1", text)


def test_what_a_watcher_adds_to_a_state_a_server_cannot() -> None:
    assert watch._parsed("a:1", '{"round": 3, "away": "x", "goodbye": "y"}') == {"round": 3}


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["lines", "json"])
@pytest.mark.parametrize(
    ("key", "value"),
    [("round", -(10**12)), ("measured", "\x1b[2J"), ("loss", float("nan")), ("up", 10**400)],
    ids=["round", "measured", "loss", "up"],
)
def test_a_state_that_is_none_ends_the_command_with_2(
    key: str,
    value: object,
    form: tuple[str, ...],
    state: State,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(watch, "follow", lambda *_, **__: iter([state, state | {key: value}]))
    assert main(["watch", "127.0.0.1:1", *form]) == 2
    said = capsys.readouterr()
    assert said.err.endswith(f"127.0.0.1:1: sent an invalid state ({key}); run the same version at both ends\n")
    assert "\x1b" not in said.out + said.err


def test_the_reason_why_a_server_is_away_is_one_line(
    state: State, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    last = state | {"goodbye": "\x1b[2Jover"}
    monkeypatch.setattr(watch, "follow", lambda *_, **__: iter([state | {"away": "\x1b[2Jgone\r\n"}, last]))
    assert main(["watch", "127.0.0.1:1"]) == 1
    said = capsys.readouterr()
    assert said.err == "server unreachable: ?[2Jgone??; retrying\n"
    assert said.out.endswith("?[2Jover\n")
