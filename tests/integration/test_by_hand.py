"""`breakwater server` and `breakwater client` started one by one, as on several machines.

The processes are forks of one that has imported what they need, see ``nursery``; test_machines.py types the commands.
"""

import re
import shutil
import signal
from collections import deque
from pathlib import Path

import pytest

from examples.plain_loop import trajectory
from experiment.config import load
from experiment.opened import open_experiment
from tests.integration.fork_server import ForkServer
from tests.integration.processes import (
    ATTACKED,
    ROOT,
    Process,
    Processes,
    Proxy,
    free_address,
    rounds_of,
    sets,
    summary_of,
    until,
)
from tests.saved import x_of

pytestmark = pytest.mark.slow

CUSTOM = """
[federation]
clients = 1
[task]
kind = "custom"
path = "my_task.py:TwoMoons"
options = { samples = 200 }
[strategy]
kind = "robust-sgd"
rounds = 20
gamma = 0.5
[evaluation]
every = 10
"""


@pytest.fixture
def processes(forked: ForkServer) -> Processes:
    return forked


def serve(processes: Processes, config: Path, out: Path, *changes: str) -> tuple[Process, str]:
    """Start a server; return it and its address."""
    server = processes.breakwater("server", config, "--listen", "127.0.0.1:0", "--out", out, *sets(*changes))
    return server, server.line(r"^listening on (\S+)")[1]


def client(processes: Processes, address: str, name: str, *options: str | Path) -> Process:
    return processes.breakwater("client", "--connect", address, "--name", name, *options)


def errors(process: Process) -> list[str]:
    """Return what it complained of on standard error, beside its log."""
    head = "breakwater: error: "
    return [line.removeprefix(head) for line in process.err if line.startswith(head)]


def test_a_federation_by_hand_ends_at_the_bits_of_a_plain_loop(
    processes: Processes, digits: Path, tmp_path: Path
) -> None:
    changes = (*ATTACKED, "strategy.rounds=40", "compressor.kind=rand-k", "compressor.k=65")
    agreed, other = tmp_path / "agreed.toml", tmp_path / "other.toml"
    agreed.write_text(load(digits, changes).to_toml(), encoding="utf-8")
    other.write_text(load(digits, (*changes, "strategy.batch=17")).to_toml(), encoding="utf-8")
    server, address = serve(processes, digits, out := tmp_path / "run", *changes)

    refused = client(processes, address, "careful", "--worker", "2", "--config", other)
    byzantine = client(processes, address, "evil", "--attack", "alie", "--seats", "2", "--worker", "3")
    honest = [client(processes, address, f"honest-{i}", "--worker", str(i)) for i in (0, 1)]
    refused.ends(2)
    assert errors(refused) == ["[strategy] batch: the server has 16, the file given has 17; make them agree"]
    honest.append(client(processes, address, "careful", "--worker", "2", "--config", agreed))
    for process in (server, byzantine, *honest):
        process.ends(0)
    assert [process.out for process in (byzantine, honest[0])] == [
        ["evil: the run is over"],
        ["honest-0: the run is over"],
    ]
    (expected,) = deque(trajectory(open_experiment(agreed.read_text(encoding="utf-8"), None, tmp_path)), maxlen=1)
    assert x_of(out).tobytes() == expected.tobytes()
    assert summary_of(out)["rejected"] == {}


def test_clients_come_before_the_server_and_late_and_are_told_goodbye(
    processes: Processes, digits: Path, tmp_path: Path
) -> None:
    address, out = free_address(), tmp_path / "run"
    early = [client(processes, address, f"early-{i}") for i in range(2)]
    # Two silent clients make the server wait for its deadline: the rounds leave time for what follows.
    early.append(client(processes, address, "evil", "--attack", "silence", "--seats", "2"))
    early[0].line("no stream to .*; trying again")
    changes = ("federation.byzantine=2", "federation.start_with=4", "federation.deadline_s=3.0")
    server = processes.breakwater("server", digits, "--listen", address, "--out", out, *sets(*changes))
    server.line("^4 of 5 clients joined")
    until(lambda: rounds_of(out), "the first round")

    late = client(processes, address, "late")
    taken = client(processes, address, "early-0", "--patience", "0.5")
    unseated = client(processes, address, "someone", "--worker", "0")
    crowded = client(processes, address, "evil", "--attack", "silence", "--seats", "2", "--patience", "0.5")
    late_seat = int(late.line("late: joined as worker ([0-4]) of 5")[1])
    until(
        lambda: any(late_seat in line["accepted"] for line in rounds_of(out)[-50:]), "a round with the late client", 120
    )
    for process, status in ((taken, 1), (unseated, 2), (crowded, 1)):
        process.ends(status)
        assert len(errors(process)) == 1
    assert "'early-0' is connected already: one name, one live stream" in errors(taken)[0]
    assert "seat 0: taken by " in errors(unseated)[0]
    assert "is connected already" in errors(crowded)[0]

    server.ctrl_c()
    server.ends(130)
    for process in (*early, late):
        process.ends(0)
        assert process.out[-1].endswith(": the server stopped before the end of the run")
    rounds = rounds_of(out)
    assert late_seat not in rounds[0]["cohort"]
    rejected = {(entry["client"], entry["reason"]) for line in rounds for entry in line["rejected"]}
    assert rejected == {(f"evil-{i}", "silent: no reply within 3 s") for i in range(2)}
    assert summary_of(out)["status"] == "interrupted"


