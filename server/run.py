"""One run on the server's side, from waiting for clients to the results in its folder."""

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from experiment.agreement import Agreement
from experiment.code import Code
from experiment.compiled import LONG_S, prepare
from experiment.config import Config
from experiment.explain import title
from experiment.model_file import ModelForm
from experiment.opened import Experiment, trigger_of
from experiment.sections import Federation
from foundation.errors import ConfigError
from foundation.signals import done, held
from link import claims, codec
from link.transport import Transport
from server.agreeing import agree
from server.checkpointer import Checkpointer
from server.final_model import send_model
from server.monitor.exporters import Monitoring
from server.monitor.observers import Observers, watched
from server.monitor.plot import draw
from server.monitor.report import write_report
from server.monitor.terminal import last_line
from server.norm_stats import StatisticsOfClients
from server.run_folder import CURVE, REPORT
from server.run_folder.checkpoints import Checkpoint
from server.run_folder.reader import read_rounds
from server.run_folder.writer import RunFolder
from strategies.claims import Measures, headline
from strategies.deadline import LearntDeadline
from strategies.method import Evaluation, Oracle, Vector
from strategies.safeguard import Supervisor
from strategies.strategy import (
    ClaimCodec,
    NoClientsError,
    RobustStrategy,
    RoundRecord,
    StalledError,
    Standing,
)

log = logging.getLogger("breakwater.server")

Point = tuple[Checkpoint, Any]
"""A checkpoint that a run is resumed from, and the method's state at it."""


def console_for(monitoring: Monitoring) -> Console:
    """Return where a run writes for its user."""
    return Console(file=sys.stdout, soft_wrap=True, quiet=monitoring.quiet)


def load_loops(experiment: Experiment, console: Console) -> None:
    """Compile or load what long vectors need, and report it if that took long; at once if it has been done."""
    seconds = prepare(experiment, aggregates=True)
    if seconds > LONG_S:
        once = "once on this machine: later runs load them from disk"
        console.print(f"compiled loops for {seconds:.1f} s, {once}", highlight=False)


def run(
    experiment: Experiment,
    folder: RunFolder,
    transport: Transport,
    monitoring: Monitoring,
    *,
    point: Point | None = None,
    incarnation: int = 0,
) -> None:
    """Wait for clients, run all rounds, leave the results in the folder.

    Args:
        experiment: whose task has been tried.
        folder: the run folder, which is ours.
        transport: where the clients are.
        monitoring: what is shown of the run, and to whom.
        point: where it is resumed; None for a new run.
        incarnation: how often a server was started for this run, from 1; 0 where clients do not outlive the server.

    Raises:
        RunEndedError: too few clients came or answered; the folder holds what there is.
        BreakwaterError: the run folder, or a port for monitoring, cannot be used.
    """
    if point is not None and point[0].agreement:
        experiment = experiment.settled(Agreement.from_json(point[0].agreement))
    config, problem = experiment.config, experiment.problem
    federation, rounds = config.federation, config.strategy.rounds
    evaluate = _evaluation(experiment)
    console = console_for(monitoring)
    folder.form = ModelForm.of(problem)
    load_loops(experiment, console)
    checkpointer = Checkpointer(experiment, folder, point, incarnation, console)
    resumed = checkpointer.state
    supervisor, standing = _supervisor(config), checkpointer.standing
    if standing is not None and standing.course is not None:
        course = None if supervisor is None else supervisor.resumed(standing.course, standing.state.round - 1)
        standing = standing._replace(course=course)
    ended = standing is not None and standing.course is not None and bool(standing.course.ended)
    over = ended or (resumed is not None and resumed.round > rounds)  # only its results are still to be written
    status, joined_s, strategy = "interrupted", 0.0, None
    stalled: StalledError | None = None
    measured: Evaluation | None = None  # of the model that is left, where it is not the last one
    with watched(transport, config, folder.path, folder.rounds, monitoring, console) as observers:
        try:
            joined_s = 0.0 if over else _gather(transport, federation, checkpointer)
            if experiment.written is not None and experiment.agreement is None:
                experiment = checkpointer.experiment = experiment.settled(agree(experiment, transport))
            x0 = problem.initial()
            new = _strategy(experiment, transport, observers, evaluate, supervisor)

            def measure(x: Vector, round_: int) -> Measures:
                claimed = None if over else new.ask_clients(transport, round_, x)
                return (None if evaluate is None else evaluate(x)), claimed

            if not over:
                new.ask_statistics(transport, 0, x0)
            start = measure(x0, 0)
            folder.begin(experiment.as_written, *start, new.statistics_bytes)
            if standing is not None and folder.rounds:  # with the statistics of then, whoever answers now
                new.measure_with(standing.norm_stats)
            now = start if resumed is None else measure(resumed.x, folder.rounds)
            observers.start(now[0], folder.rounds, now[1])
            strategy = new
            strategy.on_round = _on_round(strategy, transport, checkpointer, observers)
            begun = standing or Standing(experiment.method.start(x0))
            strategy.standing = begun._replace(norm_stats=new.norm_stats)
            if supervisor is not None:
                _supervise(strategy, supervisor, folder, now)
            checkpointer.keep(transport, strategy)
            if not ended:
                strategy.start(transport, codec.to_arrays(x0), num_rounds=rounds)
            status = "diverged" if strategy.last and strategy.last.diverged else "finished"
        except StalledError as error:
            status, stalled = "stalled", error
            measured = None if evaluate is None else evaluate(error.model)
        finally:
            with held():  # a signal may come at any time, and again
                if strategy is not None:
                    standing = strategy.standing_after(folder.rounds) or strategy.standing
                state = None if standing is None else standing.state
                course = None if standing is None else standing.course
                if standing is not None and course is not None and standing.since == folder.rounds + 1 and not stalled:
                    measured = course.good_measures  # the model that was measured last is undone
                if strategy is not None and standing is not None:
                    strategy.measure_with(standing.norm_stats)
                if strategy is not None and status != "diverged":
                    checkpointer.keep(transport, strategy)
                summary = folder.finish(
                    status=status,
                    seed=federation.seed,
                    joined_s=joined_s,
                    model=stalled.model if stalled is not None else None if state is None else state.x,
                    evaluation=measured,
                    measured_by="server" if evaluate is not None else "clients",
                    stall=None if stalled is None else stalled.to_dict(),
                    starts=incarnation or 1,
                    patience_s=federation.join_timeout_s if status == "finished" else 0.0,
                    task=_facts(experiment),
                    code=_other_code(experiment, transport),
                    course=course,
                )
                if status != "interrupted":
                    done()
                line = last_line(summary, folder.path)
                observers.live.end(status, line)
                if monitoring.pictures:
                    _report(folder.path)
    try:
        if monitoring.pictures:
            draw(
                {config.strategy.kind: (headline(*start), read_rounds(folder.path))},
                folder.path / CURVE,
                title=title(config),
            )
    except OSError as error:
        log.error("%s: cannot be written: %s", folder.path / CURVE, error.strerror or error)
    console.quiet = monitoring.silent
    console.print(line, highlight=False, markup=False)
    final = stalled.model if stalled is not None else None if state is None else state.x
    if config.own_data and final is not None and status in ("finished", "stalled"):
        send_model(experiment, transport, final)
    if stalled is not None:
        raise stalled


