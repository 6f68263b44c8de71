"""What ``breakwater check`` advises: cohort sizes, the floor under attack, another f, and which methods suit."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiment.advice import WORK, cohort_sizes, floor, heterogeneity, other_f, rank, suggestions
from experiment.config import Config, ProblemConstants, parse, resolve

TEXT = """
[federation]
clients = 20
byzantine = 5
[task]
kind = "digits"
[strategy]
kind = "robust-sgd"
rounds = 1000
gamma = 0.1
cohort = 4
batch = 8
"""
TASK = ProblemConstants(30, np.dtype("f8"), 72, None, None)
CONVEX = replace(TASK, smoothness=2.0)


def config(*overrides: str) -> Config:
    return parse(TEXT, overrides)


def sizes(*overrides: str, confidence: float = 0.99) -> list[str]:
    resolved = resolve(config(*overrides), TASK)
    plan = resolved.method.plan(resolved.strategy.rounds, 72)
    return [sentence for word, sentence in cohort_sizes(resolved, plan, confidence) if word == "cohorts"]


# --- cohorts ---


def test_the_cohort_in_use_and_the_least_one() -> None:
    (said,) = sizes("strategy.rounds=10")
    over = 10 * 105 + 10 * 15 + 5  # of C(20, 4) = 4845 cohorts: C(5, j) C(15, 4 - j) for j = 2, 3, 4; ties count
    chance = (1 - over / 4845) ** 10
    assert said == (
        "gradient: 4 of 20 clients: never more than 1 Byzantine in 10 rounds, which cm tolerates, with probability "
        f"{chance:.3g}; least size for 0.99: 11, at most 5 Byzantine"
    )
    # Of C(20, 5) = 15504 cohorts 1126 have more than 2, of C(20, 7) = 77520 ones 2380 more than 3.
    assert (1 - 1126 / 15504) ** 10 < 0.5 < (1 - 2380 / 77520) ** 10
    assert "least size for 0.5: 7, at most 3 Byzantine" in sizes("strategy.rounds=10", confidence=0.5)[0]


def test_a_rule_that_needs_more_rows_needs_a_larger_cohort() -> None:
    (said,) = sizes("aggregator.kind=krum", "strategy.cohort=11")
    assert said.startswith("gradient: 11 of 20 clients (the rule is run with f = 3): never more than 4 ")
    assert said.endswith("least size for 0.99: 13 (the rule is run with f = 4), at most 5 Byzantine")
    (said,) = sizes("aggregator.kind=bulyan", "strategy.cohort=19", "federation.byzantine=4")
    assert "least size for 0.99: 19 " in said


def test_where_a_majority_is_survived_or_cannot_come_nothing_is_asked_of_the_size() -> None:
    marina = (
        "strategy.kind=byz-vr-marina-pp",
        "strategy.cohort=4",
        "strategy.alpha=2.0",
        "strategy.p=0.25",
        "strategy.batch=8",
    )
    difference = "difference: any size will do, as such a round survives a Byzantine majority"
    assert sizes(*marina) == [difference]
    full, second = sizes(*marina, "strategy.full_cohort=9", "strategy.rounds=10")
    chance = (1 - 0.25 * 1365 / 167960) ** 10  # C(5, 5) C(15, 4) of C(20, 9), in a quarter of the rounds
    assert f"never more than 4 Byzantine in 10 rounds, which cm tolerates, with probability {chance:.3g}; " in full
    assert second == difference
    demoa = sizes("strategy.kind=demoa", "strategy.cohort=4")
    assert demoa == ["gradient: any size will do, as such a round survives a Byzantine majority"]
    for nothing in (["strategy.cohort=20"], ["federation.byzantine=0"], ["aggregator.kind=mean"]):
        assert sizes(*nothing) == []
    assert sizes("attack.kind=bf", "attack.membership=per-cohort") == []


# --- the floor ---


class Quadratics:
    """f_i(x) = |x - c_i|^2 / 2 with centres that have mean zero over the honest workers: f* at 0, zeta^2 everywhere."""

    dim, dtype, samples, optimum, replicated = 2, np.dtype("f8"), 3, None, False
    centres = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])

    def __init__(self, smoothness: float | None = 1.0) -> None:
        self.smoothness = smoothness

    def initial(self) -> np.ndarray:
        return np.array([3.0, 4.0])

    def oracle(self, worker: int) -> Any:
        return SimpleNamespace(full_gradient=lambda x: x - self.centres[worker])


def test_heterogeneity_is_the_variance_of_honest_gradients() -> None:
    problem: Any = Quadratics()
    first, last = heterogeneity(problem, 4, None)
    assert (first.variance, first.squared, last) == (2.5, 25.0, None)
    first, last = heterogeneity(problem, 4, 0.5)
    assert last is not None
    assert last.variance == pytest.approx(2.5)
    assert last.squared < 1e-20
    assert heterogeneity(problem, 4, 1e9)[1] is None, "a descent that diverges says nothing"


def lines(problem: Any, *overrides: str) -> list[str]:
    small = ("federation.clients=5", "federation.byzantine=1", "strategy.cohort=5", *overrides)
    return [sentence for _, sentence in floor(resolve(config(*small), TASK), problem)]


def test_the_floor_that_kappa_implies() -> None:
    # r = 1/3: kappa of cm is 4 (4/3)^2
    measured, limits = lines(Quadratics())
    assert measured == "zeta^2, the variance of honest full gradients, is 2.5 at x^0, 2.5 after 40 gradient steps"
    assert limits == (
        "no guarantee for ||grad f||^2 below kappa zeta^2 = 17.8 with this rule, f/(n - 2f) zeta^2 = 0.833 for any "
        "rule; it is 25 at x^0"
    )
    assert "below f/(n - 2f)" in lines(Quadratics(), "aggregator.kind=cge")[1]
    assert "after 40" in lines(Quadratics(None))[0], "without L the descent takes the step size of the method"


def test_a_floor_is_not_measured_where_it_is_known_or_dear_or_fails() -> None:
    problem = Quadratics()
    problem.replicated = True
    assert lines(problem) == ["0: all clients have the same data, so that honest full gradients do not differ"]
    dear = Quadratics()
    dear.samples = int(WORK)
    assert lines(dear) == ["not measured: full gradients of 4 clients at one model would take long here"]
    dear.samples = int(WORK / 4 / 2)
    assert "at x^0" in lines(dear)[0]
    assert "after" not in lines(dear)[0], "one pass is cheap enough, a descent is not"

    class Failing(Quadratics):
        def oracle(self, worker: int) -> Any:
            raise NotImplementedError("minibatches only")

    (said,) = lines(Failing())
    assert said.startswith("not measured: the full gradient of a client fails: NotImplementedError")
    assert lines(problem, "federation.byzantine=0") == []


# --- another f ---


def test_what_another_f_costs() -> None:
    assert dict(other_f(config("aggregator.kind=cwtm")))["f"] == (
        "if more than 5 attack, nothing is guaranteed, and crude attacks make the model diverge; if fewer do, honest "
        "rows are left out for nothing; kappa = 2.67 for f = 4, 4.5 for f = 5, 7.88 for f = 6"
    )
    assert dict(other_f(config()))["f"].startswith("cm returns the same for every f")
    assert list(other_f(config("aggregator.kind=mean"))) == []
    assert "kappa" not in dict(other_f(config("aggregator.kind=cge")))["f"]


# --- methods ---


def best(*overrides: str, task: ProblemConstants = TASK) -> list[str]:
    return [each.kind for each in rank(config(*overrides), task)]


def test_small_cohorts_need_a_method_that_bears_a_byzantine_majority() -> None:
    assert set(best()[:2]) == {"demoa", "byz-vr-marina-pp"}
    assert best(task=CONVEX)[0] == "byz-vr-marina-pp", "where the noise of minibatches can vanish"
    assert "byz-vr-marina" not in best(), "it needs all clients"
    (first, *_) = rank(config(), CONVEX)
    assert first.reasons[0] == "takes cohorts of 4, even with a Byzantine majority"


def test_a_biased_compressor_leaves_error_feedback() -> None:
    text = ("strategy.kind=byz-ef21", "strategy.gamma=0.1", "compressor.kind=top-k", "compressor.k=3")
    assert set(best(*text)) == {"byz-ef21", "byz-ef21-bc", "byz-ef21-sgdm", "byz-dm21"}
    minibatches = ("strategy.kind=byz-ef21-sgdm", "strategy.gamma=0.1", "strategy.batch=8", *text[2:])
    assert best(*minibatches)[:2] == ["byz-ef21-sgdm", "byz-dm21"]
    assert best(*text)[0] == "byz-ef21"


def test_one_mask_for_all_is_for_the_methods_that_take_it() -> None:
    masked = best("strategy.cohort=20", "compressor.kind=masked", "compressor.k=3")
    assert "rosdhb" in masked
    assert "rosdhb-local" not in masked


def test_all_clients_with_minibatches() -> None:
    assert best("strategy.cohort=20")[0] == "robust-momentum-sgd"
    assert best("strategy.cohort=20", task=CONVEX)[0] == "byz-vr-marina"
    assert best("strategy.cohort=20", "strategy.batch=0")[0] == "robust-sgd"


def test_full_gradients_are_doubtful_where_nobody_knows_how_many_samples_there_are() -> None:
    by_kind = {each.kind: each for each in rank(config(), replace(TASK, samples=0))}
    assert any(reason.startswith("but it needs full gradients") for reason in by_kind["byz-vr-marina-pp"].reasons)
    assert not any("full gradients" in reason for reason in by_kind["demoa"].reasons)


def test_three_are_named_and_the_one_in_use_is_marked() -> None:
    said = [sentence for _, sentence in suggestions(config("strategy.cohort=20", "strategy.batch=0"), TASK)]
    assert len(said) == 3
    assert said[0] == (
        "1. robust-sgd (in use): full gradients leave no noise to reduce; clients keep nothing between rounds"
    )


def test_every_method_says_what_it_is_made_for() -> None:
    from experiment.sections import METHOD_SECTIONS
    from strategies.hyperparameters import Cohort

    def samples(method: Any) -> Iterator[str]:
        yield from (key for key, value in method.keys().items() if isinstance(value, Cohort))

    for section in METHOD_SECTIONS:
        assert (section.method.traits.sampling != "none") is any(samples(section.method)), section.method.kind
        if section.method.traits.keeps:
            assert section.method.stateful, section.method.kind
