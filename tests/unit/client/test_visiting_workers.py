"""Workers whose process ends with each message: what they know travels in the Flower context, and nothing is lost.

Every message below is answered by workers that were made anew, as on a SuperNode; only the contexts live on.
"""

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from flwr.app import Context, Error, Message, RecordDict

from client.answers import visit
from client.app import make_worker
from client.node_config import NodeConfig
from experiment.config import AttackUnion, CompressorUnion, StrategyUnion, kinds_of, load, parse
from experiment.opened import Experiment, open_experiment
from experiment.run_config import RunConfig
from foundation.errors import Silent
from link import codec, flwr_compat, worker_state
from strategies.method import Evaluation, Vector
from strategies.safeguard import Supervisor
from strategies.strategy import RobustStrategy, RoundRecord
from tests.integration.processes import ROOT
from tests.local_grid import FIRST_NODE, LocalGrid, federation

TEXT = """
[federation]
clients = 5
byzantine = 1
seed = 4
reveal_cohort = true
[task]
kind = "digits"
model = "softmax"
[strategy]
kind = "robust-momentum-sgd"
rounds = 8
gamma = 0.1
batch = 8
[attack]
kind = "alie"
view = "omniscient"
"""

RAND_K = ("compressor.kind=rand-k", "compressor.ratio=0.2")
METHODS = {
    "momentum": (),
    "dasha": ("strategy.kind=byz-dasha-page", "strategy.p=0.5", "strategy.batch=8", *RAND_K),
    "ef21": ("strategy.kind=byz-ef21", "compressor.kind=top-k", "compressor.ratio=0.2"),
    "vr-dm21": ("strategy.kind=byz-dm21", "strategy.vr=true", "compressor.kind=top-k", "compressor.ratio=0.2"),
    "pp": (
        "strategy.kind=byz-vr-marina-pp",
        "strategy.p=0.3",
        "strategy.cohort=3",
        "strategy.alpha=2.0",
        "strategy.batch=8",
        *RAND_K,
    ),
    "demoa": ("strategy.kind=demoa", "strategy.cohort=3", "strategy.alpha=0.5", "strategy.batch=8"),
}
ATTACKS = {
    "alie": (),
    "mimic": ("attack.kind=mimic", "attack.view=omniscient"),
    "rop": ("attack.kind=rop", "attack.view=omniscient"),
    "replay": ("attack.kind=wire", "attack.fault=replay"),
    "foe": ("attack.kind=foe", "attack.view=omniscient"),
    "lf": ("attack.kind=lf",),
}


def opened(*changes: str) -> Experiment:
    return open_experiment(parse(TEXT, changes).to_toml(), None, None)


class VisitedGrid(LocalGrid):
    """Every instruction is answered by a process of its own, as it were: workers are forgotten, contexts pickled."""

    def __init__(self, experiment: Experiment, *, lossy: frozenset[tuple[int, int]] = frozenset()) -> None:
        federation = experiment.config.federation
        super().__init__(federation.clients, self._in_a_new_process)
        self._lossy = lossy
        self._contexts: dict[int, bytes] = {}
        first_attacker = federation.clients - federation.byzantine
        for worker in range(federation.clients):
            attack = experiment.config.attack
            given: dict[str, str | float | bool] = {"partition-id": worker, "num-partitions": federation.clients}
            if attack is not None and worker >= first_attacker:
                given["attack"] = attack.kind
            self._contexts[worker] = pickle.dumps(Context(self.run_id, FIRST_NODE + worker, given, RecordDict(), {}))
        self._experiment = experiment
        self.asked = [0] * federation.clients

    def restart(self, worker: int) -> None:
        """Let a SuperNode begin anew: its memory is gone."""
        context = pickle.loads(self._contexts[worker])  # noqa: S301  # pickled above
        context.state = RecordDict()
        self._contexts[worker] = pickle.dumps(context)

    def _in_a_new_process(self, worker: int, message: Message) -> Iterator[Message]:
        context: Context = pickle.loads(self._contexts[worker])  # noqa: S301  # pickled above
        self.asked[worker] += 1
        node = NodeConfig.read(context.node_config)
        try:
            reply = visit(message, context.state, lambda: make_worker(self._experiment, node, RunConfig("")))
        except Silent:
            return
        except Exception as error:  # as Flower reports it
            reply = Message(Error(flwr_compat.APP_RAISED, repr(error)), reply_to=message)
        finally:
            self._contexts[worker] = pickle.dumps(context)  # Flower keeps the state whatever came of the message
        if (worker, int(message.metadata.group_id)) not in self._lossy:
            yield reply


