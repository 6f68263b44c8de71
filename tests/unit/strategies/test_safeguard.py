"""When a run ends early, what its best model is, and when and how it goes back to an earlier one."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from link import codec
from strategies.aggregators import CoordinateMedian, FLTrust
from strategies.claims import Claim, Claims, flaw_of
from strategies.compressors import Identity
from strategies.descent import DescentState
from strategies.method import STATELESS, Ask, Evaluation, WorkerState, kept_since
from strategies.randomness import Role, stream
from strategies.robust_momentum_sgd import RobustMomentumSGD
from strategies.robust_sgd import RobustSGD
from strategies.safeguard import NOT_A_NUMBER, Course, Losses, Supervisor, votes_needed
from strategies.server_step import ServerAdam, ServerMomentum
from strategies.strategy import RobustStrategy, RoundRecord, Standing
from tests.local_grid import LocalGrid

N = 4
X0 = np.array([8.0, -4.0])
SGD = RobustSGD(n=N, f=1, gamma=0.5, cohort=N, aggregator=CoordinateMedian(), compressor=Identity())


def measured(loss: float, accuracy: float | None = None) -> Evaluation:
    return Evaluation(loss, accuracy)


def state(round_: int) -> DescentState:
    return replace(SGD.start(X0 / round_), round=round_ + 1)


def course_of(supervisor: Supervisor, *found: Evaluation) -> tuple[Course, list[str]]:
    """The course after x^0 and rounds with these measures, and why each round goes back."""
    course = supervisor.begin(SGD, SGD.start(X0), 0, found[0], None)
    reasons = []
    for round_, evaluation in enumerate(found[1:], 1):
        course, reason = supervisor.after(course, SGD, state(round_), round_, evaluation, None)
        reasons.append(reason)
    return course, reasons


def test_the_best_model_is_that_of_the_lowest_loss_or_the_highest_accuracy() -> None:
    found = [measured(2.0, 0.1), measured(0.5, 0.8), measured(0.6, 0.9), measured(0.7, 0.9)]
    course, _ = course_of(Supervisor(), *found)
    assert (course.best_round, course.best, course.stale) == (1, found[1], 2)
    assert course.best_x is not None
    assert np.array_equal(course.best_x, X0)
    course, _ = course_of(Supervisor(measure="accuracy"), *found)
    assert (course.best_round, course.best, course.stale) == (2, found[2], 1)


def test_a_run_ends_after_so_many_evaluations_without_a_better_model() -> None:
    supervisor = Supervisor(patience=2)
    assert course_of(supervisor, measured(1.0), measured(0.5), measured(0.6))[0].ended == ""
    ended = course_of(supervisor, measured(1.0), measured(0.5), measured(0.6), measured(0.5))[0].ended
    assert ended == "no better loss in 2 evaluations, since round 1"


@pytest.mark.parametrize(
    ("measure", "target", "last"), [("loss", 0.5, measured(0.5, 0.0)), ("accuracy", 0.9, measured(3.0, 0.9))]
)
def test_a_run_ends_where_the_target_is_reached(measure: Any, target: float, last: Evaluation) -> None:
    supervisor = Supervisor(measure=measure, target=target)
    assert course_of(supervisor, measured(1.0, 0.1), measured(0.6, 0.8))[0].ended == ""
    assert "reached the target" in course_of(supervisor, measured(1.0, 0.1), last)[0].ended


@pytest.mark.parametrize("loss", [1.01, math.inf, math.nan])
def test_a_run_goes_back_where_the_loss_exceeds_a_factor_of_the_lowest(loss: float) -> None:
    course, reasons = course_of(Supervisor(factor=2.0), measured(3.0), measured(0.5), measured(1.0), measured(loss))
    assert reasons[:2] == ["", ""]
    assert "back to the model of round 1" in reasons[2]
    assert (course.rollbacks, course.good_round, course.ended) == (1, 1, "")
    assert np.array_equal(course.good.x, X0)


def test_noise_about_a_loss_of_next_to_nothing_is_no_divergence() -> None:
    _, reasons = course_of(Supervisor(factor=2.0), measured(1.0), measured(1e-9), measured(0.02), measured(0.021))
    assert [bool(reason) for reason in reasons] == [False, False, True]


def test_a_model_that_is_not_finite_goes_back_without_any_evaluation() -> None:
    supervisor = Supervisor(factor=2.0, times=1)
    course, _ = course_of(supervisor, measured(1.0))
    course, reason = supervisor.after(course, SGD, state(1), 1, None, None, flaw="not finite")
    assert reason == "not finite; back to the model of round 0"
    course, reason = supervisor.after(course, SGD, state(2), 2, None, None, flaw="not finite")
    assert course.gave_up
    assert "which is kept: the run has gone back 1 times already" in course.ended == reason


def test_without_a_safeguard_nothing_goes_back() -> None:
    _, reasons = course_of(Supervisor(patience=9), measured(1.0), measured(1e9))
    assert reasons == [""]


def test_a_restarted_server_ends_the_run_as_its_config_says_now() -> None:
    course, _ = course_of(Supervisor(patience=1), measured(1.0, 0.5), measured(2.0, 0.6))
    assert course.ended
    assert not Supervisor(patience=2).resumed(course, 1).ended
    other = Supervisor(measure="accuracy", patience=1).resumed(course, 1)
    assert (other.best, other.best_round, other.stale, other.ended) == (None, 1, 0, "")
    assert Supervisor(patience=2).resumed(replace(course, gave_up=True), 1).ended


# --- claims ----------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_is_screened_under_the_word_that_counts() -> None:
    assert flaw_of(math.nan, None, None).partition(":")[0] == NOT_A_NUMBER


def claims_of(losses: Mapping[str, float], byzantine: int) -> Claims:
    """What the screen leaves of these answers."""
    missing = {name: f"not finite: loss is {loss}" for name, loss in losses.items() if not math.isfinite(loss)}
    return Claims.of({n: Claim(loss) for n, loss in losses.items() if n not in missing}, missing, byzantine)


def goes_back(before: Mapping[str, float], after: Mapping[str, float], byzantine: int) -> bool:
    supervisor = Supervisor(factor=2.0, byzantine=byzantine)
    course = supervisor.begin(SGD, SGD.start(X0), 0, None, claims_of(before, byzantine))
    return bool(supervisor.after(course, SGD, state(1), 1, None, claims_of(after, byzantine))[1])


def test_where_few_answer_nothing_follows_from_it() -> None:
    assert votes_needed(3, 1) is None
    assert votes_needed(4, 1) == 3
    assert votes_needed(7, 2) == 5
    assert votes_needed(1, 0) == 1
    names = ("a", "b", "c")
    assert not goes_back(dict.fromkeys(names, 1.0), dict.fromkeys(names, 9.0), 1)


def test_clients_are_compared_with_themselves_alone() -> None:
    before = {"a": 0.01, "b": 1.0, "c": 2.0, "d": 9.0}
    assert not goes_back(before, {"a": 9.0, "b": 1.0, "c": 2.0, "d": 9.0, "new": 99.0}, 1)
    assert goes_back(before, {"a": 1.0, "b": 3.0, "c": 5.0, "d": 1.0}, 1)


# --- the strategy -----------------------------------------------------------------------------------------------------


class Bowl:
    """The loss ||x||^2 / 2."""

    dim = 2

    def full_gradient(self, x: Any) -> Any:
        return x.copy()

    def minibatch_gradients(self, points: Any, batch: int, rng: Any) -> Any:
        return [x.copy() for x in points]


def run(
    method: Any,
    losses: Mapping[int, float],
    supervisor: Supervisor,
    rounds: int = 6,
    *,
    from_: Standing | None = None,
    kept: list[WorkerState] | None = None,
) -> tuple[RobustStrategy, list[RoundRecord], list[Ask]]:
    """Run a method on ||x||^2 / 2 with workers that keep what they keep; of given rounds the loss is what is given."""
    asks: list[Ask] = []
    kept = [STATELESS] * N if kept is None else kept
    records: list[RoundRecord] = []

    def answer(worker: int, message: Message) -> Iterator[Message]:
        ask = codec.read_ask(message.content)
        asks.append(ask)
        rng = stream(0, Role.WORKER, worker, ask.round)
        kept[worker], packet = method.reply(worker, kept_since(kept[worker], ask), ask, Bowl(), rng)
        yield Message(codec.write_packet(packet, ask), reply_to=message)

    def evaluate(x: Any) -> Evaluation:
        return Evaluation(losses.get(strategy.state.round - 1, float(x @ x) / 2), None)

    grid = LocalGrid(N, answer)
    strategy = RobustStrategy(
        method, codec=codec, roster=grid, clients=N, every=1, evaluate=evaluate, supervisor=supervisor,
        on_round=records.append, root=Bowl() if method.aggregator.needs_root else None,
    )  # fmt: skip
    start = method.start(X0)
    strategy.standing = from_ or Standing(start, supervisor.begin(method, start, 0, evaluate_first(X0), None))
    strategy.start(grid, codec.to_arrays(X0), rounds)
    return strategy, records, asks


def evaluate_first(x: Any) -> Evaluation:
    return Evaluation(float(x @ x) / 2, None)


def test_the_next_round_starts_from_the_good_model_with_half_the_step() -> None:
    strategy, records, asks = run(SGD, {3: 1e9}, Supervisor(factor=2.0))
    models = {ask.round: ask.vectors["x"] for ask in asks}
    assert [record.round for record in records] == [1, 2, 3, 4, 5, 6]
    assert np.array_equal(models[4], models[3])  # x^2, the best one
    assert np.array_equal(models[5], 0.75 * models[4])
    assert [ask.since for ask in asks[::N]] == [0, 0, 0, 4, 4, 4]
    assert (strategy.step_scale, strategy.alpha_scale) == (0.5, 1.0)
    assert records[2].note.startswith("safeguard: loss 1e+09 exceeds 2 times the lowest")
    assert not any(record.diverged for record in records)


def test_a_run_that_diverges_once_too_often_ends_with_its_best_model() -> None:
    strategy, records, _ = run(SGD, {2: 1e9, 3: math.inf, 4: 1e9}, Supervisor(factor=2.0, times=2))
    assert [record.round for record in records] == [1, 2, 3, 4]
    assert np.array_equal(strategy.state.x, X0 / 2)
    assert strategy.course is not None
    assert strategy.course.gave_up


def test_the_last_round_leaves_the_best_model_too() -> None:
    strategy, records, _ = run(SGD, {6: 1e9}, Supervisor(factor=2.0))
    assert len(records) == 6
    assert np.array_equal(strategy.state.x, X0 / 32)
    assert strategy.course is not None
    assert "which is kept" in strategy.course.ended


def test_workers_keep_nothing_of_rounds_that_are_undone() -> None:
    method = RobustMomentumSGD(
        n=N, f=1, gamma=0.5, beta=0.5, cohort=N, aggregator=CoordinateMedian(), compressor=Identity()
    )
    _, records, asks = run(method, {3: 1e9}, Supervisor(factor=1.5))
    assert all(len(record.accepted) == N for record in records)
    x = {ask.round: ask.vectors["x"] for ask in asks}
    assert np.array_equal(x[5], x[4] - 0.25 * x[4])  # a momentum that begins with this gradient
    kept = WorkerState(3, {"momentum": X0})
    ask = asks[0]
    assert kept_since(kept, ask) is kept
    assert kept_since(kept, replace(ask, round=4, since=4)) is STATELESS


TRUSTING = RobustMomentumSGD(
    n=N, f=1, gamma=0.5, beta=0.5, cohort=N, aggregator=FLTrust(), compressor=Identity(),
    server=ServerMomentum(mu=0.5),
)  # fmt: skip
"""A method of whose server both the step and the row have a momentum."""


def test_the_servers_own_momenta_begin_anew_too() -> None:
    strategy, records, asks = run(TRUSTING, {3: 1e9}, Supervisor(factor=1.5))
    x = {ask.round: ask.vectors["x"] for ask in asks}
    assert np.array_equal(x[3], x[2] - 0.5 * (0.5 * X0 + (0.5 * X0 + 0.5 * x[2])))  # with what both kept
    assert records[2].note.startswith("safeguard: ")
    assert np.array_equal(x[5], x[4] - 0.25 * x[4])  # with nothing but this round's
    assert [name for name, _ in strategy.state.root] == ["momentum"]


@pytest.mark.parametrize("step", [ServerMomentum(mu=0.5), ServerAdam()])
def test_a_run_with_momenta_of_the_servers_goes_on_from_its_restart_to_the_same_bits(step: Any) -> None:
    method, losses, supervisor = replace(TRUSTING, server=step), {3: 1e9, 5: math.nan}, Supervisor(factor=1.5)
    whole, _, _ = run(method, losses, supervisor, 8)
    for cut in range(1, 8):
        workers = [STATELESS] * N
        first, _, _ = run(method, losses, supervisor, cut, kept=workers)
        again, _, _ = run(method, losses, supervisor, 8, from_=first.standing, kept=workers)
        assert np.array_equal(again.state.x, whole.state.x), cut


def test_a_restart_keeps_what_bounds_a_cohort() -> None:
    clipped = replace(SGD, alpha=1.0, cohort=2)
    before = replace(state(5), g=X0, x_prev=X0, counted={0: 5}, missed=frozenset({1}), server=(X0,))
    after = clipped.restart(before, 9)
    assert (after.round, after.counted, after.missed) == (9, {}, frozenset(range(N)))
    assert after.g is X0
    assert after.server == ()
    assert SGD.restart(before, 9).g is None


def test_a_run_goes_on_from_any_standing_to_the_same_bits() -> None:
    losses, supervisor = {3: 1e9, 5: math.nan}, Supervisor(factor=2.0, patience=4)
    whole, records, _ = run(SGD, losses, supervisor, 8)
    for cut in range(1, 8):
        first, before, _ = run(SGD, losses, supervisor, cut)
        if before[-1].round < cut or (first.course and first.course.ended):
            continue
        again, after, _ = run(SGD, losses, supervisor, 8, from_=first.standing)
        assert np.array_equal(again.state.x, whole.state.x)
        assert [r.note for r in (*before, *after)] == [r.note for r in records]


def test_losses_are_compared_with_the_lowest() -> None:
    losses = Losses.of(4.0).seen(1.0).seen(3.0)
    assert losses == (4.0, 1.0)
    assert not losses.exceeded(2.0, 2.0)
    assert losses.exceeded(2.1, 2.0)
