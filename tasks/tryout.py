"""Tests a task before a run uses it: data, gradients and the measure, on an instance that is discarded.

The assumptions of the methods are tested on a few samples, so that a mistake is one line before the federation starts
and not a wrong run. The task that the run uses is never called here, and the states of the generators of torch, NumPy
and Python are restored. ``docs/tasks.md`` lists the tests.

Built-in tasks have unit tests for all of this and are not tested again.
"""

import math
import sys
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from strategies.method import Oracle, Vector, begin, full_gradients
from tasks.compute import CPU, computing
from tasks.contract import Problem, Setting, TaskSpec
from tasks.own_problem import OwnProblem
from tasks.trial import SEEDED, Demands, Trial, generators_restored, spread

MOST_WORKERS = 64
"""Test at most this many workers: the first, the last, and others evenly between."""
MOST_SAMPLES = 4_096
"""Test full gradients of workers with at most this many samples."""
MOST_MEASURED = 20_000
"""Compare the objective with the gradients up to this many samples of all workers together."""
_FAR = 5.0
"""The loss that is measured may be a multiple of the objective, such as one without the factor 1/2, up to this."""


def needs_trial(spec: object) -> bool:
    """Return whether a task is tested: all but the built-in ones are."""
    return not getattr(spec, "tested", False)


def try_out(spec: TaskSpec, setting: Setting, demands: Demands, problem: Problem) -> None:
    """Load the task once more and try it, on the CPU in the type of its parameters: the only place of exact bits.

    Args:
        spec: of the task.
        setting: of the load.
        demands: what will be needed of it.
        problem: the loaded task that the run uses; only its data are looked at.

    Raises:
        TaskError: the task cannot be used; one line that says why, and what to change.
    """
    trial = Trial(spec, setting)
    with generators_restored(), computing(CPU):
        again = trial.load()
        on_torch = False
        if "torch" in sys.modules:
            from tasks import torch_tryout

            one, other = (_of_party(each, demands) for each in (problem, again))
            on_torch = torch_tryout.try_torch(trial, one, other, demands)
        _try_form(trial, again)
        if not on_torch and demands.workers:
            _compare_loads(trial, again, demands)
        for worker, batch in product(_some(demands.workers), dict.fromkeys(demands.batches)):
            _try_gradient(trial, again, worker, batch, fresh=not on_torch)
        for worker in _some(demands.flipped):
            _try_flipped(trial, again, worker, demands.batches[0])
        if demands.evaluates:
            _try_evaluate(trial, again)
            if not on_torch and setting.party is None:
                _hold_against_objective(trial, again, setting)


def _inner(problem: Any) -> Any:
    """Return what a class of the user's own gave."""
    return problem.inner if isinstance(problem, OwnProblem) else problem


def _of_party(problem: Any, demands: Demands) -> Any:
    """Return what is tried: where parties have their own data, the problem of the one that this process holds."""
    of_party = getattr(problem, "of_party", None)
    return _inner(problem) if of_party is None else of_party(demands.workers[0]) if demands.workers else None


def _some(workers: Sequence[int]) -> list[int]:
    """Return at most MOST_WORKERS of them."""
    chosen: list[int] = spread(np.asarray(workers, dtype=int), MOST_WORKERS).tolist()
    return chosen


def _try_form(trial: Trial, problem: Problem) -> None:
    with trial.reporting("smoothness and optimum"):
        getattr(problem, "smoothness"), getattr(problem, "optimum")  # noqa: B009  # what is no number is refused
    with trial.reporting("initial()"):
        x = problem.initial()
    _check_vector(trial, "initial()", x, problem)
    _check_finite(trial, "initial()", x)


def _check_vector(trial: Trial, name: str, vector: Any, problem: Problem) -> None:
    if not isinstance(vector, np.ndarray):
        trial.refuse(f"{name} is {type(vector).__name__}; must be a NumPy array")
    if vector.shape != (problem.dim,) or vector.dtype != problem.dtype:
        form = f"shape {vector.shape} and dtype {vector.dtype}"
        trial.refuse(f"{name} has {form}; must have ({problem.dim},) and {problem.dtype}")