def _evaluation(experiment: Experiment) -> Callable[[Vector], Evaluation] | None:
    """Return what measures a model at the server; None where the server measures none.

    Raises:
        ConfigError: the server has nothing to measure it on.
    """
    if not experiment.config.server_evaluates:
        return None
    if not getattr(experiment.problem, "has_test_data", True):
        fix = 'give it a test set (--data), or use "clients" or "none"'
        raise ConfigError(f'[evaluation] by = "{experiment.config.evaluated_by}": the server has no test data; {fix}')
    problem: Any = experiment.problem
    if (trigger := trigger_of(experiment, experiment.config.attack)) is None or not hasattr(problem, "trigger_success"):
        return experiment.problem.evaluate
    patch = trigger(0).whole()
    return lambda x: replace(problem.evaluate(x), trigger=problem.trigger_success(x, patch))


def _strategy(
    experiment: Experiment,
    transport: Transport,
    observers: Observers,
    evaluate: Callable[[Vector], Evaluation] | None,
    supervisor: Supervisor | None,
) -> RobustStrategy:
    config, federation = experiment.config, experiment.config.federation
    deadline_s = federation.flower_deadline_s if transport.polled else federation.deadline_s
    return RobustStrategy(
        experiment.method,
        codec=codec,
        roster=transport,
        clients=federation.clients,
        byzantine=federation.byzantine,
        stall_rounds=federation.stall_rounds,
        seed=federation.seed_of_server,
        deadline_s=LearntDeadline(federation.clients, federation.byzantine) if deadline_s is None else deadline_s,
        quorum=federation.quorum,
        idle_timeout_s=federation.join_timeout_s if transport.clients_change else 0.0,
        reveal_cohort=config.reveals_cohort,
        stratum=federation.last_seats if config.stratified else (),
        agreement=None if experiment.agreement is None else experiment.agreement.record(),
        root=_root(experiment),
        evaluate=evaluate,
        claim_codec=_claim_codec(experiment) if config.clients_evaluate else None,
        statistics=StatisticsOfClients(experiment) if experiment.statistics else None,
        declare_samples=federation.declare_samples,
        every=config.evaluation.every,
        supervisor=supervisor,
        on_hold=observers.live.hold,
    )


