"""Logistic regression against plain loops, finite differences, definitions and an independent optimiser."""

import bz2
import gzip
import hashlib
import math
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from strategies.method import Vector
from tasks.contract import Setting
from tasks.logistic import LogisticLoss, LogisticProblem, LogisticTask
from tasks.matrix import DenseMatrix, SparseMatrix
from tasks.partition import draw

D = 12
POINT = np.random.default_rng(5).normal(size=D)


def rows_and_labels(density: float, samples: int = 40) -> tuple[Vector, Vector]:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(samples, D)) * (rng.random((samples, D)) < density)
    rows[3] = 0  # a sample without any feature
    rows[:, D - 1] = 1  # the last column is in the file
    rows[3, D - 1] = 0
    return rows, np.where(rng.random(samples) < 0.4, 1.0, -1.0)


def write_libsvm(folder: Path, rows: Vector, labels: Vector, name: str = "set") -> str:
    lines = [
        f"{label:+g} " + " ".join(f"{column + 1}:{row[column]!r}" for column in np.flatnonzero(row).tolist())
        for label, row in zip(labels.tolist(), rows.astype(object), strict=True)
    ]
    text = ("\n".join(lines) + "\n").encode()
    if name.endswith(".gz"):
        text = gzip.compress(text)
    if name.endswith(".bz2"):
        text = bz2.compress(text)
    (folder / name).write_bytes(text)
    return name


def load(folder: Path, density: float, *, clients: int = 4, byzantine: int = 1, **options: object) -> LogisticProblem:
    rows, labels = rows_and_labels(density)
    name = write_libsvm(folder, rows, labels)
    setting = Setting(clients=clients, byzantine=byzantine, seed=3, data_dir=folder)
    return LogisticTask(data=name, **options).load(setting)  # type: ignore[arg-type]  # options of several types


def scaled(rows: Vector) -> list[list[float]]:
    return [[v / math.sqrt(sum(u * u for u in row)) if any(row) else 0.0 for v in row] for row in rows.tolist()]


def loop_loss(rows: list[list[float]], labels: list[float], x: list[float], l2: float) -> float:
    total = 0.0
    for row, label in zip(rows, labels, strict=True):
        total += math.log(1 + math.exp(-label * sum(a * v for a, v in zip(row, x, strict=True))))
    return total / len(rows) + l2 / 2 * sum(v * v for v in x)


def loop_gradient(rows: list[list[float]], labels: list[float], x: list[float], l2: float) -> list[float]:
    gradient = [l2 * v for v in x]
    for row, label in zip(rows, labels, strict=True):
        margin = label * sum(a * v for a, v in zip(row, x, strict=True))
        for j, a in enumerate(row):
            gradient[j] -= label * a / (1 + math.exp(margin)) / len(rows)
    return gradient


@pytest.mark.parametrize(("density", "form"), [(0.1, SparseMatrix), (0.9, DenseMatrix)])
@pytest.mark.parametrize("normalise", [True, False])
def test_gradient_and_loss_are_those_of_the_plain_loop(
    tmp_path: Path, density: float, form: type, normalise: bool
) -> None:
    rows, labels = rows_and_labels(density)
    plain = scaled(rows) if normalise else rows.tolist()
    problem = load(tmp_path, density, normalise=normalise)
    assert isinstance(problem.oracle(0).matrix, form)
    x = POINT.tolist()
    assert problem.evaluate(POINT).loss == pytest.approx(loop_loss(plain, labels.tolist(), x, 0.01), rel=1e-13)
    expected = loop_gradient(plain, labels.tolist(), x, 0.01)
    np.testing.assert_allclose(problem.oracle(2).full_gradient(POINT), expected, rtol=1e-12, atol=1e-15)
    flipped = loop_gradient(plain, (-labels).tolist(), x, 0.01)
    np.testing.assert_allclose(problem.oracle(2, flipped=True).full_gradient(POINT), flipped, rtol=1e-12, atol=1e-15)
    hits = [(sum(a * v for a, v in zip(r, x, strict=True)) > 0) == (y > 0) for r, y in zip(plain, labels, strict=True)]
    assert problem.evaluate(POINT).accuracy == sum(hits) / len(hits)


@pytest.mark.parametrize("density", [0.1, 0.9])
def test_minibatch_gradients_are_those_of_the_drawn_rows_at_every_point(tmp_path: Path, density: float) -> None:
    rows, labels = rows_and_labels(density)
    problem = load(tmp_path, density)
    drawn = draw(len(labels), 7, np.random.default_rng(8))
    plain = [scaled(rows)[row] for row in drawn]
    points = [POINT, -2 * POINT]
    got = problem.oracle(1).minibatch_gradients(points, 7, np.random.default_rng(8))
    for x, gradient in zip(points, got, strict=True):
        expected = loop_gradient(plain, labels[drawn].tolist(), x.tolist(), 0.01)
        np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("density", [0.1, 0.9])
