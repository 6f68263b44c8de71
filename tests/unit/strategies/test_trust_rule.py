"""The rule that trusts the server's own row: what it makes of rows, where that row comes from, and who may use it."""

from pathlib import Path

import numpy as np
import pytest

from deploy.inprocess import grid_of
from experiment.config import ROOT_SAMPLES, parse
from experiment.explain import sentences
from experiment.opened import Experiment, open_config, open_experiment
from foundation.errors import ConfigError
from link import codec
from server.run_folder.state_dict import put_together, take_apart
from strategies.aggregators import FLTrust, weighted_rows
from strategies.aggregators.preaggregators import NearestNeighbourMixing
from strategies.method import Rows, Vector
from strategies.randomness import Role, stream
from strategies.strategy import RobustStrategy
from strategies.vectors import norm
from tasks.contract import Setting, TaskError
from tasks.partition import check_root, share_out
from tests import parties

RULE = FLTrust()
TEXT = """
[federation]
clients = 5
byzantine = 2
seed = 4
[task]
kind = "digits"
model = "softmax"
dtype = "float64"
[strategy]
kind = "robust-momentum-sgd"
rounds = 6
gamma = 0.1
batch = 8
[aggregator]
kind = "fltrust"
[attack]
kind = "ipm"
view = "omniscient"
"""


def plainly(rows: Rows, root: Vector) -> Vector:
    """Return the rule as the paper has it."""
    root = root.astype(np.float64)
    total, weight = np.zeros(len(root)), 0.0
    for row in rows.astype(np.float64):
        if not row.any():
            continue
        trust = max(0.0, float(row @ root) / float(np.linalg.norm(row) * np.linalg.norm(root)))
        total += trust * np.linalg.norm(root) / np.linalg.norm(row) * row
        weight += trust
    return total / weight if weight else total


def test_f_changes_nothing_and_the_rule_says_so() -> None:
    rows, root = np.random.default_rng(0).standard_normal((7, 5)), np.ones(5)
    assert all(np.array_equal(RULE(rows, f, center=root), RULE(rows, 0, center=root)) for f in range(1, 4))
    assert not RULE.depends_on_f


