"""Whole runs with weights: they are the plain loop's, every method uses them, and heavy silence is below quorum."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from deploy.inprocess import run_in_process
from deploy.local import LocalOptions
from examples.plain_loop import trajectory
from experiment.config import load
from experiment.opened import Experiment, open_experiment
from foundation.errors import ConfigError
from link import codec
from server.monitor.exporters import Monitoring
from strategies.byz_vr_marina_pp import ByzVRMarinaPP
from strategies.method import Ask, Combined, Past, Rows, Vector
from strategies.strategy import RoundRecord
from tests.local_grid import LocalGrid, federation
from tests.saved import x_of

CONFIGS = Path(__file__).parents[3] / "deploy" / "configs"
SMALL = ('task.model="softmax"', "federation.clients=7", "federation.byzantine=2", "strategy.rounds=5")
WEIGHTS = "federation.weights=[4, 3, 3, 4, 3, 3, 4]"


def opened(path: Path, *changes: str) -> Experiment:
    given = load(path)
    sizes = [
        f"strategy.{key}={7 if size == given.federation.clients else 5}"
        for key, size in given.cohorts.items()
        if key in type(given.strategy).model_fields
    ]
    return open_experiment(load(path, [*SMALL, *sizes, *changes]).to_toml(), None, None)


def run(experiment: Experiment, *, without: int | None = None) -> tuple[list[Vector], list[RoundRecord]]:
    """Return the models and records of a run; ``without`` a client, whose messages get lost."""
    grid, strategy = federation(experiment)
    if without is not None:
        lose(grid, without)
    models: list[Vector] = []
    records: list[RoundRecord] = []

    def on_round(record: RoundRecord) -> None:
        models.append(strategy.state.x)
        records.append(record)

    strategy.on_round = on_round
    strategy.start(grid, codec.to_arrays(experiment.problem.initial()), experiment.config.strategy.rounds)
    return models, records


def lose(grid: LocalGrid, worker: int) -> None:
    nodes: Mapping[int, int] = grid.nodes()
    node = nodes[worker]
    send = grid.push_messages
    grid.push_messages = lambda messages: send([m for m in messages if m.metadata.dst_node_id != node])  # type: ignore[method-assign]


@pytest.mark.parametrize("rule", [["mean"], ["cm"], ["cwtm"], ["rfa"], ["cm", 'aggregator.pre=["nnm"]']], ids="-".join)
def test_a_run_has_the_bits_of_the_plain_loop(rule: list[str]) -> None:
    """Sampled cohorts, an omniscient coalition that plans with the server's rule."""
    changes = [WEIGHTS, f"aggregator.kind={rule[0]}", *rule[1:], "attack.kind=optimal-alie", "attack.view=omniscient"]
    changes += ["strategy.alpha=2", "strategy.cohort=4", "compressor.kind=rand-k", "compressor.k=65"]
    experiment = opened(CONFIGS / "demo.toml", *changes)
    assert experiment.method.weights == (4, 3, 3, 4, 3, 3, 4)
    models, _ = run(experiment)
    again, _ = run(opened(CONFIGS / "demo.toml", *changes))
    for mine, plain, second in zip(models, trajectory(experiment), again, strict=True):
        assert mine.tobytes() == plain.tobytes() == second.tobytes()


@pytest.mark.parametrize(("view", "weighs"), [("omniscient", True), ("coalition", False)])
def test_attackers_that_know_all_plan_with_the_weights(
    view: str, weighs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coalition that knows its own data alone takes all clients for equal."""
    seen: list[list[int] | None] = []
    combine = ByzVRMarinaPP.combine

    def listening(self: ByzVRMarinaPP, ask: Ask, rows: Rows, rng: np.random.Generator, past: Past) -> Combined:
        assert past.mass is None or len(past.mass) == len(rows)
        seen.append(None if past.mass is None else past.mass.tolist())
        return combine(self, ask, rows, rng, past)

    monkeypatch.setattr(ByzVRMarinaPP, "combine", listening)
    experiment = opened(
        CONFIGS / "demo.toml", WEIGHTS, "strategy.rounds=1", "attack.kind=optimal-alie", f"attack.view={view}"
    )
    run(experiment)
    *planned, server = seen
    assert server == [4, 3, 3, 4, 3, 3, 4]
    assert len(planned) > 5
    if weighs:
        assert planned == [server[:5], *[server] * (len(planned) - 1)]  # first the honest rows alone
    else:
        assert planned == [None] * len(planned)


def methods() -> dict[str, Path]:
    """One config on the digits for each method."""
    found: dict[str, Path] = {}
    for path in sorted(CONFIGS.glob("*.toml")):
        config = load(path)
        if config.task.kind == "digits":
            found.setdefault(config.strategy.kind, path)
    return found


@pytest.mark.parametrize("kind", methods())
def test_every_method_gives_the_rule_the_weights(kind: str) -> None:
    rule = ["attack.kind=none", "aggregator.kind=cwtm", "federation.byzantine=1"]
    (heavy, records), (plain, _) = (run(opened(methods()[kind], *rule, *weights)) for weights in ([WEIGHTS], []))
    equal, _ = run(opened(methods()[kind], *rule, "federation.weights=[2, 2, 2, 2, 2, 2, 2]"))
    assert np.isfinite(heavy[-1]).all()
    assert not any(record.incomplete for record in records)
    assert not np.array_equal(heavy[-1], plain[-1])
    assert np.array_equal(equal[-1], plain[-1])


def test_heavy_silence_is_below_quorum() -> None:
    changes = ["attack.kind=none", "federation.byzantine=1", "federation.weights=[6, 5, 1, 1, 1, 1, 1]"]
    experiment = opened(CONFIGS / "robust-sgd.toml", *changes, "aggregator.kind=cm", "strategy.cohort=7")
    models, records = run(experiment)
    assert not any(record.incomplete for record in records)
    models, records = run(experiment, without=0)
    assert all(record.incomplete and "no quorum by weight: 1 of the 6 rows" in record.note for record in records[:2])
    assert np.array_equal(models[0], experiment.problem.initial())
    models, records = run(experiment, without=2)
    assert not any(record.incomplete for record in records)


def test_names_of_a_local_run(tmp_path: Path) -> None:
    """Weights by name are those of the seats that a local run gives its clients."""
    quiet = Monitoring(quiet=True, pictures=False)
    named = "federation.weights={client-0=4,client-1=3,client-2=3,client-3=4,client-4=3,byzantine-0=3,byzantine-1=4}"
    ends = []
    for number, weights in enumerate((WEIGHTS, named)):
        config = load(CONFIGS / "demo.toml", [*SMALL, "strategy.cohort=5", "strategy.full_cohort=7", weights])
        out = tmp_path / str(number)
        run_in_process(LocalOptions(config=config, out=out, config_dir=CONFIGS, monitoring=quiet, silent=True))
        ends.append(x_of(out).tobytes())
    assert ends[0] == ends[1]
    config = load(
        CONFIGS / "demo.toml",
        [*SMALL, "strategy.cohort=5", "strategy.full_cohort=7", named.replace("client-0", "alice")],
    )
    with pytest.raises(ConfigError, match='weights: none for "client-0"'):
        run_in_process(LocalOptions(config=config, out=tmp_path / "none", config_dir=CONFIGS, monitoring=quiet))
