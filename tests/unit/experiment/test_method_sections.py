"""The sections of the gradient methods: defaults from the papers, what is refused, which method comes out."""

import pickle
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import pytest

from experiment.config import Config, StrategyUnion, kinds_of, parse, resolve
from experiment.sections import section_of
from foundation.errors import ConfigError
from strategies.byz_nsgdm import ByzNSGDM
from strategies.byz_vr_marina import ByzVRMarina
from strategies.byz_vr_marina_2 import ByzVRMarina2
from strategies.byz_vr_marina_pp import ByzVRMarinaPP
from strategies.demoa import DeMoA
from strategies.descent import Descent
from strategies.hyperparameters import Key
from strategies.local_sgd import LocalSGD
from strategies.methods import METHODS
from strategies.robust_momentum_sgd import RobustMomentumSGD
from strategies.robust_sgd import RobustSGD
from tests.unit.experiment.test_config import FakeProblem

HEAD = """
[federation]
clients = 20
byzantine = 5
[task]
kind = "digits"
[strategy]
rounds = 10
gamma = 0.1
"""
SECTIONS = {
    "byz-vr-marina": "batch = 8",
    "byz-vr-marina-2": "batch = 8",
    "byz-vr-marina-pp": "batch = 8\ncohort = 15\nalpha = 2.0",
    "robust-sgd": "",
    "robust-momentum-sgd": "",
    "local-sgd": "local_steps = 4\nlocal_gamma = 0.1",
    "demoa": "cohort = 4",
    "byz-nsgdm": "",
}
UNKNOWN_L = FakeProblem(None)


def config(kind: str, *overrides: str) -> Config:
    return parse(f'{HEAD}{SECTIONS[kind]}\nkind = "{kind}"\n', overrides)


def method(kind: str, *overrides: str, smoothness: float | None = 4.0) -> Any:
    return resolve(config(kind, *overrides), FakeProblem(smoothness)).method


def test_every_kind_gives_its_method() -> None:
    marina = (ByzVRMarina, ByzVRMarina2, ByzVRMarinaPP)
    others = (RobustSGD, RobustMomentumSGD, LocalSGD, DeMoA, ByzNSGDM)
    assert tuple(type(method(kind)) for kind in SECTIONS) == (*marina, *others)


# --- p = min(C/n, b/m, 1/(omega + 1)), with m = 40 and d = 30 ---


@pytest.mark.parametrize(
    ("kind", "overrides", "expected"),
    [
        ("byz-vr-marina", [], 8 / 40),
        ("byz-vr-marina", ["strategy.batch=100"], 1.0),
        ("byz-vr-marina", ["compressor.kind=rand-k", "compressor.k=3"], 3 / 30),
        ("byz-vr-marina-2", ["compressor.kind=rand-k", "compressor.k=15"], 8 / 40),
        ("byz-vr-marina-pp", ["strategy.batch=100"], 15 / 20),
        ("byz-vr-marina-pp", ["strategy.p=0.9"], 0.9),
    ],
)
def test_the_default_of_p(kind: str, overrides: list[str], expected: float) -> None:
    assert method(kind, *overrides).p == pytest.approx(expected)


# --- alpha and clip ---


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["strategy.clip=true"], 8.0),
        (["strategy.clip=true", "strategy.alpha=3L"], 12.0),
        (["strategy.clip=true", "strategy.alpha='D_Q L'", "compressor.kind=rand-k", "compressor.k=3"], 40.0),
        (["strategy.clip=true", "strategy.alpha=0.5"], 0.5),
        (["strategy.clip=auto"], "auto"),
        (["strategy.clip=auto", "strategy.alpha=0.5"], "auto"),
    ],
)
@pytest.mark.parametrize("kind", ["robust-sgd", "robust-momentum-sgd", "local-sgd"])
def test_the_heuristic_is_a_multiplier(kind: str, overrides: list[str], expected: float | str) -> None:
    clipped = method(kind, *overrides)
    assert clipped.alpha == pytest.approx(expected)
    assert replace(clipped, alpha=None) == method(kind, *(o for o in overrides if o.startswith("compressor")))


def test_alpha_of_byz_vr_marina_pp() -> None:
    assert method("byz-vr-marina-pp").alpha == 2.0
    assert method("byz-vr-marina-pp", "strategy.alpha=L").alpha == 4.0
    assert method("byz-vr-marina-pp", "strategy.clip=auto", smoothness=None).alpha == "auto"
    assert method("byz-vr-marina-pp", "strategy.clip=false", "strategy.alpha=2L", smoothness=None).alpha is None


