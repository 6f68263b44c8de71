"""What a party sees and keeps: its ledger, its terminal, the final model, a dry run; over a live link."""

import hashlib
import io
import json
import os
import socket
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]  # grpcio ships no types
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from client.dry_run import dry_run
from client.final_model import ModelFile
from client.ledger import SentLedger
from client.observers import Observers, Standing
from client.party import Limits
from client.preparation import PartyPreparation
from client.screen import Screen, line_of
from deploy.cli import main
from experiment.code import Code
from experiment.config import load
from foundation.errors import ConfigError, Unwritten
from link.ledger import GRPC_PREFIX_BYTES
from link.witness import kind_of, round_of
from strategies.method import Evaluation
from tests.unit.client.parties import MARKER, NAMES, Run, options_of, run_live, study


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the messages of a ledger, without the lines that begin it."""
    return [line for line in map(json.loads, path.read_text().splitlines()) if "kind" in line]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose clients all have a ledger, and two of three a file for the model."""
    folder = tmp_path_factory.mktemp("parties")
    config = study(folder)

    def own(name: str) -> dict[str, Any]:
        model = None if name == "carol" else ModelFile(folder / f"{name}.safetensors")
        return {"observers": Observers(SentLedger(folder / f"{name}.jsonl")), "model": model}

    with pytest.MonkeyPatch.context() as monkeypatch:
        run = run_live(config, monkeypatch, own)
    assert run.reasons == dict.fromkeys(NAMES, "the run is over")
    return run


# --- the ledger -------------------------------------------------------------------------------------------------------


def test_the_ledger_of_a_client_has_every_byte_that_the_server_counted_of_it(watched: Run) -> None:
    for name in NAMES:
        lines, counted = lines_of(watched.out.parent / f"{name}.jsonl"), watched.grid.ledger.peer(name)
        assert sum(line["bytes"] for line in lines) == counted.bytes_up
        assert len(lines) == counted.frames_up  # all of one frame here
        assert [line["kind"] for line in lines[:2]] == ["hello", "ready"]
        assert lines[-1]["kind"] == "model"
        assert {line["client"] for line in lines} == {name}


def test_the_ledger_names_the_rounds_that_a_client_answered_and_the_norm_of_what_it_sent(watched: Run) -> None:
    rounds = [json.loads(line) for line in (watched.out / "metrics.jsonl").read_text().splitlines()]
    worker = {seat.name: seat.worker for seat in watched.grid.seats().values()}
    for name in NAMES:
        trained = [line for line in lines_of(watched.out.parent / f"{name}.jsonl") if line["kind"] == "train"]
        asked = [each["round"] for each in rounds if worker[name] in each["cohort"]]
        assert [line["round"] for line in trained] == asked
        assert all(line["norm"] > 0 for line in trained)
        assert all(len(line["sha256"]) == 64 and line["time"].endswith("Z") for line in trained)


def test_nothing_of_the_data_is_in_a_ledger(watched: Run) -> None:
    for name in NAMES:
        text = (watched.out.parent / f"{name}.jsonl").read_text()
        assert MARKER not in text
        assert str(watched.out.parent) not in text
        head = json.loads(text.splitlines()[0])
        assert "pings" in head["heartbeats"]


def test_a_line_has_length_and_digest_of_all_frames_of_a_message(tmp_path: Path) -> None:
    ledger = SentLedger(tmp_path / "sent.jsonl")
    assert ledger.add("a", "train", 3, [b"one", b"twenty"], 0.5) == 9 + 2 * GRPC_PREFIX_BYTES
    ledger.add("a", "train", 4, [b"x"], float("nan"))
    first, second = lines_of(tmp_path / "sent.jsonl")
    assert first["sha256"] == hashlib.sha256(b"onetwenty").hexdigest()
    assert (first["round"], first["bytes"], first["norm"], second["norm"]) == (3, 19, 0.5, None)
    assert (tmp_path / "sent.jsonl").stat().st_mode & 0o077 == 0


def test_a_ledger_is_appended_to_also_after_a_line_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "sent.jsonl"
    path.write_text('{"kind": "hel')
    ledger = SentLedger(path)
    ledger.add("a", "pass", 1, [b"x"], None)
    ledger.close()
    assert path.read_text().startswith('{"kind": "hel\n{')
    assert json.loads(path.read_text().splitlines()[-1])["kind"] == "pass"


@pytest.mark.parametrize("bad", ["nowhere/sent.jsonl", "."])
def test_a_ledger_that_cannot_be_written_is_one_line_before_joining(
    bad: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["client", "--connect", "127.0.0.1:1", "--name", "a", "--ledger", bad]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"breakwater: error: --ledger {bad}: cannot be written: ")


