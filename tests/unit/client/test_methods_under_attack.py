"""Methods under attack: the run goes on, and only attackers are rejected.

Attacks and views take turns: the config of a method meets every third attack, an attack every third config, and is
tried in every view that it can have. ``test_coalition_state`` has every collusion against every method. In one
process, through the Flower Strategy, the codec and the ClientApp, on a small federation. How well a method withstands
is tested with the method.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from attacks.view import SIGHTS
from experiment.config import AttackUnion, StrategyUnion, kinds_of, load
from experiment.opened import open_experiment
from link import codec
from strategies.strategy import RoundRecord
from tests.local_grid import federation
from tests.shortened import schedule_within

CONFIGS = Path(__file__).parents[3] / "deploy" / "configs"
ROUNDS, EVERY = 4, 3
ATTACKS = kinds_of(AttackUnion)
REJECTED = {"nan": "not finite", "inf": "not finite", "silence": "silent", "wire": "silent"}
"""The attacks that the server sees through, and how it calls them."""
SMALL = (
    'task.model="softmax"', "federation.clients=7", "federation.byzantine=2", f"strategy.rounds={ROUNDS}",
)  # fmt: skip


@cache
def methods() -> dict[str, Path]:
    """The digits configs by name, one for each variant of a method."""
    found = {}
    for path in sorted(CONFIGS.glob("*.toml")):
        config = load(path)
        if config.task.kind == "digits":
            found[path.stem] = path
    return found


def test_every_method_has_a_config() -> None:
    shown = {load(path).strategy.kind for path in CONFIGS.glob("*.toml")}
    assert shown == set(kinds_of(StrategyUnion))


def run(path: Path, kind: str, view: str) -> list[RoundRecord]:
    given = load(path)
    sizes = [
        f"strategy.{key}={7 if size == given.federation.clients else 5}"
        for key, size in given.cohorts.items()
        if key in type(given.strategy).model_fields
    ]
    config = load(path, [*SMALL, *schedule_within(path), *sizes, f"attack.kind={kind}", f"attack.view={view}"])
    experiment = open_experiment(config.to_toml(), None, None)
    grid, strategy = federation(experiment)
    records: list[RoundRecord] = []
    strategy.on_round = records.append
    strategy.start(grid, codec.to_arrays(experiment.problem.initial()), ROUNDS)
    assert np.isfinite(strategy.state.x).all()
    return records


def in_turn(name: str, kind: str) -> str:
    """Return the view for a method and an attack."""
    views = SIGHTS[SIGHTS.index(ATTACKS[kind].least) :]
    return views[(list(methods()).index(name) + list(ATTACKS).index(kind)) // EVERY % len(views)]


PAIRS = [(name, kind) for i, name in enumerate(methods()) for j, kind in enumerate(ATTACKS) if (i + j) % EVERY == 0]


def test_every_attack_is_tried_in_every_view_that_it_can_have() -> None:
    tried = {(kind, in_turn(name, kind)) for name, kind in PAIRS}
    assert tried == {(kind, view) for kind in ATTACKS for view in SIGHTS[SIGHTS.index(ATTACKS[kind].least) :]}
    assert {name for name, _ in PAIRS} == set(methods())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_a_method_under_an_attack(name: str, kind: str) -> None:
    records = run(methods()[name], kind, in_turn(name, kind))
    assert [record.round for record in records] == list(range(1, ROUNDS + 1))
    for record in records:
        attackers = {f"client-{worker}" for worker in record.cohort if worker >= 5}
        if kind in REJECTED:
            assert {client for client, _ in record.rejected} == attackers
            assert {reason.partition(":")[0] for _, reason in record.rejected} <= {REJECTED[kind]}
        else:
            assert record.rejected == []
        assert record.names == [f"client-{worker}" for worker in record.cohort]
        if record.evidence is not None:
            assert record.evidence.workers == record.accepted
            assert {len(record.evidence.distance), len(record.evidence.cosine)} == {len(record.accepted)}
        else:
            assert record.note  # why nothing was aggregated