def test_an_alpha_that_is_not_used_is_not_written_down() -> None:
    for clip in ("auto", "false"):
        resolved = resolve(config("byz-vr-marina-pp", f"strategy.clip={clip}"), UNKNOWN_L)
        assert "alpha" not in resolved.to_toml()


@pytest.mark.parametrize("kind", ["robust-sgd", "robust-momentum-sgd", "local-sgd"])
def test_clipping_needs_a_number_where_l_is_unknown(kind: str) -> None:
    with pytest.raises(ConfigError, match=r'alpha is missing: .* give a number, or learn it: clip = "auto"'):
        method(kind, "strategy.clip=true", smoothness=None)
    assert method(kind, "strategy.clip=auto", smoothness=None).alpha == "auto"
    assert method(kind, smoothness=None).alpha is None


# --- the least full cohort: of which all f may be Byzantine ---


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], 11),  # a median takes 5 of 11
        (["aggregator.kind=krum"], 13),  # 2 * 5 + 3
        (["federation.byzantine=0"], 1),
        (["federation.byzantine=9"], 19),
        (["aggregator.kind=mean"], 5),
    ],
)
def test_the_least_full_cohort(overrides: list[str], expected: int) -> None:
    resolved = resolve(config("byz-vr-marina-pp", "strategy.full_cohort=least", *overrides), UNKNOWN_L)
    assert resolved.method == method("byz-vr-marina-pp", f"strategy.full_cohort={expected}", *overrides)
    assert resolve(parse(resolved.to_toml()), UNKNOWN_L) == resolved


# --- DeMoA: alpha C/n = 0.1 ---


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [([], 0.5), (["strategy.cohort=20"], 0.1), (["strategy.cohort=1"], 1.0), (["strategy.alpha=0.25"], 0.25)],
)
def test_the_default_weight_of_a_gradient(overrides: list[str], expected: float) -> None:
    assert method("demoa", *overrides).alpha == pytest.approx(expected)


def test_the_rule_of_demoa_has_all_rows_whatever_the_cohort() -> None:
    assert method("demoa", "aggregator.kind=krum", "strategy.cohort=1").cohort == 1
    with pytest.raises(ConfigError, match=r"krum.* tolerates 8 of 20 rows, but 9 of them may be Byzantine"):
        config("demoa", "aggregator.kind=krum", "federation.byzantine=9")


# --- the rest ---


@pytest.mark.parametrize(
    ("kind", "override", "said"),
    [
        ("robust-momentum-sgd", "strategy.beta=1.0", "beta = 1.0: must be less than 1"),
        ("robust-momentum-sgd", "strategy.beta=-0.1", "beta = -0.1: must be greater than or equal to 0"),
        ("robust-momentum-sgd", "strategy.beta=nan", "beta = nan"),
        ("local-sgd", "strategy.local_steps=0", "local_steps = 0: must be greater than or equal to 1"),
        ("local-sgd", "strategy.local_gamma=-1.0", "local_gamma = -1.0: must be a positive number"),
        ("local-sgd", "strategy.local_gamma=nan", "local_gamma = nan: must be a positive number"),
        ("local-sgd", "strategy.local_gamma=2L", 'local_gamma = "2L": must be a positive number or "c/L"'),
        ("robust-sgd", "strategy.clip=maybe", "[strategy] clip: must be true, false or \"auto\", not 'maybe'"),
        ("byz-vr-marina-pp", "strategy.clip=1", '[strategy] clip: must be true, false or "auto", not 1'),
        ("byz-vr-marina-pp", "strategy.full_cohort=0", "full_cohort: must be a whole number of at least 1"),
        ("byz-vr-marina-pp", "strategy.full_cohort=most", """or "least", not 'most'"""),
        ("robust-sgd", "strategy.alpha=-1.0", "alpha = -1.0: must be a positive number"),
        ("byz-vr-marina", "strategy.cohort=4", "cohort: unknown key"),
        ("demoa", "strategy.alpha=1.5", "alpha = 1.5: must be less than or equal to 1"),
        ("demoa", "strategy.alpha=0.0", "alpha = 0.0: must be greater than 0"),
        ("demoa", "strategy.alpha=2L", "alpha"),
        ("demoa", "strategy.clip=true", "clip: unknown key"),
        ("demoa", "strategy.stale=drop", "stale = 'drop': must be 'decay' or 'hold'"),
        ("demoa", "strategy.cohort=21", "strategy.cohort = 21: must be at most federation.clients = 20"),
        ("demoa", "strategy.max_age=9", "strategy.max_age = 9: momenta that decay are never left out; set stale"),
        ("byz-nsgdm", "strategy.cohort=4", "cohort: unknown key"),
        ("byz-nsgdm", "strategy.beta=1.0", "beta = 1.0: must be less than 1"),
        ("byz-nsgdm", "strategy.gamma=0.2/L", 'gamma = "0.2/L": this method takes steps of a given length, whatever L'),
        ("byz-nsgdm", "strategy.gamma=inf", "gamma = inf: must be a positive number"),
        ("byz-vr-marina-2", "strategy.clip=true", "clip: unknown key"),
        ("byz-vr-marina-pp", "strategy.full_batch=-1", "full_batch = -1: must be greater than or equal to 0"),
    ],
)
def test_what_a_value_may_be(kind: str, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(kind, override)
    assert said in str(caught.value)


@pytest.mark.parametrize("kind", SECTIONS)
def test_biased_compressors_are_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=r'compressor\.kind = "top-k": biased, and .* needs an unbiased one'):
        config(kind, "compressor.kind=top-k", "compressor.k=3")


