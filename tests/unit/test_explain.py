"""``breakwater check``: the numbers that it gives, against the published ones, and its warnings."""

from pathlib import Path

import pytest

from deploy.explain import byzantine_majority, explain, warnings
from link.config import load, parse
from link.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "deploy" / "configs"
MARINA = """
[federation]
clients = 20
byzantine = 5
[task]
kind = "digits"
model = "softmax"
[strategy]
kind = "byz-vr-marina-pp"
rounds = 10
gamma = 0.1
p = 0.2
cohort = 4
batch = 8
alpha = 2.0
"""


def lines(text: str, *overrides: str, data_dir: Path | None = None) -> dict[str, str]:
    """The lines by their first word; warnings are joined."""
    found: dict[str, str] = {}
    for line in explain(parse(text, overrides), data_dir, None):
        head, _, rest = line.partition(" ")
        found[head] = f"{found[head]} | {rest.strip()}" if head in found else rest.strip()
    return found


@pytest.mark.parametrize(
    ("n", "f", "cohort", "majority", "tie"),
    [
        (20, 5, 4, 0.031992, 0.2167),  # as published for these numbers
        (3, 1, 1, 1 / 3, 0.0),
        (4, 1, 2, 0.0, 1 / 2),
        (10, 0, 3, 0.0, 0.0),
        (10, 3, 10, 0.0, 0.0),
        (4, 2, 4, 0.0, 1.0),
    ],
)
def test_probability_of_a_byzantine_majority(n: int, f: int, cohort: int, majority: float, tie: float) -> None:
    assert byzantine_majority(n, f, cohort) == pytest.approx((majority, tie), abs=5e-5)


def test_a_config_explained() -> None:
    said = lines(MARINA, "compressor.kind=rand-k", "compressor.k=65", "attack.kind=shb", "federation.seed=3")
    assert said["clients"] == "20, of which up to 5 Byzantine (25 %); seed 3"
    assert said["task"] == "digits: d = 650 (float32)"
    assert said["method"] == (
        "byz-vr-marina-pp, 10 rounds: gamma = 0.1, p = 0.2, cohort = 4, full_cohort = 20, batch = 8, alpha = 2, "
        "clip = true"
    )
    assert said["cohort"].startswith("4 of 20: about 1 Byzantine, cm tolerates 1; ")
    assert said["cohort"].endswith("a round has a Byzantine majority with probability 0.032, a tie with 0.217")
    assert said["full_cohort"].startswith("20 of 20: about 5 Byzantine, cm tolerates 9; ")
    assert said["compressor"] == "rand-k: 65 of 650 values (260 bytes) a reply, omega = 9, D_Q = 10"
    assert said["attack"].startswith('shb with view "omniscient"; the cohort is revealed')
    assert "warning" not in said


def test_a_config_without_attack() -> None:
    said = lines(MARINA)
    assert said["attack"] == "none"
    assert said["compressor"] == "identity: 650 of 650 values (2600 bytes) a reply, omega = 0, D_Q = 1"
    assert lines(MARINA, "attack.kind=bf")["attack"] == 'bf with view "own"; the cohort is not revealed'


def test_presteps_are_named_in_the_order_of_their_application() -> None:
    said = lines(MARINA, "aggregator.kind=cm", 'aggregator.pre=["bucketing", "nnm"]', "federation.byzantine=2")
    assert "cm after nnm after bucketing tolerates" in said["full_cohort"]


def test_data_that_cannot_be_loaded_leave_the_rest() -> None:
    said = lines(MARINA.replace('kind = "digits"\nmodel = "softmax"', 'kind = "logistic"'))
    assert said["task"].startswith("logistic; not loaded: ")
    assert "compressor" not in said
    assert said["cohort"]


def test_an_own_task_that_cannot_be_loaded_is_an_error() -> None:
    text = MARINA.replace('kind = "digits"\nmodel = "softmax"', 'kind = "custom"\npath = "own.py:Own"')
    with pytest.raises(ConfigError, match=r"\[task\] path"):
        lines(text)


def test_a_value_that_does_not_fit_the_task_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"k = 651: must be at most d = 650"):
        lines(MARINA, "compressor.kind=rand-k", "compressor.k=651")


def test_theory_is_filled_in_where_the_task_knows_it(data_dir: Path) -> None:
    found = list(explain(load(CONFIGS / "a9a.toml"), data_dir, CONFIGS))
    assert any(
        line.startswith("task         logistic: d = 123 (float64), L = 0.123206, f* = 0.48710015") for line in found
    )
    assert any("gamma = 1.6232" in line and "alpha = 0.24641" in line for line in found)


# --- what deserves a second thought ---


def warned(*overrides: str) -> list[str]:
    return list(warnings(parse(MARINA, overrides)))


def test_nothing_to_warn_of() -> None:
    assert warned() == []


def test_a_rule_that_defends_against_nobody() -> None:
    assert warned("aggregator.kind=mean") == [
        'aggregator.kind = "mean" defends against nobody, and 5 of 20 clients may be Byzantine'
    ]
    assert warned("aggregator.kind=mean", "federation.byzantine=0") == []


def test_a_cohort_too_small_for_its_rule() -> None:
    assert warned("aggregator.kind=krum") == [
        "strategy.cohort = 4: about 1 of them are Byzantine and krum with its pre-steps tolerates 0; only clipping "
        "limits what such a round can do"
    ]


def test_buckets_of_which_half_may_be_spoilt() -> None:
    (said,) = (
        w
        for w in warned("aggregator.kind=mean", 'aggregator.pre=["bucketing"]')
        if "strategy" not in w and "20 rows" in w
    )
    assert said == (
        "bucketing leaves 10 buckets of 20 rows, 5 of which may be spoilt: half or more, where a median breaks down; "
        "use a smaller s or none"
    )
