"""The ways that SuperNodes speak with a SuperLink: a deployment on each, and what holds on all of them.

A deployment is a SuperLink and four SuperNodes on loopback, one of them Byzantine, by real commands. Each way has a
file of tests of its own, which takes those from here: much of their time is Flower's waiting, so the ways run side by
side. A way's tests share what costs most, their processes: they follow one another, and the last breaks something.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
