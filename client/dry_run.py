"""``breakwater client --dry-run``: what this client would compute and send, without connecting to anybody."""

import json
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from client.party import Limits
from client.preparation import PartyPreparation, PreparationOptions, count_of
from client.worker import measured
from experiment import config as configs
from experiment.agreement import Agreement
from experiment.code import Code, code_fingerprint
from experiment.explain import remarks
from experiment.opened import Experiment, identity_of, load_task, resolved, try_out
from foundation.errors import ConfigError
from foundation.origin import release
from foundation.text import kind_and_line
from foundation.units import size
from link.claims import MEASURES, write_claim
from link.wire import PROTOCOL
from tasks.contract import Problem, TaskError

_MOST_CLASSES = 20
"""Classes that are listed one by one."""
_MOST_VALUE = 160
"""Characters of a value that are shown."""

Line = tuple[str, str]
"""A word, and a sentence about it."""


class _Cost(NamedTuple):
    """What a gradient took: seconds, and bytes by which the peak of resident memory grew."""

    seconds: float
    grown: int
    peak: int


def dry_run(options: PreparationOptions, worker: int | None = None) -> Iterator[str]:
    """Yield the lines that describe what a client would do.

    Args:
        options: of the client; its own config is needed.
        worker: which worker it would be; None for 0.

    Raises:
        ConfigError: config, data, attack or limits do not fit each other; one line.
    """
    if options.config is None:
        raise ConfigError("--dry-run: needs --config FILE, the experiment that this client would take part in")
    given = options.config
    config, index = configs.load(given) if isinstance(given, Path) else given, worker or 0
    if not 0 <= index < config.federation.clients:
        raise ConfigError(f"--worker {index}: must be from 0 to {config.federation.clients - 1}")
    attack = None if options.attack is None else configs.parse_attack(options.attack, options.settings, config)
    if config.own_data:
        party = PartyPreparation(config, replace(options, tried=True, folders=None))
        experiment, report = party.experiment, party.report(index)
        experiment, assumed = _with_own_numbers(experiment, index)
    else:
        setting = config.setting(options.data, options.config_dir)
        problem = load_task(config, setting)
        report = Code.here(config).added_to(identity_of(problem, options.reading).written())
        experiment, assumed = resolved(config, problem, setting), ""
    cost = _gradient(experiment, index)  # before the trial, which would raise the peak of memory
    try_out(experiment, index, attack)
    limits = options.limits if config.own_data else Limits()
    for head, sentence in _lines(experiment, index, report, cost, limits, assumed):
        yield f"{head:12} {sentence}"


def _lines(
    experiment: Experiment, index: int, report: str, cost: _Cost, limits: Limits, assumed: str
) -> Iterator[Line]:
    config, problem = experiment.config, experiment.problem
    yield "task", f"{config.task.kind}, d = {problem.dim} parameters ({problem.dtype.name})"
    yield "data", _amounts(problem, index)
    if classes := _classes(problem, index):
        yield "classes", classes
    if assumed:
        yield "assumed", assumed
    for remark in remarks(problem):
        yield "warning", remark
    memory = f"{size(cost.peak)} at most, of which the gradient added {size(cost.grown)} to the peak of loading"
    yield "gradient", f"of all training data: {1000 * cost.seconds:.3g} ms; resident memory of this process {memory}"
    yield "connects", "to nobody in this dry run; what follows would be sent to the server"
    yield "hello", f"protocol = {PROTOCOL}, name, version = {release()}, fingerprint = {code_fingerprint()}"
    yield "", "worker if --worker is given; after a lost connection the former one"
    for key, value in json.loads(report).items():
        yield "ready", f"{key} = {_short(value)}"
    yield from _packets(experiment)
    yield from _own_claims(experiment, index, limits)
    yield from _batches(experiment, index, limits)
    yield from _declined(experiment, index, limits)
    if config.own_data:
        yield "model", "an empty answer to the final model"
    yield "errors", "fixed words alone; their reasons stay in this client's own log" if config.own_data else "one line"
    yield "not listed", "HTTP/2 pings of gRPC, without content, while connected"


def _packets(experiment: Experiment) -> Iterator[Line]:
    """Yield what answers a round of each kind."""
    config, problem = experiment.config, experiment.problem
    for kind in experiment.method.plan(config.strategy.rounds, max(1, problem.samples)):
        layout = kind.up.layout(problem.dim, problem.dtype)
        parts = f"{layout.count} values of {layout.dtype.name}"
        often = f"{100 * kind.share:.3g} % of rounds, {kind.sampled} of {config.federation.clients} clients asked"
        sent = f"{kind.up.kind} packet, {layout.nbytes} bytes ({parts}), and its label and envelope"
        yield "train", f"{kind.name} round ({often}): {sent}"


def _own_claims(experiment: Experiment, index: int, limits: Limits) -> Iterator[Line]:
    """Yield what the client would say about its data, with the values of now."""
    config, problem = experiment.config, experiment.problem
    if not config.clients_evaluate:
        yield "evaluate", "nothing: the server does not ask clients to measure models"
    elif not limits.evaluation:
        yield "evaluate", "declined (--no-evaluation)"
    else:
        claim = write_claim(measured(experiment, index, problem.initial()))[MEASURES]
        shown = ", ".join(f"{key} = {value!r}" for key, value in claim.items())
        yield "evaluate", f"{shown} (of the initial model)"
    statistics: Any = getattr(problem, "statistics", None)
    if statistics is None or not getattr(problem, "needs_statistics", False):
        yield "statistics", "nothing: the task has none"
    elif not limits.statistics:
        yield "statistics", "declined (--no-statistics)"
    elif (found := statistics(index)) is None:
        yield "statistics", "declined: too few rows"
    else:
        for column, values in found.items():
            yield "statistics", f"{column}: {_short(values)}"


