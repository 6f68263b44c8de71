"""The table task: its keys, who reads which rows, the scaling, gradients, and the bound on L."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from strategies.method import Vector
from strategies.randomness import Role, stream
from tasks.contract import Setting, TaskError
from tasks.digits import DigitsTask
from tasks.identity import identify
from tasks.network import Head, Network, NetworkOracle
from tasks.partition import split
from tasks.scaling import ColumnScaling, Scaling
from tasks.table import TableProblem, TableTask
from tests.toys import accuracy
from tests.unit.tasks.tables import HEADER, load, loaded, rows, task, write

REGRESSION: dict[str, Any] = {"classes": None, "loss": "squared", "target": "outcome"}


def numbers(m: int, seed: int = 0) -> list[str]:
    """Return rows whose outcome is a number around 1000."""
    rng = np.random.default_rng(seed)
    return [f"{rng.normal(50, 12):.3f},{rng.normal(26, 4):.3f},f,{rng.normal(1000, 50):.3f}" for _ in range(m)]


# --- the keys ---


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": None}, 'must have either classes = ["no", "yes"]'),
        ({"loss": "huber"}, "must have either classes"),
        ({"classes": None, "loss": "l1"}, 'loss = "l1": must be "squared" or "huber"'),
        ({"classes": ("no",)}, "classes = ['no']: must be at least 2 different texts"),
        ({"classes": ("no", "no")}, "must be at least 2 different texts"),
        ({"classes": {"a": ("0",), "b": ("0",)}}, "must be at least 2 different texts"),
        ({"numeric": (), "categorical": {}}, "must name at least one column"),
        ({"target": "age"}, 'column "age": must have a name, and be one of'),
        ({"categorical": {"sex": ()}}, "categorical.sex = []: must be at least 1"),
        ({"categorical": {"sex": ("f ", "m")}}, "with spaces around it"),
        (
            {"categorical": {"sex": tuple(map(str, range(10_001)))}},
            "10,003 inputs of the model: must be at most 10,000",
        ),
        ({"missing": "mean"}, 'missing = "mean": must be'),
        ({"standardise": "yes"}, 'standardise = "yes": must be'),
        ({"standardise": {"height": (0.0, 1.0)}}, "standardise.height: must be a numeric column"),
        ({"standardise": {"age": (0.0, 0.0)}}, "standardise.age = [0.0, 0.0]: must be"),
        ({"standardise": {"age": (float("nan"), 1.0)}}, "must be [CENTRE, SPREAD]"),
        ({"clip": 0.0}, "clip = 0.0: must be"),
        ({"delta": float("inf")}, "delta = inf: must be"),
        ({"model": "tree"}, 'model = "tree": must be'),
        ({"hidden": ()}, "hidden = []: must be 1 to 8 layers"),
        ({"hidden": (5000,)}, "hidden = [5000]: must be"),
        ({"file": "a/b.csv"}, 'file = "a/b.csv": must be a plain name'),
        ({"test_share": -0.1}, "test_share = -0.1: must be from 0 to 0.9"),
        ({"min_rows": 0}, "min_rows = 0: must be at least 1"),
        ({"l2": -1.0}, "l2 = -1.0: must be"),
        ({"dtype": "float16"}, 'dtype = "float16": must be'),
        ({"delimiter": "x"}, 'delimiter = "x": must be'),
        ({"partition": "mine"}, 'partition = "mine": must be'),
        ({"root_file": "r.csv"}, 'root_file = "r.csv": must be another file than file = "t.csv", and needs partition'),
        ({"root_file": "t.csv", "partition": "own"}, 'root_file = "t.csv": must be another file'),
        ({"root_file": "../r.csv", "partition": "own"}, '"../r.csv": must be a plain name'),
    ],
)
def test_a_bad_value_is_refused_with_value_and_bound(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match="must") as error:
        task(**changes)
    assert words in str(error.value)


def test_a_config_is_read_as_it_is_written() -> None:
    adapter = TypeAdapter(TableTask)
    written = {
        "file": "t.csv",
        "target": "outcome",
        "classes": [0, 1],
        "numeric": ["age"],
        "categorical": {"s": [1, 2]},
    }
    read = adapter.validate_python(written)
    assert read.classes == ("0", "1")
    assert read.categorical == {"s": ("1", "2")}
    assert adapter.validate_python(json.loads(adapter.dump_json(read))) == read
    with pytest.raises(ValidationError, match="extra"):
        adapter.validate_python(written | {"extra": 1})


def test_only_tasks_that_can_read_own_data_have_that_partition() -> None:
    assert task(partition="own").partition == "own"
    with pytest.raises(ValueError, match='partition = "own": kind = "digits" splits data'):
        DigitsTask(partition="own")


# --- gradients ---

HEADS: list[tuple[Head, int]] = [("softmax", 3), ("logit", 1), ("squared", 1), ("huber", 1)]


def sample(head: Head, out: int, hidden: tuple[int, ...], m: int = 12) -> tuple[NetworkOracle, Vector]:
    rng = np.random.default_rng(5)
    network = Network((4, *hidden, out), head, delta=0.7)
    labels: Any = rng.normal(size=m) * 2 if head in ("squared", "huber") else rng.integers(0, max(2, out), m)
    return NetworkOracle(network, rng.normal(size=(m, 4)), labels, 0.1), rng.normal(size=network.dim)


@pytest.mark.parametrize("hidden", [(), (5,), (6, 3)])
@pytest.mark.parametrize(("head", "out"), HEADS)
def test_gradients_are_the_differences_of_the_loss(head: Head, out: int, hidden: tuple[int, ...]) -> None:
    oracle, x = sample(head, out, hidden)
    step, found = 1e-6, oracle.full_gradient(x)
    for k in range(len(x)):
        e = np.zeros_like(x)
        e[k] = step
        assert found[k] == pytest.approx((oracle.value(x + e) - oracle.value(x - e)) / (2 * step), abs=2e-6)


@pytest.mark.parametrize("hidden", [(), (5, 3)])
@pytest.mark.parametrize(("head", "out"), HEADS)
def test_loss_and_gradient_are_those_of_torch(head: Head, out: int, hidden: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    from torch.nn import functional

    oracle, x = sample(head, out, hidden)
    p = torch.tensor(x, requires_grad=True)
    layers, values = oracle.network.layers(p), torch.tensor(oracle.inputs)
    for k, (weight, bias) in enumerate(layers):
        values = values @ weight + bias
        values = values.relu() if k < len(layers) - 1 else values
    y = torch.tensor(oracle.labels)
    loss = {
        "softmax": lambda: functional.cross_entropy(values, y),
        "logit": lambda: functional.binary_cross_entropy_with_logits(values[:, 0], y.double()),
        "squared": lambda: functional.mse_loss(values[:, 0], y) / 2,
        "huber": lambda: functional.huber_loss(values[:, 0], y, delta=0.7),
    }[head]() + 0.05 * (p * p).sum()
    loss.backward()
    assert oracle.value(x) == pytest.approx(float(loss.detach()))
    assert p.grad is not None
    np.testing.assert_allclose(oracle.full_gradient(x), p.grad.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("head", "out"), HEADS)
def test_a_destroyed_model_gives_no_warning(head: Head, out: int) -> None:
    oracle, x = sample(head, out, (3,))
    for wild in (x * 1e200, np.full_like(x, np.nan), np.full_like(x, np.inf)):
        oracle.full_gradient(wild)
        oracle.value(wild)
        oracle.network.classes(wild, oracle.inputs)


def test_probabilities_are_those_of_the_classes() -> None:
    oracle, x = sample("softmax", 3, ())
    shares = oracle.network.probabilities(x, oracle.inputs)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    np.testing.assert_array_equal(shares.argmax(axis=1), oracle.network.classes(x, oracle.inputs))
    picked = shares[np.arange(12), oracle.labels]
    np.testing.assert_allclose(-np.log(picked), oracle.network.losses(x, oracle.inputs, oracle.labels))
    oracle, x = sample("logit", 1, ())
    shares = oracle.network.probabilities(x, oracle.inputs)
    np.testing.assert_allclose(shares[:, 1], 1 / (1 + np.exp(-oracle.network.scores(x, oracle.inputs)[:, 0])))
    np.testing.assert_array_equal(shares.argmax(axis=1), oracle.network.classes(x, oracle.inputs))


def test_the_model_learns_and_everything_repeats(tmp_path: Path) -> None:
    problem = loaded(tmp_path, rows(400), model="mlp", hidden=(8,))
    again = load(tmp_path, task(model="mlp", hidden=(8,)))
    x = problem.initial()
    assert x.tobytes() == again.initial().tobytes()
    for k in range(200):
        found = [
            p.oracle(k % 3).minibatch_gradients([x], 32, stream(0, Role.WORKER, 0, k))[0] for p in (problem, again)
        ]
        assert found[0].tobytes() == found[1].tobytes()
        x = x - 0.3 * found[0]
    assert accuracy(problem.evaluate(x)) > 0.7
    assert problem.evaluate(x).loss < problem.evaluate(problem.initial()).loss
    assert identify(problem) == identify(again)
    assert identify(problem).differences(identify(load(tmp_path, task(model="mlp", hidden=(9,)))))


def test_a_linear_model_starts_at_zero_and_two_classes_are_logistic_regression(tmp_path: Path) -> None:
    problem = loaded(tmp_path, rows(90))
    assert problem.dim == 5  # two numbers, two categories, one bias
    assert not problem.initial().any()
    assert problem.evaluate(problem.initial()).loss == pytest.approx(np.log(2))
    three = loaded(tmp_path, [*rows(90), "1,2,f,maybe"], classes=("no", "maybe", "yes"), partition="replicated")
    assert three.dim == 15
    assert json.loads(three.layout()) == [["weight_1", [4, 3]], ["bias_1", [3]]]


# --- the scaling ---


def test_columns_are_standardised_filled_and_cut(tmp_path: Path) -> None:
    write(tmp_path, ["40,10,m,no", ",70,,yes", "60,1e6,f,yes"])
    given = {"age": (50.0, 20.0), "bmi": (10.0, 20.0)}
    problem = load(tmp_path, task(partition="replicated", standardise=given, test_share=0.0))
    inputs, targets = problem.training_data()
    np.testing.assert_array_equal(inputs, [[-0.5, 0, 0, 1], [0, 3, 0, 0], [0.5, 5, 1, 0]])
    np.testing.assert_array_equal(targets, [0, 1, 1])


def test_shared_data_take_the_median_of_what_the_parts_report(tmp_path: Path) -> None:
    problem = loaded(tmp_path, rows(90), clients=3)
    assert problem.settled
    found = [problem.statistics(worker) for worker in range(3)]
    means = [each["age"]["mean"] for each in found if each is not None]
    assert problem.description()["scaling"]["age"]["centre"] == sorted(means)[1]
    assert [f"{mean:.6g}" for mean in means] == [str(mean) for mean in means]


def test_other_ways_to_standardise(tmp_path: Path) -> None:
    lines = rows(90)
    plain = loaded(tmp_path, lines, standardise="none", partition="replicated", test_share=0.0)
    columns = plain.description()["scaling"]
    assert columns["age"] | {"fill": 0} == {"centre": 0, "spread": 1, "fill": 0}
    assert 40 < columns["age"]["fill"] < 60
    assert plain.training_data()[0].max() > 60, "nothing is cut"
    assert plain.smoothness is None
    whole = loaded(tmp_path, rows(9, gaps=0), standardise="none", missing="refuse")
    assert not whole.needs_statistics, "so parts may be smaller than min_rows"
    mixed = loaded(tmp_path, lines, standardise={"age": (50.0, 10.0)}).description()["scaling"]
    assert mixed["age"] == {"centre": 50, "spread": 10, "fill": 50}
    assert 20 < mixed["bmi"]["centre"] < 30


def test_too_few_reports_are_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r'column "age": 0 parties reported statistics.*2f \+ 1 = 1.*standardise'):
        loaded(tmp_path, rows(30))
    write(tmp_path, rows(150))
    with pytest.raises(TaskError, match=r"3 parties reported statistics, and at least 2f \+ 1 = 5 must, with f = 2"):
        load(tmp_path, task(), 3, byzantine=2)


def test_a_party_reports_nothing_of_few_rows_or_few_values(tmp_path: Path) -> None:
    lines = rows(40, gaps=0)
    lines[5:] = [f",{line.partition(',')[2]}" for line in lines[5:]]
    write(tmp_path, lines)
    spec = task(partition="own", test_share=0.0)
    problem = load(tmp_path, spec, party="client")
    found = problem.statistics(0)
    assert found is not None
    assert found.keys() == {"bmi"}, "age has five values"
    assert problem.statistics(0, 41) is None
    assert problem.statistics(0, 5) is not None
    regression = load(write(tmp_path, numbers(30)).parent, task(partition="own", **REGRESSION), party="client")
    assert (regression.statistics(0) or {}).keys() == {"age", "bmi", "outcome"}


def test_a_party_that_reports_nonsense_does_not_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, rows(90))
    server = load(tmp_path / "none", task(partition="own"), party="server")
    honest = load(tmp_path, task(partition="own"), party="client").statistics(0)
    assert honest is not None
    hostile: dict[str, Any] = {
        "nothing": None,
        "text": "x",
        "list": [honest],
        "more": honest | {"height": honest["age"]},
        "huge": {name: column | {"mean": 1e30} for name, column in honest.items()},
        "nan": {name: column | {"variance": float("nan")} for name, column in honest.items()},
        "text\nin it": {name: column | {"median": "1"} for name, column in honest.items()},
        "negative": {name: column | {"variance": -1} for name, column in honest.items()},
    }
    alone = server.scaling_of({"a": honest}, 0)
    assert server.scaling_of({"a": honest, **hostile}, 0) == alone
    assert len(caplog.messages) == len(hostile) - 1
    assert all("do not count: " in line and "\n" not in line for line in caplog.messages)
    with pytest.raises(ValueError, match=r"1 parties reported statistics, and at least 2f \+ 1 = 3 must"):
        server.scaling_of({"a": honest, **hostile}, 1)
    zero = {"age": dict.fromkeys(honest["age"], 0), "bmi": dict.fromkeys(honest["bmi"], 0)}
    columns = Scaling.from_json(server.scaling_of({"a": honest, "b": honest, "liar": zero}, 1), ("age", "bmi")).columns
    assert columns == Scaling.from_json(alone, ("age", "bmi")).columns


def test_the_target_of_a_regression_is_scaled_and_its_flip_is_the_negative(tmp_path: Path) -> None:
    problem = loaded(tmp_path, numbers(120), **REGRESSION)
    targets = problem.training_data()[1]
    assert abs(targets.mean()) < 0.3
    assert 0.8 < targets.std() < 1.2
    plain, flipped = problem.oracle(0), problem.oracle(0, flipped=True)
    np.testing.assert_array_equal(flipped.labels, -plain.labels)
    assert problem.evaluate(problem.initial()).accuracy is None
    assert problem.measure(1, problem.initial()).accuracy is None
    huber = loaded(tmp_path, numbers(120), **REGRESSION | {"loss": "huber"}, delta=0.5)
    assert huber.evaluate(huber.initial()).loss < problem.evaluate(problem.initial()).loss


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"classes": ("no", "maybe", "yes")},
        {**REGRESSION, "classes": None},
        {**REGRESSION, "loss": "huber", "delta": 2.0},
        {"clip": 2.0, "l2": 0.5},
        {"numeric": ()},
    ],
)
def test_no_table_has_a_larger_l_than_the_bound(changes: dict[str, Any]) -> None:
    """The Hessian's largest eigenvalue, on the worst table there is and on random ones; nearly reached by the worst."""
    spec = task(**changes)
    bound = spec.smoothness(spec.l2)
    assert bound is not None
    rng = np.random.default_rng(2)
    worst = np.array([[spec.clip] * len(spec.numeric) + [1.0, 0.0]])
    largest = []
    for inputs in (worst, *(np.clip(rng.normal(size=(9, spec.inputs)) * 9, -spec.clip, spec.clip) for _ in range(5))):
        inputs[:, len(spec.numeric) :] = np.eye(2)[rng.integers(0, 2, len(inputs))]
        labels: Any = rng.integers(0, max(2, len(spec.class_names)), len(inputs))
        oracle = NetworkOracle(spec.network, inputs, labels.astype(float) if spec.loss else labels, spec.l2)
        x = np.zeros(oracle.dim)
        if spec.network.head == "softmax":  # the curvature is largest where two classes share all
            x[-3:] = [30, 0, 30]
        hessian = np.array([_slope(oracle, x, e) for e in np.eye(len(x))])
        largest.append(np.linalg.eigvalsh((hessian + hessian.T) / 2)[-1])
    assert max(largest) <= bound * (1 + 1e-6)
    assert max(largest) >= bound * (1 - 1e-4), "the worst table reaches it"
    assert task(model="mlp", **changes).smoothness(0.0) is None


