"""``[federation] weights``: what is taken and refused, who learns them, and what ``breakwater check`` says."""

from typing import Any

import pytest

from experiment.config import Config, load, parse, resolve
from experiment.explain import ProblemConstants, explain
from experiment.sections import Federation
from foundation.errors import ConfigError
from strategies.aggregators import CoordinateMedian
from strategies.compressors import Identity
from strategies.robust_sgd import RobustSGD

CONFIG = """
[federation]
clients = 4
byzantine = 1
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
BY_NAME = "federation.weights={carol=1.0, alice=3.0, dave=2.0, bob=2.5}"
BY_SEAT = "federation.weights=[3, 2.5, 1, 2]"
FACTS = ProblemConstants.read({"dim": 650, "dtype": "float32", "samples": 72})


def refusal(*changes: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(CONFIG, changes)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value).removeprefix("config: ")


def test_seats_follow_the_sorted_names() -> None:
    named, listed = parse(CONFIG, [BY_NAME]).federation, parse(CONFIG, [BY_SEAT]).federation
    assert (named.names, listed.names) == (("alice", "bob", "carol", "dave"), ())
    assert named.whole_weights == listed.whole_weights == (6, 5, 2, 4)
    assert named.seat_weights == listed.seat_weights == [3.0, 2.5, 1.0, 2.0]


def test_a_federation_without_weights_has_none() -> None:
    federation = parse(CONFIG).federation
    assert (federation.weights, federation.seat_weights, federation.whole_weights, federation.names) == (
        None, None, (), (),
    )  # fmt: skip
    assert "weight" not in parse(CONFIG).to_toml()


@pytest.mark.parametrize("weights", [BY_NAME, BY_SEAT])
def test_a_config_with_weights_is_written_and_read_again(weights: str) -> None:
    config = parse(CONFIG, [weights, "federation.weight_cap=0.3"])
    again = parse(config.to_toml())
    assert again == config
    assert again.federation.whole_weights == config.federation.whole_weights
    assert "weights" in config.trajectory_terms()["federation"]
    assert "weights" not in config.worker_terms()["federation"]


def test_the_method_has_the_whole_weights_and_none_where_all_are_equal() -> None:
    assert resolve(parse(CONFIG, [BY_NAME]), FACTS).method.weights == (6, 5, 2, 4)
    assert resolve(parse(CONFIG, ["federation.weights=[2, 2, 2, 2]"]), FACTS).method.weights == ()
    assert resolve(parse(CONFIG, [BY_SEAT, "federation.weight_cap=0.25"]), FACTS).method.weights == ()
    assert resolve(parse(CONFIG), FACTS).method.weights == ()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["federation.weights=[1, 2]"], "[federation] weights: 2 for clients = 4; every client needs one"),
        (["federation.weights={alice=1}"], "[federation] weights: 1 for clients = 4; every client needs one"),
        (["federation.weights=[1, 2, 0, 1]"], "weights: 2 = 0: must be a finite number above 0"),
        (["federation.weights=[1, 2, inf, 1]"], "weights: 2 = inf: must be a finite number above 0"),
        (["federation.weights=[1, 2, nan, 1]"], "weights: 2 = nan: must be a finite number above 0"),
        (["federation.weights=[1, 2, true, 1]"], "weights: 2 = True: must be a finite number above 0"),
        (["federation.weights={a=1,b=-2,c=1,d=1}"], "weights: b = -2: must be a finite number above 0"),
        (["federation.weights=3"], "weights: must be a table of weights by name, or a list of them by seat, not 3"),
        (["federation.weight_cap=0.5"], "weight_cap = 0.5: there are no weights; give both or neither"),
        ([BY_SEAT, "federation.weight_cap=0.2"], "weight_cap = 0.2: 4 shares of at most that cannot sum to 1"),
        ([BY_SEAT, "federation.weight_cap=1.5"], "weight_cap = 1.5"),
        (
            ["federation.weights=[5, 1, 2, 2]"],
            "the 1 heaviest of them have 50 % of the weight, and no rule withstands half; set weight_cap below 0.5",
        ),
        (
            [BY_SEAT, "aggregator.kind=krum", "federation.byzantine=0"],
            "federation.weights: krum takes none; rules that do are mean, cm, cwtm, rfa, centered-clip and fltrust",
        ),
        ([BY_SEAT, 'aggregator.pre=["arc"]'], "federation.weights: arc takes none"),
        (
            [BY_SEAT, "strategy.full_cohort=least", "strategy.cohort=2"],
            'strategy.full_cohort = "least": is not known with federation.weights; give a number',
        ),
    ],
)
def test_what_is_refused(changes: list[str], line: str) -> None:
    assert line in refusal(*changes)


def test_buckets_that_may_hold_half_of_the_weight_are_refused() -> None:
    six = ["federation.clients=6", "strategy.cohort=6", 'aggregator.pre=[{kind="bucketing", s=2}]']
    assert "federation.weights: 1 clients may have half of the weight or more" in refusal(
        *six, "federation.weights=[6, 5, 1, 1, 1, 1]"
    )
    parse(CONFIG, [*six, "federation.weights=[2, 2, 2, 2, 2, 1]"])


def test_the_weight_of_the_heaviest_counts_after_the_cap() -> None:
    heavy = "federation.weights=[5, 1, 2, 2]"
    assert parse(CONFIG, [heavy, "federation.weight_cap=0.4"]).federation.whole_weights == (10, 3, 6, 6)


def test_clients_do_not_learn_weights() -> None:
    config = resolve(parse(CONFIG, [BY_NAME, "federation.weight_cap=0.35", "attack.kind=alie"]), FACTS)
    known = config.for_clients()
    assert "weight" not in known.to_toml()
    assert "alice" not in known.to_toml()
    assert known.method.weights == ()
    assert config.method.weights != ()


def test_an_omniscient_attacker_of_an_experiment_learns_them_by_seat() -> None:
    config = resolve(parse(CONFIG, [BY_NAME, "attack.kind=alie", "attack.view=omniscient"]), FACTS)
    known = config.for_clients()
    assert known.federation.weights == [3.0, 2.5, 1.0, 2.0]
    assert known.method.weights == config.method.weights
    assert resolve(parse(known.to_toml()), FACTS).method.weights == config.method.weights


def test_weights_by_name_fit_other_orders_of_seats() -> None:
    config = parse(CONFIG, [BY_NAME])
    assert config.seated(["dave", "alice", "bob", "carol"]).federation.weights == [2.0, 3.0, 2.5, 1.0]
    with pytest.raises(ConfigError, match='weights: none for "client-0", only for alice, bob, carol, dave; or give a'):
        config.seated(["client-0", "alice", "bob", "carol"])
    assert parse(CONFIG, [BY_SEAT]).seated(["a", "b", "c", "d"]) == parse(CONFIG, [BY_SEAT])


def test_weights_in_python() -> None:
    method = RobustSGD(n=4, f=1, gamma=0.1, aggregator=CoordinateMedian(), compressor=Identity(), cohort=4)
    parts: dict[str, Any] = {"task": {"kind": "digits"}, "strategy": method, "rounds": 3}
    config = Config(federation=Federation(clients=4, byzantine=1, weights=[3, 2.5, 1, 2]), **parts)
    assert resolve(config, FACTS).method.weights == (6, 5, 2, 4)
    heavy = RobustSGD(**{**vars(method), "weights": (6, 5, 2, 4)})
    with pytest.raises(ConfigError, match="give them as Federation"):
        Config(federation=Federation(clients=4, byzantine=1), **{**parts, "strategy": heavy})


def lines(*changes: str) -> list[str]:
    return [" ".join(line.split()) for line in explain(parse(CONFIG, changes), None, None, load=False)]


def test_check_says_delta_and_kappa() -> None:
    said = lines(BY_NAME)
    assert (
        "weights alice 35.3 %, bob 29.4 %, dave 23.5 %, ...; delta_f = 0.353, the share of the 1 heaviest, takes the "
        "place of f/n = 0.25" in said
    )
    assert "rule cm: breaks down at half of the weight; delta_f = 35.3 % of it is the 1 heaviest" in said
    (kappa,) = (line for line in said if line.startswith("kappa"))
    assert "kappa = 19.4 for all 4 rows (at least 1.2 for any rule)" in kappa  # 4 (1 + 6/5)^2
    assert any("unlike data" in line and "below 1.2 times that variance" in line for line in said)


def test_check_warns_of_heavy_silence_and_of_sampling() -> None:
    said = lines("federation.weights=[4, 5, 6, 1]", "strategy.cohort=3", "federation.byzantine=1")
    assert any("if the 1 heaviest clients are silent, 1 of the others have half of the weight" in line for line in said)
    assert any("federation.weights with cohorts of fewer than all 4 clients" in line for line in said)
    assert not any("silent" in line for line in lines("federation.weights=[4, 3, 3, 3]"))
    sampled = lines("federation.weights=[4, 5, 6, 1]", "strategy.cohort=3", "strategy.full_cohort=4")
    (odds,) = (line for line in sampled if "strategy.cohort = 3" in line and "half of the weight" in line)
    assert "in about 76 % of cohorts" in odds or "in about 75 % of cohorts" in odds or "in about 74 %" in odds
    assert any("equal, so each of 4 clients has 1/4" in line for line in lines("federation.weights=[4, 4, 4, 4]"))


def test_every_config_of_ours_is_without_weights_and_stays_as_it_is() -> None:
    from pathlib import Path

    for path in sorted((Path(__file__).parents[3] / "deploy" / "configs").glob("*.toml")):
        assert load(path).federation.weights is None
