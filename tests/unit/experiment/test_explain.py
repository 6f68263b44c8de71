"""``breakwater check``: the numbers that it gives, against the published ones, and its warnings."""

from pathlib import Path

import numpy as np
import pytest

from experiment.config import load, parse
from experiment.explain import ProblemConstants, explain, sentences, warnings
from foundation.errors import ConfigError

CONFIGS = Path(__file__).parents[3] / "deploy" / "configs"
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


def lines(text: str, *overrides: str, data_dir: Path | None = None, load: bool = True) -> dict[str, str]:
    """The lines by their first word; warnings are joined."""
    found: dict[str, str] = {}
    for line in explain(parse(text, overrides), data_dir, None, load=load):
        head, _, rest = line.partition(" ")
        found[head] = f"{found[head]} | {rest.strip()}" if head in found else rest.strip()
    return found


def test_a_config_explained() -> None:
    said = lines(MARINA, "compressor.kind=rand-k", "compressor.k=65", "attack.kind=shb", "federation.seed=3")
    assert said["clients"] == "20, of which up to 5 Byzantine (25 %); seed 3"
    assert said["task"] == "digits: d = 650 (float32), m = 72 samples a client"
    assert said["method"] == (
        "byz-vr-marina-pp, 10 rounds: gamma = 0.1, clip = true (default), alpha = 2, p = 0.2, batch = 8, "
        "full_batch = 0 (default), cohort = 4, full_cohort = 20 (default), plus = false (default)"
    )
    assert said["rule"] == "cm: breaks down beyond 9 of 20 rows (45 %); f/n = 5 of 20 (25 %)"
    assert said["compressor"] == (
        "rand-k: 65 values for d = 650, 268 bytes a reply (10.3 % of 2600); omega = 9, D_Q = 10"
    )
    assert said["clipping"] == "alpha = 2; this task does not know its L, so theory has no number for it"
    full, difference = said["round"].split(" | ")
    assert full == (
        "full: 20 % of rounds, 20 of 20 clients, about 5 Byzantine (cm tolerates 9); never a Byzantine majority"
    )
    assert difference == (
        "difference: 80 % of rounds, 4 of 20 clients, about 1 Byzantine (cm tolerates 1); Byzantine majority with "
        "probability 0.032 (expect 0.256 rounds), tie with 0.217 (1.73)"
    )
    assert said[""] == "survives a Byzantine majority: differences are clipped to lam"
    # (0.2 x 20 x 650 + 0.8 x 4 x 65) values up, (0.2 x 20 + 0.8 x 4 x 2) x 650 down; 4 and 8 more bytes each
    assert said["traffic"] == (
        "a round on average: 2808 values (11.3 kB) up, 6760 (27.0 kB) down, all sampled clients together, envelopes "
        "not counted"
    )
    assert said["work"] == (
        "a round on average: 339.2 gradients of single samples, all sampled clients together; a full local gradient is "
        "72"
    )
    assert said["attack"].startswith('shb with view "omniscient"; the cohort is revealed')
    assert "warning" not in said


def test_advice_comes_last() -> None:
    said = lines(MARINA, "strategy.full_cohort=11")
    assert said["cohorts"].startswith("full: 11 of 20 clients: never more than 5 Byzantine in 10 rounds, which cm ")
    assert said["cohorts"].endswith(" | difference: any size will do, as such a round survives a Byzantine majority")
    assert said["floor"].startswith("zeta^2, the variance of honest full gradients, is ")
    assert said["f"].startswith("cm returns the same for every f")
    assert said["suggested"].count(" | ") == 2
    assert list(said)[-3:] == ["floor", "f", "suggested"]
    assert not {"cohorts", "floor", "f", "suggested"} & set(lines(MARINA, load=False))