def _slope(oracle: NetworkOracle, x: Vector, e: Vector, step: float = 1e-5) -> Vector:
    """Return the derivative of the gradient along e."""
    return (oracle.full_gradient(x + step * e) - oracle.full_gradient(x - step * e)) / (2 * step)


# --- who reads what ---


def parties(folder: Path, lines: list[str], clients: int, seed: int, partition: str = "label") -> dict[int, Path]:
    """Split a table as ``partition`` does, into one folder for each worker."""
    labels = np.array([line.endswith("yes") for line in lines]).astype(np.int64)
    found = {}
    for worker, part in enumerate(split(partition, labels, clients, seed)):
        found[worker] = folder / str(worker)
        write(found[worker], [lines[row] for row in part])
    return found


@pytest.mark.parametrize("partition", ["iid", "label", "dirichlet(0.5)"])
def test_own_folders_and_a_shared_table_give_the_same_bits(tmp_path: Path, partition: str) -> None:
    lines, seed = rows(150, seed=3), 4
    folders = parties(tmp_path, lines, 4, seed, partition)
    shared = loaded(tmp_path, lines, 4, partition="iid")
    shared = load(tmp_path, task(partition=partition, l2=0.01), 4, byzantine=1, seed=seed)
    own = task(partition="own", l2=0.01)
    server = load(tmp_path / "nothing", own, 4, byzantine=1, seed=seed, party="server")
    at_once = own.load(Setting(4, 1, seed, folders=folders))
    alone = [own.load(Setting(4, 1, seed, data_dir=folders[k], party="client")) for k in range(4)]
    reports = [alone[worker].statistics(worker) for worker in range(4)]
    scaling = server.scaling_of(dict(zip("abcd", json.loads(json.dumps(reports)), strict=True)), 1)
    rng = np.random.default_rng(0)
    for problem in (server, at_once, *alone):
        assert not problem.settled
        problem.settle(scaling)
        assert problem.description() == shared.description() | {"schema": problem.spec.described()}
        assert problem.initial().tobytes() == shared.initial().tobytes()
        assert problem.smoothness == shared.smoothness
    for worker in range(4):
        x, draw = rng.normal(size=shared.dim), [stream(seed, Role.WORKER, worker, 1) for _ in range(3)]
        found = [
            problem.oracle(worker, flipped=worker == 3).minibatch_gradients([x, 2 * x], 8, generator)
            for problem, generator in zip((shared, at_once, alone[worker]), draw, strict=True)
        ]
        for other in found[1:]:
            assert [g.tobytes() for g in other] == [g.tobytes() for g in found[0]]
        for problem in (at_once, alone[worker]):
            assert problem.measure(worker, x) == shared.measure(worker, x)
            assert problem.count(worker) == shared.count(worker)
            assert problem.kept_back(worker) == shared.kept_back(worker)


