"""The app on a Flower deployment with the newest SuperLink and the oldest SuperNodes, over gRPC."""

import signal
from pathlib import Path

import pytest

from tests.flower.conftest import CONFIG
from tests.flower.environments import NEWEST, OLDEST
from tests.flower.harness import Flower, Way
from tests.flower.ways import (  # noqa: F401  # two are tests, which are this file's too
    MINUTES_S,
    is_the_rehearsal,
    test_the_run_over_the_link_is_that_of_the_live_link,
    test_the_run_through_superlink_and_supernodes_is_that_of_the_live_link,
)
from tests.integration.processes import rounds_of

pytestmark = [pytest.mark.flower, pytest.mark.slow]

WAY = Way(NEWEST, 4, nodes=OLDEST)


def test_nodes_with_data_of_their_own_give_the_model_of_a_rehearsal(flower: Flower, app: Path, tmp_path: Path) -> None:
    """Through the SuperLink; over the link it is the same on the other deployment."""
    is_the_rehearsal(flower, app, tmp_path)


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
