"""What ``breakwater check`` advises beside what a config means: cohort sizes, the floor under attack, f, methods.

Everything here is a function of the config and of what its task reports; only ``heterogeneity`` computes gradients.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiment.config import Config, ProblemConstants, ResolvedConfig
from experiment.sections import METHOD_SECTIONS
from foundation.text import kind_and_line
from strategies.cohorts import SIZES, excess, expected_byzantine, least_cohort, never
from strategies.compressors import Identity
from strategies.method import RoundKind, Traits, Vector
from tasks.contract import Problem

CONFIDENCE = 0.99
"""How sure it should be that no round has more Byzantine clients than the rule tolerates, unless asked otherwise."""


def advise(config: ResolvedConfig, problem: Problem, confidence: float = CONFIDENCE) -> Iterator[tuple[str, str]]:
    """Yield advice on a config as (word, sentence).

    Args:
        config: resolved.
        problem: its task.
        confidence: in (0, 1), for the sizes of cohorts.
    """
    plan = config.method.plan(config.strategy.rounds, problem.samples)
    yield from cohort_sizes(config, plan, confidence)
    yield from floor(config, problem)
    yield from other_f(config)
    yield from suggestions(config, ProblemConstants.of(problem))


# --- cohorts ----------------------------------------------------------------------------------------------------------


def cohort_sizes(config: Config, plan: Sequence[RoundKind], confidence: float) -> Iterator[tuple[str, str]]:
    """Yield, for each kind of round that samples clients, how safe the cohort in use is, and the least safe one."""
    n, f, rule = config.federation.clients, config.federation.byzantine, config.aggregator
    rounds = config.strategy.rounds
    if not f or not rule.defends or config.stratified or config.federation.whole_weights:
        return
    for kind in plan:
        size, most = kind.sampled, rule.tolerates(kind.sampled)
        if size == n:
            continue
        if kind.survives[0]:
            yield "cohorts", f"{kind.name}: any size will do, as such a round survives a Byzantine majority"
            continue
        over = excess(n, f, size)
        chance = 1.0 if most < 0 else float(over[most]) if most < len(over) else 0.0
        safe = never(kind.share * chance, rounds)
        never_more = f"never more than {max(most, 0)} Byzantine in {rounds} rounds, which {names(rule)} tolerates"
        least = least_cohort(n, f, rounds, confidence, rule.tolerates, kind.share)
        wanted = f"none of up to {min(n, SIZES)}"
        if least is not None:
            wanted = f"{least[0]}{_run_with(config, least[0])}, at most {least[1]} Byzantine"
        found = f"{never_more}, with probability {safe:.3g}; least size for {confidence:g}: {wanted}"
        yield "cohorts", f"{kind.name}: {size} of {n} clients{_run_with(config, size)}: {found}"


def _run_with(config: Config, size: int) -> str:
    """Return with which f the rule is run on a cohort, where that matters: the expected share, not the most."""
    n, f, rule = config.federation.clients, config.federation.byzantine, config.aggregator
    share = min(expected_byzantine(size, n, f), max(rule.tolerates(size), 0))
    return f" (the rule is run with f = {share})" if rule.depends_on_f else ""


def names(rule: Any) -> str:
    """Return a rule and its pre-aggregators in words, the rule first."""
    return " after ".join([rule.kind, *(step.kind for step in reversed(rule.pre))])


# --- the floor --------------------------------------------------------------------------------------------------------

WORK = 2e9
"""Products of a sample and a parameter that ``check`` spends on heterogeneity; a second or so."""
STEPS = 40
"""Gradient steps to a point nearer to the optimum."""


@dataclass(frozen=True)
class Heterogeneity:
    """How much honest gradients differ at one model.

    Args:
        variance: zeta^2, the mean of ||grad f_i - grad f||^2 over honest clients.
        squared: ||grad f||^2.
    """

    variance: float
    squared: float


def heterogeneity(
    problem: Problem, honest: int, step: float | None, steps: int = STEPS
) -> tuple[Heterogeneity, Heterogeneity | None]:
    """Return how much the gradients of the honest clients differ at x^0, and after some steps of gradient descent.

    Args:
        problem: whose first ``honest`` workers are the honest ones.
        honest: how many.
        step: of the descent; None for no descent.
        steps: how many.

    Returns:
        At x^0, and where the descent ends; None for the second if there is no descent, or if it diverges.
    """
    x = problem.initial()
    with np.errstate(over="ignore", invalid="ignore"):
        first, mean = _at(problem, honest, x)
        if step is None:
            return first, None
        for _ in range(steps):
            x = x - step * mean
            last, mean = _at(problem, honest, x)
    return first, last if last.squared <= first.squared else None  # NaN where it diverges


def _at(problem: Problem, honest: int, x: Vector) -> tuple[Heterogeneity, Vector]:
    """Return the heterogeneity at x and the mean gradient, shape (d,)."""
    gradients = np.stack([problem.oracle(worker).full_gradient(x) for worker in range(honest)])
    mean: Vector = gradients.mean(axis=0)
    variance = float(np.sum((gradients - mean) ** 2, dtype=np.float64) / honest)
    return Heterogeneity(variance, float(np.sum(mean**2, dtype=np.float64))), mean


def floor(config: ResolvedConfig, problem: Problem) -> Iterator[tuple[str, str]]:
    """Yield the floor that kappa implies, where all data are in this process and the gradients cost little."""
    n, f, rule = config.federation.clients, config.federation.byzantine, config.aggregator
    if not f or not rule.defends or config.own_data or config.federation.whole_weights:
        return
    if getattr(problem, "replicated", False):
        yield "floor", "0: all clients have the same data, so that honest full gradients do not differ"
        return
    honest = n - f
    once = float(honest) * max(problem.samples, 1) * problem.dim
    if once > WORK:
        yield "floor", f"not measured: full gradients of {honest} clients at one model would take long here"
        return
    step = None
    if STEPS * once <= WORK:
        smoothness = problem.smoothness
        gamma = config.method.peak if config.method.steps_along_aggregate else None
        step = gamma if smoothness is None else 1 / smoothness
    try:
        first, last = heterogeneity(problem, honest, step)
    except Exception as error:  # gradients of the user's own, which the method may never ask for
        yield "floor", f"not measured: the full gradient of a client fails: {kind_and_line(error)}"
        return
    kappa, least = rule.kappa(n, f) if f <= rule.tolerates(n) else None, f / (n - 2 * f)
    unlike = "zeta^2, the variance of honest full gradients, is"
    later = "" if last is None else f", {last.variance:.3g} after {STEPS} gradient steps"
    yield "floor", f"{unlike} {first.variance:.3g} at x^0{later}"
    at = first if last is None else last
    limits = f"f/(n - 2f) zeta^2 = {least * at.variance:.3g} for any rule"
    if kappa is not None:
        limits = f"kappa zeta^2 = {kappa * at.variance:.3g} with this rule, {limits}"
    yield "floor", f"no guarantee for ||grad f||^2 below {limits}; it is {first.squared:.3g} at x^0"


# --- another f --------------------------------------------------------------------------------------------------------


def other_f(config: Config) -> Iterator[tuple[str, str]]:
    """Yield what it costs to declare another f than that of the clients that attack."""
    n, f, rule = config.federation.clients, config.federation.byzantine, config.aggregator
    if not f or not rule.defends or config.federation.whole_weights:
        return
    if not rule.depends_on_f:
        yield "f", f"{names(rule)} returns the same for every f: another f changes what is guaranteed, not the model"
        return
    near = {g: rule.kappa(n, g) for g in (f - 1, f, f + 1) if 0 < g <= rule.tolerates(n)}
    known = [f"{kappa:.3g} for f = {g}" for g, kappa in near.items() if kappa is not None]
    low = f"if more than {f} attack, nothing is guaranteed, and crude attacks make the model diverge"
    high = "if fewer do, honest rows are left out for nothing"
    if len(known) > 1:
        high = f"{high}; kappa = {', '.join(known)}"
    yield "f", f"{low}; {high}"


# --- methods ----------------------------------------------------------------------------------------------------------

BEST = 3
"""How many methods are suggested."""


@dataclass(frozen=True)
class Suggestion:
    """How well a method suits a config.

    Args:
        kind: of the method.
        points: the sum over all that speaks for it or against it.
        reasons: in words, what speaks for it most comes first.
    """

    kind: str
    points: int
    reasons: tuple[str, ...]


def suggestions(config: Config, task: ProblemConstants) -> Iterator[tuple[str, str]]:
    """Yield the best-suited methods, each with its reasons.

    Args:
        config: whose cohort, batch and compressor are those to suit.
        task: what its task reports.
    """
    for place, each in enumerate(rank(config, task)[:BEST], 1):
        used = " (in use)" if each.kind == config.strategy.kind else ""
        yield "suggested", f"{place}. {each.kind}{used}: {'; '.join(each.reasons) or 'fits, and no more'}"


def rank(config: Config, task: ProblemConstants) -> list[Suggestion]:
    """Return the methods that can run this config, the best-suited first, equal ones in the order of their table.

    A method that does not take this compressor, or no sampled cohort where one is sampled, is left out. What a method
    is made for it declares itself, see ``Method.traits``; ``_judge`` says what that counts here.
    """
    found = []
    for section in METHOD_SECTIONS:
        method, written = section.method, {key: each.default for key, each in section.model_fields.items()}
        if method.kind == config.strategy.kind:
            written = dict(config.strategy)
        sampled = min(config.cohorts.values()) < config.federation.clients
        if any(method.conflicts(written, config.compressor)) or (sampled and method.traits.sampling == "none"):
            continue
        judged = sorted(_judge(method.traits, config, task), key=lambda each: -each[0])
        reasons = tuple(reason if points >= 0 else f"but {reason}" for points, reason in judged)
        found.append(Suggestion(method.kind, sum(points for points, _ in judged), reasons))
    return sorted(found, key=lambda each: -each.points)


def _judge(traits: Traits, config: Config, task: ProblemConstants) -> Iterator[tuple[int, str]]:
    """Yield what speaks for or against a method that can run the config, as (points, reason)."""
    size, n, q = min(config.cohorts.values()), config.federation.clients, config.compressor
    if size == n:
        if traits.sampling == "any":
            yield -1, "all clients take part, so what it does for cohorts is not needed"
    elif not _may_be_overrun(config, size):
        yield 1, f"takes cohorts of {size}"
    elif traits.sampling == "any":
        yield 4, f"takes cohorts of {size}, even with a Byzantine majority"
    else:
        yield 1, f"takes cohorts of {size}, but only a heuristic limits a Byzantine majority"
    if traits.differences and not isinstance(q, Identity):
        yield 2, f"compresses differences that vanish, and with them the error of {q.kind}"
    elif not isinstance(q, Identity):
        averaged = traits.noise == "averaged" and traits.rows
        yield (1, f"averages the error of {q.kind}") if averaged else (-1, f"the error of {q.kind} stays")
    if config.batches.get("batch"):
        if traits.noise == "vanishes" and task.smoothness is not None:
            yield 3, "the noise of minibatches vanishes"
        elif traits.noise == "averaged":
            yield 2, "momentum averages the noise of minibatches"
        elif traits.noise == "none":
            yield -2, "it computes full gradients in every round"
    elif traits.noise in ("none", "stays"):
        yield 1, "full gradients leave no noise to reduce"
    if traits.full_gradients and not task.samples:
        yield -1, "it needs full gradients, and how many samples a client has is not known"
    if not traits.keeps:
        yield 1, "clients keep nothing between rounds"
    elif size < n or config.own_data:
        yield -1, "every client must keep vectors"
    if traits.rows:
        yield -1, "the server keeps a vector of each client"


def _may_be_overrun(config: Config, size: int) -> bool:
    """Return whether a cohort of this size may have more Byzantine clients than the rule tolerates."""
    f, rule = config.federation.byzantine, config.aggregator
    return not config.stratified and bool(f) and rule.defends and min(f, size) > rule.tolerates(size)