def test_a_server_needs_no_data_and_cannot_compute_gradients(tmp_path: Path) -> None:
    spec = task(partition="own")
    for setting in (Setting(3), Setting(3, party="server"), Setting(3, party="server", data_dir=tmp_path)):
        problem = spec.load(setting)
        assert not problem.has_test_data
        assert problem.samples == 0
        assert problem.training_data() == []
        with pytest.raises(TaskError, match="are at that client alone"):
            problem.oracle(0)
        with pytest.raises(TaskError, match="let the clients measure it"):
            problem.evaluate(problem.initial())


def test_a_servers_own_table_is_its_test_set(tmp_path: Path) -> None:
    write(tmp_path, rows(50))
    server = load(tmp_path, task(partition="own", standardise={"age": (50, 12), "bmi": (26, 4)}), party="server")
    assert server.has_test_data
    assert server.settled, "nothing is to be agreed on"
    assert server.evaluate(server.initial()).loss == pytest.approx(np.log(2))
    write(tmp_path, ["1,2,f,perhaps"])
    with pytest.raises(TaskError, match='line 2, column "outcome": "perhaps" is no class'):
        load(tmp_path, task(partition="own"), party="server")


def test_a_client_reads_its_own_folder_before_it_joins(tmp_path: Path) -> None:
    spec = task(partition="own")
    with pytest.raises(TaskError, match=r'table "t.csv": is not in the folder .*--data FOLDER'):
        load(tmp_path, spec, party="client")
    with pytest.raises(TaskError, match="no data folder is named"):
        spec.load(Setting(3, party="client"))
    write(tmp_path, ["1,x,f,no"])
    with pytest.raises(TaskError, match='line 2, column "bmi": "x" is no number'):
        load(tmp_path, spec, party="client")


