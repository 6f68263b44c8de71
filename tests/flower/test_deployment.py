"""The app on Flower deployments: SuperLink and four SuperNodes on loopback, one of them Byzantine, by real commands.

On each of the three ways that SuperNodes speak with a SuperLink, the run ends at the bits that the live link gives.
The ways share what costs most, their processes: the tests of one follow one another, and the last breaks something. On
one way all is as Flower starts it; on the others processes are forked, and look for work five times a second.
"""

import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from tests.flower.conftest import CONFIG
from tests.flower.environments import NEWEST, OLDEST
from tests.flower.harness import SETTINGS, Flower, Run
from tests.flower.pages import typed
from tests.integration.processes import Processes, free_address, rounds_of, summary_of, until

pytestmark = [pytest.mark.flower, pytest.mark.slow]

ROUNDS = 20
ATTACK = typed("docs/flower.md", "flower-supernode", "alie")
"""The node config of the Byzantine SuperNode, worker 3, as the page has it."""
HONEST = typed("docs/flower.md", "flower-supernode", "partition-id=0")
OVER_LINK = [typed("README.md", "flwr run", "link="), typed("docs/flower.md", "flwr run", "link=")]
THROUGH_SUPERLINK = typed("docs/flower.md", "flwr run", "rounds=10")
"""The run configs of the pages' commands, which run here with an address and rounds of their own."""
SMALL = ("strategy.cohort=2", "strategy.p=0.1", "federation.seed=6")
"""A SuperNode starts a process for every message: small cohorts, and few rounds that ask all."""
MINUTES_S = 900.0
"""A bound for a few rounds of some seconds each, on a machine that is busy."""


@dataclass(frozen=True)
class Way:
    """How the SuperNodes reach the SuperLink, and how many rounds go through both.

    Args:
        version: of Flower.
        rounds: how many.
        stock: processes and settings are Flower's own; see ``tests.flower.seed``.
        secure: over TLS, with SuperNode authentication.
        nodes: version of the SuperNodes, where it is another one: the newest ones speak no gRPC.
    """

    version: str
    rounds: int
    stock: bool = False
    secure: bool = False
    nodes: str = ""


WAYS = {
    "oldest, gRPC": Way(OLDEST, 3, stock=True),
    "newest, HTTP, TLS and SuperNode authentication": Way(NEWEST, 3, secure=True),
    "newest, gRPC": Way(NEWEST, 8, nodes=OLDEST),
}


@pytest.fixture(scope="module", params=list(WAYS.values()), ids=list(WAYS))
def way(request: pytest.FixtureRequest) -> Way:
    found: Way = request.param
    return found


@pytest.fixture(scope="module")
def flower(
    way: Way, processes: Processes, installed: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Flower]:
    folder = tmp_path_factory.mktemp("flower")
    installed(way.nodes or way.version)
    made = Flower(
        processes,
        installed(way.version),
        folder,
        secure=way.secure,
        nodes=way.nodes,
        stock=way.stock,
        env={} if way.stock else SETTINGS,
    )
    try:
        made.ready()
        for worker in range(4):
            made.node(worker, ATTACK if worker == 3 else {})
        made.online()
        yield made
    finally:
        made.close()


def trajectory(out: Path) -> list[dict[str, Any]]:
    """Return all that a run has written of its rounds, but what its carrier decides: times, bytes and names."""
    carried = {"round_s", "deadline_s", "bytes_up", "bytes_down", "names"}
    return [{key: value for key, value in line.items() if key not in carried} for line in rounds_of(out)]


def is_the_run(run: Run, expected: Path) -> None:
    """Check that a run that has ended is another one, to the last bit."""
    assert summary_of(run.out)["status"] == "finished"
    assert trajectory(run.out) == trajectory(expected)
    model, wanted = (load_file(out / "model.safetensors")["x"] for out in (run.out, expected))
    assert model.dtype == wanted.dtype
    assert model.tobytes() == wanted.tobytes()