def strategy_on(grid: LocalGrid, experiment: Experiment) -> RobustStrategy:
    config = experiment.config
    return RobustStrategy(
        experiment.method,
        codec=codec,
        roster=grid,
        clients=config.federation.clients,
        seed=config.federation.seed,
        reveal_cohort=config.reveals_cohort,
    )


TURNS = [(method, list(ATTACKS)[(i + turn) % len(ATTACKS)]) for i, method in enumerate(METHODS) for turn in (0, 3)]
"""Each method under two attacks, each attack on two methods; below each attack and each method has its turn besides."""


@pytest.mark.parametrize(("method", "attack"), TURNS)
def test_the_trajectory_is_that_of_workers_that_stay(method: str, attack: str) -> None:
    experiment = opened(*METHODS[method], *ATTACKS[attack])
    arrays = codec.to_arrays(experiment.problem.initial())
    staying, strategy = federation(experiment)
    strategy.start(staying, arrays, num_rounds=8)
    grid = VisitedGrid(experiment)
    visited = strategy_on(grid, experiment)
    visited.start(grid, arrays, num_rounds=8)
    assert np.array_equal(visited.state.x, strategy.state.x)
    assert strategy.last is not None
    assert visited.last is not None
    assert replace(visited.last, rejected=()) == replace(
        strategy.last, round_s=visited.last.round_s, rejected=(), evaluation=None
    )


@pytest.mark.parametrize("method", METHODS)
def test_after_the_run_went_back_all_workers_begin_again_whether_they_stay_or_not(method: str) -> None:
    experiment = opened(*METHODS[method])
    arrays = codec.to_arrays(experiment.problem.initial())
    supervisor, last = Supervisor(factor=2.0), []
    staying, strategy = federation(experiment)
    grid = VisitedGrid(experiment)
    for clients, driven in ((staying, strategy), (grid, strategy_on(grid, experiment))):
        records: list[RoundRecord] = []

        def evaluate(x: Vector, seen: list[RoundRecord] = records) -> Evaluation:
            return Evaluation(9.0 if len(seen) == 3 else 1.0 / (1 + len(seen)), None)

        driven.supervisor, driven.evaluate, driven.every, driven.on_round = supervisor, evaluate, 1, records.append
        driven.state = experiment.method.start(experiment.problem.initial())
        driven.course = supervisor.begin(experiment.method, driven.state, 0, evaluate(driven.state.x), None)
        driven.start(clients, arrays, num_rounds=8)
        assert [record.round for record in records if record.note.startswith("safeguard: ")] == [4]
        assert not any(record.rejected for record in records)
        last.append((driven.state.x.tobytes(), driven.since, [record.kind for record in records]))
    assert last[0] == last[1]
    assert last[0][1] == 5


def same_as_staying(experiment: Experiment) -> None:
    """Check that a few rounds of workers that are made anew give the bits of workers that stay."""
    arrays = codec.to_arrays(experiment.problem.initial())
    _, staying = started = federation(experiment)
    staying.start(started[0], arrays, num_rounds=4)
    grid = VisitedGrid(experiment)
    visited = strategy_on(grid, experiment)
    visited.start(grid, arrays, num_rounds=4)
    assert visited.state.x.tobytes() == staying.state.x.tobytes()


@pytest.mark.parametrize("kind", sorted(set(kinds_of(AttackUnion)) - {"wire"}))
def test_every_attack_works_where_nothing_stays(kind: str) -> None:
    view = {"alie", "ipm", "foe", "mimic", "rop", "min-max", "min-sum", "fang", "optimal-alie", "optimal-ipm"}
    same_as_staying(opened(f"attack.kind={kind}", *(["attack.view=omniscient"] if kind in view else [])))


CONFIGS: dict[str, Path] = {load(path).strategy.kind: path for path in (ROOT / "deploy" / "configs").glob("*.toml")}


def small_config(kind: str) -> dict[str, Any]:
    """Return TEXT with a method as the config that ships for it has it, for few clients."""
    ours, theirs = (config.model_dump(mode="json", exclude_none=True) for config in (parse(TEXT), load(CONFIGS[kind])))
    small, method = {"gamma": 0.05, "cohort": 5, "full_cohort": 5}, theirs["strategy"]
    ours["strategy"] = method | {key: value for key, value in small.items() if key in method}
    ours["compressor"] = theirs["compressor"]
    return ours


