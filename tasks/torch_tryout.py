"""Tests a torch module: its output must be a function of parameters, inputs and seeded draws, and the loss a mean.

Imports torch. See ``tasks/tryout.py``, which calls this with an instance that is thrown away.
"""

import copy
import random
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tasks.contract import TaskError
from tasks.flat_module import drawing
from tasks.pipeline import SHOWN, Fetched
from tasks.samples import Samples, count, mapped, taken, targets_of, tensors_of
from tasks.torch_model import BLOCK, TorchProblem, TorchTask, widened
from tasks.trial import SEEDED, Demands, Trial, generators_restored, spread

MOST_ROWS = 2_000
"""Training samples that are pushed through the model: one of each label among them."""
MOST_EVALUATED = 4_096
"""Training and test samples, each, that are measured at x0."""
MOST_FETCHED = 256
"""The same where samples are fetched by index, which may take long."""
AGAIN = 16
"""Further forward passes of a model that draws from the generators of NumPy or Python, to see whether it matters."""
MEAN = 'the mean over the samples (reduction = "mean")'


def try_torch(trial: Trial, one: object, other: object, demands: Demands) -> bool:
    """Test two loads of a task that is built on ``TorchTask``; return whether it is.

    Raises:
        TaskError: one line.
    """
    if not (isinstance(one, TorchProblem) and isinstance(other, TorchProblem)):
        return False
    with trial.reporting("train_data()"):
        compare_data(one.task, other.task)
    _try_module(trial, other, demands)
    return True


def compare_data(one: TorchTask, other: TorchTask) -> None:
    """Refuse a task whose methods give other data at their second call.

    Raises:
        TaskError: which method, and where they differ.
    """
    pair = ("inputs", "targets", "attribute targets")  # the last of a Dataset
    names = pair if one.batch_loss is None else repeat("samples")
    for method in ("train", "test"):
        _fetch_again(getattr(other, method))
        both = (tensors_of(getattr(each, method)) for each in (one, other))
        for name, a, b in zip(names, *both, strict=False):
            if a.shape != b.shape or a.dtype != b.dtype:
                where = f"of shape {tuple(b.shape)} ({b.dtype}), first {tuple(a.shape)} ({a.dtype})"
            elif not torch.equal(a, b):
                rows = (a != b).reshape(len(a), -1).any(dim=1)
                row, given = int(rows.nonzero()[0]), getattr(one, method)
                row = int(given.shown_rows[row]) if isinstance(given, Fetched) and len(a) <= SHOWN else row
                where = f"in row {row} ({int(rows.sum())} of {len(a)} rows differ)"
            else:
                continue
            raise TaskError(f"{method}_data() gave other {name} at its second call, {where}; {SEEDED}")


def _fetch_again(samples: Samples) -> None:
    """Refuse a Dataset that gives another sample when asked again under the same seeds.

    Raises:
        TaskError: which one.
    """
    if not isinstance(samples, Fetched):
        return
    with generators_restored():
        again = samples.source.fetched(samples.shown_rows.tolist(), 0)
    for a, b in zip(tensors_of(samples.shown), tensors_of(again), strict=True):
        if a.shape != b.shape or not torch.equal(a, b):
            fix = (
                "draw at random from the global generators of torch, NumPy or Python, which are seeded for each sample"
            )
            raise TaskError(f"{samples.source.method}() gave a Dataset with another sample at its second call; {fix}")


def most_samples(problem: Any, most: int) -> int:
    """Return how many samples of a problem may be tried; fewer where each is fetched."""
    return MOST_FETCHED if isinstance(problem, TorchProblem) and isinstance(problem.task.train, Fetched) else most