def _supervisor(config: Config) -> Supervisor | None:
    """Return what may end a run early or take it back; None where the config asks for neither."""
    stop, guard = config.evaluation.stop, config.safeguard
    if stop is None and guard is None:
        return None
    return Supervisor(
        **({} if stop is None else stop.model_dump()),
        **({} if guard is None else guard.model_dump()),
        byzantine=config.federation.byzantine,
    )


def _supervise(strategy: RobustStrategy, supervisor: Supervisor, folder: RunFolder, measures: Measures) -> None:
    """Let a strategy's supervisor begin with the present model, unless the course of the run is known.

    Args:
        strategy: with its standing.
        supervisor: of it.
        folder: of the run.
        measures: of the present model.

    Raises:
        ConfigError: the task has not got the measure that ends the run.
    """
    found, state = headline(*measures), strategy.state
    if supervisor.measure == "accuracy" and found is not None and found.accuracy is None:
        raise ConfigError('[evaluation] stop.measure = "accuracy": this task has none; use "loss"')
    if strategy.course is None:
        strategy.course = supervisor.begin(strategy.method, state, state.round - 1, *measures, strategy.norm_stats)
    folder.save_best(strategy.course)


def _root(experiment: Experiment) -> Oracle | None:
    """Return the gradients of the server's own training data, where the rule needs them."""
    if not experiment.config.aggregator.needs_root:
        return None
    problem: Any = experiment.problem  # which has been checked when it was loaded
    oracle: Oracle = problem.root()
    return oracle


def _claim_codec(experiment: Experiment) -> ClaimCodec:
    """Return how clients are asked to measure models: with what only the server can compute for them."""
    of_model: Callable[[Vector], Vector | None] | None = getattr(experiment.problem, "norm_stats", None)
    if of_model is None or not (experiment.config.own_data or experiment.statistics):
        return claims
    return claims.WithNormStats(of_model)


def _on_round(
    strategy: RobustStrategy, transport: Transport, checkpointer: Checkpointer, observers: Observers
) -> Callable[[RoundRecord], None]:
    """Return what writes down a round that has ended."""
    config = checkpointer.experiment.config

    def on_round(record: RoundRecord) -> None:
        last = record.diverged or record.round == config.strategy.rounds
        with held():  # a round is written whole, or not at all
            checkpointer.folder.add(record)
            if strategy.course is not None and strategy.course.best_round == record.round:
                checkpointer.folder.save_best(strategy.course)
            if (last or record.round % config.evaluation.every == 0) and strategy.state is not None:
                checkpointer.folder.save(strategy.state.x)
            observers.add(record)
            if not record.diverged and checkpointer.due(record.round):
                checkpointer.keep(transport, strategy)

    return on_round


def _facts(experiment: Experiment) -> dict[str, Any] | None:
    """Return the problem constants for the summary; None if a custom task does not report them."""
    try:
        return experiment.constants.to_dict()
    except Exception as error:  # whatever the user's code raises is no reason to lose the results
        log.warning("the task does not report its L or f*: %r", error)
        return None


def _other_code(experiment: Experiment, transport: Transport) -> dict[str, Any] | None:
    """Return which code the server runs, and those clients that run another; None where all run the same."""
    mine = Code.here(experiment.config)
    codes = {name: Code.read(report) for name, report in transport.reports().items()}
    clients = {name: str(code) for name, code in sorted(codes.items()) if code != mine}
    return {"server": str(mine), "clients": clients} if clients else None


def _report(out: Path) -> None:
    """Leave the report in the run folder; without it the run is as good."""
    try:
        write_report(out)
    except Exception as error:  # a page that cannot be made must not end a run
        log.error("%s: cannot be made: %s", out / REPORT, error)


def _gather(transport: Transport, federation: Federation, checkpointer: Checkpointer) -> float:
    """Wait for the clients; return the seconds that it took.

    A resumed run waits for as many clients as it had. Those that have not come back in time are missing from then on,
    as if they had left in a round.

    Raises:
        NoClientsError: too few have come.
    """
    began = time.monotonic()
    wanted = checkpointer.present or federation.start_with or federation.clients
    least = 1 if checkpointer.present else wanted
    log.info("waiting for %d clients, for up to %g s", wanted, federation.join_timeout_s)
    ready = transport.wait(wanted, federation.join_timeout_s)
    if ready < least:
        within = f"within {time.monotonic() - began:.0f} s (federation.join_timeout_s = {federation.join_timeout_s:g})"
        fix = transport.complaints() or "start the others, or lower federation.start_with"
        raise NoClientsError(f"{ready} of {wanted} clients joined {within}; {fix}")
    if ready < wanted:
        log.warning("%d of %d previous clients reconnected; continuing", ready, wanted)
    joined_s = time.monotonic() - began
    checkpointer.console.print(f"{ready} of {federation.clients} clients joined in {joined_s:.1f} s", highlight=False)
    return joined_s