def test_kappa_of_every_cohort_in_one_line() -> None:
    # r = 5/10 and 1/2: 4 (1 + r)^2
    assert lines(MARINA, load=False)["kappa"] == (
        "squared error <= kappa times the variance of the honest rows; kappa = 9 for 20 rows, 5 Byzantine (at least "
        "0.5 for any rule), kappa = 9 for 4 rows, 1 Byzantine (at least 0.5 for any rule)"
    )
    assert lines(MARINA, "aggregator.kind=dnc", load=False)["kappa"] == "no bound is known for dnc"
    # Of 4 rows with 1 Byzantine krum takes none, and 6 (20 - 5)/(20 - 10 - 2) is what remains.
    assert "; kappa = 11.2 for 20 rows, 5 " in lines(MARINA, "aggregator.kind=krum", load=False)["kappa"]
    for overrides in (["aggregator.kind=mean"], ["federation.byzantine=0"]):
        assert "kappa" not in lines(MARINA, *overrides, load=False)


def test_what_defaults_come_to() -> None:
    said = lines(MARINA.replace("p = 0.2\n", ""), "compressor.kind=rand-k", "compressor.k=65")
    assert "p = 0.1 (default)" in said["method"]  # min(C/n, b/m, k/d) = min(0.2, 8/72, 0.1)
    said = lines(MARINA, "strategy.clip=auto")
    assert said["clipping"].startswith("alpha = auto, from the ratios observed; ")
    assert lines(MARINA, "strategy.clip=false")["clipping"] == "off"


def test_without_clipping_a_byzantine_majority_is_fatal() -> None:
    said = lines(MARINA, "strategy.clip=false")
    assert said[""] == "does NOT survive a Byzantine majority: differences are not clipped"
    said = lines(MARINA, "strategy.kind=robust-sgd", "strategy.cohort=4")
    assert said[""] == "does NOT survive a Byzantine majority: nothing is clipped"
    assert "" not in lines(MARINA, "strategy.kind=robust-sgd")


def test_a_biased_compressor_tells_its_contraction() -> None:
    said = lines(MARINA, "strategy.kind=byz-ef21", "compressor.kind=top-k", "compressor.k=65", "strategy.gamma=0.1")
    assert said["compressor"].endswith("342 bytes a reply (13.2 % of 2600); biased, contraction 0.1, D_Q = 1")
    assert said["round"].count("never a Byzantine majority") == 2


def test_a_method_adds_its_own_warnings() -> None:
    dm21 = ("strategy.kind=byz-dm21", "strategy.gamma=0.1", "compressor.kind=top-k", "compressor.k=65")
    said = lines(MARINA, *dm21)
    assert "warning" not in said
    # (1 - 0.1)^-2 - 1, and over gamma = 0.1
    assert said["stability"] == "this eta needs gamma L < 0.2346, here L < 2.346; compression lowers the bound"
    assert "gamma L < 38, here L < 380" in lines(MARINA, *dm21, "strategy.vr=true", "strategy.batch=8")["stability"]
    assert lines(MARINA, *dm21, "strategy.vr=true")["warning"].startswith("strategy.batch = 0: full gradients have no")


def test_who_measures_where_it_is_not_the_server_alone() -> None:
    assert "evaluation" not in lines(MARINA)
    assert lines(MARINA, "evaluation.by=none")["evaluation"] == "nobody measures the model"
    claims = (
        "all connected clients measure the model every 50 rounds; their claims are shown, with the median of at least"
    )
    assert lines(MARINA, "evaluation.by=clients")["evaluation"].startswith(f"{claims} 11 answers")
    assert lines(MARINA, "evaluation.by=both")["evaluation"].startswith(f"the server, and {claims} 11 answers")


def test_a_config_without_attack() -> None:
    said = lines(MARINA)
    assert said["attack"] == "none"
    assert (
        said["compressor"] == "identity: 650 values for d = 650, 2600 bytes a reply (100 % of 2600); omega = 0, D_Q = 1"
    )
    assert lines(MARINA, "attack.kind=bf")["attack"] == 'bf with view "own"; the cohort is not revealed'


def test_an_attack_that_does_nothing_is_called_one() -> None:
    said = lines(MARINA, "federation.clients=5", "federation.byzantine=1", "attack.kind=alie")
    assert "z = 0" in said["warning"]