@pytest.mark.parametrize("kind", kinds_of(StrategyUnion))
def test_every_method_works_where_nothing_stays(kind: str) -> None:
    same_as_staying(open_experiment(tomli_w.dumps(small_config(kind)), None, None))


@pytest.mark.parametrize("kind", sorted(kinds_of(CompressorUnion)))
def test_every_compressor_works_where_nothing_stays(kind: str) -> None:
    method = ("strategy.kind=byz-ef21",) if kind in {"top-k", "scaled-sign"} else METHODS["dasha"][:3]
    needs = {"qsgd": "levels=4", "rand-k": "ratio=0.2", "masked": "ratio=0.2", "top-k": "ratio=0.2"}
    same_as_staying(
        opened(*method, f"compressor.kind={kind}", *[f"compressor.{needs[k]}" for k in [kind] if k in needs])
    )


@pytest.mark.parametrize("method", ["momentum", "dasha", "ef21"])
def test_a_restart_is_noticed_and_mended(method: str) -> None:
    experiment = opened(*METHODS[method], "attack.kind=bf")
    arrays = codec.to_arrays(experiment.problem.initial())
    grid = VisitedGrid(experiment)
    strategy = strategy_on(grid, experiment)
    strategy.start(grid, arrays, num_rounds=3)
    grid.restart(1)
    strategy.start(grid, arrays, num_rounds=4)
    assert strategy.last is not None
    assert [(name, reason.partition(":")[0]) for name, reason in strategy.last.rejected] == [
        ("client-1", "stale state")
    ]
    assert 1 not in strategy.last.accepted
    strategy.start(grid, arrays, num_rounds=5)
    assert strategy.last.resynced == [1]
    assert 1 in strategy.last.accepted
    strategy.start(grid, arrays, num_rounds=6)
    assert strategy.last.resynced == []
    assert list(strategy.last.accepted) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("method", ["momentum", "dasha"])
def test_a_lost_reply_leaves_a_state_that_goes_on(method: str) -> None:
    experiment = opened(*METHODS[method], "attack.kind=bf")
    grid = VisitedGrid(experiment, lossy=frozenset({(1, 3), (2, 4)}))
    strategy = strategy_on(grid, experiment)
    strategy.start(grid, codec.to_arrays(experiment.problem.initial()), num_rounds=6)
    assert strategy.last is not None
    assert list(strategy.last.accepted) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("method", METHODS)
def test_an_instruction_that_comes_twice_changes_nothing_the_second_time(method: str) -> None:
    """Also for an attacker; so a state is committed once, and the answer is the same."""
    experiment = opened(*METHODS[method])
    grid = VisitedGrid(experiment)
    strategy = strategy_on(grid, experiment)
    strategy.start(grid, codec.to_arrays(experiment.problem.initial()), num_rounds=4)
    before = dict(grid._contexts)
    for message in grid.pushed[-1]:
        worker = message.metadata.dst_node_id - FIRST_NODE
        contents = [next(grid._in_a_new_process(worker, message)).content for _ in range(2)]
        assert contents[0] == contents[1]
        if method != "pp" or worker == 4:
            state, again = (pickle.loads(kept[worker]).state for kept in (before, grid._contexts))  # noqa: S301  # ours
            assert state == again


def test_pages_survive_the_way_through_records() -> None:
    state = RecordDict()
    arrays: dict[str, np.ndarray] = {
        "a/b": np.arange(3, dtype=np.float32),
        "c": np.array([1, 2], dtype=np.uint8),
        "d": np.zeros(0),
    }
    values: worker_state.StateDict = {"round": 3, "kind": "x", "scale": 0.5}
    worker_state.write(state, {**values, **arrays})
    worker_state.write(state, {**values, **arrays})
    read = worker_state.read(state)
    assert {name: page for name, page in read.items() if name not in arrays} == values
    for name, array in arrays.items():
        page = read[name]
        assert isinstance(page, np.ndarray)
        assert page.dtype == array.dtype
        assert np.array_equal(page, array)
    assert worker_state.read(RecordDict()) == {}


def test_a_reply_is_kept_for_its_round_alone() -> None:
    state, experiment = RecordDict(), opened()
    first = codec.write_ask(experiment.method.ask(experiment.method.start(np.zeros(2)), np.random.default_rng(0)))
    worker_state.write_reply(state, 1, first)
    assert worker_state.read_reply(state, 1) == first
    assert worker_state.read_reply(state, 2) is None
    worker_state.write_reply(state, 2, RecordDict())
    assert worker_state.read_reply(state, 1) is None
    assert worker_state.read_reply(state, 2) == RecordDict()
