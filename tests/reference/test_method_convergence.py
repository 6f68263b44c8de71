"""Every method learns: honest, under attack, and while replies are lost and workers are restarted."""

from collections.abc import Callable, Iterable

import numpy as np
import pytest
from flwr.app import Message

from client.worker import HonestWorker
from experiment.opened import Experiment
from link import codec
from strategies.strategy import RoundRecord
from tests import toys
from tests.local_grid import LocalGrid, federation
from tests.reference.test_methods import ATTACKS, KINDS, open_experiment

ROUNDS = ["strategy.rounds=50", "evaluation.every=50"]
CLIPPING = [name for name in KINDS if name.startswith("byz-vr-marina-pp") or "clipped" in name or "auto" in name]
LOSING = [
    "byz-vr-marina", "byz-vr-marina-2", "byz-vr-marina-pp auto", "robust-momentum-sgd", "robust-momentum-sgd clipped",
    "local-sgd", "demoa", "demoa hold", "byz-nsgdm",
]  # fmt: skip
Lost = Callable[[int, int], bool]
"""(round, worker) -> whether this reply is lost on its way to the server."""


def lossy(grid: LocalGrid, lost: Lost) -> None:
    """Lose replies: the worker has sent them, and its state has moved on."""
    inner = grid._answer

    def answer(worker: int, message: Message) -> Iterable[Message]:
        replies = list(inner(worker, message))
        return [] if lost(codec.read_ask(message.content).round, worker) else replies

    grid._answer = answer


def restart(grid: LocalGrid, experiment: Experiment, worker: int) -> None:
    """Put another process in a worker's place: it knows nothing of earlier rounds."""
    grid.workers[worker] = HonestWorker(experiment, worker)


def run(
    name: str, overrides: list[str], lost: Lost = lambda _k, _i: False, restarts: dict[int, int] | None = None
) -> list[RoundRecord]:
    """Run and return the records; ``restarts`` has the worker to restart by the round after which that happens."""
    experiment = open_experiment(name, overrides)
    grid, strategy = federation(experiment)
    lossy(grid, lost)
    records: list[RoundRecord] = []

    def on_round(record: RoundRecord) -> None:
        records.append(record)
        if restarts and record.round in restarts:
            restart(grid, experiment, restarts[record.round])

    strategy.on_round = on_round
    strategy.start(grid, codec.to_arrays(experiment.problem.initial()), experiment.config.strategy.rounds)
    return records


def accuracy(records: list[RoundRecord]) -> float:
    evaluation = records[-1].evaluation
    assert evaluation is not None
    return toys.accuracy(evaluation)


@pytest.mark.parametrize("name", KINDS)
def test_it_learns_under_attack(name: str) -> None:
    attack = "shb" if name in CLIPPING else "alie"  # a Byzantine majority now and then, where that can be survived
    assert accuracy(run(name, [*ROUNDS, *ATTACKS[attack]])) > 0.85


@pytest.mark.parametrize("name", LOSING)
def test_it_learns_while_replies_are_lost_and_workers_restarted(name: str) -> None:
    def lost(round_: int, worker: int) -> bool:
        return bool(np.random.default_rng([round_, worker]).random() < 0.15)

    records = run(name, [*ROUNDS, *ATTACKS["honest"]], lost, {k: k % 7 for k in range(5, 50, 5)})
    assert sum(len(record.rejected) for record in records) > 0.06 * sum(len(record.cohort) for record in records)
    assert accuracy(records) > 0.85


# --- who is resynced when ---


def reasons(record: RoundRecord) -> list[tuple[str, str]]:
    return [(name, reason.partition(":")[0]) for name, reason in record.rejected]


@pytest.mark.parametrize("clip", [[], ["strategy.clip=true", "strategy.alpha=2.0"]])
def test_a_lost_reply_does_not_cost_a_worker_its_momentum(clip: list[str]) -> None:
    name = "robust-momentum-sgd"
    records = run(name, [*ATTACKS["honest"], *clip], lambda k, i: (k, i) == (3, 1))
    assert [record.resynced for record in records[:5]] == [[], [], [], [1], []]
    assert [reasons(record) for record in records[:5]] == [[], [], [("client-1", "silent")], [], []]


@pytest.mark.parametrize("clip", [[], ["strategy.clip=true", "strategy.alpha=2.0"]])
def test_a_worker_that_lost_its_momentum_is_noticed_and_given_another(clip: list[str]) -> None:
    records = run("robust-momentum-sgd", [*ATTACKS["honest"], *clip], restarts={4: 2})
    assert [reasons(record) for record in records[3:7]] == [[], [("client-2", "stale state")], [], []]
    assert [record.resynced for record in records[3:7]] == [[], [], [2], []]


def test_a_worker_restarted_right_after_a_lost_reply_is_not_refused() -> None:
    records = run("robust-momentum-sgd", ATTACKS["honest"], lambda k, i: (k, i) == (4, 2), restarts={4: 2})
    assert [record.resynced for record in records[3:6]] == [[], [2], []]
    assert [reasons(record) for record in records[3:6]] == [[("client-2", "silent")], [], []]


def test_marina_2_leaves_out_whose_difference_was_lost_until_the_next_full_round() -> None:
    name, settings = "byz-vr-marina-2", [*ATTACKS["honest"], "federation.seed=6"]
    plain = run(name, settings)
    kinds = [record.kind for record in plain]
    first = kinds.index("difference")
    again = kinds.index("full", first)
    assert again > first + 1, "this seed has two difference rounds in a row"
    records = run(name, settings, lambda k, i: (k, i) == (first + 1, 1))
    assert [record.kind for record in records] == kinds
    told = [record.round - 1 for record in records if "build on a lost one" in record.note]
    assert told == list(range(first + 1, again))


def test_marina_repeats_a_full_round_after_one_without_a_quorum() -> None:
    records = run("byz-vr-marina", ATTACKS["honest"], lambda k, i: k == 4 and i < 4)
    assert "no quorum: 3 usable replies of the 4" in records[3].note
    assert records[4].kind == "full"