def test_presteps_are_named_in_the_order_of_their_application() -> None:
    said = lines(MARINA, "aggregator.kind=cm", 'aggregator.pre=["bucketing", "nnm"]', "federation.byzantine=2")
    assert "cm after nnm after bucketing tolerates" in said["round"]
    assert said["rule"].startswith("cm after nnm after bucketing: breaks down beyond")


def test_data_that_cannot_be_loaded_are_an_error_unless_nobody_looks() -> None:
    text = MARINA.replace('kind = "digits"\nmodel = "softmax"', 'kind = "logistic"')
    with pytest.raises(ConfigError, match=r"\[task\] data file .* no data folder is known"):
        lines(text)
    said = lines(text, load=False)
    assert said["task"].startswith("logistic; not loaded (--no-load)")
    assert "compressor" not in said
    assert said["cohort"]


def test_an_own_task_that_cannot_be_loaded_is_an_error() -> None:
    text = MARINA.replace('kind = "digits"\nmodel = "softmax"', 'kind = "custom"\npath = "own.py:Own"')
    with pytest.raises(ConfigError, match=r"\[task\] .*path"):
        lines(text)


NORM = """
import torch
from torch import nn
class Own:
    def model(self): return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.1), nn.Linear(4, 2))
    def train_data(self): return torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 2
"""


def test_what_batch_norm_and_dropout_do_to_the_theorems(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "own.py").write_text(NORM)
    text = MARINA.replace('kind = "digits"\nmodel = "softmax"', 'kind = "custom"\npath = "own.py:Own"')
    said = [line for line in explain(parse(text), None, tmp_path) if line.startswith("warning")]
    assert [line.partition(" ")[2].strip() for line in said] == [
        'dropout (layer "2"): full gradients draw masks too, so they are estimates, and theorems on exact ones do not '
        "apply",
        "batch norm: losses depend on the batch, so full gradients are estimates, in batches of 8: theorems on exact "
        "ones do not apply; with GroupNorm or LayerNorm they do",
        "batch norm: 15 of 15 workers have fewer than b = 8 samples (the smallest 2), so theirs are losses of smaller "
        "batches; lower strategy.batch",
    ]


def test_a_value_that_does_not_fit_the_task_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"k = 651: must be at most d = 650"):
        lines(MARINA, "compressor.kind=rand-k", "compressor.k=651")


def test_theory_is_filled_in_where_the_task_knows_it(data_dir: Path) -> None:
    found = list(explain(load(CONFIGS / "a9a.toml"), data_dir, CONFIGS))
    assert any(
        line.startswith(
            "task         logistic: d = 123 (float64), m = 32561 samples a client, L = 0.123206, f* = 0.4871"
        )
        for line in found
    )
    assert any("gamma = 1.6232" in line and "alpha = 0.24641" in line for line in found)
    (clipping,) = (line for line in found if line.startswith("clipping"))
    assert clipping.endswith(
        "alpha = 0.246413; theory: 2L = 0.246413 for any unbiased Q (Theorem 4.1); D_Q L = 1.26287 clips no honest "
        "difference (Theorem 4.2)"
    )


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


def test_a_rule_that_trusts_a_row() -> None:
    (said,) = warned("aggregator.kind=monna", "aggregator.pivot=1")
    assert said.startswith('aggregator.kind = "monna" trusts row 1')
    assert warned("aggregator.kind=monna", "federation.byzantine=0") == []


def test_rules_that_leave_out_too_little_or_too_much() -> None:
    (said,) = warned("aggregator.kind=cge")
    assert "shorter than honest ones" in said
    assert warned("aggregator.kind=cge", "federation.byzantine=0") == []
    assert warned("aggregator.kind=dnc", "aggregator.iters=3") == []
    assert warned("aggregator.kind=dnc", "aggregator.iters=4") == [
        f"dnc leaves out up to {most} of {size} rows of strategy.{key}: it may be all, which gives their median; lower "
        "iters or c"
        for most, size, key in ((4, 4, "cohort"), (20, 20, "full_cohort"))
    ]
    path = CONFIGS / "byz-vr-marina.toml"
    assert any("which have g in common" in said for said in warnings(load(path, ["aggregator.kind=signguard"])))
    assert not any("in common" in said for said in warnings(load(path)))