def test_the_rows_of_the_definition() -> None:
    rows = np.array([(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (-1.0, -1.0), (5.0, 5.0)])
    assert RULE(rows, 1, center=np.ones(2)) == pytest.approx([0.878680, 0.878680], abs=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("compiled", [False, True])
def test_it_is_the_papers_and_never_longer_than_the_root(
    dtype: type, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weighted_rows, "LARGE", 1 if compiled else 2**18)
    rng = np.random.default_rng(3)
    rows: Rows = rng.standard_normal((9, 2100)).astype(dtype)
    rows[1], rows[2] = 0.0, 1e6 * rows[2]
    root = (rows[3:6].mean(axis=0)).astype(dtype)
    got = RULE(rows, 4, center=root)
    assert got.dtype == dtype
    assert got == pytest.approx(plainly(rows, root), rel=1e-4, abs=1e-6)
    assert norm(got) <= norm(root) * (1 + 1e-6)
    mixed = FLTrust(pre=(NearestNeighbourMixing(),))
    seen = np.array([rows[np.argsort(((rows - row) ** 2).sum(axis=1), kind="stable")[:7]].mean(axis=0) for row in rows])
    assert mixed(rows, 2, center=root) == pytest.approx(plainly(seen, root), rel=1e-3, abs=1e-4)


def test_rows_against_the_root_have_no_voice_even_all_of_them() -> None:
    root = np.array([1.0, 2.0])
    assert RULE(np.array([-root, [-2.0, 1.0], [0.0, 0.0]]), 3, center=root).tolist() == [0.0, 0.0]
    assert RULE(np.array([root, 3 * root]), 2, center=np.zeros(2)).tolist() == [0.0, 0.0]
    assert RULE(np.array([-root, -root, -root, 5 * root]), 3, center=root) == pytest.approx(root)


@pytest.mark.parametrize("size", [5e-324, 1e-300, 1e-150, 1e150, 1.5e308])
def test_hostile_lengths_neither_warn_nor_lead_astray(size: float) -> None:
    rows = np.array([[1.0, 0.0], [0.9, 0.1], [size, 0.0], [0.0, -size], [-size, size]])
    for root in (np.array([1.0, 0.0]), np.array([1e-200, 0.0]), np.array([1e200, 0.0])):
        with np.errstate(all="raise", under="ignore"):
            got = RULE(rows, 3, center=root)
        assert np.isfinite(got).all()
        assert norm(got) <= norm(root) * (1 + 1e-12)
        assert got[0] >= 0.7 * root[0]
    assert RULE(rows, 3, center=np.array([np.inf, 0.0])).tolist() == [0.0, 0.0]


def test_the_weight_of_each_row_is_what_makes_the_result() -> None:
    rng = np.random.default_rng(5)
    for scale in (1.0, 1e-200, 1e200):
        rows, root = rng.standard_normal((6, 40)) * scale, rng.standard_normal(40)
        vector, weights = RULE.weigh(rows, 2, rng, root)
        assert weights is not None
        assert (weights * scale) @ (rows / scale) == pytest.approx(vector)


def test_a_weight_is_as_many_rows() -> None:
    rng = np.random.default_rng(6)
    rows, root = rng.standard_normal((5, 8)), rng.standard_normal(8)
    weights = [1, 3, 2, 1, 2]
    assert RULE(rows, 1, center=root, weights=weights) == pytest.approx(
        RULE(np.repeat(rows, weights, axis=0), 1, center=root)
    )


def test_equal_rows_count_alike_in_any_order() -> None:
    rows, root = np.array([[1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]), np.array([1.0, 0.0])
    assert RULE(rows, 1, center=root) == pytest.approx(RULE(rows[[1, 0, 2]], 1, center=root))


def test_without_a_root_it_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="fltrust needs the server's own row: pass it as center="):
        RULE(np.ones((3, 2)), 1)


# --- the server's data ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("partition", ["replicated", "iid", "label", "dirichlet(0.5)"])
def test_the_server_keeps_rows_of_every_label_that_no_worker_has(partition: str) -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    parts, kept = share_out(partition, labels, Setting(4, 1, seed=2, root=50))
    assert kept is not None
    assert np.bincount(labels[kept]).tolist() == [30, 15, 5]
    assert not np.intersect1d(kept, np.concatenate(parts)).size
    assert len(np.unique(np.concatenate(parts))) == 950
    assert (parts[0] is parts[-1]) == (partition == "replicated")
    other = share_out(partition, labels, Setting(4, 1, seed=3, root=50))[1]
    assert kept.tolist() != other.tolist()  # type: ignore[union-attr]  # it is there as well
    with pytest.raises(TaskError, match=r"1000 training samples in all, and the server keeps 1000 \(root_samples\)"):
        share_out(partition, labels, Setting(4, 1, root=1000))


def opened(*overrides: str) -> Experiment:
    return open_experiment(parse(TEXT, overrides).to_toml(), None, None)


def strategy_of(experiment: Experiment) -> tuple[RobustStrategy, object]:
    grid, federation = grid_of(experiment), experiment.config.federation
    strategy = RobustStrategy(
        experiment.method,
        codec=codec,
        roster=grid,
        clients=federation.clients,
        byzantine=federation.byzantine,
        seed=federation.seed,
        reveal_cohort=experiment.config.reveals_cohort,
        root=experiment.problem.root(),  # type: ignore[attr-defined]  # of this task
    )
    return strategy, grid


def test_the_servers_row_is_that_of_a_worker_with_its_data_and_survives_a_restart() -> None:
    experiment = opened()
    whole, grid = strategy_of(experiment)
    x0 = codec.to_arrays(experiment.problem.initial())
    whole.start(grid, x0, 6)  # type: ignore[arg-type]  # it is a grid
    first, grid = strategy_of(experiment)
    first.start(grid, x0, 3)  # type: ignore[arg-type]
    oracle, beta, m = first.root, 0.9, None
    assert oracle is not None
    x = experiment.problem.initial()
    (g,) = oracle.minibatch_gradients([x], 8, stream(4, Role.WORKER, 5, 1))
    name, m = first.state.root[0]
    assert name == "momentum"
    assert not np.array_equal(m, g)  # two more rounds went into it
    data, arrays = take_apart(first.state)
    second, _ = strategy_of(experiment)
    second.state = put_together(experiment.method.start(x), data, arrays)
    second.start(grid, x0, 6)  # type: ignore[arg-type]
    assert second.state.x.tobytes() == whole.state.x.tobytes()
    third, grid = strategy_of(experiment)
    third.start(grid, x0, 1)  # type: ignore[arg-type]
    assert np.array_equal(dict(third.state.root)["momentum"], g)
    third.start(grid, x0, 2)  # type: ignore[arg-type]
    (h,) = oracle.minibatch_gradients([third.state.x_prev], 8, stream(4, Role.WORKER, 5, 2))
    assert norm(third.state.x_prev - third.state.x) <= 0.1 * norm(beta * g + (1 - beta) * h) * (1 + 1e-9)


@pytest.mark.parametrize("method", ["robust-sgd", "local-sgd", "byz-nsgdm"])
def test_every_method_whose_rows_are_a_workers_takes_it(method: str) -> None:
    steps = {"local-sgd": ["strategy.local_steps=2", "strategy.local_gamma=0.05"]}.get(method, [])
    experiment = opened(f"strategy.kind={method}", *steps)
    strategy, grid = strategy_of(experiment)
    strategy.start(grid, codec.to_arrays(experiment.problem.initial()), 2)  # type: ignore[arg-type]
    assert np.isfinite(strategy.state.x).all()
    assert not np.array_equal(strategy.state.x, experiment.problem.initial())


def test_a_strategy_without_the_servers_data_refuses_the_rule() -> None:
    experiment = opened()
    with pytest.raises(ValueError, match=r"the rule fltrust needs gradients of the server's own data \(root=\)"):
        RobustStrategy(experiment.method, codec=codec, roster=grid_of(experiment), clients=5)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["strategy.kind=byz-ef21", "attack.kind=none"],
            "the server can compute too, .* not; use robust-sgd,",
        ),
        (["strategy.clip=true"], "needs rows that are gradients, and clip makes them differences"),
        (
            ["aggregator.kind=cm", "federation.root_samples=9"],
            '= 9: only aggregator.kind = "fltrust" needs',
        ),
    ],
)
def test_what_is_refused(overrides: list[str], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        parse(TEXT, overrides)


def test_check_names_the_price() -> None:
    config = parse(TEXT)
    assert parse(config.to_toml()) == config
    said = "\n".join(f"{word} {sentence}" for word, sentence in sentences(config, None))
    assert f"trusts the server's own row, computed on {ROOT_SAMPLES} training samples that no client has" in said
    assert "the run stalls there" in said
    assert "of the client's own" not in said


ROOT_DATA = """
    def root_data(self, folder):
        return None if folder is None else self.read(folder / "root.csv")
"""


def test_a_party_serves_its_own_root_data_apart_from_its_test_data(tmp_path: Path) -> None:
    text = parties.CONFIG.format(n=4, f=1).replace("byz-vr-marina-pp", "robust-sgd").replace("p = 0.5\n", "")
    config = parse(text.replace('"cm"', '"fltrust"'))
    (tmp_path / "points.py").write_text(parties.TASK.format(share=0.0))
    folder = parties.write(tmp_path / "server", 20, 1)
    with pytest.raises(ConfigError, match="the server has no training data to compute its own row on; give a custom"):
        open_config(config, folder, tmp_path)
    (tmp_path / "points.py").write_text(parties.TASK.format(share=0.0) + ROOT_DATA)
    (folder / "root.csv").write_text((folder / "points.csv").read_text().splitlines()[3])
    with pytest.raises(ConfigError, match="1 of the server's 1 own training samples are in its test data too"):
        open_config(config, folder, tmp_path)
    parties.write(tmp_path / "other", 15, 9)
    (folder / "root.csv").write_text((tmp_path / "other" / "points.csv").read_text())
    problem = open_config(config, folder, tmp_path).problem
    assert problem.root().full_gradient(problem.initial()).shape == (problem.dim,)  # type: ignore[attr-defined]


def test_samples_are_compared_whole() -> None:
    inputs, targets = np.arange(6.0).reshape(3, 2), np.array([0, 1, 0])
    check_root([inputs, targets], [inputs, 1 - targets])
    with pytest.raises(TaskError, match="1 of the server's 3"):
        check_root([inputs, targets], [inputs[1:2], targets[1:2]])
