"""A config in words and numbers, and what theory advises about it: ``breakwater check``, and the head of a report."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from experiment.advice import CONFIDENCE, advise, names
from experiment.config import ROOT_SAMPLES, Config, ResolvedConfig, resolve
from experiment.config import ProblemConstants as ProblemConstants
from experiment.opened import open_experiment, try_out
from experiment.sections import MethodSection
from foundation import units as words
from foundation.errors import ConfigError
from strategies.aggregators import DivideAndConquer
from strategies.cohorts import byzantine_majority, expected_byzantine, share_of_stratum
from strategies.local_steps import LocalSteps
from strategies.method import RoundKind
from strategies.schedules import Schedule
from strategies.weights import heaviest
from tasks.contract import Problem


def title(config: Config) -> str:
    """Return the experiment in a few words."""
    federation = config.federation
    attack = (
        f", {federation.byzantine} of {federation.clients} attack by {config.attack.label}" if config.attack else ""
    )
    return f"{config.strategy.kind} on {config.task.kind}{attack}"


def explain(
    config: Config,
    data_dir: Path | None,
    config_dir: Path | None,
    *,
    load: bool = True,
    confidence: float = CONFIDENCE,
) -> Iterator[str]:
    """Yield the lines that describe what the config would do.

    Args:
        config: as it was read.
        data_dir: folder of data files.
        config_dir: folder of the config.
        load: load the task and try it; without it the sentences that need it, advice among them, are left out.
        confidence: in (0, 1), for the sizes of cohorts that are advised.

    Raises:
        ConfigError: the config does not fit its task, or the task cannot be used.
    """
    experiment, facts, given = None, None, config.strategy.model_fields_set
    task = f"{config.task.kind}; not loaded (--no-load), so its data were not checked"
    if load:
        experiment = open_experiment(config.to_toml(), data_dir, config_dir)
        try_out(experiment)
        config, facts = experiment.config, ProblemConstants.of(experiment.problem)
        task = _task(config, facts)
        if experiment.pending:
            yield f"{'pending':12} {experiment.pending}, or wait for the clients; a stand-in is shown below"
    for head, sentence in sentences(config, facts, task, given):
        yield f"{head:12} {sentence}"
    if experiment is not None:
        for remark in remarks(experiment.problem):
            yield f"{'warning':12} {remark}"
        for head, sentence in advise(experiment.config, experiment.problem, confidence):
            yield f"{head:12} {sentence}"


def remarks(problem: Problem) -> Iterator[str]:
    """Yield what a loaded task itself says about its model and its batches, one line each."""
    of_task: Callable[[], Iterator[str]] | None = getattr(problem, "remarks", None)
    yield from () if of_task is None else of_task()


def sentences(
    config: Config, task: ProblemConstants | None, title: str | None = None, given: set[str] | None = None
) -> Iterator[tuple[str, str]]:
    """Yield what the config would do as (word, sentence); an empty word goes on with the one before it.

    Args:
        config: resolved, where there is a task; as a run folder holds it.
        task: what the loaded task reports; None without it, which leaves out the sentences that need it.
        title: the sentence about the task, in place of the known one.
        given: the keys of ``[strategy]`` that the user gave, to mark the others as defaults; None to mark none.
    """
    n, f = config.federation.clients, config.federation.byzantine
    yield "clients", f"{n}, of which up to {f} Byzantine ({100 * f / n:.0f} %); seed {config.federation.seed}"
    yield "task", title or (config.task.kind if task is None else _task(config, task))
    strategy = config.strategy
    yield "method", f"{strategy.kind}, {strategy.rounds} rounds: {_hyper_parameters(strategy, given)}"
    if config.federation.weights is not None:
        yield "weights", _weights(config)
    yield "rule", _rule(config)
    yield from _kappa(config)
    yield from _cohorts(config) if task is None else _on_task(config, task)
    yield "attack", _attack(config)
    if config.evaluated_by != "server":
        yield "evaluation", _evaluation(config)
    if config.evaluation.stop is not None or config.safeguard is not None:
        yield "ends", _ends(config)
    for warning in warnings(config):
        yield "warning", warning


def _on_task(config: Config, task: ProblemConstants) -> Iterator[tuple[str, str]]:
    """Yield the sentences that need a task."""
    try:
        resolved = resolve(config, task)
    except ConfigError as error:  # one of the files of a run folder has been changed
        yield "warning", f"the config does not fit the recorded task: {error}"
        return
    plan = resolved.method.plan(config.strategy.rounds, task.samples)
    yield "compressor", _compressor(resolved, task)
    yield from _clipping(resolved, task)
    yield from _schedules(resolved)
    yield from resolved.method.meanings(config.strategy.rounds)
    yield from _rounds(resolved, plan)
    yield from _costs(plan, task)
    for remark in resolved.method.warnings(task.smoothness):
        yield "warning", remark


def _task(config: Config, problem: ProblemConstants) -> str:
    smoothness = "" if problem.smoothness is None else f", L = {problem.smoothness:.6g}"
    optimum = "" if problem.optimum is None else f", f* = {problem.optimum:.10g}"
    samples = f"m = {problem.samples} samples a client" if problem.samples else "each client has its own data"
    data = f"d = {problem.dim} ({problem.dtype.name}), {samples}"
    return f"{config.task.kind}: {data}{smoothness}{optimum}"


def _hyper_parameters(strategy: MethodSection, given: set[str] | None) -> str:
    shown = strategy.model_dump(exclude={"kind", "rounds"}, exclude_none=True)
    defaults = {key: "" if given is None or key in given else " (default)" for key in shown}
    return ", ".join(f"{key} = {_short(value)}{defaults[key]}" for key, value in shown.items())


def _short(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_short, value))}]"
    if isinstance(value, dict):
        inner = sorted(value.items(), key=lambda item: item[0] != "kind")
        return "{ " + ", ".join(f"{key} = {_short(item)}" for key, item in inner) + " }"
    return f"{value:.6g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _rule(config: Config) -> str:
    n, f, rule = config.federation.clients, config.federation.byzantine, config.aggregator
    if not rule.defends:
        return f"{names(rule)}: defends against nobody"
    if rule.needs_root:
        return f"{names(rule)}: trusts the server's own row, computed on {_root(config)}, whatever f is"
    if config.federation.whole_weights:
        delta = f"delta_f = {100 * _share(config):.3g} % of it is the {f} heaviest"
        return f"{names(rule)}: breaks down at half of the weight; {delta}"
    tolerated = f"{rule.tolerates(n)} of {n} rows ({100 * rule.breakdown(n):.0f} %)"
    return f"{names(rule)}: breaks down beyond {tolerated}; f/n = {f} of {n} ({100 * f / n:.0f} %)"


def _root(config: Config) -> str:
    """Return what the server computes its own row on."""
    if config.own_data:
        return "its own data"
    return f"{config.federation.root_samples or ROOT_SAMPLES} training samples that no client has"


def _share(config: Config) -> float:
    """Return delta: the share of the weight that the f heaviest clients have, f/n where all count the same."""
    f, weights = config.federation.byzantine, config.federation.whole_weights
    return heaviest(np.array(weights), f) / sum(weights) if weights else f / config.federation.clients


def _weights(config: Config) -> str:
    federation, weights = config.federation, config.federation.whole_weights
    n, f = federation.clients, federation.byzantine
    if not weights:
        return f"equal, so each of {n} clients has 1/{n}, as without weights"
    by = {name: weights[i] for i, name in enumerate(federation.names or [f"seat {i}" for i in range(n)])}
    first = sorted(by, key=lambda name: -by[name])[:3]
    shares = ", ".join(f"{name} {100 * by[name] / sum(weights):.3g} %" for name in first)
    cap = "" if federation.weight_cap is None else f" after weight_cap = {federation.weight_cap:g}"
    delta = f"delta_f = {_share(config):.3g}, the share of the {f} heaviest, takes the place of f/n = {f / n:.3g}"
    return f"{shares}{', ...' if n > 3 else ''}{cap}; {delta}"


def _kappa(config: Config) -> Iterator[tuple[str, str]]:
    """Yield what is known of the rule's error, for each size of a cohort in which it takes the Byzantine share."""
    n, f, rule = config.federation.clients, config.federation.byzantine, config.aggregator
    if config.federation.whole_weights:
        yield from _weighted_kappa(config)
        return
    found = []
    for size in sorted(set(config.aggregated.values()), reverse=True) if f and rule.defends else ():
        share = expected_byzantine(size, n, f)
        if share > rule.tolerates(size):
            continue
        kappa, least = rule.kappa(size, share), share / (size - 2 * share)
        if kappa is None:
            yield "kappa", f"no bound is known for {names(rule)}"
            return
        found.append(f"kappa = {kappa:.3g} for {size} rows, {share} Byzantine (at least {least:.3g} for any rule)")
    if found:
        yield "kappa", "squared error <= kappa times the variance of the honest rows; " + ", ".join(found)
        if config.own_data:
            yield "", _unlike(f / (n - 2 * f))