def _check_finite(trial: Trial, what: str, vector: Vector) -> None:
    if not np.isfinite(vector).all():
        trial.refuse(f"{what}: {vector[~np.isfinite(vector)][0]} at x0; x0, loss and gradient must be finite")


def _received(x: Vector) -> Vector:
    """Return a copy that is read-only, as one that came over the wire."""
    x = x.copy()
    x.setflags(write=False)
    return x


def _oracle(trial: Trial, problem: Problem, worker: int, flipped: bool = False) -> Oracle:
    with trial.reporting(f"oracle({worker}{', flipped=True' if flipped else ''})"):
        return problem.oracle(worker, flipped=flipped)


def _gradients(
    trial: Trial, problem: Problem, oracle: Oracle, points: list[Vector], batch: int, what: str
) -> list[Vector]:
    """Return gradients, of the right form, at points that the task must leave alone."""
    given = [_received(x) for x in points]
    with trial.reporting(what), np.errstate(all="ignore"):
        begin(oracle, partial(np.random.default_rng, 1))
        if batch:
            found = list(oracle.minibatch_gradients(given, batch, np.random.default_rng(0)))
        else:
            found = list(full_gradients(oracle, given))
    if len(found) != len(points):
        trial.refuse(f"{what}: {len(found)} gradients for {len(points)} points; must be one for each")
    for gradient in found:
        _check_vector(trial, f"{what}: a gradient", gradient, problem)
    if any(not np.array_equal(x, kept) for x, kept in zip(given, points, strict=True)):
        trial.refuse(f"{what}: changed the model x that it was given; compute with x.copy()")
    return found


def _try_gradient(trial: Trial, problem: Problem, worker: int, batch: int, *, fresh: bool) -> None:
    """Try one worker: two gradients at one point on one minibatch are equal bit for bit.

    With ``fresh`` also later, and whatever the caller does to what was returned.
    """
    x = problem.initial()
    most = MOST_SAMPLES
    if "torch" in sys.modules:
        from tasks import torch_tryout

        most = torch_tryout.most_samples(_inner(problem), most)
    if not batch and problem.samples > most:
        return
    what = f"a gradient of worker {worker} on " + (f"a minibatch of {batch}" if batch else "all its samples")
    oracle = _oracle(trial, problem, worker)
    first, second = _gradients(trial, problem, oracle, [x, x], batch, what)
    _check_finite(trial, what, first)
    if not np.array_equal(first, second):
        reason = "the methods send differences of gradients, so nothing may be drawn at random, or kept, between them"
        trial.refuse(f"{what}: two gradients at one point on one minibatch differ; {reason}")
    if not fresh:
        return
    kept = first.copy()
    (elsewhere,) = _gradients(trial, problem, oracle, [x + 1], batch, what)
    if not np.array_equal(first, kept) or np.shares_memory(first, elsewhere):
        trial.refuse(f"{what}: a later gradient changes an earlier one; return a fresh array each time")
    if first.flags.writeable:
        first[...] = 0
    (again,) = _gradients(trial, problem, oracle, [x], batch, what)
    if not np.array_equal(again, kept):
        fix = "draw from the given rng alone, and return fresh arrays"
        trial.refuse(f"{what}: another one at the same point when asked again with the same generator; {fix}")


def _try_flipped(trial: Trial, problem: Problem, worker: int, batch: int) -> None:
    what = f"a gradient of worker {worker} on flipped labels, which the attack needs"
    oracle = _oracle(trial, problem, worker, True)
    _check_finite(trial, what, _gradients(trial, problem, oracle, [problem.initial()], batch, what)[0])


