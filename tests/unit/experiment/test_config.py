"""The config file: what is accepted, and in which words everything else is refused."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attacks.classical import ALIE, FOE, IPM, Big, BitFlip, NaN, ShiftBack
from experiment.config import Config, load, parse, parse_attack, resolve
from foundation.errors import ConfigError
from foundation.origin import examples
from strategies.aggregators import CoordinateMedian, Krum, Mean
from strategies.aggregators.preaggregators import Bucketing, NearestNeighbourMixing
from strategies.byz_vr_marina_pp import ByzVRMarinaPP
from strategies.compressors import Identity, RandK
from strategies.method import Evaluation, Oracle, Vector
from strategies.robust_sgd import RobustSGD
from tasks.custom import CustomTask

CONFIGS = sorted((Path(__file__).parents[3] / "deploy" / "configs").glob("*.toml"))
MARINA = """
[federation]
clients = 20
byzantine = 5
[task]
kind = "digits"
[strategy]
kind = "byz-vr-marina-pp"
rounds = 10
gamma = 0.1
p = 0.2
cohort = 4
batch = 8
alpha = 2.0
"""
SGD = """
[federation]
clients = 7
[task]
kind = "digits"
[strategy]
kind = "robust-sgd"
rounds = 10
gamma = 0.1
"""


class FakeProblem:
    """What ``resolve`` looks at: L, d and m."""

    dim = 30
    samples = 40
    dtype = np.dtype("f8")
    optimum = None

    def __init__(self, smoothness: float | None = 4.0) -> None:
        self.smoothness = smoothness

    def initial(self) -> Vector:
        raise AssertionError("resolving computes nothing")

    def oracle(self, worker: int, *, flipped: bool = False) -> Oracle:
        raise AssertionError("resolving computes nothing")

    def evaluate(self, x: Vector) -> Evaluation:
        raise AssertionError("resolving computes nothing")


def problems(text: str, *overrides: str) -> list[str]:
    """The complaints about a config, without the name of the file."""
    with pytest.raises(ConfigError) as caught:
        parse(text, overrides, name="a.toml")
    lines = str(caught.value).splitlines()
    assert all(line.startswith("a.toml: ") for line in lines)
    return [line.removeprefix("a.toml: ") for line in lines]


def problem(text: str, *overrides: str) -> str:
    (line,) = problems(text, *overrides)
    return line


# --- rules across sections: both numbers are in the message ---


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["federation.byzantine=10"], ["byzantine = 10", "clients = 20", "at most 9"]),
        (["federation.start_with=5"], ["start_with = 5", "at least byzantine + 1 = 6"]),
        (["federation.start_with=21"], ["start_with = 21", "at most clients = 20"]),
        (["strategy.cohort=21"], ["strategy.cohort = 21", "at most federation.clients = 20"]),
        (["strategy.full_cohort=21"], ["strategy.full_cohort = 21", "at most federation.clients = 20"]),
        (["aggregator.kind=krum", "strategy.cohort=2"], ["strategy.cohort = 2", '"krum"', "too few rows"]),
        (
            ["aggregator.kind=krum", "strategy.cohort=3"],
            ["strategy.cohort = 3: if 1 of them", "2 are left: too few rows", '"krum"'],
        ),
        (
            ["aggregator.kind=krum", "strategy.cohort=6", "strategy.full_cohort=8", "federation.byzantine=7"],
            ['"krum" tolerates 2 of 8', "3 of them", "byzantine = 7 of clients = 20"],
        ),
        (
            ["aggregator.kind=cm", 'aggregator.pre=["bucketing"]', "federation.byzantine=6"],
            ['"cm" after bucketing tolerates 4 of 20', "6 of them", "byzantine = 6 of clients = 20"],
        ),
        (["federation.byzantine=0", "attack.kind=bf"], ['"bf"', "byzantine = 0", "nobody attacks"]),
    ],
)
def test_sections_that_contradict_each_other(overrides: list[str], words: list[str]) -> None:
    said = problem(MARINA, *overrides)
    for word in words:
        assert word in said


def test_any_tolerated_share_is_accepted() -> None:
    assert parse(MARINA, ["federation.byzantine=9"]).aggregator.tolerates(20) == 9
    assert parse(MARINA, ["aggregator.kind=mean", "federation.byzantine=9"]).aggregator == Mean()


# --- keys, sections, kinds and types ---


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[federation]\nclients=3\nclient=3", "[federation] client: unknown key; did you mean clients?"),
        ("[federation]\nclients=0", "[federation] clients = 0: must be greater than or equal to 1"),
        ('[federation]\nclients="3"', "[federation] clients = '3': must be a valid integer"),
        ("[federation]\nclients=3.0", "[federation] clients = 3.0: must be a valid integer"),
        ("[federation]\nclients=3\nseed=-1", "[federation] seed = -1: must be greater than or equal to 0"),
        ("[federation]\nclients=3\nreveal_cohort=1", "[federation] reveal_cohort = 1: must be a valid boolean"),
        ("[federation]\nclients=3\ndeadline_s=0", "[federation] deadline_s = 0: must be greater than 0"),
        ("[federation]\nbyzantine=0", "[federation] clients: missing"),
        ("[agregator]\nkind='cm'", "agregator: unknown section; did you mean aggregator?"),
        ("[aggregator]\nkind='median'", '[aggregator] kind = "median": unknown; did you mean mean?'),
        ("[compressor]\nk=3", "[compressor] kind: missing; one of identity, rand-k"),
        ("[aggregator]\nkind='cm'\nf=2", "[aggregator] f: unknown key; known are kind, pre"),
        ("[aggregator]\nkind='rfa'\nnu=0.0", "[aggregator] nu = 0.0: must be above 0 and finite"),
        ("[compressor]\nkind='rand-k'", "k = None, ratio = None: exactly one of them must be given"),
        ("[compressor]\nkind='rand-k'\nk=0", "k = 0: must be at least 1"),
        ("[compressor]\nkind='rand-k'\nkk=1", "[compressor] kk: unknown key; did you mean k?"),
        ("[compressor]\nkind='huffman'", '[compressor] kind = "huffman": unknown; known are identity, rand-k'),
        ("[attack]\nkind='ipm'\neps=0.0", "eps = 0.0: must be above 0 and finite"),
        ("[attack]\nkind='alie'\nview='own'", 'view = "own": alie needs at least "coalition"'),
        ("[attack]\nkind='alie'\nview='god'", "[attack] view = 'god': must be 'own', 'coalition' or 'omniscient'"),
        ("[evaluation]\nevery=0", "[evaluation] every = 0: must be greater than or equal to 1"),
        ("[evaluation]\nevry=1", "[evaluation] evry: unknown key; did you mean every?"),
    ],
)
def test_what_a_section_may_hold(text: str, said: str) -> None:
    name = text[1 : text.index("]")]
    kept = MARINA if name not in ("federation",) else MARINA.replace("[federation]\nclients = 20\nbyzantine = 5\n", "")
    found = problems(kept + text)
    assert any(said in line for line in found), found


def test_sections_that_are_missing() -> None:
    assert problem(MARINA.replace('[task]\nkind = "digits"\n', "")) == "[task]: section missing"
    assert sorted(problems("")) == [f"[{name}]: section missing" for name in ("federation", "strategy", "task")]
    assert problems("federation = 3\n")[0].startswith("[federation] = 3: ")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("strategy.gama=0.1", "[strategy] gama: unknown key; did you mean gamma?"),
        ("strategy.p=0.0", "[strategy] p = 0.0: must be greater than 0"),
        ("strategy.p=1.1", "[strategy] p = 1.1: must be less than or equal to 1"),
        ("strategy.rounds=0", "[strategy] rounds = 0: must be greater than or equal to 1"),
        ("strategy.batch=0", "[strategy] batch = 0: must be greater than or equal to 1"),
        ("strategy.gamma=0", "gamma = 0.0: must be a positive number"),
        ("strategy.gamma=nan", "gamma = nan: must be a positive number"),
        ("strategy.gamma=inf", "gamma = inf: must be a positive number"),
        ("strategy.gamma='0.2L'", 'gamma = "0.2L": must be a positive number or "c/L", for example "0.5/L"'),
        ("strategy.gamma='-1/L'", 'gamma = "-1/L": must be a positive number or "c/L"'),
        ("strategy.gamma='1-2/L'", 'gamma = "1-2/L": must be a positive number or "c/L"'),
        ("strategy.alpha=-2.0", "alpha = -2.0: must be a positive number; clip = false switches clipping off"),
        ("strategy.alpha=inf", "alpha = inf: must be a positive number; clip = false switches clipping off"),
        ("strategy.alpha='2/L'", 'alpha = "2/L": must be a positive number or "cL", for example "0.5L"'),
        ("strategy.kind=fedavg", '[strategy] kind = "fedavg": unknown; known are byz-vr-marina-pp, '),
        ("strategy.kind=byz-vr-marine", '[strategy] kind = "byz-vr-marine": unknown; did you mean byz-vr-marina?'),
        ("task.kind=digit", '[task] kind = "digit": unknown; did you mean digits?'),
        ("task.modle=mlp", "[task] modle: unknown key; did you mean model?"),
        ("task.test_share=0.0", "test_share = 0.0: must be from 0.01 to 0.9"),
        ("federation.seed=9223372036854775808", "less than 9223372036854775808"),
    ],
)
def test_what_a_value_may_be(override: str, said: str) -> None:
    found = problems(MARINA, override)
    assert any(said in line for line in found), found


def test_every_problem_has_its_line() -> None:
    said = problems(MARINA, "federation.clients=0", "strategy.p=2.0", "evaluation.every=0")
    assert [line.split()[0] for line in said] == ["[federation]", "[strategy]", "[evaluation]"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"absent\.toml: no such file; {re.escape(examples())}"):
        load(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match=f"{tmp_path}: is a folder"):
        load(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9")
    with pytest.raises(ConfigError, match="is not UTF-8: byte 0xe9 in line 1; save it as UTF-8"):
        load(tmp_path / "latin.toml")
    (tmp_path / "broken.toml").write_text("[federation")
    with pytest.raises(ConfigError, match=r"broken\.toml: not TOML: Expected"):
        load(tmp_path / "broken.toml")


# --- pre-aggregators ---


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ('["nnm"]', (NearestNeighbourMixing(),)),
        ('["bucketing"]', (Bucketing(s=2),)),
        ('[{kind = "bucketing", s = 3}, "nnm"]', (Bucketing(s=3), NearestNeighbourMixing())),
        ("[]", ()),
    ],
)
def test_presteps_by_name_and_as_tables(pre: str, expected: tuple[object, ...]) -> None:
    config = parse(SGD + f'[aggregator]\nkind = "cm"\npre = {pre}\n')
    assert config.aggregator == CoordinateMedian(pre=expected)  # type: ignore[arg-type]  # tuples of pre-aggregators


@pytest.mark.parametrize(
    ("pre", "said"),
    [
        ('["nmn"]', 'pre: kind = "nmn": unknown; did you mean nnm?'),
        ('[{kind = "bucketing", s = 0}]', "pre: s = 0: must be at least 1"),
        ('[{kind = "bucketing", size = 2}]', "pre: size: unknown key; known are kind, s"),
        ("[{s = 2}]", "pre: kind: missing; one of bucketing, nnm"),
        ("[3]", "pre: "),
        ('"nnm"', "pre"),
    ],
)
def test_presteps_that_are_refused(pre: str, said: str) -> None:
    assert said in problem(SGD + f'[aggregator]\nkind = "cm"\npre = {pre}\n')


# --- overrides ---


def test_overrides() -> None:
    config = parse(
        MARINA,
        ["federation.seed=7", "strategy.gamma=0.2/L", "compressor.kind=rand-k", "compressor.k=3", "task.l2 = 0.5"],
    )
    assert (config.federation.seed, config.strategy.gamma) == (7, "0.2/L")
    assert config.compressor == RandK(k=3)
    assert getattr(config.task, "l2", None) == 0.5


def test_the_later_override_wins() -> None:
    assert parse(MARINA, ["federation.seed=7", "federation.seed=8"]).federation.seed == 8


def test_another_kind_starts_its_section_afresh() -> None:
    config = parse(MARINA + '[attack]\nkind = "alie"\nz = 1.5\n', ["attack.kind=bf"])
    assert config.attack == BitFlip()
    config = parse(MARINA, ["strategy.kind=robust-sgd"])  # keeps rounds and gamma, drops p, cohort, batch, alpha
    assert config.strategy.model_dump() == {
        "kind": "robust-sgd", "rounds": 10, "gamma": 0.1, "cohort": None, "batch": 0, "clip": False, "alpha": None,
        "server": None,
    }  # fmt: skip
    text = MARINA + '[aggregator]\nkind = "rfa"\nnu = 1e-3\npre = ["nnm"]\n'
    assert parse(text, ["aggregator.kind=cm"]).aggregator == CoordinateMedian(pre=(NearestNeighbourMixing(),))


def test_the_same_kind_keeps_its_section() -> None:
    text = MARINA + '[attack]\nkind = "alie"\nz = 1.5\n'
    assert parse(text, ["attack.kind=alie"]).attack == ALIE(z=1.5)


def test_the_attack_can_be_taken_out() -> None:
    text = MARINA + '[attack]\nkind = "alie"\nz = 1.5\n'
    assert parse(text, ["attack.kind=none"]).attack is None
    assert parse(text, ["attack.kind=none", "attack.kind=bf"]).attack == BitFlip()
    assert parse(MARINA, ["attack.kind=none"]).attack is None


def test_a_kind_that_toml_reads_as_a_number() -> None:
    assert parse(MARINA, ["attack.kind=nan"]).attack == NaN()
    assert parse(MARINA, ['attack.kind="nan"']).attack == NaN()


@pytest.mark.parametrize("override", ["seed=3", "federation.seed", "federation.=3", ".seed=3", "a.b.c=3", "", "="])
def test_overrides_that_are_none(override: str) -> None:
    with pytest.raises(ConfigError, match=r"must read section\.key=value"):
        parse(MARINA, [override])


def test_an_override_of_what_is_no_section() -> None:
    with pytest.raises(ConfigError, match=r"--set title\.x=1: title is not a section"):
        parse('title = "x"\n' + MARINA, ["title.x=1"])


CUSTOM = """
[federation]
clients = 3
[task]
kind = "custom"
path = "own.py:Own"
options = { how = "mean", layers = [8, 4], inner = { rate = 0.5 } }
[strategy]
kind = "robust-sgd"
rounds = 3
gamma = 0.1
"""


def options_in(config: Config) -> list[tuple[str, object]]:
    assert isinstance(config.task, CustomTask)
    return list(config.task.options.items())


def options_of(*overrides: str) -> dict[str, object]:
    return dict(options_in(parse(CUSTOM, overrides)))


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("task.options.hidden=8", "hidden", 8),
        ("task.options.word=plain", "word", "plain"),
        ("task.options.layers=[16, [1, 2], {a = true}]", "layers", [16, [1, 2], {"a": True}]),
        ("task.options.inner.rate=0.25", "inner", {"rate": 0.25}),
        ("task.options.inner.more.depth=2", "inner", {"rate": 0.5, "more": {"depth": 2}}),
        ('task.options.inner."a b"=1', "inner", {"rate": 0.5, "a b": 1}),
        ("task.options.how=nan", "how", "nan"),  # where a string was
        ("task.options.how=-inf", "how", "-inf"),
        ('task.options.new="nan"', "new", "nan"),
        ("task.options.new=inf", "new", math.inf),
        ("task.options = { how = 'x' }", "how", "x"),
    ],
)
def test_one_option_of_a_custom_task_can_be_set(override: str, key: str, value: object) -> None:
    assert options_of(override)[key] == value


@pytest.mark.parametrize(
    "value", ["nan", "inf", "[1, nan, { a = -inf, b = [] }]", "{ a = { b = 'x' } }", "'nan'", "''"]
)
def test_options_are_written_down_so_that_they_load_to_the_same(value: str) -> None:
    config = parse(CUSTOM, [f"task.options.value={value}"])
    again = parse(config.to_toml())
    assert repr(sorted(options_in(again))) == repr(sorted(options_in(config)))
    assert "value" in dict(options_in(again))
    assert again.to_toml() == config.to_toml()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("task.options.how.deep=1", "task.options.how is not a table"),
        ("task.options.day=2026-01-01", "options.day = 2026-01-01: must be a number, a string, true or false"),
        ("task.options.days=[{ a = 10:00:00 }]", "options.days[0].a = 10:00:00: must be"),
        ("task.options.=1", "must read section.key=value"),
        ("task.partition.x=1", "must read section.key=value"),
    ],
)
def test_options_that_cannot_be(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(CUSTOM, [override])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


# --- what only the loaded task knows ---


@pytest.mark.parametrize(
    ("gamma", "expected"),
    [("0.2/L", 0.05), ("1/L", 0.25), (" 2 / L ", 0.5), ("1e-1/L", 0.025), (0.3, 0.3), (1, 1.0)],
)
def test_gamma_in_units_of_l(gamma: str | float, expected: float) -> None:
    value = f'"{gamma}"' if isinstance(gamma, str) else gamma
    resolved = resolve(parse(MARINA, [f"strategy.gamma={value}"]), FakeProblem(4.0))
    assert resolved.strategy.gamma == pytest.approx(expected)
    assert isinstance(resolved.strategy.gamma, float)


@pytest.mark.parametrize(("alpha", "expected"), [("2L", 8.0), ("L", 4.0), ("0.5 * L", 2.0), (" 3 L", 12.0), (7, 7.0)])
def test_alpha_in_units_of_l(alpha: str | float, expected: float) -> None:
    value = f'"{alpha}"' if isinstance(alpha, str) else alpha
    method = resolve(parse(MARINA, [f"strategy.alpha={value}"]), FakeProblem(4.0)).method
    assert isinstance(method, ByzVRMarinaPP)
    assert method.alpha == expected


def test_a_task_that_does_not_know_its_l() -> None:
    with pytest.raises(ConfigError, match=r'gamma = "1/L": this task does not know its L; give a number'):
        resolve(parse(MARINA, ["strategy.gamma='1/L'"]), FakeProblem(None))
    with pytest.raises(
        ConfigError, match=r'alpha = "3L": this task does not know its L; give a number, or .* clip = "auto"'
    ):
        resolve(parse(MARINA, ["strategy.alpha='3L'"]), FakeProblem(None))
    with pytest.raises(ConfigError, match=r'alpha is missing: this task does not know its L; .* clip = "auto"'):
        resolve(parse(MARINA.replace("alpha = 2.0", "")), FakeProblem(None))
    assert resolve(parse(MARINA), FakeProblem(None)).strategy.gamma == 0.1


def test_without_clipping_alpha_needs_no_l() -> None:
    resolved = resolve(parse(MARINA, ["strategy.alpha=2L", "strategy.clip=false"]), FakeProblem(None))
    assert isinstance(resolved.method, ByzVRMarinaPP)
    assert resolved.method.alpha is None


def test_more_values_than_the_vector_has() -> None:
    config = parse(MARINA, ["compressor.kind=rand-k", "compressor.k=31"])
    with pytest.raises(ConfigError, match=r"\[compressor\] k = 31: must be at most d = 30"):
        resolve(config, FakeProblem())
    resolve(parse(MARINA, ["compressor.kind=rand-k", "compressor.k=30"]), FakeProblem())


def test_the_methods_of_resolved_configs() -> None:
    assert resolve(parse(MARINA), FakeProblem()).method == ByzVRMarinaPP(
        n=20, f=5, gamma=0.1, p=0.2, cohort=4, full_cohort=20, batch=8, alpha=2.0,
        aggregator=CoordinateMedian(), compressor=Identity(),
    )  # fmt: skip
    assert resolve(parse(SGD, ["aggregator.kind=krum", "strategy.batch=3"]), FakeProblem()).method == RobustSGD(
        n=7, f=0, gamma=0.1, cohort=7, batch=3, aggregator=Krum(), compressor=Identity()
    )


# --- the file as it is written into the run folder ---


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["strategy.gamma=0.2/L", "strategy.alpha=L", "strategy.full_cohort=19"],
        ["compressor.kind=rand-k", "compressor.ratio=0.25", "attack.kind=alie", "attack.z=1.06"],
        ["aggregator.kind=rfa", 'aggregator.pre=[{kind = "bucketing", s = 1}, "nnm"]', "attack.kind=shb"],
        ["strategy.kind=robust-sgd", "task.partition=dirichlet(0.5)", "federation.start_with=7"],
        ["strategy.clip=false", "attack.kind=big", "attack.value=-1e30", "federation.reveal_cohort=true"],
        ["strategy.clip=auto", "strategy.plus=true", "strategy.full_batch=9"],
        ["strategy.kind=byz-vr-marina", "strategy.batch=8"],
        ["strategy.kind=byz-vr-marina-2", "strategy.batch=8", "strategy.p=0.5"],
        ["strategy.kind=robust-momentum-sgd", "strategy.clip=true", "strategy.cohort=10"],
        ["strategy.kind=local-sgd", "strategy.local_steps=3", "strategy.local_gamma=0.1/L", "strategy.clip=auto"],
    ],
)
def test_a_written_config_loads_to_an_equal_one(overrides: list[str]) -> None:
    config = parse(MARINA, overrides)
    assert parse(config.to_toml()) == config
    resolved = resolve(config, FakeProblem(0.123456789))
    again = parse(resolved.to_toml())
    assert again.to_toml() == resolved.to_toml()
    assert resolve(again, FakeProblem(None)) == resolved, "a resolved config needs no L"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configs_that_come_with_the_product(path: Path) -> None:
    config = load(path)
    assert parse(config.to_toml()) == config


def test_there_are_such_configs() -> None:
    assert {"a9a", "demo"} <= {path.stem for path in CONFIGS}


# --- what an honest client holds the server to ---


@pytest.mark.parametrize(
    "override",
    ["strategy.rounds=11", "strategy.gamma=0.7", "strategy.p=0.9", "strategy.cohort=6", "strategy.alpha=9",
     "aggregator.kind=mean", "attack.kind=bf", "federation.deadline_s=3.0", "evaluation.every=3"],
)  # fmt: skip
def test_what_is_the_servers_own_business(override: str) -> None:
    assert parse(MARINA, [override]).worker_terms() == parse(MARINA).worker_terms()


@pytest.mark.parametrize(
    "override",
    ["federation.clients=21", "federation.byzantine=4", "federation.seed=1", "task.l2=0.5", "strategy.batch=9",
     "strategy.kind=robust-sgd", "compressor.kind=rand-k"],
)  # fmt: skip
def test_what_changes_a_workers_replies(override: str) -> None:
    extra = ["compressor.k=3"] if "rand-k" in override else []
    assert parse(MARINA, [override, *extra]).worker_terms() != parse(MARINA).worker_terms()


# --- what an attacker is told on its command line ---


def test_an_attack_by_its_name_alone() -> None:
    assert parse_attack("ipm", [], parse(MARINA)) == IPM()


def test_an_attack_takes_the_parameters_of_the_config() -> None:
    config = parse(MARINA + '[attack]\nkind = "alie"\nz = 1.5\nview = "omniscient"\n')
    assert parse_attack("alie", [], config) == ALIE(z=1.5, view="omniscient")
    assert parse_attack("alie", ["attack.z=2.5"], config) == ALIE(z=2.5, view="omniscient")
    assert parse_attack("foe", ["attack.eps=2.0"], config) == FOE(eps=2.0), "of another kind they are not its own"
    assert config.attack == ALIE(z=1.5, view="omniscient")


def test_an_attack_that_needs_the_cohort() -> None:
    with pytest.raises(ConfigError, match=r'attack "shb" with view "omniscient" needs the cohort, which this server'):
        parse_attack("shb", [], parse(MARINA))
    revealed = parse(MARINA, ["federation.reveal_cohort=true"])
    assert parse_attack("shb", [], revealed) == ShiftBack()
    assert parse_attack("shb", [], parse(MARINA, ["attack.kind=shb"])) == ShiftBack()


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("alien", [], r'\[attack\] kind = "alien": unknown; did you mean alie\?'),
        ("big", ["attack.size=3"], r"\[attack\] size: unknown key"),
        ("big", ["attack.value='x'"], r"\[attack\] value"),
        ("big", ["strategy.rounds=3"], r"a client only takes attack\.key=value; the rest is the server's"),
        ("ipm", ["attack.eps=-1.0"], r"eps = -1\.0: must be above 0"),
    ],
)
def test_attacks_that_are_refused(kind: str, settings: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_attack(kind, settings, parse(MARINA))


def test_parameters_of_an_attack() -> None:
    assert parse_attack("big", ["attack.value=5.0"], parse(MARINA)) == Big(value=5.0)


@pytest.mark.parametrize(
    ("overrides", "revealed"),
    [([], False), (["federation.reveal_cohort=true"], True), (["attack.kind=bf"], False), (["attack.kind=shb"], True),
     (["attack.kind=alie"], False), (["attack.kind=alie", "attack.view=omniscient"], True)],
)  # fmt: skip
def test_who_learns_the_cohort(overrides: list[str], revealed: bool) -> None:
    assert parse(MARINA, overrides).reveals_cohort is revealed


def test_the_config_cannot_be_changed() -> None:
    config: Any = parse(MARINA)
    with pytest.raises(ValueError, match="frozen"):
        config.federation = None
    assert isinstance(config, Config)


def test_a_rule_without_a_name_is_the_default_one() -> None:
    config = parse(SGD, ['aggregator.pre=["nnm"]'])
    assert config.aggregator.kind == "cm"
    assert [step.kind for step in config.aggregator.pre] == ["nnm"]
