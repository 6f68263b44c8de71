"""The ServerApp: one experiment, from waiting for clients to the run folder.

The same app runs over the link (``breakwater server`` calls it) and as part of a Flower App Bundle. Its run config
names the experiment (``config``: TOML text or the path of a file), changes to it (``set``), the data folder (``data``)
and the run folder (``out``); on a Flower deployment ``link`` names the address of a live link to open there.
"""

import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from experiment.compiled import LONG_S, prepare
from experiment.explain import TaskFacts, title
from experiment.opened import (
    ATTACKERS,
    LIFE,
    LINK,
    LISTEN,
    OUT,
    RESUME,
    Experiment,
    code_fingerprint,
    from_run_config,
    try_out,
)
from experiment.sections import Federation
from foundation.errors import BreakwaterError
from foundation.signals import done, held, raising
from link import codec, flwr_compat
from link.grid import StreamGrid
from link.polled import PolledGrid
from server.checkpointer import Books
from server.link import judge_of
from server.monitor.exporters import Monitoring
from server.monitor.observers import Observers, watched
from server.monitor.plot import draw
from server.monitor.report import write_report
from server.monitor.terminal import last_line
from server.roster import LinkRoster, QueriedRoster
from server.run_folder import CURVE, REPORT
from server.run_folder.checkpoints import resumed
from server.run_folder.reader import read_rounds
from server.run_folder.writer import RunFolder
from strategies.deadline import LearntDeadline
from strategies.method import Evaluation
from strategies.strategy import NoClientsError, RobustStrategy, RoundRecord, StalledError
from tasks.contract import Problem

log = logging.getLogger("breakwater.server")

app = ServerApp()


def load_loops(experiment: Experiment, console: Console) -> None:
    """Compile or load what long vectors need, and tell the user if that took long; at once if it has been done."""
    seconds = prepare(experiment, aggregates=True)
    if seconds > LONG_S:
        console.print(
            f"compiled loops for {seconds:.1f} s, once on this machine: later runs load them from disk", highlight=False
        )


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that the run config names."""
    if isinstance(grid, StreamGrid):
        _run(grid, context, Monitoring.of(context.run_config))
        return
    with _ended_in_order():
        try:
            monitoring = Monitoring.of(context.run_config)
            monitoring.check("run config: ")
            _run(grid, context, monitoring)
        except (BreakwaterError, NoClientsError, StalledError) as error:
            log.error("%s", error)  # Flower prints the stack above it, and says it again with the status of the run
            raise


def _run(grid: Grid, context: Context, monitoring: Monitoring) -> None:
    """Run it over the link where that is to be had."""
    console = Console(file=sys.stdout, soft_wrap=True, quiet=monitoring.quiet)
    experiment = from_run_config(context.run_config)
    try_out(experiment)
    resume = str(context.run_config.get(RESUME, ""))
    out = Path(resume or str(context.run_config.get(OUT) or f"runs/{time.strftime('%Y%m%d-%H%M%S')}")).absolute()
    point = resumed(out, experiment) if resume else None
    federation, address = experiment.config.federation, str(context.run_config.get(LINK, ""))
    with RunFolder(out, point[0] if point else None) as folder:
        load_loops(experiment, console)
        books = Books(experiment, folder, point, int(context.run_config.get(LIFE, 0)), console)
        if isinstance(grid, StreamGrid):
            _train(grid, LinkRoster(grid), _deadline(federation), books, monitoring)
        elif address:
            from server.bridge import live_link

            with live_link(grid, experiment, context.run_id, address, str(context.run_config.get(LISTEN, ""))) as link:
                _train(link, LinkRoster(link), _deadline(federation), books, monitoring)
        else:
            if experiment.config.attack and flwr_compat.is_simulated(grid) and not context.run_config.get(ATTACKERS):
                log.warning(
                    "[attack] is not used: a simulation's nodes attack if the run config has attackers = 'last'"
                )
            deadline_s = federation.flower_deadline_s
            polled = PolledGrid(grid)
            judge = judge_of(experiment)
            roster = QueriedRoster(polled, federation.clients, code_fingerprint(), deadline_s, judge)
            _train(polled, roster, deadline_s, books, monitoring)


def _deadline(federation: Federation) -> float | LearntDeadline:
    """Return the deadline of rounds over the link. Through SuperNodes it is fixed: they poll, so all are slow."""
    if federation.deadline_s is not None:
        return federation.deadline_s
    return LearntDeadline(federation.clients, federation.byzantine)


def _train(
    grid: StreamGrid | PolledGrid,
    roster: LinkRoster | QueriedRoster,
    deadline_s: float | LearntDeadline,
    books: Books,
    monitoring: Monitoring,
) -> None:
    """Wait for clients, run all rounds, leave the results in the folder."""
    experiment, folder, console = books.experiment, books.folder, books.console
    config, problem = experiment.config, experiment.problem
    federation, rounds = config.federation, config.strategy.rounds
    over = books.state is not None and books.state.round > rounds  # only its results are still to be written
    with watched(grid, config, folder.path, folder.rounds, monitoring, console) as observers:
        try:
            joined_s = 0.0 if over else _gather(roster, federation, books)
            x0 = problem.initial()
            start = problem.evaluate(x0)
            folder.begin(config, start, *beside(problem))
            observers.start(start if books.state is None else problem.evaluate(books.state.x), folder.rounds)
        except BaseException:
            with held():
                _end_early(books, observers, monitoring)
            raise

        def on_round(record: RoundRecord) -> None:
            with held():  # a round is written whole, or not at all
                folder.add(record)
                if record.evaluation is not None and strategy.state is not None:
                    folder.save(strategy.state.x)
                observers.add(record)
                if not record.diverged and books.due(record.round):
                    books.keep(grid, roster, strategy)

        strategy = RobustStrategy(
            experiment.method,
            codec=codec,
            roster=roster,
            clients=federation.clients,
            byzantine=federation.byzantine,
            stall_rounds=federation.stall_rounds,
            seed=federation.seed_of_server,
            deadline_s=deadline_s,
            waits=grid.waits if isinstance(grid, StreamGrid) else None,
            quorum=federation.quorum,
            idle_timeout_s=federation.join_timeout_s if grid.clients_change else 0.0,
            reveal_cohort=config.reveals_cohort,
            traffic=grid.traffic,
            late=grid.late if isinstance(grid, StreamGrid) else None,
            evaluate=problem.evaluate,
            every=config.evaluation.every,
            on_round=on_round,
            on_hold=observers.hold,
        )
        strategy.state = books.state if books.state is not None else experiment.method.start(x0)
        status: str = "interrupted"
        stalled: StalledError | None = None
        measured: Evaluation | None = None  # of the model that is left, where it is not the last one
        try:
            books.keep(grid, roster, strategy)
            strategy.start(grid, codec.to_arrays(x0), num_rounds=rounds)
            status = "diverged" if strategy.last and strategy.last.diverged else "finished"
        except StalledError as error:
            status, stalled, measured = "stalled", error, problem.evaluate(error.model)
        finally:
            with held():  # a signal may come at any time, and again
                if status != "diverged":
                    books.keep(grid, roster, strategy)
                summary = folder.finish(
                    status=status,
                    seed=federation.seed,
                    joined_s=joined_s,
                    model=strategy.state.x if stalled is None else stalled.model,
                    evaluation=measured,
                    stall=None if stalled is None else stalled.to_dict(),
                    lives=books.life or 1,
                    patience_s=federation.join_timeout_s if status == "finished" else 0.0,
                    task=_facts(experiment),
                )
                if status != "interrupted":
                    done()
                line = last_line(summary, folder.path)
                observers.end(status, line)
                if monitoring.pictures:
                    _report(folder.path)
    try:
        if monitoring.pictures:
            draw({config.strategy.kind: (start, read_rounds(folder.path))}, folder.path / CURVE, title=title(config))
    except OSError as error:
        log.error("%s: cannot be written: %s", folder.path / CURVE, error.strerror or error)
    console.quiet = False
    console.print(line, highlight=False, markup=False)
    if stalled is not None:
        raise stalled


def beside(problem: Problem) -> tuple[Mapping[str, Any], str]:
    """Return what goes into the model's file beside x: frozen values by name, and the layout of x."""
    frozen = problem.frozen() if hasattr(problem, "frozen") else {}
    return frozen, str(problem.layout()) if hasattr(problem, "layout") else ""