def _batches(experiment: Experiment, index: int, limits: Limits) -> Iterator[Line]:
    """Yield which statistics of its batches the client would send, if its model has any."""
    problem: Any = experiment.problem
    if not len(getattr(problem, "variances", ())):
        return
    if not problem.answers_statistics:
        yield "batch norm", f'nothing: [task] norm_stats = "{problem.norm_source}"'
    elif experiment.config.own_data and (why := limits.declines_batches(problem, index)):
        yield "batch norm", why
    else:
        when = "each time that the server measures or saves a model"
        when += "" if problem.norm_source else ", unless it has training data of its own"
        what = f"means and variances, over batches of {problem.batch_rows(index)} of its samples"
        yield "batch norm", f"{what}: {len(problem.variances)} numbers, {8 * len(problem.variances)} bytes, {when}"


def _declined(experiment: Experiment, index: int, limits: Limits) -> Iterator[Line]:
    """Yield what the owner's limits decline."""
    if not experiment.config.own_data:
        return
    least = limits.least(count_of(experiment.problem, index))
    yield "declines", f"gradients of fewer than {least} samples (--min-batch); this experiment has none"
    rounds = experiment.config.strategy.rounds
    if limits.max_rounds is not None:
        within = "" if limits.max_rounds < rounds else f"; the run has {rounds} rounds, so all may be answered"
        yield "declines", f"more than {limits.max_rounds} rounds (--max-rounds){within}"


def _amounts(problem: Problem, index: int) -> str:
    count: Any = getattr(problem, "count", None)
    kept: Any = getattr(problem, "kept_back", None)
    if count is None:
        return f"{problem.samples} training samples a client"
    trained = count(index)
    back = 0 if kept is None else kept(index)
    measured = "none; models are measured on the training data" if back == trained else f"{back} to measure models on"
    return f"trains on {trained} samples; kept back: {measured}"


def _classes(problem: Problem, index: int) -> str:
    """Return how many samples each class has, where the targets are labels; "" where they are not, or are unknown."""
    own: Any = getattr(problem, "own_data", None)
    labels = [np.asarray(part[-1]) for part in own(index)] if own is not None else []
    if not labels or any(each.ndim != 1 or each.dtype.kind not in "iub" for each in labels):
        return ""
    values, counts = np.unique(np.concatenate(labels), return_counts=True)
    names: Any = dict(enumerate(getattr(problem, "class_names", ())))
    pairs = [f"{names.get(value, value)}: {count}" for value, count in zip(values.tolist(), counts, strict=True)]
    more = f", and {len(pairs) - _MOST_CLASSES} more" if len(pairs) > _MOST_CLASSES else ""
    return f"{len(pairs)} in this client's data, with samples {', '.join(pairs[:_MOST_CLASSES])}{more}"


def _with_own_numbers(experiment: Experiment, index: int) -> tuple[Experiment, str]:
    """Return the experiment as if this client were the whole federation, and what was assumed so."""
    problem: Any = experiment.problem
    m, smoothness, scaling = count_of(problem, index), problem.smoothness, ""
    assumed = [f"m = {m}"]
    if getattr(problem, "needs_statistics", False):
        found = problem.statistics(index)
        if found is None:
            raise ConfigError("--dry-run: too few rows for statistics, so the scaling of the columns is not known here")
        try:
            scaling = problem.scaling_of({"this client": found}, 0)
        except (TaskError, ValueError) as error:
            raise ConfigError(f"--dry-run: no scaling of the columns: {kind_and_line(error)}") from None
        assumed.append("the scaling of the columns")
    agreement = Agreement(samples=m, smoothness=smoothness, scaling=scaling)
    try:
        settled = experiment.settled(agreement)
    except ConfigError:
        if smoothness is not None:
            raise
        settled = experiment.settled(replace(agreement, smoothness=1.0))
        assumed.append("L = 1")
    how = "of this client alone; a run uses what the server and all clients agree on"
    return settled, f"{', '.join(assumed)}, {how}"


def _gradient(experiment: Experiment, index: int) -> _Cost:
    """Compute one gradient over all training data; return what it took."""
    oracle, x = experiment.problem.oracle(index), experiment.problem.initial()
    before, began = _peak(), time.perf_counter()
    oracle.full_gradient(x)
    seconds, peak = time.perf_counter() - began, _peak()
    return _Cost(seconds, peak - before, peak)


def _peak() -> int:
    """Return the most resident memory that this process has had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=_plain)
    return text if len(text) <= _MOST_VALUE else f"{text[:_MOST_VALUE]} ... ({len(text)} characters)"


def _plain(value: Any) -> Any:
    """Return what JSON does not know as plain values."""
    return vars(value) if hasattr(value, "__dict__") else value.item() if isinstance(value, np.generic) else str(value)