def test_the_run_over_the_link_is_that_of_the_live_link(
    flower: Flower, app: Path, live: Callable[..., Path], tmp_path: Path
) -> None:
    changes = (*SMALL, f"strategy.rounds={ROUNDS}")
    assert all(set(settings) == {"set", "link"} for settings in OVER_LINK)
    run = flower.run(app, tmp_path / "run", config=CONFIG, set=" ".join(changes), link=free_address())
    assert run.wait() == "finished:completed", run.log()
    expected = live(*changes, "attack.kind=alie", "attack.view=omniscient")
    is_the_run(run, expected)
    rounds = rounds_of(run.out)
    assert any(3 in line["cohort"] and line["kind"] != "full" for line in rounds)
    assert max(line["round_s"] for line in rounds) < 1.0  # not one of them went through the SuperLink


def test_the_run_through_superlink_and_supernodes_is_that_of_the_live_link(
    flower: Flower, way: Way, app: Path, live: Callable[..., Path], tmp_path: Path
) -> None:
    changes = (*SMALL, f"strategy.rounds={way.rounds}")
    assert (HONEST, ATTACK["partition-id"], set(THROUGH_SUPERLINK)) == ({"partition-id": 0}, 3, {"set"})
    run = flower.run(app, tmp_path / "run", config=CONFIG, set=" ".join(changes))
    assert run.wait(MINUTES_S) == "finished:completed", run.log()
    is_the_run(run, live(*changes, "attack.kind=alie", "attack.view=omniscient"))


OWN_TASK = """
import numpy as np

from strategies.algorithm import Evaluation


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


@pytest.mark.parametrize("way", [WAYS["newest, HTTP, TLS and SuperNode authentication"]], indirect=True, ids=["TLS"])
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
    assert all(0 < x < 3 for x in load_file(run.out / "model.safetensors")["x"])


@pytest.mark.parametrize("way", [WAYS["oldest, gRPC"]], indirect=True, ids=["oldest"])
def test_a_run_is_stopped_and_leaves_its_folder_and_its_nodes(flower: Flower, app: Path, tmp_path: Path) -> None:
    changes = (*SMALL, "strategy.rounds=1000000")
    run = flower.run(app, tmp_path / "run", config=CONFIG, set=" ".join(changes), link=free_address())
    until(lambda: len(rounds_of(run.out)) >= 10, "ten rounds", MINUTES_S)
    run.stop()
    until(lambda: (run.out / "summary.json").exists(), "a summary of the stopped run", MINUTES_S)
    assert run.status() == "finished:stopped"
    summary, rounds = summary_of(run.out), rounds_of(run.out)
    assert (summary["status"], summary["rounds"]) == ("interrupted", len(rounds))
    assert (run.out / "model.safetensors").exists()
    until(lambda: not flower.busy("flwr-clientapp"), "nodes that are free again", MINUTES_S)


@pytest.mark.parametrize("way", [WAYS["newest, HTTP, TLS and SuperNode authentication"]], indirect=True, ids=["TLS"])
def test_a_killed_supernode_costs_a_deadline_and_is_resynchronised_when_it_is_back(
    flower: Flower, app: Path, tmp_path: Path
) -> None:
    """Its key gives it the node id that it had; what it kept for Flower is lost. Nodes 2 and 3 have no seat here.

    Flower takes no second node with the same key until it has noticed, after a minute at most, that the first is gone.
    """
    changes = (
        *("federation.clients=2", "federation.byzantine=0", "attack.kind=none", "federation.flower_deadline_s=30"),
        "strategy.rounds=1000",
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


@pytest.mark.parametrize("way", [WAYS["newest, gRPC"]], indirect=True, ids=["newest"])
def test_wrong_replies_do_not_stop_a_run(flower: Flower, app: Path, tmp_path: Path) -> None:
    node = flower.nodes[3]
    node.send(signal.SIGTERM)
    node.wait()
    flower.node(3, {"attack": "wire", "set": "attack.fault=wrong-shape"})
    changes = ("strategy.rounds=2", "strategy.p=1", "federation.seed=6")
    run = flower.run(app, tmp_path / "run", config=CONFIG, set=" ".join(changes))
    assert run.wait(MINUTES_S) == "finished:completed", run.log()
    for line in rounds_of(run.out):
        assert line["accepted"] == [0, 1, 2]
        assert [entry["reason"].partition(":")[0] for entry in line["rejected"]] == ["wrong shape"]