def test_the_mean_over_all_minibatches_is_the_full_gradient(tmp_path: Path, density: float) -> None:
    loss = load(tmp_path, density).oracle(0)
    small = LogisticLoss(loss.matrix.part(np.arange(6)), loss.signs[:6], loss.l2)
    gradients = [
        LogisticLoss(small.matrix.part(np.array(rows)), small.signs[list(rows)], loss.l2).full_gradient(POINT)
        for rows in combinations(range(6), 2)
    ]
    np.testing.assert_allclose(np.mean(gradients, axis=0), small.full_gradient(POINT), rtol=1e-12, atol=1e-15)
    (everything,) = small.minibatch_gradients([POINT], 99, np.random.default_rng(0))
    assert np.array_equal(everything, small.full_gradient(POINT))


@pytest.mark.parametrize("density", [0.1, 0.9])
def test_gradient_agrees_with_finite_differences(tmp_path: Path, density: float) -> None:
    objective = load(tmp_path, density, partition="iid").objective
    step = 1e-6
    for j in range(D):
        e = step * np.eye(D)[j]
        slope = (objective.value(POINT + e) - objective.value(POINT - e)) / (2 * step)
        assert objective.full_gradient(POINT)[j] == pytest.approx(slope, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("partition", ["iid", "label", "dirichlet(0.3)"])
def test_the_objective_is_the_mean_of_the_honest_workers_losses(tmp_path: Path, partition: str) -> None:
    problem = load(tmp_path, 0.1, clients=7, byzantine=1, partition=partition)
    honest = [problem.oracle(worker) for worker in range(6)]
    assert {len(oracle.signs) for oracle in honest} == {5, 6}
    assert problem.evaluate(POINT).loss == pytest.approx(np.mean([oracle.value(POINT) for oracle in honest]), rel=1e-14)
    mean = np.mean([oracle.full_gradient(POINT) for oracle in honest], axis=0)
    np.testing.assert_allclose(problem.objective.full_gradient(POINT), mean, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("partition", ["replicated", "iid"])
@pytest.mark.parametrize("density", [0.1, 0.9])
def test_smoothness_is_the_largest_eigenvalue_of_its_definition(tmp_path: Path, density: float, partition: str) -> None:
    problem = load(tmp_path, density, partition=partition, clients=3, byzantine=1)
    oracles = [problem.oracle(worker) for worker in ([0, 1] if partition == "iid" else [0])]
    hessians = []
    for oracle in oracles:  # at x = 0, where the sigmoid's slope is 1/4
        columns = np.array([oracle.matrix.times(e) for e in np.eye(D)])
        hessians.append(columns @ columns.T / (4 * len(oracle.signs)) + 0.01 * np.eye(D))
    expected = np.linalg.eigvalsh(np.mean(hessians, axis=0))[-1]
    assert problem.smoothness == pytest.approx(expected, rel=1e-12)
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.normal(size=(2, D))
        change = problem.objective.full_gradient(x) - problem.objective.full_gradient(y)
        assert np.linalg.norm(change) <= problem.smoothness * np.linalg.norm(x - y) * (1 + 1e-12)


def test_smoothness_of_many_columns_comes_without_forming_a_matrix_of_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(30, 2500)) * (rng.random((30, 2500)) < 0.05)
    name = write_libsvm(tmp_path, rows, np.where(np.arange(30) % 3, 1.0, -1.0))
    task = LogisticTask(data=name, l2=0.5, normalise=False, features=2500)
    problem = task.load(Setting(clients=2, data_dir=tmp_path))
    assert problem.smoothness == pytest.approx(np.linalg.norm(rows, 2) ** 2 / (4 * 30) + 0.5, rel=1e-9)
    assert problem.optimum is None
    assert problem.evaluate(problem.initial()).gap is None


@pytest.mark.parametrize("density", [0.1, 0.9])
@pytest.mark.parametrize("partition", ["replicated", "dirichlet(1)"])
@pytest.mark.parametrize("l2", [0.01, 1e-5])
def test_optimum_is_what_an_independent_optimiser_finds(
    tmp_path: Path, density: float, partition: str, l2: float
) -> None:
    from scipy.optimize import minimize

    problem = load(tmp_path, density, partition=partition, l2=l2, normalise=False)
    f = problem.objective
    options = {"maxiter": 10_000, "ftol": 1e-15, "gtol": 1e-10}
    found = minimize(f.value, np.zeros(D), jac=f.full_gradient, method="L-BFGS-B", options=options)
    assert problem.optimum == pytest.approx(found.fun, abs=1e-10)
    assert problem.optimum is not None
    assert problem.optimum <= found.fun + 1e-15


def test_without_regulariser_there_need_be_no_optimum(tmp_path: Path) -> None:
    assert load(tmp_path, 0.1, l2=0.0).optimum is None


@pytest.mark.parametrize("name", ["set", "set.gz", "set.bz2"])
def test_packed_files_read_the_same(tmp_path: Path, name: str) -> None:
    rows, labels = rows_and_labels(0.3)
    write_libsvm(tmp_path, rows, labels, name)
    problem = LogisticTask(data=name, normalise=False).load(Setting(clients=1, data_dir=tmp_path))
    columns = np.array([problem.oracle(0).matrix.times(e) for e in np.eye(D)])
    assert np.array_equal(columns.T, rows)  # to the last bit
    assert np.array_equal(problem.oracle(0).signs, labels)


@pytest.mark.parametrize("density", [0.1, 0.9])
def test_float32_stays_float32(tmp_path: Path, density: float) -> None:
    double, single = load(tmp_path, density), load(tmp_path, density, dtype="float32")
    x = POINT.astype(np.float32)
    assert single.dtype == single.initial().dtype == np.float32
    for partition in ("replicated", "iid"):
        oracle = load(tmp_path, density, dtype="float32", partition=partition).oracle(0)
        gradients = [oracle.full_gradient(x), *oracle.minibatch_gradients([x, -x], 5, np.random.default_rng(0))]
        assert [gradient.dtype for gradient in gradients] == [np.dtype(np.float32)] * 3
    np.testing.assert_allclose(single.oracle(0).full_gradient(x), double.oracle(0).full_gradient(POINT), atol=1e-6)
    assert single.evaluate(x).loss == single.objective.value(x.astype(np.float64))  # measured to the last digit
    assert double.optimum is not None
    assert single.optimum == pytest.approx(double.optimum, abs=1e-7)


@pytest.mark.parametrize("density", [0.1, 0.9])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_huge_margins_neither_overflow_nor_lose_the_loss(tmp_path: Path, density: float, dtype: str) -> None:
    problem = load(tmp_path, density, normalise=False, l2=0.0, dtype=dtype)
    x = (1e6 * POINT).astype(dtype)
    evaluation = problem.evaluate(x)
    margins = problem.oracle(0).signs * problem.oracle(0).matrix.times(x)
    assert evaluation.loss == pytest.approx(float(np.mean(np.maximum(-margins, 0))), rel=1e-6)
    assert np.isfinite(problem.oracle(0).full_gradient(x)).all()


def test_a_destroyed_model_gives_no_numbers_and_no_warnings(tmp_path: Path) -> None:
    problem = load(tmp_path, 0.9)
    x = np.full(D, np.inf)
    x[::2] = -np.inf
    assert not math.isfinite(problem.evaluate(x).loss)
    (gradient,) = problem.oracle(0).minibatch_gradients([x], 2, np.random.default_rng(0))
    assert not np.isfinite(gradient).any()


def test_the_last_full_gradient_is_kept_and_cannot_be_spoiled(tmp_path: Path) -> None:
    problem = load(tmp_path, 0.1)
    assert problem.oracle(0) is problem.oracle(3)
    x = POINT.copy()
    first = problem.oracle(0).full_gradient(x)
    kept = first.copy()
    first[:] = 7  # what a caller does to the answer
    assert np.array_equal(problem.oracle(1).full_gradient(x), kept)
    x *= 2  # or to the question
    assert not np.array_equal(problem.oracle(1).full_gradient(x), kept)
    assert np.array_equal(problem.oracle(1).full_gradient(POINT), kept)


@pytest.mark.parametrize(
    ("name", "l2", "smoothness", "optimum"),
    [("a9a", 0.01, 0.123206, 0.4871001590012879), ("w8a", 0.01, 0.0427475, 0.3969970100)],
)
def test_published_numbers(data_dir: Path, name: str, l2: float, smoothness: float, optimum: float) -> None:
    problem = LogisticTask(data=f"libsvm/{name}.gz", l2=l2).load(Setting(clients=20, byzantine=5, data_dir=data_dir))
    assert problem.smoothness == pytest.approx(smoothness, abs=5e-7)
    assert problem.optimum == pytest.approx(optimum, abs=5e-11 if name == "w8a" else 1e-15)
    start = problem.evaluate(problem.initial())
    assert start.loss == pytest.approx(math.log(2), abs=1e-15)
    assert start.gap == start.loss - (problem.optimum or 0)


def bits(folder: Path) -> str:
    """Return a digest of what the two files of the test below give."""
    digest = hashlib.sha256()
    for name in ("sparse", "dense"):
        for partition in ("replicated", "dirichlet(0.5)"):
            setting = Setting(clients=4, byzantine=1, seed=3, data_dir=folder)
            problem = LogisticTask(data=name, partition=partition).load(setting)
            x, oracle = np.linspace(-3, 3, problem.dim), problem.oracle(2)
            vectors = [oracle.full_gradient(x), *oracle.minibatch_gradients([x, -x], 9, np.random.default_rng(0))]
            for vector in [*vectors, np.float64(problem.evaluate(x).loss), np.float64(problem.smoothness)]:
                digest.update(vector.tobytes())
    return digest.hexdigest()


def test_another_process_computes_the_same_bits(tmp_path: Path) -> None:
    for name, density in (("sparse", 0.1), ("dense", 0.9)):
        write_libsvm(tmp_path, *rows_and_labels(density, samples=4000), name)
    code = "import sys, pathlib; from tests.reference.test_logistic import bits; print(bits(pathlib.Path(sys.argv[1])))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "2", "PYTHONHASHSEED": "7"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == bits(tmp_path)