def _weighted_kappa(config: Config) -> Iterator[tuple[str, str]]:
    """Yield what is known of the rule's error with delta in the place of f/n, where all clients reply."""
    rule, delta = config.aggregator, _share(config)
    if not config.federation.byzantine or not rule.defends:
        return
    kappa, least = rule.weighted_kappa(delta), delta / (1 - 2 * delta)
    if kappa is None:
        yield "kappa", f"no bound is known for {names(rule)}"
        return
    bound = f"kappa = {kappa:.3g} for all {config.federation.clients} rows (at least {least:.3g} for any rule)"
    yield "kappa", f"squared error <= kappa times the weighted variance of the honest rows; {bound}"
    yield "", _unlike(least)


def _unlike(least: float) -> str:
    """Say what heterogeneity costs, given the least kappa that any rule can have."""
    unlike = "where honest clients have unlike data, their gradients differ at the optimum too"
    return f"{unlike}: no rule can guarantee an error below {least:.3g} times that variance"


def _compressor(config: Config, problem: ProblemConstants) -> str:
    q, d = config.compressor, problem.dim
    layout = q.layout(d, problem.dtype)
    quality = f"omega = {q.omega(d):.4g}" if q.unbiased else f"biased, contraction {q.contraction(d):.4g}"
    dense = d * problem.dtype.itemsize
    share = f"{100 * layout.nbytes / dense:.3g} % of {dense}"
    sent = f"{q.kind}: {layout.count} values for d = {d}, {layout.nbytes} bytes a reply ({share})"
    return f"{sent}; {quality}, D_Q = {q.norm_bound(d):.4g}"


