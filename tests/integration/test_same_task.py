"""Server and clients that have not loaded the same task: each is told what differs, and the run goes on without them.

The processes are forks of one that has imported what they need, see ``nursery``.
"""

import signal
from pathlib import Path

import numpy as np
import pytest

from tests.integration.fork_server import ForkServer
from tests.integration.processes import Process, Processes, rounds_of, sets, summary_of, until
from tests.unit.tasks.test_identity import POINTS

pytestmark = pytest.mark.slow

TABLE = """
[federation]
clients = 3
byzantine = 1
seed = 1
[task]
kind = "logistic"
data = "table"
partition = "iid"
features = 6
[strategy]
kind = "robust-sgd"
rounds = 60
gamma = "0.5/L"
[aggregator]
kind = "cm"
[compressor]
kind = "rand-k"
k = 6
[attack]
kind = "bf"
[evaluation]
every = 20
"""

CUSTOM = """
[federation]
clients = 1
[task]
kind = "custom"
path = "own.py:Own"
options = { word = "mine" }
[strategy]
kind = "robust-sgd"
rounds = 5
gamma = 0.1
"""


@pytest.fixture
def processes(forked: ForkServer) -> Processes:
    return forked


def serve(processes: Processes, config: Path, out: Path, *options: str | Path) -> tuple[Process, str]:
    server = processes.breakwater("server", config, "--listen", "127.0.0.1:0", "--out", out, *options)
    return server, server.line(r"^listening on (\S+)")[1]


def client(processes: Processes, address: str, name: str, *options: str | Path) -> Process:
    return processes.breakwater("client", "--connect", address, "--name", name, *options)


def refusal(process: Process, name: str) -> str:
    process.ends(2)
    (line,) = [line for line in process.err if line.startswith("breakwater: error: ")]
    return line.removeprefix(f"breakwater: error: {name}: refused by the server: ")


def tables(folder: Path) -> None:
    """Write the server's data, and what clients may have in their place."""
    rng = np.random.default_rng(0)
    rows = [(int(rng.integers(2)), rng.normal(size=6)) for _ in range(90)]

    def write(name: str, lines: list[str]) -> None:
        (folder / name).mkdir()
        (folder / name / "table").write_text("\n".join(lines), encoding="utf-8")

    def line(label: int, values: "np.ndarray[tuple[int], np.dtype[np.float64]]", columns: int = 6) -> str:
        return f"{label} " + " ".join(f"{j + 1}:{v:.6f}" for j, v in enumerate(values[:columns]))

    write("mine", [line(*row) for row in rows])
    write("labels", [line(1 - label, values) for label, values in rows])
    write("fewer", [line(*row) for row in rows[:60]])
    write("narrow", [line(*row, columns=5) for row in rows])


def test_a_client_with_other_data_is_refused_and_both_ends_say_what_differs(
    processes: Processes, tmp_path: Path
) -> None:
    tables(tmp_path)
    config, out = tmp_path / "table.toml", tmp_path / "run"
    config.write_text(TABLE, encoding="utf-8")
    server, address = serve(processes, config, out, "--data", tmp_path / "mine")
    others = {
        name: client(processes, address, name, "--data", tmp_path / name) for name in ("labels", "fewer", "narrow")
    }
    said = {name: refusal(process, name) for name, process in others.items()}
    values = "the training data differ: 90 rows both times, with other values or labels: give both ends the same"
    assert said == {
        "labels": values,
        "fewer": "the training data differ: 60 rows at the client, 90 at the server: give both ends the same",
        "narrow": values,
    }
    for name, reason in said.items():
        server.line(f"^{name}: refused: {reason}$")
    honest = [client(processes, address, name, "--data", tmp_path / "mine") for name in ("a", "b")]
    attacker = client(processes, address, "mallory", "--data", tmp_path / "mine", "--attack", "bf")
    for process in (server, *honest, attacker):
        process.ends(0)
    assert summary_of(out)["rejected"] == {}


def test_a_client_with_another_task_file_or_sibling_is_refused(processes: Processes, tmp_path: Path) -> None:
    for name, scale in (("mine", 1), ("sibling", 2), ("file", 1), ("size", 1)):
        (tmp_path / name).mkdir()
        larger = POINTS.replace("dtype = 2,", "dtype = 3,").replace("np.zeros(2)", "np.zeros(3)")
        text = {"file": POINTS + "# changed\n", "size": larger}.get(name, POINTS)
        (tmp_path / name / "own.py").write_text(text, encoding="utf-8")
        (tmp_path / name / "far.py").write_text(f"SCALE = {scale}\n", encoding="utf-8")
        (tmp_path / name / "own.toml").write_text(CUSTOM, encoding="utf-8")
    out = tmp_path / "run"
    server, address = serve(processes, tmp_path / "mine" / "own.toml", out)
    expected = {
        "sibling": "task file far.py differs",
        "file": "task file own.py differs",
        "size": "d = 3 at the client, 2 at the server; task file own.py differs",
    }
    for name, reason in expected.items():  # one seat, which is free again
        other = client(processes, address, name, "--config", tmp_path / name / "own.toml")
        assert refusal(other, name) == f"{reason}: give both ends the same"
    same = client(processes, address, "same", "--config", tmp_path / "mine" / "own.toml")
    server.ends(0)
    same.ends(0)


def test_who_never_came_fit_is_in_the_servers_last_line(processes: Processes, tmp_path: Path) -> None:
    tables(tmp_path)
    config, out = tmp_path / "table.toml", tmp_path / "run"
    config.write_text(TABLE, encoding="utf-8")
    options: tuple[str | Path, ...] = ("--data", tmp_path / "mine", *sets("federation.join_timeout_s=8.0"))
    server, address = serve(processes, config, out, *options)
    refusal(client(processes, address, "a", "--data", tmp_path / "labels"), "a")
    server.ends(1)
    assert "; 1 refused: the training data differ: 90 rows both times, with other values" in server.err[-1]


def test_a_run_goes_on_with_its_own_data_whatever_the_environment_names_and_not_with_others(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables(tmp_path)
    config, out = tmp_path / "table.toml", tmp_path / "run"
    config.write_text(TABLE, encoding="utf-8")
    changes = sets("strategy.rounds=1000000", "checkpoint.every=5", "federation.clients=1", "federation.byzantine=0")
    options: tuple[str | Path, ...] = ("--data", tmp_path / "mine", *changes, *sets("attack.kind=none"))
    first, address = serve(processes, config, out, *options)
    worker = client(processes, address, "a", "--data", tmp_path / "mine")
    until(lambda: len(rounds_of(out)) > 10, "the first rounds")
    first.send(signal.SIGTERM)
    first.ends(130)
    other = processes.breakwater("server", "--resume", out, "--data", tmp_path / "fewer")
    other.ends(2)
    assert "is of another task: the training data differ: 60 rows now, 90 in the checkpoint" in other.err[-1]
    done = len(rounds_of(out))
    monkeypatch.setenv("BREAKWATER_DATA", str(tmp_path / "labels"))
    again = processes.breakwater("server", "--resume", out, *sets(f"strategy.rounds={done + 5}"))
    again.ends(0)
    worker.ends(0)
    assert summary_of(out)["rounds"] == done + 5
