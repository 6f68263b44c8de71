"""The sections of Byz-DASHA-PAGE, error feedback and RoSDHB: defaults, refusals, what a round costs."""

import pytest

from experiment.config import ResolvedConfig, parse, resolve
from foundation.errors import ConfigError
from strategies.byz_dasha_page import ByzDashaPage
from strategies.byz_dm21 import ByzDM21
from strategies.byz_ef21 import ByzEF21, ByzEF21BC
from strategies.byz_ef21_sgdm import ByzEF21SGDM
from strategies.compressors import TopK
from strategies.rosdhb import RoSDHB, RoSDHBLocal
from tasks.contract import Problem

BASE = """
[federation]
clients = 8
byzantine = 2
[task]
kind = "digits"
model = "softmax"
[strategy]
kind = "byz-dasha-page"
rounds = 10
gamma = 0.5
batch = 20
[compressor]
kind = "rand-k"
k = 65
"""
TOP_K = ["compressor.kind=top-k", "compressor.k=65"]
MASKED = ["compressor.kind=masked", "compressor.k=65"]
KINDS = {
    "byz-dasha-page": ([], ByzDashaPage),
    "byz-ef21": (["strategy.kind=byz-ef21", *TOP_K], ByzEF21),
    "byz-ef21-bc": (["strategy.kind=byz-ef21-bc", *TOP_K], ByzEF21BC),
    "byz-ef21-sgdm": (["strategy.kind=byz-ef21-sgdm", *TOP_K], ByzEF21SGDM),
    "byz-dm21": (["strategy.kind=byz-dm21", *TOP_K], ByzDM21),
    "rosdhb": (["strategy.kind=rosdhb", *MASKED], RoSDHB),
    "rosdhb-local": (["strategy.kind=rosdhb-local"], RoSDHBLocal),
}


@pytest.fixture(scope="module")
def problem() -> Problem:
    config = parse(BASE)
    return config.task.load(config.setting(None, None))


def resolved(problem: Problem, *overrides: str) -> ResolvedConfig:
    return resolve(parse(BASE, overrides), problem)


@pytest.mark.parametrize("kind", KINDS)
def test_a_section_gives_its_method_and_survives_being_written_down(problem: Problem, kind: str) -> None:
    overrides, method = KINDS[kind]
    config = resolved(problem, *overrides)
    assert config.strategy.kind == kind
    assert type(config.method) is method
    again = parse(config.to_toml())
    assert again.to_toml() == config.to_toml()
    assert resolve(again, problem) == config
    assert parse(BASE, overrides).worker_terms()["strategy"] == config.worker_terms()["strategy"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_of_rounds(problem: Problem, kind: str) -> None:
    config = resolved(problem, *KINDS[kind][0])
    plan = config.method.plan(config.strategy.rounds, problem.samples)
    assert sum(round_.share for round_ in plan) == pytest.approx(1)
    assert all(round_.share > 0 and round_.sampled == 8 and round_.survives[0] for round_ in plan)
    dense = [round_.name for round_ in plan if round_.up.kind == "identity"]
    assert dense == ([] if kind.startswith("rosdhb") else ["start"])
    assert [round_.broadcast for round_ in plan] == (
        [None, TopK(k=65)] if kind == "byz-ef21-bc" else [None] * len(plan)
    )


def test_the_defaults_of_dasha_page_are_the_papers(problem: Problem) -> None:
    method = resolved(problem).method
    assert isinstance(method, ByzDashaPage)
    assert method.p == 20 / problem.samples
    assert method.a == 1 / (2 * 10 - 1)  # 1/(2 d/k - 1)
    own = resolved(problem, "strategy.p=0.5", "strategy.a=0.25").method
    assert isinstance(own, ByzDashaPage)
    assert (own.p, own.a) == (0.5, 0.25)
    whole = resolved(problem, "strategy.batch=100000").method
    assert isinstance(whole, ByzDashaPage)
    assert whole.p == 1.0


def test_a_coin_that_never_shows_tails_is_not_planned_for(problem: Problem) -> None:
    config = resolved(problem, "strategy.p=1.0")
    plan = config.method.plan(config.strategy.rounds, problem.samples)
    assert [round_.name for round_ in plan] == ["start", "full"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            TOP_K,
            'compressor.kind = "top-k": biased, and byz-dasha-page needs an unbiased one; strategy.kind = "byz-ef21" or'
            ', with minibatches, "byz-ef21-sgdm" takes it',
        ),
        (
            ["strategy.kind=rosdhb"],
            'compressor.kind = "rand-k": rosdhb draws one mask for all workers of a round; choose',
        ),
        (["strategy.kind=rosdhb", *TOP_K], 'compressor.kind = "top-k": rosdhb draws one mask'),
        (
            ["strategy.kind=rosdhb-local", *MASKED],
            'compressor.kind = "masked": rosdhb-local lets every worker draw its own',
        ),
        (["strategy.kind=rosdhb-local", "strategy.local_steps=2"], "local_gamma: missing; local_steps = 2"),
        (["strategy.kind=rosdhb-local", "strategy.local_gamma=inf"], "[strategy] local_gamma = inf"),
        (["strategy.kind=rosdhb", *MASKED, "strategy.beta=1.0"], "[strategy] beta = 1.0: must be less than 1"),
        (["strategy.kind=rosdhb", *MASKED, "strategy.beta=nan"], "[strategy] beta = nan"),
        (["strategy.p=0.0"], "[strategy] p = 0.0"),
        (["strategy.p=nan"], "[strategy] p = nan"),
        (["strategy.a=1.5"], "[strategy] a = 1.5"),
        (["strategy.batch=0"], "[strategy] batch = 0"),
        (["strategy.cohort=4"], "[strategy] cohort: unknown key"),
        (["strategy.kind=byz-ef21", *TOP_K, "strategy.cohort=4"], "[strategy] cohort: unknown key"),
        (["strategy.kind=byz-ef21", *TOP_K, "strategy.batch=4"], "[strategy] batch: unknown key"),
        (["strategy.kind=byz-ef21-sgdm", *TOP_K, "strategy.eta=0.0"], "[strategy] eta = 0.0: must be greater than 0"),
        (["strategy.kind=byz-ef21-sgdm", *TOP_K, "strategy.vr=true"], "[strategy] vr: unknown key"),
        (
            ["strategy.kind=byz-dm21", *TOP_K, "strategy.eta=1.5"],
            "[strategy] eta = 1.5: must be less than or",
        ),
        (["strategy.kind=byz-dm21", *TOP_K, "strategy.eta=nan"], "[strategy] eta = nan"),
        (["strategy.kind=byz-dm21", *TOP_K, "strategy.batch=-1"], "[strategy] batch = -1"),
        (["strategy.kind=byz-dm21", *TOP_K, "strategy.cohort=4"], "[strategy] cohort: unknown key"),
        (["federation.byzantine=4"], "no rule withstands half"),
    ],
)
def test_what_makes_no_sense_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(BASE, overrides)
    assert message in str(caught.value)