def test_a_process_with_several_seats_reads_their_folders_alone(tmp_path: Path) -> None:
    folders = {worker: write(tmp_path / str(worker), rows(30, worker)).parent for worker in (1, 2)}
    problem = load(tmp_path / "none", task(partition="own"), party="client", folders=folders)
    assert problem.statistics(1) != problem.statistics(2)
    with pytest.raises(TaskError, match="the rows of client 0 are at that client alone"):
        problem.count(0)


def test_what_is_not_agreed_yet_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, rows(30))
    problem = load(tmp_path, task(partition="own"), party="client")
    with pytest.raises(TaskError, match="the scaling of the columns is not known yet"):
        problem.oracle(0)
    with pytest.raises(ValueError, match='column "bmi": the scaling lacks it'):
        problem.settle(Scaling({"age": ColumnScaling(0, 1, 0)}).to_json())
    columns = {"age": ColumnScaling(50, 12, 50), "bmi": ColumnScaling(26, 4, 25)}
    problem.settle(Scaling(columns).to_json())
    oracle = problem.oracle(0)
    problem.settle(Scaling(columns).to_json())
    assert problem.oracle(0) is oracle
    problem.settle(Scaling(columns | {"age": ColumnScaling(40, 12, 50)}).to_json())
    assert not np.array_equal(problem.oracle(0).inputs, oracle.inputs)


