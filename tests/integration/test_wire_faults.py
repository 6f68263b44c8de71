"""Every wire fault over the real link: the round goes on with the others, and the books say who failed and how."""

from pathlib import Path

import numpy as np
import pytest

from experiment.config import load
from experiment.opened import open_experiment
from foundation.faults import Fault
from strategies.randomness import Role, stream
from tests.integration.processes import DIGITS, SOON_S, Processes, rounds_of, sets, summary_of
from tests.saved import x_of

pytestmark = pytest.mark.slow

ROUNDS, HONEST, DEADLINE_S = 3, 2, 2.0
FAULTS = list(Fault)
REPLAYER = HONEST + FAULTS.index(Fault.REPLAY)


def averaged(config_text: str) -> np.ndarray:
    """Average in a plain loop what should have counted: the honest workers, and in round 1 the one that replays."""
    experiment = open_experiment(config_text, None, None)
    problem, seed = experiment.problem, experiment.config.federation.seed
    gamma = float(experiment.config.strategy.gamma)
    x = problem.initial()
    for k in range(1, ROUNDS + 1):
        workers = [*range(HONEST), *([REPLAYER] if k == 1 else [])]
        rows = [problem.oracle(i).minibatch_gradients([x], 16, stream(seed, Role.WORKER, i, k))[0] for i in workers]
        x = x - gamma * experiment.config.aggregator(np.stack(rows), 0, stream(seed, Role.AGGREGATE, round_=k))
    return x


def test_no_wire_fault_disturbs_anybody(forked: Processes, tmp_path: Path) -> None:
    """One process holds a seat for each fault; averaging would show a single bit of theirs.

    Who breaks off in every round has come back before the next one.
    """
    path, out = tmp_path / "digits.toml", tmp_path / "run"
    path.write_text(DIGITS, encoding="utf-8")
    changes = (
        *(f"federation.clients={HONEST + len(FAULTS)}", f"federation.deadline_s={DEADLINE_S}"),
        *("strategy.kind=robust-sgd", f"strategy.rounds={ROUNDS}", "strategy.batch=16", "aggregator.kind=mean"),
    )
    server = forked.breakwater("server", path, "--listen", "127.0.0.1:0", "--out", out, *sets(*changes))
    address = server.line(r"^listening on (\S+)")[1]
    # Worker i shows fault number i modulo their count, and the first attacker is worker HONEST.
    turned = FAULTS[-HONEST:] + FAULTS[:-HONEST]
    listed = "[" + ",".join(f'"{fault}"' for fault in turned) + "]"
    clients = [
        forked.breakwater("client", "--connect", address, "--name", f"honest-{i}", "--worker", str(i))
        for i in range(HONEST)
    ]
    clients.append(
        forked.breakwater(
            *("client", "--connect", address, "--name", "bad", "--worker", str(HONEST), "--seats", str(len(FAULTS))),
            *("--attack", "wire", "--set", f"attack.fault={listed}"),
        )
    )
    server.ends(0, 2 * SOON_S)
    for client in clients:
        client.ends(0)

    rounds, summary = rounds_of(out), summary_of(out)
    assert (summary["status"], summary["rounds"]) == ("finished", ROUNDS)
    text = (out / "logs" / "server.log").read_text(encoding="utf-8")
    for line in rounds:
        reasons = {entry["client"]: entry["reason"] for entry in line["rejected"]}
        expected = {f"bad-{i}": fault.reason for i, fault in enumerate(FAULTS)}
        if line["round"] == 1:
            del expected[f"bad-{FAULTS.index(Fault.REPLAY)}"]  # its first reply is a good one
        assert {name: reason.partition(":")[0] for name, reason in reasons.items()} == expected
        for name, slug in expected.items():
            assert f"{name} rejected: {slug}" in text
        assert set(range(HONEST)) <= set(line["accepted"])
        assert set(line["accepted"]) <= {*range(HONEST), *([REPLAYER] if line["round"] == 1 else [])}
    model = x_of(out)
    assert model.tobytes() == averaged(load(path, changes).to_toml()).tobytes()


def test_wire_faults_of_a_local_run(processes: Processes, digits: Path, tmp_path: Path) -> None:
    """From the config alone; the run ends at once though two of its clients keep losing their streams."""
    out = tmp_path / "run"
    changes = (
        *("federation.byzantine=2", "strategy.rounds=6", "strategy.cohort=5"),
        *("attack.kind=wire", 'attack.fault=["disconnect", "truncated"]'),
    )
    run = processes.breakwater("run", digits, "--out", out, *sets(*changes))
    run.ends(0, 2 * SOON_S)
    processes.none_left()
    seen = {entry["client"]: entry["reason"] for line in rounds_of(out) for entry in line["rejected"]}
    assert {reason.partition(":")[0] for reason in seen.values()} == {"disconnected", "undecodable"}
    assert summary_of(out)["status"] == "finished"
    assert load(out / "config.toml").attack == load(digits, changes).attack  # it runs again to the same
