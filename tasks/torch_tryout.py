"""What is tried of a torch module: that its output is a function of parameters and inputs, and the loss a mean.

Imports torch. See ``tasks/tryout.py``, which calls this with an instance that is thrown away.
"""

import copy
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tasks.contract import TaskError
from tasks.torch_model import BLOCK, TorchProblem, TorchTask
from tasks.trial import Demands, Trial

MOST_ROWS = 2_000
"""Training samples that are pushed through the model: one of each label among them."""
MOST_EVALUATED = 4_096
"""Training and test samples, each, that are measured at x0."""
AGAIN = 16
"""Further forward passes of a model that draws at random, to see whether it matters."""


def is_torch(problem: object) -> bool:
    """Return whether a loaded task is built on ``TorchTask``."""
    return isinstance(problem, TorchProblem)


def compare_data(one: TorchTask, other: TorchTask) -> None:
    """Refuse a task whose methods give other data at their second call.

    Raises:
        TaskError: which method, and where they differ.
    """
    pairs = [("train_data", one.train, other.train)]
    if one.test is not one.train:
        pairs.append(("test_data", one.test, other.test))
    for method, first, second in pairs:
        for name, a, b in zip(("inputs", "targets"), first, second, strict=True):
            if a.shape != b.shape or a.dtype != b.dtype:
                where = f"of shape {tuple(b.shape)} ({b.dtype}), first {tuple(a.shape)} ({a.dtype})"
            elif not torch.equal(a, b):
                rows = (a != b).reshape(len(a), -1).any(dim=1)
                where = f"in row {int(rows.nonzero()[0])} ({int(rows.sum())} of {len(a)} rows differ)"
            else:
                continue
            raise TaskError(
                f"{method}() gave other {name} at its second call, {where}; every process must get the same: draw and "
                "shuffle with generators of a fixed seed, such as np.random.default_rng(0)"
            )


def shortened(problem: Any) -> Any:
    """Return a torch problem with so few samples that measuring it is cheap; any other as it is."""
    if not isinstance(problem, TorchProblem):
        return problem
    task, parts = problem.task, list(problem.parts)
    each = max(1, MOST_EVALUATED // problem.honest)
    if sum(len(part) for part in parts[: problem.honest]) > MOST_EVALUATED and not problem.replicated:
        parts = [_spread(part, each) for part in parts]
    elif len(parts[0]) > MOST_EVALUATED:
        parts = [_spread(parts[0], MOST_EVALUATED)] * len(parts)
    if len(task.test[1]) > MOST_EVALUATED:
        rows = torch.from_numpy(_spread(np.arange(len(task.test[1])), MOST_EVALUATED))
        task = replace(task, test=(task.test[0][rows], task.test[1][rows]))
    return TorchProblem(task, problem.model, parts, problem.honest)


def _spread(rows: Any, count: int) -> Any:
    return rows if len(rows) <= count else rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]


def try_module(trial: Trial, problem: TorchProblem, demands: Demands) -> None:
    """Try module and loss.

    Raises:
        TaskError: one line.
    """
    task, module = problem.task, problem.model.module
    size = max([batch for batch in demands.batches if batch] or [32])
    rows = problem.parts[demands.workers[0]]
    few = _spread(rows, min(max(size, 8), BLOCK))
    inputs, targets = next(problem.blocks(task.train, few))
    with trial.reporting(""):
        _try_forward(trial, problem, inputs)
        _try_loss(trial, task, module, inputs, targets)
        _try_modes(trial, module, inputs)
        for sample, target in problem.blocks(task.train, _telling_rows(task)):
            what = f"the loss of training samples with targets {_range(target)}{_hint(task)}"
            with torch.no_grad(), trial.reporting(what):
                value = task.loss(module(sample), target)
            if not bool(torch.isfinite(value).all()):
                raise TaskError(
                    f"the loss of {len(target)} training samples at x0 is {float(value.reshape(-1)[0]):g} (targets "
                    f"{_range(target)}); must be finite at the start"
                )

    if demands.evaluates and task.test is not task.train:
        sample, _ = next(problem.blocks(task.test, np.arange(min(8, len(task.test[1])))))
        with torch.no_grad(), trial.reporting(f"the model on inputs of shape {tuple(sample.shape)} of test_data()"):
            module(sample)