def _clipping(config: ResolvedConfig, task: ProblemConstants) -> Iterator[tuple[str, str]]:
    """Yield alpha beside what the theorems ask for."""
    written = config.method.written()
    if "clip" not in written:
        return
    if written["clip"] is False:
        yield "clipping", "off"
        return
    theory = "this task does not know its L, so theory has no number for it"
    if task.smoothness is not None:
        bound = f"D_Q L = {config.compressor.norm_bound(task.dim) * task.smoothness:.6g}"
        theory = f"theory: 2L = {2 * task.smoothness:.6g} for any unbiased Q (Theorem 4.1)"
        theory = f"{theory}; {bound} clips no honest difference (Theorem 4.2)"
    alpha = f"{written['alpha']:.6g}" if "alpha" in written else "auto, from the ratios observed"
    yield "clipping", f"alpha = {alpha}; {theory}"


def _schedules(config: ResolvedConfig) -> Iterator[tuple[str, str]]:
    """Yield how step sizes change over the rounds, and what theory says of it."""
    method, rounds = config.method, config.strategy.rounds
    if isinstance(method.gamma, Schedule):
        yield "gamma", _course(method.gamma, method.gamma_at, rounds)
        yield "", method.on_schedules + "; no theorem covers the warm-up" * bool(method.gamma.warmup)
    if isinstance(method, LocalSteps) and method.local_schedule is not None:
        yield "eta", f"of local steps: {_course(method.local_schedule, method.local_size, rounds)}"
        yield (
            "",
            "the model still steps by gamma times their mean direction; for FedAvg with a schedule give gamma one too",
        )


def _course(schedule: Schedule, size: Callable[[int], float], rounds: int) -> str:
    """Return a schedule in words, with its values at a few rounds."""
    marks = {1, schedule.warmup + 1, *(max(1, round(share * rounds)) for share in (0.25, 0.5, 0.75)), rounds}
    shown = ", ".join(f"{size(round_):.4g} in round {round_}" for round_ in sorted(marks))
    warm = f" after a warm-up of {schedule.warmup} rounds" if schedule.warmup else ""
    return f"{schedule.kind}{warm}: {shown}"


def _cohorts(config: Config) -> Iterator[tuple[str, str]]:
    for key, size in config.cohorts.items():
        rows = config.federation.clients if config.strategy.method.aggregates_all else size
        yield key, f"{_cohort(config, size, rows)}; {_majority(config, size, config.strategy.rounds)}"


def _rounds(config: Config, plan: Sequence[RoundKind]) -> Iterator[tuple[str, str]]:
    """Describe each kind of round: how often, who takes part, and whether it survives a Byzantine majority."""
    for kind in plan:
        expected = config.strategy.rounds * kind.share
        rows = kind.sampled if kind.rows is None else kind.rows
        who = f"{_cohort(config, kind.sampled, rows)}; {_majority(config, kind.sampled, expected)}"
        yield "round", f"{kind.name}: {100 * kind.share:.3g} % of rounds, {who}"
        if _risk(config, kind.sampled)[0] > 0:
            survives, why = kind.survives
            if config.aggregator.needs_root:
                survives, why = True, "the aggregate is never longer than the server's own row, nor points against it"
            yield "", f"{'survives' if survives else 'does NOT survive'} a Byzantine majority: {why}"


