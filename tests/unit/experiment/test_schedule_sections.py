"""Schedules and server steps in a config: there and back, what is refused, and what check says."""

from typing import Any

import pytest

from experiment.config import Config, ProblemConstants, changed, parse, resolve
from experiment.explain import sentences
from foundation.errors import ConfigError
from strategies.aggregators import CoordinateMedian
from strategies.compressors import Identity
from strategies.methods import METHODS
from strategies.robust_sgd import RobustSGD
from strategies.schedules import CosineSchedule, StepSchedule
from strategies.server_step import ServerAdam, ServerMomentum, ServerSteps
from tests.unit.experiment.test_config import FakeProblem
from tests.unit.experiment.test_method_sections import HEAD, SECTIONS

COSINE = 'strategy.gamma={kind="cosine",start=0.1,end=0.01,warmup=4}'
MOMENTUM = 'strategy.server={kind="momentum"}'
NEEDS = {"rosdhb": ["compressor.kind=masked", "compressor.ratio=0.1"], "byz-dasha-page": ["strategy.batch=8"]}
NEEDS |= {"rosdhb-local": ["compressor.kind=rand-k", "compressor.ratio=0.1"]}


def config(kind: str, *overrides: str) -> Config:
    text = f'{HEAD}{SECTIONS.get(kind, "")}\nkind = "{kind}"\n'
    return parse(text, [*NEEDS.get(kind, []), *overrides])


def said(kind: str, *overrides: str) -> str:
    """What check says, as one text."""
    resolved = resolve(config(kind, *overrides), FakeProblem(4.0))
    return "\n".join(f"{head}: {text}" for head, text in sentences(resolved, ProblemConstants.of(FakeProblem(4.0))))


@pytest.mark.parametrize("kind", [method.kind for method in METHODS])
def test_every_method_takes_a_schedule_and_is_written_back(kind: str) -> None:
    problem = FakeProblem(4.0)
    resolved = resolve(config(kind, COSINE), problem)
    assert resolved.method.gamma == CosineSchedule(start=0.1, end=0.01, warmup=4, rounds=10)
    again = resolve(parse(resolved.to_toml()), problem)
    assert (again, again.method) == (resolved, resolved.method)


@pytest.mark.parametrize("kind", [method.kind for method in METHODS])
def test_server_steps_are_taken_by_those_that_work_with_them(kind: str) -> None:
    takes = kind in ("robust-sgd", "robust-momentum-sgd", "local-sgd", "demoa")
    assert takes == any(issubclass(method, ServerSteps) for method in METHODS if method.kind == kind)
    if takes:
        resolved = resolve(config(kind, MOMENTUM), FakeProblem(4.0))
        assert resolved.method.server == ServerMomentum()  # type: ignore[attr-defined]
        assert resolve(parse(resolved.to_toml()), FakeProblem(4.0)).method == resolved.method
    else:
        with pytest.raises(ConfigError, match=rf"\[strategy\] server: {kind} takes no server step: .*; leave it out"):
            config(kind, MOMENTUM)


def test_numbers_in_units_of_l() -> None:
    schedule = 'strategy.gamma={kind="linear",start="0.4/L",end="0.2/L"}'
    gamma: Any = resolve(config("robust-sgd", schedule), FakeProblem(4.0)).method.gamma
    assert (gamma.start, gamma.end) == (0.1, 0.05)
    with pytest.raises(ConfigError, match=r'gamma.start = "0.4/L": this task does not know its L; give a number'):
        resolve(config("robust-sgd", schedule), FakeProblem(None))
    local = 'strategy.local_schedule={kind="linear",end="0.2/L"}'
    method: Any = resolve(config("local-sgd", local), FakeProblem(4.0)).method
    assert (method.local_schedule.start, method.local_schedule.end) == (None, 0.05)


@pytest.mark.parametrize(
    ("kind", "override", "line"),
    [
        ("robust-sgd", 'gamma={kind="cosin",start=1.0}', 'gamma: kind = "cosin": unknown; did you mean cosine?'),
        ("robust-sgd", "gamma={start=1.0}", "gamma: kind: missing; one of cosine, linear, sqrt, step"),
        (
            "robust-sgd",
            'gamma={kind="sqrt"}',
            "gamma.start: missing; the step size at which the schedule starts to fall",
        ),
        ("robust-sgd", 'gamma={kind="sqrt",start=true}', "gamma: start = True: must be a valid number"),
        ("robust-sgd", 'gamma={kind="sqrt",start=1.0,k1=2}', "gamma: k1: unknown key; did you mean k0?"),
        ("robust-sgd", 'gamma={kind="sqrt",start=1.0,warmup=10}', "gamma.warmup = 10: must be below rounds = 10"),
        (
            "robust-sgd",
            'gamma={kind="linear",start=1.0,rounds=5}',
            "gamma.rounds = 5: from round 6 on the step size is",
        ),
        (
            "robust-sgd",
            "gamma=[1]",
            'gamma: must be a number, "c/L" or a table with kind = one of cosine, linear, sqrt',
        ),
        ("robust-sgd", "server=adam", "server: must be a table with kind = one of momentum, adam, not 'adam'"),
        ("robust-sgd", 'server={kind="adam",b1=2}', "server: b1 = 2.0: must be from 0 and below 1"),
        ("byz-nsgdm", 'gamma={kind="sqrt",start="1/L"}', 'gamma = "1/L": this method takes steps of a given length'),
        ("byz-nsgdm", 'gamma={kind="linear",start=1.0,end=1.0}', "gamma: steps of a given length must get shorter"),
        ("local-sgd", 'local_schedule={kind="sqrt",start=1.0}', "local_schedule.start = 1.0: it starts at local_gamma"),
        ("local-sgd", "local_momentum=1.0", "local_momentum = 1.0: must be less than 1"),
        (
            "rosdhb-local",
            'local_schedule={kind="sqrt"}',
            "local_schedule: needs local_gamma, the step size that it starts",
        ),
        ("robust-sgd", "local_momentum=0.5", "local_momentum: unknown key"),
    ],
)
def test_refusals_are_one_line(kind: str, override: str, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        config(kind, f"strategy.{override}")
    assert str(error.value).startswith(f"config: [strategy] {line}")
    assert "\n" not in str(error.value)


def test_a_schedule_that_rises_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"gamma.end = 0.5: must be at most its start, 0.1; .* warmup makes it rise"):
        resolve(config("robust-sgd", 'strategy.gamma={kind="linear",start="0.4/L",end=0.5}'), FakeProblem(4.0))


