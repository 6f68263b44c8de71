"""A run makes progress or ends: what a stall is, how a run is held, and what comes of it, method by method."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tomli_w
from flwr.app import Error, Message

from experiment.config import StrategyUnion, kinds_of, parse
from experiment.opened import Experiment, open_experiment
from foundation.errors import ConfigError
from link import codec, flwr_compat
from strategies.cohorts import sample
from strategies.method import ATTACK_FAILED, Ask
from strategies.progress import STALL_ROUNDS, Progress
from strategies.randomness import Role, stream
from strategies.strategy import NoClientsError, RobustStrategy, RoundRecord, StalledError
from tests.local_grid import LocalGrid, federation
from tests.unit.client.test_visiting_workers import TEXT, VisitedGrid, small_config

HUGE = 10**6
X0 = np.zeros(3)
PP = (
    "strategy.kind=byz-vr-marina-pp",
    "strategy.p=0.2",
    "strategy.cohort=3",
    "strategy.alpha=2.0",
    "strategy.batch=8",
)


# --- what a stall is -------------------------------------------------------------------------------------------------


def watched(n: int, f: int, stall_rounds: int = STALL_ROUNDS, **options: Any) -> Progress:
    return Progress(n, f, stall_rounds, 0, X0, **options)


def test_rounds_in_a_row_without_a_reply_are_a_stall() -> None:
    progress = watched(4, 1)
    states = []
    for r, used in enumerate([[0, 1], [], [], [2, 3], [], [], []], start=1):
        progress.add(r, 4, used)
        states.append(progress.stalled)
    assert states == [False] * 6 + [True]
    assert progress.since == 4


def test_attackers_alone_keep_no_run_alive() -> None:
    progress = watched(10, 3)
    for r in range(1, 6):
        progress.add(r, 10, range(10))
    for r, stalled in ((6, False), (7, False), (8, True)):
        progress.add(r, 10, [7, 8, 9])
        assert progress.stalled == stalled
    assert progress.since == 5


def test_one_more_client_than_may_attack_keeps_it_alive() -> None:
    progress = watched(10, 3)
    for r in range(1, 100):
        progress.add(r, 10, [r % 7, 7, 8, 9])
        assert not progress.stalled


@pytest.mark.parametrize(
    ("n", "f", "cohort"), [(20, 5, 4), (20, 5, 1), (10, 3, 5), (5, 2, 2), (3, 1, 1), (100, 49, 10)]
)
def test_a_run_that_is_well_seldom_looks_stalled_and_a_dead_one_soon_does(n: int, f: int, cohort: int) -> None:
    """The f last are silent; then the others die, and the f last answer."""
    progress, alarms, rounds = watched(n, f), 0, 4000
    for r in range(1, rounds + 1):
        drawn = sample(n, cohort, range(n), stream(1, Role.COHORT, round_=r))
        progress.add(r, cohort, [i for i in drawn if i < n - f])
        if progress.stalled:
            alarms += 1
            progress.trust()
    in_a_row = (f / n) ** (STALL_ROUNDS * cohort)  # all of three cohorts silent, about
    assert alarms / rounds <= 2e-3 + 2 * in_a_row
    for _ in range(40 * n):
        r += 1
        drawn = sample(n, cohort, range(n - f, n), stream(1, Role.COHORT, round_=r))
        progress.add(r, cohort, drawn)
        if progress.stalled:
            return
    pytest.fail("a dead run was never noticed")


def test_the_window_of_sampled_cohorts_is_as_documented() -> None:
    """docs and ``strategies.progress``: C = 4 of n = 20 and f = 5 take 7 rounds."""
    progress = watched(20, 5)
    for r in range(1, 7):
        progress.add(r, 4, [0])
        assert not progress.stalled, r
    progress.add(7, 4, [0])
    assert progress.stalled


def test_after_a_restart_the_first_round_must_count() -> None:
    progress = watched(4, 1, distrust=True)
    progress.add(1, 4, [])
    assert progress.stalled


def test_the_model_that_counted_last_is_kept() -> None:
    progress = watched(4, 1)
    for r, used in enumerate([[0, 1, 2], [0, 1, 2, 3], [3], [3], []], start=1):
        progress.add(r, 4, used)
        progress.keep(r, np.full(3, float(r)))
    assert progress.since == 2
    assert progress.model[0] == 2
    assert progress.model[1].tolist() == [2.0, 2.0, 2.0]


def test_few_models_are_kept_however_long_the_window() -> None:
    progress = watched(100, 40)
    for r in range(1, 60):
        progress.add(r, 1, [r % 30])
        progress.keep(r, X0)
    assert len(progress._models) <= 4
    assert progress.model[0] == 0, "no 41 clients have been heard yet"


# --- runs that are held, and runs that end ---------------------------------------------------------------------------


class Failing(LocalGrid):
    """Another grid some of whose workers fail: where ``fails`` says so their answer is an error."""

    def __init__(self, grid: LocalGrid, fails: Callable[[int, Ask], bool]) -> None:
        inner = grid._answer

        def answer(worker: int, message: Message) -> Iterator[Message]:
            if fails(worker, codec.read_ask(message.content)):
                yield Message(Error(flwr_compat.APP_RAISED, "RuntimeError: out of memory"), reply_to=message)
            else:
                yield from inner(worker, message)

        super().__init__(len(grid.online), answer)
        self.run_id = grid.run_id


def opened(*changes: str) -> Experiment:
    return open_experiment(parse(TEXT, changes).to_toml(), None, None)


def ready(experiment: Experiment, fails: Callable[[int, Ask], bool], **options: Any) -> tuple[Failing, RobustStrategy]:
    """Return the federation of an experiment whose workers fail now and then, and its strategy."""
    config = experiment.config.federation
    inner, strategy = federation(experiment)
    strategy.byzantine, strategy.idle_timeout_s = config.byzantine, 0.05
    for name, value in options.items():
        setattr(strategy, name, value)
    grid = Failing(inner, fails)
    strategy.roster = grid
    return grid, strategy


def start(grid: LocalGrid, strategy: RobustStrategy, experiment: Experiment, rounds: int) -> list[RoundRecord]:
    records: list[RoundRecord] = []
    strategy.on_round = records.append
    strategy.start(grid, codec.to_arrays(experiment.problem.initial()), rounds)
    return records


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("kind", kinds_of(StrategyUnion))
def test_every_method_stalls_where_all_clients_fail(kind: str, clipped: bool) -> None:
    tree = small_config(kind)
    if clipped:
        if not {"clip", "alpha"} <= kinds_of(StrategyUnion)[kind].model_fields.keys():
            pytest.skip("it has no clipping")
        tree["strategy"] |= {"clip": True, "alpha": 2.0}
    experiment = open_experiment(parse(tomli_w.dumps(tree)).to_toml(), None, None)
    grid, strategy = ready(experiment, lambda worker, ask: ask.round > 6)
    with pytest.raises(StalledError, match="out of memory") as stalled:
        start(grid, strategy, experiment, 60)
    rounds = strategy.state.round - 1
    assert rounds == 6 + STALL_ROUNDS - 1, "it steps along its estimate twice, and is held in the third round"
    assert stalled.value.round == stalled.value.stall.since == 6
    reference, healthy = ready(experiment, lambda worker, ask: False)
    start(reference, healthy, experiment, 6)
    assert np.array_equal(stalled.value.model, healthy.state.x), "the model of the last round that counted"
    assert np.array_equal(codec.from_arrays(stalled.value.arrays), stalled.value.model)


@pytest.mark.parametrize(
    "changes",
    [
        ("strategy.kind=byz-dasha-page", "strategy.p=0.5", "strategy.batch=8"),
        ("strategy.kind=byz-ef21", "compressor.kind=top-k", "compressor.ratio=0.2"),
        ("strategy.kind=byz-dm21", "strategy.vr=true", "compressor.kind=top-k", "compressor.ratio=0.2"),
        ("strategy.kind=robust-momentum-sgd",),
        ("strategy.kind=byz-vr-marina", "strategy.p=0.3", "strategy.batch=8"),
    ],
)
def test_asking_everybody_changes_nothing_that_workers_keep(changes: tuple[str, ...]) -> None:
    """Rounds 5 to 7 fail everywhere, later ones do not: held or not, the models are the same to the last bit."""
    experiment = opened(*changes)

    def fails(worker: int, ask: Ask) -> bool:
        return 5 <= ask.round <= 7 and not ask.probe

    grid, strategy = ready(experiment, fails)
    records = start(grid, strategy, experiment, 14)
    assert [record.round for record in records if "held" in record.note] == [7]
    probes = [codec.read_ask(batch[0].content) for batch in grid.pushed if codec.read_ask(batch[0].content).probe]
    assert [ask.round for ask in probes] == [7]
    unwatched, other = ready(experiment, fails, stall_rounds=HUGE)
    start(unwatched, other, experiment, 14)
    assert np.array_equal(strategy.state.x, other.state.x)


def test_a_probe_keeps_nothing_on_a_supernode_either() -> None:
    experiment = opened("strategy.kind=byz-dasha-page", "strategy.p=0.5", "strategy.batch=8")

    def models(stall_rounds: int) -> Any:
        visited = VisitedGrid(experiment)
        grid = Failing(visited, lambda worker, ask: 4 <= ask.round <= 6 and not ask.probe)
        strategy = RobustStrategy(
            experiment.method, codec=codec, roster=grid, clients=5, byzantine=1, seed=4, reveal_cohort=True,
            stall_rounds=stall_rounds, idle_timeout_s=0.05,
        )  # fmt: skip
        start(grid, strategy, experiment, 10)
        return strategy.state.x

    assert np.array_equal(models(3), models(HUGE))


def test_a_run_goes_on_when_clients_recover() -> None:
    experiment = opened()
    probes = 0

    def fails(worker: int, ask: Ask) -> bool:
        nonlocal probes
        probes += ask.probe and worker == 0
        return ask.round in (3, 4, 5) and probes < 3

    held: list[str] = []
    grid, strategy = ready(experiment, fails, idle_timeout_s=30.0, on_hold=held.append)
    records = start(grid, strategy, experiment, 8)
    assert [record.round for record in records] == [1, 2, 3, 4, 5, 6, 7, 8], "probes are no rounds"
    assert probes == 3
    assert held[-1] == ""
    assert "asking all 5" in held[0]
    assert "held for" in records[4].note
    assert len(records[5].accepted) == 5


def test_three_silent_rounds_in_a_row_are_ordinary_luck_with_one_client_a_round() -> None:
    """C = 1, 5 of 20 silent: three in a row come about once in 64 rounds, and the run ends as if nobody watched."""
    changes = ("federation.clients=20", "federation.byzantine=5", "attack.kind=silence", *PP, "strategy.cohort=1")
    experiment = opened(*changes)
    grid, strategy = ready(experiment, lambda worker, ask: False)
    records = start(grid, strategy, experiment, 300)
    assert len(records) == 300
    assert any("held" in record.note for record in records)
    unwatched, other = ready(experiment, lambda worker, ask: False, stall_rounds=HUGE)
    start(unwatched, other, experiment, 300)
    assert np.array_equal(strategy.state.x, other.state.x)


def test_silent_attackers_end_no_run_and_cause_no_probe() -> None:
    experiment = opened("attack.kind=silence", "federation.clients=11", "federation.byzantine=5")
    grid, strategy = ready(experiment, lambda worker, ask: False)
    assert len(start(grid, strategy, experiment, 40)) == 40
    assert not any(codec.read_ask(batch[0].content).probe for batch in grid.pushed)


@pytest.mark.parametrize("method", [(), PP])
def test_attackers_that_answer_keep_no_dead_run_alive(method: tuple[str, ...]) -> None:
    experiment = opened("federation.clients=10", "federation.byzantine=3", "attack.kind=alie", *method)
    grid, strategy = ready(experiment, lambda worker, ask: worker < 7 and ask.round > 10)
    with pytest.raises(StalledError) as stalled:
        start(grid, strategy, experiment, 400)
    assert strategy.state.round < 40
    assert stalled.value.stall.found == 3
    assert stalled.value.stall.since <= 10


def test_difference_rounds_that_always_fail_end_the_run() -> None:
    """Full rounds succeed and keep f + 1 clients in view, yet nothing is learnt from any difference."""
    experiment = opened(*PP, "federation.seed=1")
    grid, strategy = ready(experiment, lambda worker, ask: ask.kind == "difference")
    with pytest.raises(StalledError):
        start(grid, strategy, experiment, 200)


def test_nobody_ever_answers() -> None:
    experiment = opened()
    grid, strategy = ready(experiment, lambda worker, ask: True, idle_timeout_s=600.0)
    with pytest.raises(StalledError, match=r"no round counted.*out of memory"):  # at once, and not after ten minutes
        start(grid, strategy, experiment, 1000)
    assert strategy.state.round == STALL_ROUNDS
    assert len(grid.pushed) == STALL_ROUNDS + 1


def test_a_run_shorter_than_the_window_in_which_nobody_answers_is_not_finished() -> None:
    experiment = opened()
    grid, strategy = ready(experiment, lambda worker, ask: True)
    with pytest.raises(StalledError):
        start(grid, strategy, experiment, 1)


def test_replies_below_the_quorum_are_no_progress() -> None:
    """3 of 5 answer, which is f + 1, but federation.quorum wants 4: no round ever counts."""
    experiment = opened()
    grid, strategy = ready(experiment, lambda worker, ask: worker < 2, quorum=0.8)
    with pytest.raises(StalledError, match="no round counted"):
        start(grid, strategy, experiment, 50)


def test_a_short_run_whose_only_rounds_missed_their_quorum_is_not_finished() -> None:
    experiment = opened()
    grid, strategy = ready(experiment, lambda worker, ask: worker < 2, quorum=0.8)
    with pytest.raises(StalledError):
        start(grid, strategy, experiment, 2)


def test_full_rounds_below_their_quorum_are_incomplete_and_no_progress() -> None:
    """2 of 5 answer, which is f + 1, but a full round needs 3: g would never be renewed."""
    experiment = opened(*PP, "strategy.p=0.6")
    grid, strategy = ready(experiment, lambda worker, ask: ask.round > 1 and worker < 3)
    records: list[RoundRecord] = []
    strategy.on_round = records.append
    with pytest.raises(StalledError) as stalled:
        strategy.start(grid, codec.to_arrays(experiment.problem.initial()), 200)
    assert stalled.value.stall.needed == 3
    last = [record for record in records if record.incomplete][-1]
    assert last.kind == "full"
    assert len(last.accepted) == 2


def test_a_run_that_goes_on_is_held_at_once_where_nobody_answers() -> None:
    experiment = opened()
    grid, strategy = ready(experiment, lambda worker, ask: ask.round > 4)
    with pytest.raises(StalledError):
        start(grid, strategy, experiment, 50)
    before = strategy.state.round
    again, resumed = ready(experiment, lambda worker, ask: True)
    resumed.state = strategy.state
    with pytest.raises(StalledError):
        resumed.start(again, codec.to_arrays(experiment.problem.initial()), 50)
    assert resumed.state.round == before, "no further step along the old estimate"


def test_everybody_leaves_in_the_middle_of_a_run() -> None:
    experiment = opened()
    grid, strategy = ready(experiment, lambda worker, ask: False)
    records: list[RoundRecord] = []

    def leave(record: RoundRecord) -> None:
        records.append(record)
        if record.round == 5:
            grid.online = set()

    strategy.on_round = leave
    with pytest.raises(StalledError):
        strategy.start(grid, codec.to_arrays(experiment.problem.initial()), 50)
    assert len(records) == 5


def test_nobody_ever_comes() -> None:
    experiment = opened()
    grid, strategy = ready(experiment, lambda worker, ask: False)
    grid.online = set()
    with pytest.raises(NoClientsError):
        strategy.start(grid, codec.to_arrays(experiment.problem.initial()), 50)


def test_reasons_are_bounded() -> None:
    experiment = opened()
    inner, strategy = federation(experiment)
    strategy.byzantine, strategy.idle_timeout_s = 1, 0.3
    counter = iter(range(10**9))

    def answer(worker: int, message: Message) -> Iterator[Message]:
        yield Message(Error(flwr_compat.APP_RAISED, f"another one {next(counter)}"), reply_to=message)

    inner._answer = answer
    strategy._watch.reply_was_usable = True  # else it ends at once
    with pytest.raises(StalledError) as stalled:
        strategy.start(inner, codec.to_arrays(experiment.problem.initial()), 50)
    assert len(stalled.value.stall.reasons) <= 101
    assert len(str(stalled.value)) < 1200


# --- the config ------------------------------------------------------------------------------------------------------


def test_a_quorum_that_silent_attackers_can_defeat_for_ever_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"federation.quorum = 0.9: wants 5 replies.*1 silent.*leave only 4; at most 0.8"
    ):
        parse(TEXT, ["federation.quorum=0.9"])
    assert parse(TEXT, ["federation.quorum=0.8"]).federation.quorum == 0.8


def test_a_share_that_is_whole_in_numbers_is_not_rounded_up() -> None:
    parse(TEXT, ["federation.clients=20", "federation.byzantine=9", "federation.quorum=0.55"])


def test_stall_rounds_must_be_positive_and_change_no_trajectory() -> None:
    with pytest.raises(ConfigError, match="stall_rounds"):
        parse(TEXT, ["federation.stall_rounds=0"])
    assert parse(TEXT, ["federation.stall_rounds=9"]).trajectory_terms() == parse(TEXT).trajectory_terms()


# --- attacks that fail -----------------------------------------------------------------------------------------------


def test_an_attack_that_fails_is_told_from_a_reply_that_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    from client.coalition import Coalition

    experiment = opened("attack.kind=lf")

    def broken(self: Coalition, worker: int, ask: Ask) -> None:
        raise RuntimeError("no labels to flip")

    monkeypatch.setattr(Coalition, "_answer", broken)
    grid, strategy = ready(experiment, lambda worker, ask: False)
    records = start(grid, strategy, experiment, 3)
    for record in records:
        assert record.rejected == [("client-4", f"{ATTACK_FAILED}: RuntimeError: no labels to flip")]