@pytest.mark.parametrize(
    ("lines", "share", "kept"),
    [
        (["1,2,f,no"], 0.9, 0),
        (["1,2,f,no", "1,2,f,yes"], 0.9, 1),
        (["1,2,f,no"] * 10, 0.2, 2),
        (["1,2,f,no"] * 10 + ["1,2,f,yes"] * 40, 0.2, 10),
        (["1,2,f,no"] * 10, 0.0, 0),
    ],
)
def test_a_party_keeps_a_part_back_and_trains_on_the_rest(
    tmp_path: Path, lines: list[str], share: float, kept: int
) -> None:
    write(tmp_path, lines)
    given = {"age": (0.0, 1.0), "bmi": (0.0, 1.0)}
    problem = load(tmp_path, task(partition="own", test_share=share, standardise=given), 2, party="client")
    assert problem.count(0) == len(lines) - kept
    assert problem.kept_back(0) == (kept or len(lines))
    assert problem.samples == problem.count(0)
    party = problem._party(0)
    assert party.kept.targets is not None
    labels = Counter(int(label) for label in party.kept.targets)
    assert kept != 10 or labels == {0: 2, 1: 8}, "of each class alike"
    gradients = problem.oracle(0).minibatch_gradients([problem.initial()], 1000, np.random.default_rng(0))
    assert np.isfinite(gradients[0]).all()
    assert np.isfinite(problem.measure(0, problem.initial()).loss)


