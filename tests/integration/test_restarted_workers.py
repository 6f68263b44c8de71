"""Methods whose workers keep state: one is killed in the middle of a run and comes back with nothing.

The server notices, sends it what it needs, and its replies count again; nobody else is disturbed.
"""

import signal
from pathlib import Path

import pytest

from tests.integration.fork_server import ForkServer
from tests.integration.processes import DIGITS, Process, Processes, rounds_of, sets, summary_of, until

pytestmark = pytest.mark.slow

KEPT = {
    "byz-dasha-page": ("strategy.batch=16", "compressor.kind=rand-k", "compressor.k=65"),
    "byz-dm21": ("strategy.batch=16", "strategy.vr=true", "compressor.kind=top-k", "compressor.k=65"),
    "robust-momentum-sgd": ("strategy.batch=16",),
    "byz-nsgdm": ("strategy.batch=16",),
}


@pytest.fixture
def processes(forked: ForkServer) -> Processes:
    return forked


@pytest.mark.parametrize("kind", KEPT)
def test_a_worker_that_lost_its_state_is_noticed_and_takes_part_again(
    processes: Processes, tmp_path: Path, kind: str
) -> None:
    path, out = tmp_path / "digits.toml", tmp_path / "run"
    path.write_text(DIGITS, encoding="utf-8")
    changes = (
        *(f"strategy.kind={kind}", "strategy.rounds=1000000", "strategy.gamma=0.1", *KEPT[kind]),
        *("federation.clients=3", "federation.start_with=3"),
    )
    server = processes.breakwater("server", path, "--listen", "127.0.0.1:0", "--out", out, *sets(*changes))
    address = server.line(r"^listening on (\S+)")[1]

    def join(i: int) -> Process:
        return processes.breakwater("client", "--connect", address, "--name", f"worker-{i}", "--worker", str(i))

    workers = [join(i) for i in range(3)]
    until(lambda: len(rounds_of(out)) > 20, "twenty rounds of all")
    workers[1].send(signal.SIGKILL)
    workers[1].wait()
    until(lambda: 1 not in rounds_of(out)[-1]["cohort"], "rounds without the killed worker")
    back = join(1)
    until(lambda: all(1 in line["accepted"] for line in rounds_of(out)[-20:]), "twenty rounds with it")
    server.ctrl_c()
    server.ends(130)
    for process in (workers[0], workers[2], back):
        process.ends(0)

    rounds = rounds_of(out)
    assert [line["round"] for line in rounds] == list(range(1, len(rounds) + 1))
    assert all({0, 2} <= set(line["accepted"]) for line in rounds)
    away = [line["round"] for line in rounds if 1 not in line["cohort"]]
    assert away == list(range(away[0], away[-1] + 1))
    returned = rounds[away[-1]]  # the round after
    if (
        "resynced" not in returned
    ):  # it was killed when its last reply had counted: then it says itself what it has lost
        assert [(entry["client"], entry["reason"].partition(":")[0]) for entry in returned["rejected"]] == [
            ("worker-1", "stale state")
        ]
        returned = rounds[away[-1] + 1]
    assert returned["resynced"] == [1]
    assert 1 in returned["accepted"]
    assert all("resynced" not in line for line in rounds if line is not returned)
    others = [line for line in rounds if line["round"] != away[-1] + 1]
    reasons = {entry["reason"].partition(":")[0] for line in others for entry in line["rejected"]}
    assert reasons <= {"disconnected"}
    evaluated = [line["loss"] for line in rounds if "loss" in line]
    assert evaluated[-1] < summary_of(out)["start"]["loss"]
