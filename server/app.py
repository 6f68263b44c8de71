"""The ServerApp of the App Bundle: one experiment on a Flower deployment or in Flower's simulation.

Messages go through the SuperLink, or, with the run config's ``link``, over a live link that is opened here.
"""

import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from experiment.code import code_fingerprint
from experiment.opened import open_config, try_out
from experiment.run_config import RunConfig
from foundation.errors import BreakwaterError, ConfigError
from foundation.signals import raising
from link.polled import PolledGrid
from link.queried import QueriedGrid
from server.link import judge_of
from server.monitor.exporters import Monitoring
from server.run import run
from server.run_folder.checkpoints import resumed
from server.run_folder.writer import RunFolder

log = logging.getLogger("breakwater.server")

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that the run config names."""
    with _ended_in_order():
        try:
            _run(grid, context.run_id, context.run_config)
        except BreakwaterError as error:
            log.error("%s", error)  # Flower prints the stack above it, and repeats it with the status of the run
            raise


def _run(grid: Grid, run_id: int, given: Mapping[str, object]) -> None:
    monitoring, settings = Monitoring.of(given), RunConfig.read(given)
    monitoring.check("run config: ")
    config = settings.load()
    if config.federation.names:
        raise ConfigError("[federation] weights by name: nodes of a Flower run have none; give a list by seat")
    experiment = open_config(config, settings.data_dir(), settings.path.parent)
    try_out(experiment)
    out = (settings.resume or settings.out or Path(f"runs/{time.strftime('%Y%m%d-%H%M%S')}")).absolute()
    point = resumed(out, experiment) if settings.resume else None
    polled = PolledGrid(grid)
    with RunFolder(out, point[0] if point else None) as folder:
        run_over = partial(run, experiment, folder, monitoring=monitoring, point=point)
        if settings.link:
            from server.bridge import live_link

            with live_link(polled, experiment, run_id, settings.link, settings.listen) as link:
                run_over(link)
            return
        if experiment.config.attack and polled.simulated and not settings.last_attack:
            log.warning("[attack] is not used: a simulation's nodes attack if the run config has attackers = 'last'")
        federation, judge = experiment.config.federation, judge_of(experiment)
        n, deadline_s, same_code = federation.clients, federation.flower_deadline_s, federation.same_code == "required"
        run_over(QueriedGrid(grid, n, code_fingerprint(), deadline_s, judge, same_code=same_code))


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Within: a signal that ends the process first lets the run write its results, and takes effect after that.

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