def test_two_processes_do_not_write_one_ledger(tmp_path: Path) -> None:
    SentLedger(tmp_path / "sent.jsonl")
    with pytest.raises(ConfigError, match="another process writes it"):
        SentLedger(tmp_path / "sent.jsonl")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_client_ends_rather_than_send_what_it_cannot_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = study(tmp_path)

    def own(name: str) -> dict[str, Any]:
        ledger = SentLedger(tmp_path / f"{name}.jsonl")
        if name == "bob":
            full, add = os.open("/dev/full", os.O_WRONLY), ledger.add

            def until_the_disk_is_full(*given: Any) -> int:
                if given[1] == "train":
                    os.dup2(full, ledger._file)
                return add(*given)

            monkeypatch.setattr(ledger, "add", until_the_disk_is_full)
        return {"observers": Observers(ledger)}

    run = run_live(config, monkeypatch, own)
    assert isinstance(run.reasons["bob"], Unwritten)
    assert "No space left on device" in str(run.reasons["bob"])
    listed = sum(line["bytes"] for line in lines_of(tmp_path / "bob.jsonl"))
    assert listed == run.grid.ledger.peer("bob").bytes_up
    assert run.reasons["alice"] == "the run is over"  # the round goes on with the others


# --- the final model --------------------------------------------------------------------------------------------------


def test_the_model_of_a_party_is_the_servers_byte_for_byte(watched: Run) -> None:
    servers = (watched.out / "model.safetensors").read_bytes()
    assert {name: (watched.out.parent / f"{name}.safetensors").exists() for name in NAMES} == {
        "alice": True,
        "bob": True,
        "carol": False,
    }
    for name in ("alice", "bob"):
        assert (watched.out.parent / f"{name}.safetensors").read_bytes() == servers
    assert load_file(watched.out / "model.safetensors")["weight"].shape == (2, 3)


