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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from link import codec, flwr_compat
from link.compiled import LONG_S, prepare
from link.config import Config
from link.errors import BreakwaterError
from link.experiment import ATTACKERS, LINK, LISTEN, OUT, Experiment, code_fingerprint, from_run_config
from link.grid import StreamGrid
from link.polled import PolledGrid
from server.curve import draw
from server.folder import CURVE, RunFolder, read_rounds
from server.progress import RunProgress, measures, size
from server.roster import LinkRoster, QueriedRoster
from strategies.strategy import NoClientsError, RobustStrategy, RoundRecord

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
    console = Console(file=sys.stdout, soft_wrap=True)
    if isinstance(grid, StreamGrid):
        _run(grid, context, console)
        return
    with _ended_in_order():
        try:
            _run(grid, context, console)
        except (BreakwaterError, NoClientsError) as error:
            log.error("%s", error)  # Flower prints the stack above it, and says it again with the status of the run
            raise


def _run(grid: Grid, context: Context, console: Console) -> None:
    """Run it over the link where that is to be had."""
    experiment = from_run_config(context.run_config)
    out = str(context.run_config.get(OUT) or f"runs/{time.strftime('%Y%m%d-%H%M%S')}")
    federation, address = experiment.config.federation, str(context.run_config.get(LINK, ""))
    with RunFolder(Path(out).absolute()) as folder:
        load_loops(experiment, console)
        if isinstance(grid, StreamGrid):
            _train(grid, LinkRoster(grid), federation.deadline_s, experiment, folder, console)
        elif address:
            from server.bridge import live_link

            with live_link(grid, experiment, context.run_id, address, str(context.run_config.get(LISTEN, ""))) as link:
                _train(link, LinkRoster(link), federation.deadline_s, experiment, folder, console)
        else:
            if experiment.config.attack and flwr_compat.is_simulated(grid) and not context.run_config.get(ATTACKERS):
                log.warning(
                    "[attack] is not used: a simulation's nodes attack if the run config has attackers = 'last'"
                )
            deadline_s = federation.flower_deadline_s
            polled = PolledGrid(grid)
            roster = QueriedRoster(polled, federation.clients, code_fingerprint(), deadline_s)
            _train(polled, roster, deadline_s, experiment, folder, console)


def _train(
    grid: StreamGrid | PolledGrid,
    roster: LinkRoster | QueriedRoster,
    deadline_s: float,
    experiment: Experiment,
    folder: RunFolder,
    console: Console,
) -> None:
    """Wait for clients, run all rounds, leave the results in the folder."""
    config, problem = experiment.config, experiment.problem
    federation, rounds = config.federation, config.strategy.rounds
    began = time.monotonic()
    wanted = federation.start_with or federation.clients
    ready = roster.wait(wanted, federation.join_timeout_s)
    if ready < wanted:
        raise NoClientsError(
            f"{ready} of {wanted} clients joined within {time.monotonic() - began:.0f} s (federation.join_timeout_s = "
            f"{federation.join_timeout_s:g}); "
            + (roster.complaints() or "start the others, or lower federation.start_with")
        )
    joined_s = time.monotonic() - began
    console.print(f"{ready} of {federation.clients} clients joined in {joined_s:.1f} s", highlight=False)

    x0 = problem.initial()
    start = problem.evaluate(x0)
    folder.begin(config, start)
    with RunProgress(console, rounds, f"{config.strategy.kind}/{config.aggregator.kind}") as progress:
        progress.start(start)

        def on_round(record: RoundRecord) -> None:
            folder.add(record)
            if record.evaluation is not None and strategy.state is not None:
                folder.save(strategy.state.x)
            progress.add(record)

        strategy = RobustStrategy(
            experiment.method,
            codec=codec,
            roster=roster,
            clients=federation.clients,
            seed=federation.seed,
            deadline_s=deadline_s,
            idle_timeout_s=federation.join_timeout_s,
            reveal_cohort=config.reveals_cohort,
            traffic=grid.traffic,
            evaluate=problem.evaluate,
            every=config.evaluation.every,
            on_round=on_round,
        )
        status = "interrupted"
        training = time.monotonic()
        try:
            strategy.start(grid, codec.to_arrays(x0), num_rounds=rounds)
            status = "diverged" if strategy.last and strategy.last.diverged else "finished"
        finally:
            summary = folder.finish(
                status=status,
                seed=federation.seed,
                wall_s=time.monotonic() - training,
                joined_s=joined_s,
                model=None if strategy.state is None else strategy.state.x,
            )
    draw({config.strategy.kind: (summary, read_rounds(folder.path))}, folder.path / CURVE, title=_title(config))
    last = strategy.last
    final = measures(last.evaluation) if last and last.evaluation else ""
    console.print(
        f"{status} after {summary['rounds']} rounds in {summary['wall_s']:.1f} s  {final}  "
        f"{size(summary['bytes_up'])} up  {size(summary['bytes_down'])} down  run folder {folder.path}",
        highlight=False,
    )


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

    def end(number: int, frame: FrameType | None) -> None:
        for each in before:  # Flower may send more than one
            signal.signal(each, signal.SIG_IGN)
        raise Ended(number)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    ended = None
    try:
        yield
    except Ended as error:
        ended = error.args[0]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if ended is not None:
        signal.raise_signal(ended)


def _title(config: Config) -> str:
    """Return the experiment in a few words."""
    federation = config.federation
    attack = f", {federation.byzantine} of {federation.clients} attack by {config.attack.kind}" if config.attack else ""
    return f"{config.strategy.kind} on {config.task.kind}{attack}"