def _default_loss(task: TorchTask) -> bool:
    return task.loss is nn.functional.cross_entropy


def _hint(task: TorchTask) -> str:
    return "; classes count from 0, and the model must give an output for each" if _default_loss(task) else ""


def _range(targets: Tensor) -> str:
    return f"{targets.min().item():g} to {targets.max().item():g}"


def _telling_rows(task: TorchTask) -> Any:
    """Return the rows that are worth a look: one of each label, and the extremes of whole numbers among inputs."""
    inputs, targets = task.train
    rows = [0, len(targets) - 1]
    for part in (targets, inputs):
        if part.is_floating_point() or part.is_complex() or part.dtype == torch.bool or not part.numel():
            continue
        width = part[0].numel()
        flat = part.reshape(-1)
        if part is targets:
            _, first = np.unique(flat.numpy(), return_index=True)
            rows += [int(at) // width for at in first[:: max(1, len(first) // (MOST_ROWS // 2))]]
            rows.append(int(first[-1]) // width)
        rows += [int(flat.argmin()) // width, int(flat.argmax()) // width]
    return np.unique(np.array([*rows, *_spread(np.arange(len(targets)), 64)], dtype=np.int64))


def _forward(trial: Trial, problem: TorchProblem, inputs: Tensor) -> Any:
    hint = ""
    if not inputs.is_floating_point():
        hint = f"; train_data() gave inputs of {inputs.dtype}, which layers such as Linear and Conv2d do not take: "
        hint += f'convert them, such as inputs.astype("{problem.task.dtype}")'
    with trial.reporting(f"the model on inputs of shape {tuple(inputs.shape)} of train_data(){hint}"):
        return problem.model.module(inputs)


def _try_forward(trial: Trial, problem: TorchProblem, inputs: Tensor) -> None:
    """Push a batch through twice: the parameters stay, the buffers stay, and so does the output."""
    module = problem.model.module
    before = {name: (parameter, parameter.data_ptr()) for name, parameter in module.named_parameters()}
    values = {name: tensor.detach().clone() for name, tensor in _tensors(module)}
    drawn = _generators()
    with _recorded(module) as first:
        output = _forward(trial, problem, inputs)
    after = dict(module.named_parameters())
    for name in after.keys() ^ before.keys():
        raise TaskError(
            f'the model\'s parameter "{name}" {"appears" if name in after else "is gone"} with the first forward pass, '
            "so the federation would not train it; make all parameters in model(), or run one batch through it there"
        )
    for name, parameter in after.items():
        if parameter is not before[name][0] or parameter.data_ptr() != before[name][1]:
            raise TaskError(
                f'the model puts another parameter in the place of "{name}" in a forward pass; train it in place'
            )
    for name, tensor in _tensors(module):
        if name not in values or not torch.equal(tensor, values[name]):
            layer, _, key = name.rpartition(".")
            raise TaskError(
                f'the model\'s {_layer(module, layer)} changes its state "{key}" in a forward pass, which no gradient '
                "carries to the server; use a layer that keeps nothing (GroupNorm, LayerNorm)"
            )
    draws = drawn != _generators()
    for _ in range(AGAIN if draws else 1):
        with _recorded(module) as second:
            again = _forward(trial, problem, inputs)
        if not _same(output, again):
            raise TaskError(
                f"the model's {_culprit(module, first, second)} gives another output for the same inputs at its second "
                "call: it draws at random or keeps something, so no gradient could be repeated; leave that out"
            )


def _try_loss(trial: Trial, task: TorchTask, module: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    """Try that the loss is one finite number, depends on the output, and is a mean over samples."""
    output = module(inputs)
    if isinstance(output, Tensor) and _default_loss(task) and output.ndim > 1 and len(output[0]) == 1:
        raise TaskError(
            f"the model gives one number a sample (shape {tuple(output.shape)}), and cross-entropy of one class is "
            "always 0; write loss(output, target), such as torch.nn.functional.binary_cross_entropy_with_logits"
        )
    first = _loss(trial, task, output, targets)
    if not isinstance(first, Tensor):
        raise TaskError(f"loss() gave {type(first).__name__}; must be a scalar tensor, computed from output by torch")
    if first.numel() != 1:
        raise TaskError(
            f"loss() gave shape {tuple(first.shape)}; must be one number, the mean over the samples (reduction = "
            '"mean")'
        )
    if not first.requires_grad:
        raise TaskError(
            "loss() gave a tensor without a gradient: it does not depend on output; leave out detach() and item()"
        )
    if not bool(torch.isfinite(first).all()):
        raise TaskError(f"the loss of {len(targets)} training samples at x0 is {first.item():g}; must be finite")
    with torch.no_grad():
        if first.item() != _loss(trial, task, module(inputs), targets).item():
            raise TaskError(
                "loss() gives another number for the same samples at its second call; it may draw and keep nothing"
            )
        twice = _loss(trial, task, module(torch.cat([inputs, inputs])), torch.cat([targets, targets])).item()
    one = first.item()
    if abs(one) > 1e-8 and not 2 / 3 < twice / one < 1.5:
        raise TaskError(
            f"loss() gave {one:.6g} for {len(targets)} samples and {twice:.6g} for the same samples taken twice; must "
            'be the mean over the samples, not their sum (reduction = "mean")'
        )


def _loss(trial: Trial, task: TorchTask, output: Any, targets: Tensor) -> Any:
    shape = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    what = "cross-entropy, as there is no method loss()," if _default_loss(task) else "loss()"
    given = f"of shape {tuple(targets.shape)} ({targets.dtype}, {_range(targets)}){_hint(task)}"
    with trial.reporting(f"{what} of output of {shape} and targets {given}"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = task.loss(output, targets)
        for warning in caught:
            if "Using a target size" in str(warning.message):
                raise TaskError(
                    f"loss() compares output of {shape} with targets of shape {tuple(targets.shape)}, each with each; "
                    "give them one shape (output.flatten(), or targets[:, None])"
                )
    return found


def _try_modes(trial: Trial, module: nn.Module, inputs: Tensor) -> None:
    """Refuse a model that computes something else in evaluation: it is trained and measured in training mode."""
    modes = {layer: layer.training for layer in module.modules()}
    with torch.no_grad():
        with _recorded(module) as training:
            expected = module(inputs)
        module.eval()
        try:
            with trial.reporting("the model in evaluation mode"), _recorded(module) as evaluation:
                found = module(inputs)
        finally:
            for layer, mode in modes.items():
                layer.training = mode
    if not _same(expected, found, close=True):
        raise TaskError(
            f"the model's {_culprit(module, training, evaluation, close=True)} computes something else in evaluation "
            "mode (self.training); it is measured as it is trained, so make both the same"
        )


# --- what happens inside a module -------------------------------------------------------------------------------------

Call = tuple[str, Any, Any]
"""Of one call of a layer: its name, what went in, what came out."""


@contextmanager
def _recorded(module: nn.Module) -> Iterator[list[Call]]:
    """Within: what goes into each layer and comes out of it is kept, innermost layers first."""
    calls: list[Call] = []

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(layer: nn.Module, given: Any, output: Any) -> None:
            calls.append((name, _copied(given), _copied(output)))

        return keep

    handles = []
    for name, layer in module.named_modules():
        try:
            handles.append(layer.register_forward_hook(hook(name)))
        except RuntimeError:  # a scripted layer takes none
            continue
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


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


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]
    return value


def _same(one: Any, other: Any, *, close: bool = False) -> bool:
    """Return whether two outputs are equal bit for bit, or nearly: kernels may differ between modes."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape:
            return False
        if not close or not one.is_floating_point():
            return torch.equal(one, other) or bool(((one == other) | ((one != one) & (other != other))).all())
        scale = float(one.detach().abs().max()) if one.numel() else 0.0
        return torch.allclose(one, other, rtol=1e-3, atol=1e-3 * scale, equal_nan=True)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key], close=close) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(_same(a, b, close=close) for a, b in zip(one, other, strict=True))
    return type(one) is type(other)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers, those too that are not saved."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def _generators() -> tuple[object, ...]:
    """Return where the global generators are."""
    numpy: Any = np.random.get_state()  # users' code may draw from it
    return torch.get_rng_state().numpy().tobytes(), numpy[1].tobytes(), numpy[2], copy.copy(random.getstate())