def _cohort(config: Config, size: int, rows: int) -> str:
    n, f, rule = config.federation.clients, config.federation.byzantine, config.aggregator
    count = (
        f"exactly {share_of_stratum(size, n, f)}" if config.stratified else f"about {expected_byzantine(size, n, f)}"
    )
    who = f"{size} of {n} clients, {count} Byzantine"
    of = "" if rows == size else f" of the {rows} vectors that are aggregated"
    return f"{who} ({names(rule)} tolerates {rule.tolerates(rows)}{of})" if rule.defends else who


def _risk(config: Config, size: int) -> tuple[float, float]:
    """Return the probabilities of a strict Byzantine majority and of a tie in a cohort."""
    n, f = config.federation.clients, config.federation.byzantine
    if config.stratified:
        share = share_of_stratum(size, n, f)
        return float(2 * share > size), float(2 * share == size)
    return byzantine_majority(n, f, size)


def _majority(config: Config, size: int, rounds: float) -> str:
    majority, tie = _risk(config, size)
    if majority == tie == 0:
        return "never a Byzantine majority"
    ties = f"tie with {tie:.3g} ({rounds * tie:.3g})"
    return f"Byzantine majority with probability {majority:.3g} (expect {rounds * majority:.3g} rounds), {ties}"


def _costs(plan: Sequence[RoundKind], problem: ProblemConstants) -> Iterator[tuple[str, str]]:
    """Yield what a round costs on average over the kinds of rounds, all sampled clients together."""
    d, dtype = problem.dim, problem.dtype
    up = down = floats_up = floats_down = gradients = 0.0
    for kind in plan:
        reply, weight = kind.up.layout(d, dtype), kind.share * kind.sampled
        up += weight * reply.nbytes
        floats_up += weight * reply.count
        down += weight * kind.down * d * dtype.itemsize
        floats_down += weight * kind.down * d
        if kind.broadcast is not None:
            sent = kind.broadcast.layout(d, dtype)
            down, floats_down = down + weight * sent.nbytes, floats_down + weight * sent.count
        gradients += weight * kind.gradients
    values = f"{floats_up:.6g} values ({words.size(up)}) up, {floats_down:.6g} ({words.size(down)}) down"
    yield "traffic", f"a round on average: {values}, all sampled clients together, envelopes not counted"
    if not problem.samples:
        return
    work = f"{gradients:.6g} gradients of single samples, all sampled clients together"
    yield "work", f"a round on average: {work}; a full local gradient is {problem.samples}"


def _attack(config: Config) -> str:
    if config.attack is None:
        return "none"
    known = "revealed to the clients in it, because this attack needs to know"
    cohort = known if config.reveals_cohort else "not revealed"
    drawn = f", {config.federation.byzantine} clients drawn anew in every round" if config.mobile else ""
    return f'{config.attack.label} with view "{config.attack.view}"{drawn}; the cohort is {cohort}'


def _evaluation(config: Config) -> str:
    """Say who measures the model, where it is not the server alone."""
    if config.evaluated_by == "none":
        return "nobody measures the model"
    needed = 2 * config.federation.byzantine + 1
    also = "the server, and " if config.server_evaluates else ""
    claims = f"their claims are shown, with the median of at least {needed} answers, and have no effect"
    return f"{also}all connected clients measure the model every {config.evaluation.every} rounds; {claims}"


def _ends(config: Config) -> str:
    """Say what may end the run before its last round, or take it back."""
    stop, guard, parts = config.evaluation.stop, config.safeguard, []
    if stop is not None and stop.target is not None:
        parts.append(f"at {stop.measure} {stop.target:g}")
    if stop is not None and stop.patience is not None:
        parts.append(f"after {stop.patience} evaluations without a better {stop.measure}")
    text = f"{' or '.join(parts)}, " if parts else ""
    text += f"at the latest after round {config.strategy.rounds}"
    if guard is not None:
        text += f"; goes back up to {guard.times} times where the loss exceeds {guard.factor:g} times its lowest"
        needed = 3 * config.federation.byzantine + 1
        text += "" if config.server_evaluates else f" for most of at least {needed} clients that answer"
    return text


