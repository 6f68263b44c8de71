"""The ways that SuperNodes speak with a SuperLink: a deployment on each, and what holds on all of them.

A deployment is a SuperLink and four SuperNodes on loopback, one of them Byzantine, by real commands. Each way has a
file of tests of its own, which takes those from here: much of their time is Flower's waiting, so the ways run side by
side. A way's tests share what costs most, their processes: they follow one another, and the last breaks something.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import breakwater as bw
from tests.flower.conftest import ATTACK, CONFIG
from tests.flower.harness import Flower, Run, Way
from tests.flower.pages import typed
from tests.integration.processes import free_address, rounds_of, summary_of
from tests.saved import x_of

ROUNDS = 20
HONEST = typed("docs/flower.md", "flower-supernode", "partition-id=0")
OVER_LINK = [typed("README.md", "flwr run", "link="), typed("docs/flower.md", "flwr run", "link=")]
THROUGH_SUPERLINK = typed("docs/flower.md", "flwr run", "rounds=10")
"""The run configs of the pages' commands, which run here with an address and rounds of their own."""
SMALL = ("strategy.cohort=2", "strategy.p=0.1", "federation.seed=6")
"""A SuperNode starts a process for every message: small cohorts, and few rounds that ask all."""
MINUTES_S = 900.0
"""A bound for a few rounds of some seconds each, on a machine that is busy."""


STUDY = """
[federation]
clients = 4
byzantine = 1
seed = 5
start_with = 3
[task]
kind = "table"
partition = "own"
file = "points.csv"
target = "inside"
classes = ["no", "yes"]
numeric = ["a", "b"]
missing = "refuse"
standardise = "none"
[strategy]
kind = "byz-vr-marina-pp"
rounds = 2
gamma = 0.5
p = 0.5
cohort = 4
batch = 8
clip = false
[aggregator]
kind = "cm"
[evaluation]
every = 2
"""


def parties(folder: Path) -> Path:
    """Write the study, and a folder of data for each of its four parties; return the study's path."""
    study, rng = folder / "study.toml", np.random.default_rng(0)
    study.write_text(STUDY, encoding="utf-8")
    for worker in range(4):
        place = folder / "parties" / f"p{worker}"
        place.mkdir(parents=True)
        rows = [f"{a},{b},{'yes' if a > b else 'no'}" for a, b in rng.normal(size=(30 + worker, 2))]
        (place / "points.csv").write_text("\n".join(["a,b,inside", *rows]), encoding="utf-8")
    return study


def trajectory(out: Path) -> list[dict[str, Any]]:
    """Return all that a run has written of its rounds, but what its carrier decides: times, bytes and names."""
    carried = {"round_s", "deadline_s", "bytes_up", "bytes_down", "names"}
    return [{key: value for key, value in line.items() if key not in carried} for line in rounds_of(out)]


def is_the_run(run: Run, expected: Path) -> None:
    """Check that a run that has ended is another one, to the last bit."""
    assert summary_of(run.out)["status"] == "finished"
    assert trajectory(run.out) == trajectory(expected)
    model, wanted = (x_of(out) for out in (run.out, expected))
    assert model.dtype == wanted.dtype
    assert model.tobytes() == wanted.tobytes()


def test_the_run_over_the_link_is_that_of_the_live_link(
    flower: Flower, app: Path, live: Callable[..., Path], tmp_path: Path
) -> None:
    changes = (*SMALL, f"strategy.rounds={ROUNDS}")
    assert all(set(settings) == {"set", "link"} for settings in OVER_LINK)
    run = flower.run(app, tmp_path / "run", config=CONFIG, set=" ".join(changes), link=free_address(), quiet=True)
    assert run.wait() == "finished:completed", run.log()
    expected = live(*changes, "attack.kind=alie", "attack.view=omniscient")
    is_the_run(run, expected)
    rounds = rounds_of(run.out)
    assert any(3 in line["cohort"] and line["kind"] != "full" for line in rounds)
    assert max(line["round_s"] for line in rounds) < 1.0  # not one of them went through the SuperLink
    said = run.log()
    assert f"finished after {ROUNDS} rounds" in said
    assert "clients joined" not in said
    assert f"round 0/{ROUNDS}" not in said


def test_the_run_through_superlink_and_supernodes_is_that_of_the_live_link(
    flower: Flower, way: Way, app: Path, live: Callable[..., Path], tmp_path: Path
) -> None:
    changes = (*SMALL, f"strategy.rounds={way.rounds}")
    assert (HONEST, ATTACK["partition-id"], set(THROUGH_SUPERLINK)) == ({"partition-id": 0}, 3, {"set"})
    run = flower.run(app, tmp_path / "run", config=CONFIG, set=" ".join(changes))
    assert run.wait(MINUTES_S) == "finished:completed", run.log()
    is_the_run(run, live(*changes, "attack.kind=alie", "attack.view=omniscient"))


def is_the_rehearsal(flower: Flower, app: Path, folder: Path, **settings: Any) -> None:
    """Check that nodes with data of their own give the model of a rehearsal of their study in one process.

    Node 3 is to attack with a view of data that it has not: it cannot take part, and is silent in the rehearsal.
    """
    study = parties(folder)
    run = flower.run(app, folder / "run", config=str(study), data=str(folder / "parties"), **settings)
    assert run.wait(MINUTES_S) == "finished:completed", run.log()
    silent: dict[str, Any] = {"overrides": {"attack.kind": "silence"}, "processes": False, "quiet": True}
    bw.run(study, data=folder / "parties", out=folder / "rehearsal", **silent)
    summary, expected = (summary_of(folder / name) for name in ("run", "rehearsal"))
    assert x_of(run.out).tobytes() == x_of(folder / "rehearsal").tobytes()
    assert summary["measured_by"] == expected["measured_by"] == "clients"
    assert len(summary["claims"]["clients"]) == 3
    assert "yes" not in "".join(path.read_text(encoding="utf-8") for path in run.out.glob("*.json*"))