# --- more rounds ---


def test_more_rounds_change_a_schedule_that_ends_with_them_and_no_other() -> None:
    cosine, sqrt = config("robust-sgd", COSINE), config("robust-sgd", 'strategy.gamma={kind="sqrt",start=0.1}')
    more = {"strategy.rounds": 20}
    assert changed(cosine, more).trajectory_terms() != cosine.trajectory_terms()
    assert changed(sqrt, more).trajectory_terms() == sqrt.trajectory_terms()
    resolved = resolve(cosine, FakeProblem(4.0))  # as a run folder has it
    assert changed(resolved, more).trajectory_terms() == resolved.trajectory_terms()
    kept: Any = resolve(changed(resolved, more), FakeProblem(4.0)).method.gamma
    assert (kept.rounds, kept.at(15)) == (10, 0.01)


# --- from Python ---


def test_a_method_made_in_python() -> None:
    method = RobustSGD(
        n=5,
        f=1,
        cohort=5,
        aggregator=CoordinateMedian(),
        compressor=Identity(),
        gamma=StepSchedule(start=0.5, milestones=(3,)),
        server=ServerAdam(tau=0.1),
    )
    head = parse(HEAD + 'kind = "robust-sgd"')
    federation = head.federation.model_copy(update={"clients": 5, "byzantine": 1})
    made = Config(federation=federation, task=head.task, strategy=method, rounds=10)
    assert resolve(made, FakeProblem(4.0)).method == method


# --- check ---


def test_check_prints_the_schedule_and_what_theory_says() -> None:
    text = said("robust-momentum-sgd", COSINE, MOMENTUM)
    assert "gamma = { kind = cosine, start = 0.1, warmup = 4, end = 0.01, rounds = 10 }" in text
    assert "gamma: cosine after a warm-up of 4 rounds: 0.025 in round 1, 0.05 in round 2, 0.1 in round 5," in text
    assert "theory ties the momentum to gamma, and here it is fixed" in text
    assert "no theorem covers the warm-up" in text
    assert "server: momentum, mu = 0.9: effective step size gamma / (1 - mu) = 1;" in text
    assert 'warning: strategy.server = "momentum": no theorem' in text


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("byz-vr-marina", "no schedule is needed, as the variance vanishes by itself"),
        ("byz-ef21", "no schedule is needed"),
        ("robust-sgd", "theory has a constant gamma; the noise floor falls with gamma"),
        ("demoa", "no theorem covers it"),
        ("byz-nsgdm", "theory needs steps that get shorter"),
    ],
)
def test_what_theory_says_of_a_schedule(kind: str, says: str) -> None:
    assert says in said(kind, 'strategy.gamma={kind="sqrt",start=0.1}')
    assert says not in said(kind)


def test_bounds_of_stability_are_compared_with_the_largest_step() -> None:
    top_k = ("compressor.kind=top-k", "compressor.k=3")
    assert "gamma L = 0.4 at its start, and byz-dm21" in said("byz-dm21", COSINE, *top_k)
    assert "at its start, and byz-dm21" not in said("byz-dm21", 'strategy.gamma={kind="sqrt",start=0.01}', *top_k)


def test_normalised_steps_reach_as_far_as_their_sum() -> None:
    text = said("byz-nsgdm", 'strategy.gamma={kind="linear",start=1.0}')
    assert "steps: normalised: from length 1 down to 0.1, together 5.5 in 10 rounds" in text


def test_check_says_what_local_steps_do() -> None:
    text = said("local-sgd", "strategy.local_momentum=0.5", 'strategy.local_schedule={kind="linear",end=0.05}')
    assert "eta: of local steps: linear: 0.1 in round 1," in text
    assert (
        "local: momentum 0.5, from 0 in every round: where gradients change little, what workers send is 1.53 " in text
    )
