"""The [attack] section: what of the attacks and the wire faults a config and a command line may say."""

import pytest

from attacks.adaptive import ROP, Fang, Mimic, MinMax
from attacks.classical import ALIE
from attacks.faults import Fault, WireFault
from experiment.config import AttackUnion, kinds_of, parse, parse_attack
from foundation.errors import ConfigError

TEXT = """
[federation]
clients = 20
byzantine = 5
[task]
kind = "digits"
[strategy]
kind = "robust-sgd"
rounds = 10
gamma = 0.1
"""
KINDS = kinds_of(AttackUnion)


def test_the_kinds() -> None:
    assert set(KINDS) == {
        *("bf", "lf", "alie", "optimal-alie", "ipm", "optimal-ipm", "foe", "min-max", "min-sum", "mimic", "rop", "shb"),
        *("fang", "replace", "gaussian", "zero", "big", "nan", "inf", "silence", "wire"),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_written_and_read_again(kind: str) -> None:
    config = parse(TEXT, [f"attack.kind={kind}"])
    assert config.attack is not None
    assert config.attack.kind == kind
    assert config.attack.view in ("own", "coalition", "omniscient")
    assert parse(config.to_toml()) == config
    assert parse_attack(kind, (), config) == config.attack


def test_parameters() -> None:
    config = parse(TEXT, ["attack.kind=min-max", "attack.direction=std", "attack.view=omniscient"])
    assert config.attack == MinMax(direction="std", view="omniscient")
    assert parse(TEXT, ["attack.kind=mimic", "attack.target=0"]).attack == Mimic(target=0)
    overrides = ["attack.kind=rop", "attack.angle=180.0", "attack.lam=0.5"]
    assert parse(TEXT, overrides).attack == ROP(angle=180.0, lam=0.5)
    assert parse(TEXT, ["attack.kind=fang", "attack.b=3", "attack.against=krum"]).attack == Fang(b=3.0, against="krum")
    assert parse(TEXT, ["attack.kind=alie", "attack.jitter=0.5"]).attack == ALIE(jitter=0.5)


def test_wire_faults_are_named_one_by_one_or_in_a_list() -> None:
    config = parse(TEXT, ["attack.kind=wire", "attack.fault=truncated"])
    assert config.attack == WireFault(fault=Fault.TRUNCATED)
    config = parse(TEXT, ["attack.kind=wire", 'attack.fault=["late", "wrong-round"]'])
    assert config.attack == WireFault(fault=(Fault.LATE, Fault.WRONG_ROUND))
    assert parse(config.to_toml()) == config


@pytest.mark.parametrize("fault", Fault)
def test_a_client_is_told_its_fault_by_hand(fault: Fault) -> None:
    assert parse_attack("wire", [f"attack.fault={fault}"], parse(TEXT)) == WireFault(fault=fault)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["attack.kind=wire", "attack.fault=trunkated"], ["[attack]", "fault", "'trunkated'", "'truncated'"]),
        (["attack.kind=wire", "attack.fault=[]"], ["must name at least one"]),
        (["attack.kind=min-max", "attack.direction=up"], ["[attack] direction = 'up'", "'unit', 'std' or 'sign'"]),
        (["attack.kind=mimic", "attack.target=20"], ["target = 20: must be below clients = 20"]),
        (["attack.kind=minmax"], ['kind = "minmax": unknown; did you mean min-max?']),
        (["attack.kind=rop", "attack.z=-1.0"], ["z = -1.0: must be above 0 and finite"]),
        (["attack.kind=fang", "attack.b=1.0"], ["[attack] b = 1.0: must be above 1"]),
        (["attack.kind=fang", "attack.against=cm"], ["[attack] against = 'cm'", "'auto', 'coordinates' or 'krum'"]),
        (["attack.kind=ipm", "attack.jitter=-1.0"], ["[attack] jitter = -1.0: must be at least 0 and finite"]),
        (["attack.kind=shb", "attack.view=own", "attack.jitter=1.0"], ['jitter = 1.0 with view = "own"']),
        (["attack.kind=bf", "attack.membership=any"], ["membership = 'any'", "'fixed', 'per-cohort' or 'mobile'"]),
        (["attack.kind=min-sum", 'attack.view="own"'], ['min-sum needs at least "coalition"']),
    ],
)
def test_what_is_refused(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(TEXT, overrides)
    for word in words:
        assert word in str(caught.value)


def test_alie_by_hand_where_it_has_no_default_shift() -> None:
    two = parse(TEXT, ["federation.clients=2", "federation.byzantine=0"])
    with pytest.raises(ConfigError, match=r"\[attack\] alie has no default z for f = 0 of n = 2 clients: give z"):
        parse_attack("alie", (), two)
    assert parse_attack("alie", ["attack.z=1.0"], two).kind == "alie"


def test_membership_is_the_servers_to_choose() -> None:
    config = parse(TEXT, ["attack.kind=alie", "attack.membership=per-cohort"])
    assert config.stratified
    assert parse(config.to_toml()) == config
    assert not parse(TEXT, ["attack.kind=alie"]).stratified
    assert not parse(TEXT).stratified
    with pytest.raises(ConfigError, match=r"--set attack.membership=fixed: the server samples the clients; set it in"):
        parse_attack("alie", ["attack.membership=fixed"], config)