def _end_early(books: Books, observers: Observers, monitoring: Monitoring) -> None:
    """Leave what there is of a run that ends before its first round, or before the first one after it went on."""
    folder, federation = books.folder, books.experiment.config.federation
    summary = folder.finish(
        status="interrupted",
        seed=federation.seed,
        joined_s=0.0,
        model=None if books.state is None else books.state.x,
        lives=books.life or 1,
        task=_facts(books.experiment),
    )
    observers.end("interrupted", last_line(summary, folder.path))
    if monitoring.pictures:
        _report(folder.path)


def _facts(experiment: Experiment) -> dict[str, Any] | None:
    """Return what the task tells of itself, for the summary; None where a custom task cannot say."""
    try:
        return TaskFacts.of(experiment.problem).told()
    except Exception as error:  # whatever the user's code raises is no reason to lose the results
        log.warning("the task does not tell its L or f*: %r", error)
        return None


def _report(out: Path) -> None:
    """Leave the report in the run folder; without it the run is as good."""
    try:
        write_report(out)
    except Exception as error:  # a page that cannot be made must not end a run
        log.error("%s: cannot be made: %s", out / REPORT, error)


def _gather(roster: LinkRoster | QueriedRoster, federation: Federation, books: Books) -> float:
    """Wait for the clients; return the seconds that it took.

    A run that goes on waits for as many as it had, so that it is the run that it was; who has not come back within the
    time is missing from then on, as if it had left in a round.

    Raises:
        NoClientsError: too few have come.
    """
    began = time.monotonic()
    wanted = federation.start_with or federation.clients
    least = wanted
    if books.present:
        wanted, least = books.present, 1
    log.info("waiting for %d clients, for up to %g s", wanted, federation.join_timeout_s)
    ready = roster.wait(wanted, federation.join_timeout_s)
    if ready < least:
        raise NoClientsError(
            f"{ready} of {wanted} clients joined within {time.monotonic() - began:.0f} s (federation.join_timeout_s = "
            f"{federation.join_timeout_s:g}); "
            + (roster.complaints() or "start the others, or lower federation.start_with")
        )
    if ready < wanted:
        log.warning("%d of the %d clients that were there have come back: going on with them", ready, wanted)
    joined_s = time.monotonic() - began
    books.console.print(f"{ready} of {federation.clients} clients joined in {joined_s:.1f} s", highlight=False)
    return joined_s


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Within: a signal that ends the process lets what is under way finish its books, and takes effect after that.

    Flower's own handler ends the process on the spot. In simulation the ServerApp is a thread, which gets no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    class Ended(BaseException):
        """Raised in place of the signal's effect."""

    ended = None
    try:
        with raising(Ended, ctrl_c=Ended):
            yield
    except Ended as error:
        ended = error.args[0]
    if ended is not None:
        signal.raise_signal(ended)
