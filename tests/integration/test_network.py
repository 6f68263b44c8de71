"""A federation of machines on a bad network: far away, packets get lost, and machines are cut off for a while.

The server and four clients are network namespaces with addresses of their own; every message passes a cable that
delays it and loses some of its packets, and is under TLS.
"""

import re
import signal
import statistics
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from examples.plain_loop import trajectory
from experiment.config import load
from experiment.opened import open_experiment
from tests.integration.machines import CLIENTS, Machines
from tests.integration.processes import ROOT, SOON_S, Process, rounds_of, sets, summary_of, until
from tests.saved import x_of

pytestmark = pytest.mark.slow

ONE_WAY_S, LOSS = 0.02, 0.01
CONFIG = Path("deploy", "configs", "by-hand.toml")
SERVE = f".venv/bin/breakwater server {CONFIG} --listen 0.0.0.0:9090 --tls certs/server --out runs/first"
ATTACK = "--attack foe --set attack.eps=5.0"


def federation(machines: Machines, *changes: str) -> tuple[Process, dict[str, Process], Path]:
    """Start the server and its clients, of which the last one attacks; return them and the run folder."""
    server = machines.run("server", " ".join([SERVE, *sets(*changes)]))
    join = ".venv/bin/breakwater client --connect server.example:9090 --tls certs"
    clients = {
        name: machines.run(name, f"{join}/{name} --worker {worker} {ATTACK if name == 'mallory' else ''}")
        for worker, name in enumerate(CLIENTS)
    }
    return server, clients, machines["server"] / "runs" / "first"


def test_delay_and_loss_change_no_bit_of_the_model(machines: Machines) -> None:
    machines.certify()
    cable = machines.lengthen(ONE_WAY_S, LOSS)
    changes = ("strategy.rounds=40", "federation.deadline_s=30.0")
    server, clients, out = federation(machines, *changes)
    for process in (server, *clients.values()):
        process.ends(0, 2 * SOON_S)
    cable.send(signal.SIGTERM)
    assert int(cable.line(r"^lost (\d+) of \d+ frames$")[1]) > 0
    cable.wait()

    assert summary_of(out)["rejected"] == {}
    attacked = load(ROOT / CONFIG, [*changes, "attack.kind=foe", "attack.eps=5.0"])
    (expected,) = deque(trajectory(open_experiment(attacked.to_toml(), None, None)), maxlen=1)
    assert x_of(out).tobytes() == expected.tobytes()
    # There and back once, plus what a busy machine takes: no reply waits for a retransmission timer in every round.
    typical = statistics.median(line["round_s"] for line in rounds_of(out))
    assert 2 * ONE_WAY_S < typical < 20 * ONE_WAY_S


def test_who_is_cut_off_is_missing_until_the_cable_is_back(machines: Machines) -> None:
    """Alice's cable is out; bob hears the server but is not heard, carol is heard but does not hear."""
    machines.certify()
    machines.lengthen(ONE_WAY_S, LOSS)
    changes = ("strategy.rounds=1000000", "strategy.cohort=4")
    server, clients, out = federation(machines, *changes, "federation.heartbeat_s=0.5", "federation.deadline_s=1.0")
    until(lambda: rounds_of(out), "the first round", 3 * SOON_S)
    seats = {name: int(clients[name].line(r"joined as worker (\d)")[1]) for name in CLIENTS}

    def counts(name: str, lately: int) -> bool:
        return any(seats[name] in line["accepted"] for line in rounds_of(out)[-lately:])

    def miss(name: str, cut: Callable[[], None], join: Callable[[], None]) -> None:
        until(lambda: counts(name, 5), f"a reply of {name}")
        began = max(0, len(rounds_of(out)) - 5)
        cut()
        until(lambda: not counts(name, 10), f"rounds without {name}")
        join()
        until(lambda: counts(name, 5), f"{name} is back")
        meanwhile = rounds_of(out)[began:]
        others = {*seats.values()} - {seats[name]}
        assert any(others <= {*line["accepted"]} for line in meanwhile)
        reasons = [entry["reason"] for line in meanwhile for entry in line["rejected"] if entry["client"] == name]
        assert any(re.match("silent|disconnected", reason) for reason in reasons), reasons
        assert {*re.findall(r"joined as worker (\d)", clients[name].said())} == {str(seats[name])}

    miss("alice", partial(machines.cut, "alice"), partial(machines.join, "alice"))
    miss("bob", partial(machines.cut_way, "bob", "server"), partial(machines.join_way, "bob", "server"))
    miss("carol", partial(machines.cut_way, "server", "carol"), partial(machines.join_way, "server", "carol"))

    server.ctrl_c()
    assert server.wait() in (130, -signal.SIGINT), "the shell hears it too"
    assert summary_of(out)["status"] == "interrupted"
    for process in clients.values():
        process.ends(0)