def shortened(problem: Any) -> Any:
    """Return a torch problem with so few samples that measuring it is cheap; any other as it is."""
    if not isinstance(problem, TorchProblem):
        return problem
    task, parts = problem.task, problem.parts
    most = most_samples(problem, MOST_EVALUATED)
    if problem.replicated:
        parts = [spread(parts[0], most)] * len(parts)
    else:
        parts = [spread(part, -(-most // problem.honest)) for part in parts]
    rows = torch.from_numpy(spread(np.arange(count(task.test)), most))
    task = replace(task, test=taken(task.test, rows))
    return TorchProblem(task, problem.model, parts, problem.honest, batch=problem.batch, seed=problem.seed)


def _try_module(trial: Trial, problem: TorchProblem, demands: Demands) -> None:
    task = problem.task
    size = min(max(8, *demands.batches) if any(demands.batches) else 32, BLOCK)
    rows = spread(problem.parts[min(demands.workers[0], len(problem.parts) - 1)], size)
    (batch,) = problem.blocks(task.train, rows)
    with trial.reporting(""):
        draws = _try_forward(trial, problem, batch)
        _try_loss(trial, problem, batch, draws)
        _try_modes(trial, problem, batch, draws)
        for block in problem.blocks(task.train, _rows_to_test(task)):
            what = f"the loss of training samples{_with_targets(block)}{_hint(task)}"
            with torch.no_grad(), _repeatable(problem), trial.reporting(what):
                value = task.objective(problem.model.module, block)
            _check_finite(value, block)

    if demands.evaluates and task.test is not task.train:
        (batch,) = problem.blocks(task.test, np.arange(min(8, count(task.test))))
        what = f"the model on {_form(task, batch)} of test_data()"
        with problem.model.evaluating(problem.initial(), None) as module, trial.reporting(what):
            _output(task, module, batch)


@contextmanager
def _repeatable(problem: TorchProblem) -> Iterator[None]:
    """Within: what the model draws begins at one seed, and running statistics may move; then both are as before."""
    with problem.model.norm_stats.kept(), drawing(0):
        yield


def _output(task: TorchTask, module: nn.Module, batch: Samples) -> Any:
    """Return what the module makes of a batch: its output, or the loss of a task whose loss calls the module."""
    return module(batch[0]) if task.batch_loss is None else task.batch_loss(module, batch)


def _form(task: TorchTask, batch: Samples) -> str:
    """Say what goes into the module."""
    shapes = [str(tuple(part.shape)) for part in tensors_of(batch)]
    return f"inputs of shape {shapes[0]}" if task.batch_loss is None else f"a batch of shapes {', '.join(shapes)}"


def _with_targets(batch: Samples) -> str:
    targets = targets_of(batch)
    return "" if targets is None else f" with targets {_range(targets)}"


def _check_finite(loss: Tensor, batch: Samples) -> None:
    if not bool(torch.isfinite(loss).all()):
        samples = f"{count(batch)} training samples{_with_targets(batch)}"
        raise TaskError(f"the loss of {samples} at x0 is {loss.reshape(-1)[0].item():g}; must be finite")


def _default_loss(task: TorchTask) -> bool:
    return task.batch_loss is None and task.loss is nn.functional.cross_entropy


def _hint(task: TorchTask) -> str:
    return "; classes count from 0, and the model must give an output for each" if _default_loss(task) else ""


def _range(targets: Tensor) -> str:
    return f"{targets.min().item():g} to {targets.max().item():g}"


def _rows_to_test(task: TorchTask) -> Any:
    """Return one row of each label, and the extremes of whole numbers among inputs."""
    m = count(task.train)
    if isinstance(task.train, Fetched):
        return spread(np.arange(m), MOST_FETCHED)
    parts, targets = tensors_of(task.train), targets_of(task.train)
    rows = [0, m - 1, *spread(np.arange(m), 64)]
    for part in parts:
        if part.is_floating_point() or part.is_complex() or part.dtype == torch.bool or not part.numel():
            continue
        width, flat = part[0].numel(), part.reshape(-1)
        if part is targets:
            _, first = np.unique(flat.numpy(), return_index=True)
            rows += [int(at) // width for at in first[:: max(1, len(first) // (MOST_ROWS // 2))]]
            rows.append(int(first[-1]) // width)
        rows += [int(flat.argmin()) // width, int(flat.argmax()) // width]
    return np.unique(np.array(rows, dtype=np.int64))


def _forward(trial: Trial, problem: TorchProblem, batch: Samples) -> Any:
    task, hint = problem.task, ""
    if task.batch_loss is None and not batch[0].is_floating_point():
        fix = f'inputs.astype("{task.dtype}")'
        hint = (
            f": inputs of {batch[0].dtype}, which layers such as Linear and Conv2d do not take; convert them by {fix}"
        )
    what = "the model on" if task.batch_loss is None else "loss(module, batch) of"
    with trial.reporting(f"{what} {_form(task, batch)} of train_data(){hint}"):
        return _output(task, problem.model.module, batch)


def _try_forward(trial: Trial, problem: TorchProblem, batch: Samples) -> bool:
    """Push a batch through twice: the parameters stay, the buffers stay, and so does the output.

    What torch's generators give is the same both times, and batch norm may keep running statistics.

    Returns:
        Whether the model draws from torch's generators.
    """
    module = problem.model.module
    before = {name: (parameter, parameter.data_ptr()) for name, parameter in module.named_parameters()}
    values = {name: tensor.detach().clone() for name, tensor in _tensors(module)}
    others = _generators()
    with problem.model.norm_stats.kept(), drawing(0) as drawn, _recorded(module) as first:
        output = _forward(trial, problem, batch)
        draws = drawn()
    after = dict(module.named_parameters())
    for name in after.keys() ^ before.keys():
        change = "appears with" if name in after else "is gone after"
        fix = "so it would not be trained; make all parameters in model(), or run one batch through it there"
        raise TaskError(f'the model\'s parameter "{name}" {change} the first forward pass, {fix}')
    for name, parameter in after.items():
        if parameter is not before[name][0] or parameter.data_ptr() != before[name][1]:
            raise TaskError(f'the model replaces its parameter "{name}" in a forward pass; change it in place')
    for name, tensor in _tensors(module):
        if name not in values or not torch.equal(tensor, values[name]):
            layer, _, key = name.rpartition(".")
            fix = "which no gradient carries to the server; use a layer that keeps nothing (GroupNorm, LayerNorm)"
            raise TaskError(f'the model\'s {_layer(module, layer)} changes its state "{key}" in a forward pass, {fix}')
    for _ in range(AGAIN if others != _generators() else 1):
        with _repeatable(problem), _recorded(module) as second:
            again = _forward(trial, problem, batch)
        if not _same(_flat(output), _flat(again)):
            what = f"the model's {_culprit(module, first, second)} gives another output for the same inputs"
            fix = "so no gradient can be repeated; draw at random from torch's own generators alone, and keep nothing"
            raise TaskError(f"{what} at its second call, {fix}")
    return draws


def _try_loss(trial: Trial, problem: TorchProblem, batch: Samples, draws: bool) -> None:
    """Try that the loss is one finite number, depends on the output, and is a mean over samples."""
    task, module = problem.task, problem.model.module
    with _repeatable(problem):
        if _default_loss(task):
            output = module(batch[0])
            if isinstance(output, Tensor) and output.ndim > 1 and len(output[0]) == 1:
                fix = "write loss(output, target), such as torch.nn.functional.binary_cross_entropy_with_logits"
                raise TaskError(f"output of shape {tuple(output.shape)}: cross-entropy of one class is always 0; {fix}")
    with _repeatable(problem):
        first = _loss(trial, task, module, batch)
    if not isinstance(first, Tensor):
        raise TaskError(f"loss() gave {type(first).__name__}; must be a scalar tensor, computed from output by torch")
    if first.numel() != 1:
        raise TaskError(f"loss() gave shape {tuple(first.shape)}; must be one number, {MEAN}")
    if not first.requires_grad:
        raise TaskError("loss() gave a tensor without a gradient; compute it from output, without detach() or item()")
    _check_finite(first, batch)
    with torch.no_grad(), _repeatable(problem):
        if first.item() != _loss(trial, task, module, batch).item():
            fix = "it may draw from torch's own generators alone, and keep nothing"
            raise TaskError(f"loss() gives another number at its second call on one batch; {fix}")
    doubled = mapped(batch, lambda part: torch.cat([part, part]))
    with problem.model.evaluating(problem.initial(), None) if draws else torch.no_grad():
        values = []
        for rows in (batch, doubled):
            with _repeatable(problem):
                values.append(_loss(trial, task, module, rows).item())
    one, twice = values
    if abs(one) > 1e-8 and not 2 / 3 < twice / one < 1.5:
        what = f"loss() gave {one:.6g} for {count(batch)} samples, and {twice:.6g} for each of them twice"
        raise TaskError(f"{what}; must be {MEAN}, not their sum")


def _loss(trial: Trial, task: TorchTask, module: nn.Module, batch: Samples) -> Any:
    output = _output(task, module, batch)
    if task.batch_loss is not None:
        return output
    output, targets = widened(output), batch[1]
    shape = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    what = "cross-entropy, as there is no method loss()," if _default_loss(task) else "loss()"
    given = f"of shape {tuple(targets.shape)} ({targets.dtype}, {_range(targets)}){_hint(task)}"
    with trial.reporting(f"{what} of output of {shape} and targets {given}"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = task.loss(output, targets)
        for warning in caught:
            if "Using a target size" in str(warning.message):
                what = f"loss() compares output of {shape} with targets of shape {tuple(targets.shape)}, each with each"
                raise TaskError(f"{what}; give them one shape (output.flatten(), or targets[:, None])")
    return found


def _try_modes(trial: Trial, problem: TorchProblem, batch: Samples, draws: bool) -> None:
    """Try the model in evaluation mode, in which it is measured.

    Without anything drawn at random, and without running statistics, it must compute what it computes in training.
    """
    task, module = problem.task, problem.model.module
    with torch.no_grad(), _repeatable(problem), _recorded(module) as training:
        expected = _output(task, module, batch)
    what = "the model in evaluation mode"
    with problem.model.evaluating(problem.initial(), None), _recorded(module) as evaluation, trial.reporting(what):
        found = _output(task, module, batch)
    if draws or problem.model.norm_stats.layers:
        return
    if not _same(_flat(expected), _flat(found), close=True):
        culprit = _culprit(module, training, evaluation, close=True)
        fix = "and draws nothing that would explain it; make both modes the same"
        raise TaskError(f"the model's {culprit} computes something else in evaluation mode, {fix}")


# --- what happens inside a module -------------------------------------------------------------------------------------

Call = tuple[str, list[Any], list[Any]]
"""Of one call of a layer: its name, what went in, what came out."""


@contextmanager
def _recorded(module: nn.Module) -> Iterator[list[Call]]:
    """Within: what goes into each layer and comes out of it is kept, innermost layers first."""
    calls: list[Call] = []

    def keep(name: str, _: nn.Module, given: Any, output: Any) -> None:
        calls.append((name, _flat(given), _flat(output)))

    with ExitStack() as hooks:
        for name, layer in module.named_modules():
            with suppress(RuntimeError):  # a scripted layer takes none
                hooks.callback(layer.register_forward_hook(partial(keep, name)).remove)
        yield calls


def _culprit(module: nn.Module, first: list[Call], second: list[Call], *, close: bool = False) -> str:
    """Return the innermost layer that gave another output for the same inputs."""
    for (name, given, output), (again, same, other) in zip(first, second, strict=False):
        if name != again:
            break
        if _same(given, same, close=close) and not _same(output, other, close=close):
            return _layer(module, name)
    return _layer(module, "")


def _layer(module: nn.Module, name: str) -> str:
    layer = dict(module.named_modules()).get(name, module)
    return f'layer "{name}" ({type(layer).__name__})' if name else f"own forward ({type(module).__name__})"


def _flat(value: Any) -> list[Any]:
    """Return copies of the tensors in dicts, lists and tuples, and the types and keys beside them."""
    if isinstance(value, Tensor):
        return [value.detach().clone()]
    if not isinstance(value, dict | list | tuple):
        return [type(value)]
    keys = list(value) if isinstance(value, dict) else range(len(value))
    return [keys, *(leaf for key in keys for leaf in _flat(value[key]))]


def _same(one: list[Any], other: list[Any], *, close: bool = False) -> bool:
    """Return whether two outputs are equal bit for bit, or nearly: kernels may differ between modes."""

    def equal(a: Any, b: Any) -> bool:
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
            return type(a) is type(b) and bool(a == b)
        if a.shape != b.shape or not close or not a.is_floating_point():
            return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
        scale = float(a.abs().max()) if a.numel() else 0.0
        return torch.allclose(a, b, rtol=1e-3, atol=1e-3 * scale, equal_nan=True)

    return len(one) == len(other) and all(map(equal, one, other))


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers, those too that are not saved."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def _generators() -> tuple[object, ...]:
    """Return where the global generators of NumPy and Python are, which users' code may draw from."""
    numpy: Any = np.random.get_state()
    return numpy[1].tobytes(), numpy[2], copy.copy(random.getstate())