def test_the_shared_accuracy_is_measured_on_what_honest_workers_keep_back(tmp_path: Path) -> None:
    problem = loaded(tmp_path, rows(200), clients=4)
    x = np.random.default_rng(0).normal(size=problem.dim)
    kept = [problem.kept_back(worker) for worker in range(4)]
    assert abs(sum(kept) - 40) <= 4
    mean = sum(k * accuracy(problem.measure(w, x)) for w, k in enumerate(kept)) / sum(kept)
    assert accuracy(problem.evaluate(x)) == pytest.approx(mean)


# --- the server's own rows ---

GIVEN: dict[str, Any] = {"standardise": {"age": (50.0, 12.0), "bmi": (26.0, 4.0)}}


def with_root(folder: Path, root: int = 9, party: str = "server", **changes: Any) -> TableProblem:
    """Load the task whose server has rows of its own."""
    return load(folder, task(partition="own", root_file="r.csv", **changes), party=party, root=root)


@pytest.mark.parametrize("tested", [False, True])
def test_the_servers_row_is_the_gradient_of_all_rows_of_its_file(tmp_path: Path, tested: bool) -> None:
    lines = rows(40, seed=1)
    write(tmp_path, lines, "r.csv")
    if tested:
        write(tmp_path, rows(30))
    server = with_root(tmp_path, **GIVEN)
    assert server.has_root_data
    assert server.has_test_data == tested
    with pytest.raises(TaskError, match="at that client alone"):
        server.oracle(0)
    alone = loaded(tmp_path / "alone", lines, partition="replicated", test_share=0.0, **GIVEN)
    x = np.linspace(-1, 1, server.dim)
    assert server.root().full_gradient(x).tobytes() == alone.oracle(0).full_gradient(x).tobytes()