def test_a_client_outlives_its_server_as_long_as_its_patience(
    processes: Processes, digits: Path, tmp_path: Path
) -> None:
    server, address = serve(processes, digits, out := tmp_path / "run", "federation.clients=2", "strategy.cohort=2")
    impatient, patient = (
        client(processes, address, "impatient", "--patience", "1"),
        client(processes, address, "patient"),
    )
    until(lambda: rounds_of(out), "the first round")
    server.send(signal.SIGKILL)
    server.wait()
    impatient.ends(1)
    assert len(errors(impatient)) == 1
    assert f"no server at {address} for " in errors(impatient)[0]
    patient.line("no stream to .*; trying again")

    changes = ("federation.clients=2", "strategy.cohort=2", "strategy.rounds=20")
    again = processes.breakwater("server", digits, "--listen", address, "--out", tmp_path / "again", *sets(*changes))
    back = client(processes, address, "impatient", "--patience", "60")
    for process in (again, patient, back):
        process.ends(0)


def test_a_client_runs_code_that_its_own_file_names_and_none_that_the_server_names(
    processes: Processes, tmp_path: Path
) -> None:
    shutil.copy(ROOT / "examples" / "my_task.py", tmp_path)
    config, out = tmp_path / "custom.toml", tmp_path / "run"
    config.write_text(CUSTOM, encoding="utf-8")
    server, address = serve(processes, config, out)
    refused = client(processes, address, "moon")
    refused.ends(2)
    assert len(errors(refused)) == 1
    assert '(path = "my_task.py:TwoMoons"): the server\'s config names code to run' in errors(refused)[0]
    willing = client(processes, address, "moon", "--config", config)
    server.ends(0)
    willing.ends(0)
    assert summary_of(out)["loss"] < summary_of(out)["start"]["loss"]


def test_a_server_that_nobody_joins_gives_up(processes: Processes, digits: Path, tmp_path: Path) -> None:
    server, address = serve(processes, digits, tmp_path / "run", "federation.join_timeout_s=0.2")
    server.ends(1)
    warning, line = server.err
    assert warning == (
        f"{address} is open, without TLS (--tls): one client can take all seats under different names (a Sybil "
        "attack): federation.byzantine bounds nothing, and others can read and change the models"
    )
    assert re.sub(r"within \d+ s", "within T s", line) == (
        "breakwater: 0 of 5 clients joined within T s (federation.join_timeout_s = 0.2); "
        "start the others, or lower federation.start_with; "
        f"`breakwater server --resume {tmp_path / 'run'}` continues it"
    )


def test_one_command_begins_a_run_and_goes_on_with_it(processes: Processes, digits: Path, tmp_path: Path) -> None:
    """As a service is started, whatever happened before; the clients wait for it meanwhile."""
    out, address = tmp_path / "run", free_address()
    more = ("federation.clients=2", "strategy.cohort=2", "strategy.rounds=300", "checkpoint.every=20")
    command: tuple[str | Path, ...] = ("server", digits, "--listen", address, "--resume", out, *sets(*more))
    clients = [client(processes, address, name) for name in ("a", "b")]
    first = processes.breakwater(*command)
    until(lambda: len(rounds_of(out)) > 30, "the first rounds")
    first.send(signal.SIGTERM)
    first.ends(130)
    assert first.err[-1] == f"breakwater: interrupted; `breakwater server --resume {out}` continues it"
    done = summary_of(out)["rounds"]
    assert 30 < done < 300
    second = processes.breakwater(*command)
    second.ends(0)
    assert second.line(r"^going on after round (\d+)$")[1] == str(done)
    for process in clients:
        process.ends(0)
    summary = summary_of(out)
    assert (summary["status"], summary["rounds"], summary["starts"]) == ("finished", 300, 2)
    assert [line["round"] for line in rounds_of(out)] == list(range(1, 301))
    third = processes.breakwater(*command)  # nothing is left to do, and nobody is waited for
    third.ends(0)
    assert summary_of(out)["rounds"] == 300


def test_a_port_in_use_is_one_clear_line(processes: Processes, digits: Path, tmp_path: Path) -> None:
    first, address = serve(processes, digits, tmp_path / "first")
    second = processes.breakwater("server", digits, "--listen", address, "--out", tmp_path / "second")
    second.ends(2)
    assert second.err == [f"breakwater: error: cannot listen on {address!r}: Address already in use"]
    first.send(signal.SIGTERM)  # while it waits for clients
    first.ends(130)


# --- what travels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [12, 1000])
def test_a_rand_k_reply_costs_4k_bytes_and_at_most_200_on_the_socket(
    processes: Processes, digits: Path, tmp_path: Path, k: int
) -> None:
    rounds = 200
    changes = (
        *("federation.clients=1", "strategy.cohort=1", "strategy.p=1e-9", f"strategy.rounds={rounds}"),
        *("task.model=mlp", "compressor.kind=rand-k", f"compressor.k={k}", f"evaluation.every={rounds}"),
    )
    server, address = serve(processes, digits, out := tmp_path / "run", *changes)
    proxy = Proxy(address)
    worker = client(processes, proxy.address, "worker")
    server.ends(0)
    worker.ends(0)
    proxy.close()

    first, *others = rounds_of(out)
    assert [line["kind"] for line in others] == ["difference"] * (rounds - 1)
    # All that went up but the full gradient of round 1: the handshake and HTTP/2's own frames are counted in.
    dense = 4 * 2410
    assert dense < first["bytes_up"] < dense + 200
    per_reply = (proxy.up - dense) / len(others)
    assert 4 * k < per_reply <= 4 * k + 200
    counted = sum(line["bytes_up"] for line in others) / len(others)
    print(f"k = {k}: {per_reply:.1f} bytes a reply on the socket, {counted:.1f} in metrics.jsonl")
    # What the metrics leave out: 9 bytes of HTTP/2 header a reply, the handshake, window updates and pings.
    assert counted <= per_reply <= 1.02 * counted + 80