def warnings(config: Config) -> Iterator[str]:
    """Yield what is allowed but deserves a second thought."""
    n, f, rule = config.federation.clients, config.federation.byzantine, config.aggregator
    if f and not rule.defends:
        yield f'aggregator.kind = "{rule.kind}" defends against nobody, and {f} of {n} clients may be Byzantine'
    if config.federation.whole_weights:
        yield from _warnings_of_weights(config)
    if f and rule.kind == "monna":
        trusted = f"row {rule.pivot}, whichever sampled client that is"
        yield f'aggregator.kind = "monna" trusts {trusted}: where it is Byzantine, it decides alone'
    if rule.needs_root:
        error = "stretches every vector to the length of the server's own, which near the optimum is sampling error"
        yield f'aggregator.kind = "{rule.kind}" {error}: the run stalls there; more samples or a falling gamma help'
    if f and rule.kind == "cge":
        small = "for strongly convex losses theory needs f/n below about mu / (mu + 2L)"
        yield f'aggregator.kind = "cge" never leaves out a vector that is shorter than honest ones; {small}'
    if f and rule.kind in ("cge", "signguard") and config.strategy.kind == "byz-vr-marina":
        offset = "g + Q(difference), which have g in common"
        yield f'aggregator.kind = "{rule.kind}" compares lengths, but rows of byz-vr-marina are {offset}'
    if isinstance(rule, DivideAndConquer):
        for key, size in config.aggregated.items():
            most = rule.iters * rule.struck(expected_byzantine(size, n, f))
            if most > size - 1:
                fix = "it may be all, which gives their median; lower iters or c"
                yield f"dnc leaves out up to {most} of {size} rows of {key}: {fix}"
    for key, size in config.aggregated.items():
        share, most = expected_byzantine(size, n, f), rule.tolerates(size)
        if rule.defends and most < share:
            excess = f"about {share} of them are Byzantine and {rule.kind} with its pre-aggregators tolerates {most}"
            yield f"{key} = {size}: {excess}; only clipping limits what such a round can do"
        for step in rule.pre:
            rows, spoilt = step.after(size, share)
            if step.kind == "bucketing" and 2 * spoilt >= rows > 1:
                buckets = f"{rows} buckets of {size} rows, {spoilt} of which may be spoilt"
                yield f"bucketing leaves {buckets}: half or more, where a median breaks down; use a smaller s or none"
    if config.stratified and any(size < n for size in config.cohorts.values()):
        risk = "no cohort has a Byzantine majority, which uniform sampling would not exclude"
        yield f'attack.membership = "per-cohort" gives every cohort its share of attackers: {risk}'
    method = config.strategy.method
    if config.mobile and (method.stateful or method.aggregates_all):
        rounds = config.strategy.rounds
        touched = 100 * (1 - (1 - f / n) ** rounds)
        kept = f"{config.strategy.kind} keeps a vector of each client, and theory needs the same attackers throughout"
        often = f"after {rounds} rounds {touched:.3g} % of clients have attacked, by 1 - (1 - f/n)^T"
        yield f'attack.membership = "mobile": {kept}; {often}'
    yield from config.strategy.method.remarks(n, f, rule, config.compressor)
    if config.attack is not None and (remark := config.attack.remark(n, f)) is not None:
        yield remark


_DRAWN = 1000
"""Cohorts that are drawn to see how many of them are below quorum by weight."""


def _warnings_of_weights(config: Config) -> Iterator[str]:
    """Yield what weights make weaker."""
    federation = config.federation
    n, f, weights = federation.clients, federation.byzantine, np.array(federation.whole_weights)
    if any(size < n for size in config.cohorts.values()) and not config.strategy.method.aggregates_all:
        ratio = "a weighted mean over a sampled cohort is a ratio, and biased as an estimate of the one over all"
        yield f"federation.weights with cohorts of fewer than all {n} clients: {ratio}"
    aggregates_all, rng = config.strategy.method.aggregates_all, np.random.default_rng(0)
    for key, size in config.cohorts.items() if config.aggregator.defends and not aggregates_all else ():
        share, drawn = expected_byzantine(size, n, f), 1 if size == n else _DRAWN
        cohorts = (weights[rng.permutation(n)[:size]] for _ in range(drawn))
        short = sum(not config.aggregator.withstands(cohort, share) for cohort in cohorts)
        if short:
            odds = f"in about {100 * short / drawn:.2g} % of cohorts of strategy.{key} = {size}"
            quorum = "rounds that are not clipped are then below quorum"
            yield f"federation.weights: {odds}, {share} clients have half of the weight or more; {quorum}"
    rest = np.sort(weights)[: n - f]
    if f and len(rest) and config.aggregator.defends and not config.aggregator.withstands(rest, f):
        silent = f"if the {f} heaviest clients are silent, {f} of the others have half of the weight that comes"
        yield f"federation.weights: {silent}, and rounds without clipping are below quorum; lower weight_cap"