def _try_evaluate(trial: Trial, problem: Problem) -> None:
    """Measure x0, the objective and the accuracy: as much of them as is cheap."""
    inner, x0 = _inner(problem), problem.initial()
    if "torch" in sys.modules:
        from tasks import torch_tryout

        inner = torch_tryout.shortened(inner)
    x = _received(x0)
    with trial.reporting("evaluate(x0)"):
        measured = inner.evaluate(x)
    if not np.array_equal(x, x0):
        trial.refuse("evaluate(x) changed the model x that it was given; compute with x.copy()")
    values: dict[str, float | None] = {}
    for name in ("loss", "accuracy", "gap"):
        if not hasattr(measured, name):
            trial.refuse(f"evaluate() gave {type(measured).__name__}; must be breakwater.tasks.Evaluation")
        value = getattr(measured, name)
        try:
            values[name] = None if value is None and name != "loss" else float(value)
        except (TypeError, ValueError):
            shown = f"an array of shape {np.shape(value)}" if np.size(value) > 1 else f"{value!r:.80}"
            trial.refuse(f"evaluate() gave {name} = {shown}; must be one number")
    loss, accuracy = values["loss"], values["accuracy"]
    if loss is None or not math.isfinite(loss):
        trial.refuse(f"evaluate(x0) gave loss = {loss}; must be finite at the start: the mean loss over the samples")
    if accuracy is not None and not math.isnan(accuracy) and not 0 <= accuracy <= 1:
        trial.refuse(f"evaluate(x0) gave accuracy = {accuracy:g}; must be a share from 0 to 1, or None")


def _compare_loads(trial: Trial, first: Problem, demands: Demands) -> None:
    """Load a problem of the user's own a second time: both must compute the same."""
    second = trial.load()
    if first.dim != second.dim or first.samples != second.samples:
        sizes = f"d = {first.dim} and {first.samples} samples, and at its second call {second.dim} and {second.samples}"
        trial.refuse(f"load() gave {sizes}; every process must get the same")
    with trial.reporting("initial()"):
        x = first.initial()
    for worker in _some(demands.workers):
        what = f"a gradient of worker {worker}"
        (one,), (other,) = (
            _gradients(trial, each, _oracle(trial, each, worker), [x], demands.batches[0], what)
            for each in (first, second)
        )
        if not np.array_equal(one, other, equal_nan=True):
            trial.refuse(f"load() gave other data at its second call: gradients of worker {worker} differ; {SEEDED}")


def _hold_against_objective(trial: Trial, problem: Problem, setting: Setting) -> None:
    """Hold the slope of evaluate's loss against the mean of the honest workers' gradients.

    Only what is clearly wrong is refused: against the gradient the loss does not fall, or ``_FAR`` times as fast or
    slowly. Two step widths must agree, which excludes kinks and rounding.
    """
    if setting.honest * problem.samples > MOST_MEASURED or setting.honest > MOST_WORKERS:
        return
    x0 = problem.initial().astype(np.float64)
    rng = np.random.default_rng(0)
    away = rng.standard_normal(len(x0)) / math.sqrt(len(x0))
    for reach in (0.1, 100.0):
        x = x0 + reach * away
        at, gradients = [x.astype(problem.dtype)], []
        for worker in range(setting.honest):
            what = f"a gradient of worker {worker} on all its samples"
            gradients += _gradients(trial, problem, _oracle(trial, problem, worker), at, 0, what)
        with np.errstate(all="ignore"):
            gradient: Vector = np.mean(gradients, axis=0, dtype=np.float64)
            length = float(np.linalg.norm(gradient))
            if math.isfinite(length) and length > 0:
                _hold_slope(trial, problem, x, gradient / length, length)


def _hold_slope(trial: Trial, problem: Problem, x: Vector, way: Vector, expected: float) -> None:
    """Compare along the gradient, whose direction and length are given."""
    width = (1e-3 if problem.dtype == np.float64 else 2e-2) * max(1.0, float(np.linalg.norm(x)))

    def loss(at: float) -> float:
        with trial.reporting("evaluate(x)"):
            return float(problem.evaluate((x + at * way).astype(problem.dtype)).loss)

    wide = (loss(width) - loss(-width)) / (2 * width)
    narrow = (loss(width / 2) - loss(-width / 2)) / width
    scale = max(abs(narrow), abs(expected))
    clear = math.isfinite(narrow) and abs(wide - narrow) < 0.05 * scale and scale > 1e-6 * max(1.0, expected)
    if clear and not expected / _FAR < narrow < expected * _FAR:
        slopes = f"rises by {narrow:.3g} where the honest workers' gradients say {expected:.3g}"
        fix = "they must be of one objective, regulariser included (a mean over samples, and over honest workers)"
        trial.refuse(f"the loss of evaluate(x) {slopes}: {fix}")