def test_variance_reduction_computes_every_minibatch_at_two_models(problem: Problem) -> None:
    for vr in ("false", "true"):
        method = resolved(problem, "strategy.kind=byz-dm21", *TOP_K, f"strategy.vr={vr}", "strategy.batch=20").method
        assert isinstance(method, ByzDM21)
        start, later = method.plan(10, problem.samples)
        assert (start.gradients, later.gradients) == (20, 40 if method.vr else 20)


@pytest.mark.parametrize("kind", ["byz-ef21", "byz-ef21-bc", "byz-ef21-sgdm", "byz-dm21"])
def test_error_feedback_needs_a_contraction(problem: Problem, kind: str) -> None:
    with pytest.raises(ConfigError, match=r'\[compressor\] kind = "rand-k": .* delta = -8 only.*choose top-k'):
        resolved(problem, f"strategy.kind={kind}")
    assert resolved(problem, f"strategy.kind={kind}", "compressor.k=400").method, "omega = 0.625 is one"


@pytest.mark.parametrize(("clip", "wrapped"), [("false", False), ("true", True), ('"auto"', True)])
def test_rosdhb_takes_the_clipping_heuristic(problem: Problem, clip: str, wrapped: bool) -> None:
    for kind, (overrides, _) in KINDS.items():
        if kind.startswith("rosdhb"):
            settings = [
                "strategy.cohort=4",
                f"strategy.clip={clip}",
                *(["strategy.alpha=2.0"] if clip == "true" else []),
            ]
            config = resolved(problem, *overrides, *settings)
            assert isinstance(config.method, RoSDHB)
            assert (config.method.alpha is not None) is wrapped
            [round_] = config.method.plan(config.strategy.rounds, problem.samples)
            assert round_.survives[0], "the momenta of all count, or what is new is clipped"


def test_identity_is_a_mask_of_everything(problem: Problem) -> None:
    for kind in ("rosdhb", "rosdhb-local", "byz-ef21", "byz-ef21-bc", "byz-ef21-sgdm", "byz-dm21", "byz-dasha-page"):
        batch = ["strategy.batch=20"] if kind == "byz-dasha-page" else []
        assert resolved(problem, f"strategy.kind={kind}", *batch, "compressor.kind=identity").method