@pytest.mark.parametrize(
    ("kind", "override"),
    [
        ("byz-vr-marina", "strategy.gamma=0.2"),
        ("byz-vr-marina-pp", "strategy.full_batch=9"),
        ("robust-momentum-sgd", "strategy.beta=0.5"),
        ("local-sgd", "strategy.local_gamma=0.2"),
        ("local-sgd", "strategy.local_steps=2"),
    ],
)
def test_what_changes_a_workers_replies(kind: str, override: str) -> None:
    assert config(kind, override).worker_terms() != config(kind).worker_terms()


@pytest.mark.parametrize("kind", SECTIONS)
def test_the_shares_of_the_rounds_sum_to_one(kind: str) -> None:
    problem: Any = FakeProblem()
    resolved = resolve(config(kind), problem)
    plan = resolved.method.plan(resolved.strategy.rounds, problem.samples)
    assert sum(round_.share for round_ in plan) == pytest.approx(1)
    assert all(round_.gradients > 0 for round_ in plan)
    assert plan[0].gradients == (4 * 40 if kind == "local-sgd" else 40)


# --- what is derived from the methods ---


@pytest.mark.parametrize("kind", [kind for kind in SECTIONS if kind != "byz-nsgdm"])
def test_a_resolved_config_carries_its_method_wherever_it_goes(kind: str) -> None:
    resolved = resolve(config(kind, "strategy.gamma='1/L'"), FakeProblem())
    there = pickle.loads(pickle.dumps(resolved))  # noqa: S301  # our own
    assert there == resolved
    assert there.method == resolved.method == resolved.for_clients().method
    assert resolved.method.gamma == 0.25


def test_a_resolved_config_is_another_one_with_another_method() -> None:
    one, other = (resolve(config("robust-sgd", f"strategy.gamma={gamma}"), UNKNOWN_L) for gamma in (0.1, 0.2))
    assert one != other
    assert one.method != other.method


def test_every_method_of_the_table_has_its_section() -> None:
    kinds = [method.kind for method in METHODS]
    assert list(kinds_of(StrategyUnion)) == kinds
    assert len(set(kinds)) == len(kinds)


def test_keys_have_types_bounds_and_defaults_of_the_fields() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Own(Descent):
        """A method of one's own."""

        kind: ClassVar[str] = "own"
        depth: Annotated[int, Key(ge=2, le=5)] = 3
        wide: bool

        def reply(self, *args: Any) -> Any:
            raise AssertionError("not asked here")

    section = section_of(Own)
    given: dict[str, Any] = {"kind": "own", "rounds": 1, "gamma": 0.5, "wide": True}
    assert section(**given).model_dump() == {
        **given, "clip": False, "alpha": None, "cohort": None, "batch": 0, "depth": 3,
    }  # fmt: skip
    wrong: dict[str, Any] = {"depth": 6, "wide": 1, "batch": -1, "cohort": 0, "gamma": -1.0, "clip": "no"}
    for key, value in wrong.items():
        with pytest.raises(ConfigError, match=rf"\[strategy\] {key}( = |: )"):
            section(**{**given, key: value})