def test_the_servers_rows_wait_for_the_scaling_of_the_parties(tmp_path: Path) -> None:
    write(tmp_path, rows(40, seed=1), "r.csv")
    server = with_root(tmp_path)
    with pytest.raises(TaskError, match="the scaling of the columns is not known yet"):
        server.root()
    report = load(write(tmp_path / "a", rows(50)).parent, task(partition="own"), party="client").statistics(0)
    server.settle(server.scaling_of({"a": report}, 0))
    assert server.root().full_gradient(server.initial()).shape == (server.dim,)


def test_only_a_server_whose_rule_needs_them_reads_its_rows(tmp_path: Path) -> None:
    write(tmp_path, rows(30))
    for party, root in (("client", 9), ("server", 0)):
        problem = with_root(tmp_path, root, party)
        assert not problem.has_root_data
        with pytest.raises(TaskError, match="the server has no training rows of its own"):
            problem.root()


@pytest.mark.parametrize(
    ("header", "lines", "words"),
    [
        (None, [], 'table "r.csv": is not in the folder .*--data FOLDER'),
        (HEADER, ["50,26,f,no", "51,27,m,yes"], "1 of the server's 2 own training samples are in its test data too"),
        ("age,sex,outcome", ["50,f,no"], r'r\.csv.*column "bmi"'),
        (HEADER, ["50,26,f,perhaps"], r'r\.csv, line 2, column "outcome": "perhaps" is no class'),
        (HEADER, [], r"r\.csv.*no rows"),
    ],
)
def test_rows_of_the_servers_that_it_cannot_train_on(
    tmp_path: Path, header: str | None, lines: list[str], words: str
) -> None:
    write(tmp_path, [*rows(30), "51,27,m,yes"])
    if header is not None:
        write(tmp_path, lines, "r.csv", header)
    with pytest.raises(TaskError, match=words) as error:
        with_root(tmp_path)
    assert "\n" not in str(error.value)
