"""Workers that lose a reply, their state or a few rounds, over Flower messages: it is noticed, and the run goes on."""

from collections.abc import Iterable

import pytest
from flwr.app import Error, Message

from client.worker import HonestWorker
from experiment.config import parse, resolve
from experiment.opened import Experiment
from link import codec, flwr_compat
from strategies.strategy import RoundRecord
from tests.local_grid import federation
from tests.toys import accuracy

CONFIG = """
[federation]
clients = 5
byzantine = 1
seed = 3
[task]
kind = "digits"
model = "softmax"
[strategy]
kind = "byz-ef21"
rounds = 40
gamma = 0.5
[compressor]
kind = "top-k"
ratio = 0.2
[evaluation]
every = 40
"""
METHODS = {
    "byz-ef21": [],
    "byz-ef21-bc": ["strategy.kind=byz-ef21-bc"],
    "byz-ef21-sgdm": ["strategy.kind=byz-ef21-sgdm", "strategy.batch=16"],
    "byz-vr-dm21": ["strategy.kind=byz-dm21", "strategy.vr=true", "strategy.batch=16", "strategy.eta=0.5"],
    "byz-dasha-page": [
        "strategy.kind=byz-dasha-page", "strategy.batch=16", "compressor.kind=rand-k", "compressor.ratio=0.2",
    ],
}  # fmt: skip


def opened(overrides: list[str]) -> Experiment:
    config = parse(CONFIG, overrides)
    problem = config.task.load(config.setting(None, None))
    config = resolve(config, problem)
    return Experiment(config, problem)


AWAY = {"away": {5, 6, 7}, "late": {1, 2, 3, 4}}
"""The rounds in which worker 2 is not connected."""


class Trouble:
    """A federation in which worker 2 has trouble in round 5.

    Args:
        experiment: the opened experiment.
        kind: "lost": its reply is; "restarted": it is, before the round; or one of ``AWAY``.
    """

    def __init__(self, experiment: Experiment, kind: str) -> None:
        self.experiment, self.kind = experiment, kind
        self.records: list[RoundRecord] = []
        self.grid, self.strategy = federation(experiment)
        self._answer = self.grid._answer
        self.grid._answer = self.answer
        self.step()

    def answer(self, worker: int, message: Message) -> Iterable[Message]:
        round_ = codec.read_ask(message.content).round
        if worker == 2 and round_ == 5:
            if self.kind == "restarted":
                self.grid.workers[worker] = HonestWorker(self.experiment, worker)
            replies = list(self._answer(worker, message))
            return [] if self.kind == "lost" else replies
        return self._answer(worker, message)

    def step(self) -> None:
        """Decide who is connected in the round that comes."""
        round_ = len(self.records) + 1
        gone = round_ in AWAY.get(self.kind, ())
        self.grid.online = set(range(5)) - ({2} if gone else set())

    def run(self) -> list[RoundRecord]:
        """Run all rounds."""

        def finished(record: RoundRecord) -> None:
            self.records.append(record)
            self.step()

        self.strategy.on_round = finished
        x0 = self.experiment.problem.initial()
        self.strategy.start(self.grid, codec.to_arrays(x0), self.experiment.config.strategy.rounds)
        return self.records


WHAT_HAPPENS = {
    # The round in which worker 2 does not count and why, and the round in which it is sent its state again.
    "lost": ({5: "silent"}, [6]),
    "restarted": ({5: "stale state"}, [6]),
    "away": ({}, [8]),
    "late": ({}, [5]),
}


@pytest.mark.parametrize("kind", WHAT_HAPPENS)
@pytest.mark.parametrize("method", METHODS)
def test_trouble_is_noticed_and_mended(method: str, kind: str) -> None:
    experiment = opened([*METHODS[method], "federation.byzantine=0"])
    records = Trouble(experiment, kind).run()
    rejected, resynced = WHAT_HAPPENS[kind]
    assert {r.round: r.rejected[0][1].partition(":")[0] for r in records if r.rejected} == rejected
    assert [r.round for r in records if r.resynced] == resynced
    assert all(list(r.resynced) in ([], [2]) for r in records)
    without = {*rejected, *AWAY.get(kind, ())}
    assert all(list(r.accepted) == [0, 1, 2, 3, 4] for r in records if r.round not in without)
    evaluation = records[-1].evaluation
    assert evaluation is not None
    assert accuracy(evaluation) > 0.8


@pytest.mark.parametrize("kind", ["lost", "restarted"])
@pytest.mark.parametrize("method", METHODS)
def test_trouble_changes_the_run_little(method: str, kind: str) -> None:
    experiment = opened([*METHODS[method], "federation.byzantine=0"])
    losses = []
    for trouble in (kind, "none"):
        evaluation = Trouble(experiment, trouble).run()[-1].evaluation
        assert evaluation is not None
        losses.append(evaluation.loss)
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_an_attacker_whose_replies_never_count_is_told_its_state_every_round() -> None:
    experiment = opened([*METHODS["byz-dasha-page"], "attack.kind=nan"])
    records = Trouble(experiment, "none").run()
    assert all(list(r.accepted) == [0, 1, 2, 3] for r in records)
    assert [list(r.resynced) for r in records] == [[], *[[4]] * 39]
    evaluation = records[-1].evaluation
    assert evaluation is not None
    assert accuracy(evaluation) > 0.8


def test_a_client_that_says_it_lost_its_state_is_counted_as_stale() -> None:
    experiment = opened(["federation.byzantine=0"])
    grid, strategy = federation(experiment)

    def answer(worker: int, message: Message) -> Iterable[Message]:
        yield Message(Error(flwr_compat.APP_RAISED, "stale state: gone"), reply_to=message)

    grid._answer = answer
    strategy.start(grid, codec.to_arrays(experiment.problem.initial()), 1)
    assert strategy.last is not None
    assert [reason for _, reason in strategy.last.rejected] == ["stale state: gone"] * 5
    assert "no quorum" in strategy.last.note
