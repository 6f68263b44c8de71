"""``breakwater check``: a config in words and numbers, without running it."""

from collections.abc import Iterator
from math import comb
from pathlib import Path

from link.config import Config, MethodSection, resolve
from link.errors import ConfigError
from strategies.cohorts import expected_byzantine
from tasks.contract import Problem, TaskError


def byzantine_majority(clients: int, byzantine: int, cohort: int) -> tuple[float, float]:
    """Return the probabilities of a strict Byzantine majority and of a tie in a uniformly sampled cohort.

    Args:
        clients: n.
        byzantine: f.
        cohort: C, drawn without replacement.

    Source: the hypergeometric distribution; Malinovsky et al. (NeurIPS 2024), definition of p_G.
    """
    total = comb(clients, cohort)
    ways = {t: comb(byzantine, t) * comb(clients - byzantine, cohort - t) for t in range(cohort + 1)}
    return (
        sum(w for t, w in ways.items() if 2 * t > cohort) / total,
        sum(w for t, w in ways.items() if 2 * t == cohort) / total,
    )


def explain(config: Config, data_dir: Path | None, config_dir: Path | None) -> Iterator[str]:
    """Yield the lines that tell what the config would do.

    Raises:
        ConfigError: the config does not fit its task.
    """
    n, f = config.federation.clients, config.federation.byzantine
    problem = None
    try:
        problem = config.task.load(config.setting(data_dir, config_dir))
    except TaskError as error:
        if config.task.kind == "custom":
            raise ConfigError(f"[task] {error}") from None
        task = f"{config.task.kind}; not loaded: {error}"
    else:
        config = resolve(config, problem)
        task = _task(config, problem)
    yield f"clients      {n}, of which up to {f} Byzantine ({100 * f / n:.0f} %); seed {config.federation.seed}"
    yield f"task         {task}"
    strategy = config.strategy
    yield f"method       {strategy.kind}, {strategy.rounds} rounds: {_hyper_parameters(strategy)}"
    yield from _cohorts(config)
    if problem is not None:
        yield _packet(config, problem)
    yield _attack(config)
    for warning in warnings(config):
        yield f"warning      {warning}"


def _task(config: Config, problem: Problem) -> str:
    parts = [f"{config.task.kind}: d = {problem.dim} ({problem.dtype.name})"]
    if problem.smoothness is not None:
        parts.append(f"L = {problem.smoothness:.6g}")
    if problem.optimum is not None:
        parts.append(f"f* = {problem.optimum:.10g}")
    return ", ".join(parts)


def _hyper_parameters(strategy: MethodSection) -> str:
    shown = strategy.model_dump(exclude={"kind", "rounds"}, exclude_none=True)
    return ", ".join(f"{key} = {_short(value)}" for key, value in shown.items())


def _short(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _cohorts(config: Config) -> Iterator[str]:
    n, f = config.federation.clients, config.federation.byzantine
    rule = config.aggregator
    names = " after ".join([rule.kind, *(step.kind for step in reversed(rule.pre))])
    for key, size in config.strategy.cohorts(config.federation).items():
        share = expected_byzantine(size, n, f)
        majority, tie = byzantine_majority(n, f, size)
        yield (
            f"{key:12} {size} of {n}: about {share} Byzantine, {names} tolerates {rule.tolerates(size)}; a round has a "
            f"Byzantine majority with probability {majority:.3g}, a tie with {tie:.3g}"
        )


def _packet(config: Config, problem: Problem) -> str:
    q, d = config.compressor, problem.dim
    values = q.n_values(d)
    return (
        f"compressor   {q.kind}: {values} of {d} values ({values * problem.dtype.itemsize} bytes) a reply, "
        f"omega = {q.omega(d):.4g}, D_Q = {q.norm_bound(d):.4g}"
    )


def _attack(config: Config) -> str:
    if config.attack is None:
        return "attack       none"
    attack = config.attack
    return f'attack       {attack.kind} with view "{attack.view}"; the cohort is ' + (
        "revealed to the clients in it, because this attack needs to know" if config.reveals_cohort else "not revealed"
    )


def warnings(config: Config) -> Iterator[str]:
    """Yield what is allowed but deserves a second thought."""
    n, f = config.federation.clients, config.federation.byzantine
    rule = config.aggregator
    if f and not rule.defends:
        yield f'aggregator.kind = "{rule.kind}" defends against nobody, and {f} of {n} clients may be Byzantine'
    for key, size in config.strategy.cohorts(config.federation).items():
        share, most = expected_byzantine(size, n, f), rule.tolerates(size)
        if rule.defends and most < share:
            yield (
                f"strategy.{key} = {size}: about {share} of them are Byzantine and {rule.kind} with its pre-steps "
                f"tolerates {most}; only clipping limits what such a round can do"
            )
        for step in rule.pre:
            rows, spoilt = step.after(size, share)
            if step.kind == "bucketing" and 2 * spoilt >= rows > 1:
                yield (
                    f"bucketing leaves {rows} buckets of {size} rows, {spoilt} of which may be spoilt: half or more, "
                    "where a median breaks down; use a smaller s or none"
                )
