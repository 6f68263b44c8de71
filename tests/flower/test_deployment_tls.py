"""The app on a Flower deployment of the newest Flower: HTTP, over TLS, with SuperNode authentication."""

import re
import shutil
import signal
from pathlib import Path

import pytest

from tests.flower.conftest import CONFIG
from tests.flower.environments import NEWEST
from tests.flower.harness import Flower, Way
from tests.flower.ways import (  # noqa: F401  # two are tests, which are this file's too
    MINUTES_S,
    test_the_run_over_the_link_is_that_of_the_live_link,
    test_the_run_through_superlink_and_supernodes_is_that_of_the_live_link,
)
from tests.integration.processes import free_address, rounds_of, until
from tests.saved import x_of

pytestmark = [pytest.mark.flower, pytest.mark.slow]

WAY = Way(NEWEST, 3, secure=True)


OWN_TASK = """
import numpy as np

from strategies.method import Evaluation


class Center:
    \"\"\"f_i(x) = ||x - i||^2 / 2: the mean of all is best.\"\"\"

    dim, dtype, smoothness, optimum, samples = 3, np.dtype("f8"), 1.0, None, 1

    def __init__(self, worker=0):
        self.worker = worker

    def load(self, setting):
        return self

    def initial(self):
        return np.zeros(3)

    def oracle(self, worker, *, flipped=False):
        return Center(worker)

    def full_gradient(self, x):
        return x - self.worker

    def minibatch_gradients(self, points, batch, rng):
        return [self.full_gradient(x) for x in points]

    def evaluate(self, x):
        return Evaluation(loss=float(np.sum((x - 1.5) ** 2)), accuracy=1.0)
"""


def test_a_task_of_ones_own_is_a_file_of_the_bundle(flower: Flower, app: Path, tmp_path: Path) -> None:
    """Its fourth node attacks all the same: alie with an omniscient view."""
    own = shutil.copytree(app, tmp_path / "own" / app.name)
    (own / "examples" / "center.py").write_text(OWN_TASK, encoding="utf-8")
    text = (own / CONFIG).read_text(encoding="utf-8")
    text, count = re.subn(
        r"\[task\]\n(.+\n)+", '[task]\nkind = "custom"\npath = "../../examples/center.py:Center"\n', text
    )
    assert count == 1
    (own / "deploy" / "configs" / "center.toml").write_text(text, encoding="utf-8")
    changes = "strategy.rounds=60 strategy.batch=1 compressor.kind=identity"
    run = flower.run(own, tmp_path / "run", config="deploy/configs/center.toml", set=changes, link=free_address())
    assert run.wait() == "finished:completed", run.log()
    assert all(0 < x < 3 for x in x_of(run.out))


def test_a_killed_supernode_costs_a_deadline_and_is_resynchronised_when_it_is_back(
    flower: Flower, app: Path, tmp_path: Path
) -> None:
    """Its key gives it the node id that it had; what it kept for Flower is lost. Nodes 2 and 3 have no seat here.

    Flower takes no second node with the same key until it has noticed, after a minute at most, that the first is gone.
    """
    changes = (
        *("federation.clients=2", "federation.byzantine=0", "attack.kind=none", "federation.flower_deadline_s=30"),
        *("strategy.rounds=1000", "aggregator.kind=fltrust"),  # whose own row the ServerApp computes
    )
    run = flower.run(app, tmp_path / "run", config="deploy/configs/robust-momentum-sgd.toml", set=" ".join(changes))
    until(lambda: len(rounds_of(run.out)) >= 2, "two rounds", MINUTES_S)
    flower.nodes[1].send(signal.SIGKILL)
    flower.nodes[1].wait()
    until(lambda: 1 not in rounds_of(run.out)[-1]["cohort"], "a round that does not ask the killed node", MINUTES_S)
    lost = len(rounds_of(run.out))
    flower.node(1)
    until(lambda: any(1 in line["accepted"] for line in rounds_of(run.out)[lost:]), "a round with it", MINUTES_S)
    run.stop()
    assert run.wait() == "finished:stopped"

    rounds = rounds_of(run.out)
    assert all(0 in line["accepted"] for line in rounds)
    assert any(line["rejected"] for line in rounds[:lost])
    assert all(line["round_s"] < 35 for line in rounds)
    back = next(line for line in rounds[lost:] if 1 in line["accepted"])
    assert back["resynced"] == [1]
    assert all("resynced" not in line for line in rounds if 1 in line["accepted"] and line is not back)
    assert "partition-id = 2: must be 0 .. 1" in run.log()