def test_a_cohort_too_small_for_its_rule() -> None:
    assert warned("aggregator.kind=krum") == [
        "strategy.cohort = 4: about 1 of them are Byzantine and krum with its pre-aggregators tolerates 0; only "
        "clipping limits what such a round can do"
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


def test_a_task_that_the_config_does_not_fit_is_a_warning() -> None:
    config = parse(MARINA, ["compressor.kind=rand-k", "compressor.k=65"])
    told = list(sentences(config, ProblemConstants(30, np.dtype("f4"), 72, None, None)))
    flaw = "the config does not fit the recorded task: [compressor] k = 65: must be at most d = 30, the length of the"
    assert ("warning", f"{flaw} vectors") in told


def test_cohorts_that_always_have_their_share_of_attackers() -> None:
    said = lines(MARINA, "attack.kind=shb", "attack.membership=per-cohort")
    full, difference = said["round"].split(" | ")
    assert "20 of 20 clients, exactly 5 Byzantine" in full
    assert difference.endswith("4 of 20 clients, exactly 1 Byzantine (cm tolerates 1); never a Byzantine majority")
    assert "" not in said  # whether a round survives a majority is no question
    assert said["attack"].startswith('shb, per-cohort with view "omniscient"')
    assert 'attack.membership = "per-cohort" gives every cohort its share of attackers' in said["warning"]
    assert "warning" not in lines(MARINA, "attack.kind=bf", "attack.membership=per-cohort", "strategy.cohort=20")
    assert (
        "tie with 1 (8)"
        in lines(MARINA, "attack.kind=bf", "attack.membership=per-cohort", "strategy.cohort=2")["round"]
    )


DEMOA = MARINA.replace("alpha = 2.0", "alpha = 0.5").replace("p = 0.2\n", "").replace("byz-vr-marina-pp", "demoa")


def test_the_alpha_of_demoa_is_explained_as_a_weight() -> None:
    said = lines(DEMOA)
    assert "clipping" not in said
    assert said["momentum"] == (
        "alpha = 0.5 is the weight of the new gradient, not a clipping multiplier (this method clips nothing); a "
        "momentum is multiplied by 1 - alpha C/n = 0.9 in every round"
    )
    assert said["round"].startswith(
        "gradient: 100 % of rounds, 4 of 20 clients, about 1 Byzantine (cm tolerates 9 of the 20 vectors that are"
    )
    assert said[""] == (
        "a momentum that was not refreshed for 30 rounds counts as faded: a vote for standing still | survives a "
        "Byzantine majority: the momenta of all clients are aggregated, sampled or not"
    )
    held = lines(DEMOA, "strategy.stale=hold")
    assert held["momentum"].endswith("is multiplied by 1 - alpha = 0.5 when a new gradient comes")
    assert held[""].startswith("a momentum that was not refreshed for 250 rounds is left out of the aggregation")


def test_a_small_cohort_of_demoa_is_nothing_to_warn_of_but_a_compressor_is() -> None:
    assert list(warnings(parse(DEMOA, ["aggregator.kind=krum"]))) == []
    (warning,) = warnings(parse(DEMOA, ["compressor.kind=rand-k", "compressor.k=65"]))
    assert warning == 'compressor.kind = "rand-k": demoa takes it as it is unbiased, but no theory covers it'


def test_how_far_normalised_steps_reach_and_what_they_need() -> None:
    text = DEMOA.replace("alpha = 0.5\n", "").replace("cohort = 4\n", "").replace('"demoa"', '"byz-nsgdm"')
    said = lines(text, 'aggregator.pre=["nnm"]', "strategy.rounds=4", "strategy.gamma=2.0")
    assert said["steps"] == "normalised: from length 2 down to 1, together 5.569 in 4 rounds"
    assert "warning" not in said
    assert list(warnings(parse(text))) == [
        'byz-nsgdm mixes nearest neighbours before the rule; set aggregator.pre = ["nnm"]'
    ]
    (warning,) = warnings(parse(text, ['aggregator.pre=["nnm"]', "federation.byzantine=7"]))
    assert warning == "a step needs 15 usable replies of 20: 7 silent clients can stop the run"