def test_a_run_that_brings_no_model_is_an_error(tmp_path: Path) -> None:
    file = ModelFile(tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []  # it was only tried
    with pytest.raises(Unwritten, match="sent this client no final model"):
        file.check()


@pytest.mark.parametrize("bad", ["nowhere/model.safetensors", "."])
def test_a_model_file_that_cannot_be_written_is_one_line(bad: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--model"):
        ModelFile(tmp_path / bad)


def test_a_client_without_own_data_is_told_where_the_model_is(capsys: pytest.CaptureFixture[str]) -> None:
    config = "deploy/configs/demo.toml"
    assert main(["client", "--connect", "127.0.0.1:1", "--name", "a", "--config", config, "--model", "m"]) == 2
    assert "model.safetensors of the server's run folder" in capsys.readouterr().err


# --- the dry run ------------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail on any connection."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a dry run connects to nobody")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(grpc.aio, "insecure_channel", refuse)
    monkeypatch.setattr(grpc.aio, "secure_channel", refuse)


@pytest.mark.usefixtures("offline")
def test_a_dry_run_shows_what_really_travels(watched: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = watched.out.parent
    config, data = str(folder / "study.toml"), str(folder / "alice")
    assert main(["client", "--dry-run", "--config", config, "--data", data, "--no-evaluation"]) == 0
    out = capsys.readouterr().out
    shown = dict(line.split(maxsplit=1)[1].split(" = ", 1) for line in out.splitlines() if line.startswith("ready"))
    sent = json.loads(watched.grid.reports()["alice"])
    assert shown == {key: value if isinstance(value, str) else json.dumps(value) for key, value in sent.items()}
    assert Code.read(watched.grid.reports()["alice"]).fingerprint in out
    assert "trains on 24 samples; kept back: 6" in out
    assert "2 in this client's data" in out
    assert "identity packet, 32 bytes" in out
    assert "rand-k packet, 24 bytes" in out or "rand-k packet, 16 bytes" in out
    assert "declined (--no-evaluation)" in out
    assert MARKER not in out


@pytest.mark.usefixtures("offline")
def test_a_dry_run_of_shared_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["client", "--dry-run", "--config", "deploy/configs/demo.toml", "--worker", "2"]) == 0
    out = capsys.readouterr().out
    assert "task         digits, d = " in out
    assert "evaluate     nothing" in out


@pytest.mark.usefixtures("offline")
def test_a_dry_run_that_fails_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = study(tmp_path)
    assert main(["client", "--dry-run"]) == 2
    assert "--dry-run: needs --config FILE" in capsys.readouterr().err
    assert (
        main(["client", "--dry-run", "--config", str(config), "--data", str(tmp_path / "alice"), "--worker", "3"]) == 2
    )
    assert "--worker 3: must be from 0 to 2" in capsys.readouterr().err
    given = ["client", "--dry-run", "--config", str(config), "--data", str(tmp_path / "alice")]
    assert main([*given, "--min-batch", "9"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--min-batch 9 declines this experiment" in line


def test_a_client_that_is_no_dry_run_needs_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["client", "--name", "a"])
    assert "--connect" in capsys.readouterr().err


def test_limits_are_shown_by_a_dry_run(tmp_path: Path) -> None:
    config = study(tmp_path)
    limits = Limits(max_rounds=2, statistics=False)
    lines = list(dry_run(options_of(config, data=tmp_path / "bob", limits=limits)))
    assert any(line.endswith("more than 2 rounds (--max-rounds)") for line in lines)


# --- the terminal -----------------------------------------------------------------------------------------------------


def test_the_terminal_shows_where_a_client_is() -> None:
    known = Standing(
        connected=True,
        worker=2,
        clients=5,
        asked=12,
        answered=11,
        bytes=1500,
        round=40,
        kind="train",
        last_bytes=64,
        norm=0.25,
        measured=Evaluation(0.5, 0.875),
        measured_at=30,
    )
    assert line_of("alice", known) == (
        "alice  connected as worker 2 of 5  round 40: asked 12, answered 11  "
        "sent 1.5 kB, last train of 64 B, newest update of norm 0.25  own data (round 30): loss 0.5, accuracy 87.5 %"
    )
    assert line_of("bob", Standing(reason="refused\x1b[31m")) == "bob  not connected: refused?[31m"


def test_without_a_terminal_lines_are_few_and_the_last_one_says_how_it_ended() -> None:
    out = io.StringIO()
    with Screen(Console(file=out)) as screen:
        observers = Observers(view=screen)
        observers.connected("a", 0, 3)
        for round_ in range(1, 50):
            observers.asked("a", "train", round_)
            observers.leaving("a", "train", round_, [b"x" * 95])
        assert out.getvalue() == ""
    (line,) = out.getvalue().splitlines()
    assert "round 49: asked 49, answered 49  sent 4.9 kB" in line


def test_a_terminal_gets_one_line_that_is_rewritten_and_folded_where_it_is_narrow() -> None:
    out = io.StringIO()
    with Screen(Console(file=out, force_terminal=True, width=30, soft_wrap=True)) as screen:
        observers = Observers(view=screen)
        observers.connected("a", 0, 3)
        observers.lost("a", "the server " + "is far away and " * 5 + "gone")
    shown = out.getvalue().rpartition("\x1b[2K")[2]
    assert "not connected" in shown
    assert "gone" in shown
    assert len(shown.splitlines()) > 3


def test_norms_for_people_are_computed_now_and_then_and_for_a_ledger_always(tmp_path: Path) -> None:
    shown, listed = Observers(view=Screen(Console(file=io.StringIO()))), Observers(SentLedger(tmp_path / "sent.jsonl"))
    assert [shown.wants_norm() for _ in range(3)] == [True, False, False]
    assert all(listed.wants_norm() for _ in range(3))
    assert not Observers().wants_norm()


def test_errors_are_no_answers() -> None:
    observers = Observers()
    for kind in ("hello", "ready", "error", "pass", "train"):
        observers.asked("a", kind, None)
        observers.leaving("a", kind, None, [b""])
    assert observers.standings["a"].answered == 1


@pytest.mark.parametrize(
    ("type_", "kind"),
    [("train", "train"), ("query.breakwater_model", "model"), ("", "unknown"), ("x" * 999, "x" * 40)],
)
def test_a_message_has_a_kind_whatever_the_server_calls_it(type_: str, kind: str) -> None:
    assert kind_of(type_) == kind


def test_the_round_of_a_message() -> None:
    assert [round_of(text) for text in ("7", "", "-1", "x", "9" * 40, "٣")] == [7, None, None, None, None, None]


def test_the_norm_is_that_of_the_vector_that_the_server_decompresses(watched: Run) -> None:
    first = next(line for line in lines_of(watched.out.parent / "alice.jsonl") if line["kind"] == "train")
    out = watched.out.parent
    party = PartyPreparation(load(out / "study.toml"), options_of(out / "study.toml", data=out / "alice"))
    problem = party.experiment.problem
    gradient = problem.oracle(0).full_gradient(problem.initial())
    assert first["norm"] == pytest.approx(float(np.linalg.norm(gradient)), rel=1e-6)
