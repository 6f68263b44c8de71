"""What shows a run while it goes: the terminal, watchers over the link, TensorBoard and Prometheus."""

import logging
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from experiment.config import Config
from link.transport import Transport
from server.monitor.exporters import EventFiles, MetricsPort, Monitoring
from server.monitor.live import LiveRun, Title
from server.monitor.terminal import RunProgress
from server.monitor.web.options import WebOptions
from server.run_folder.reader import each_round
from strategies.claims import Claims
from strategies.method import Evaluation
from strategies.strategy import RoundRecord

log = logging.getLogger("breakwater.server")

_AGAIN = 10_000
"""At most this many rounds of a resumed run are written for TensorBoard again, which takes a second."""


@dataclass(frozen=True)
class Observers:
    """Everything that shows one run; made by ``watched``.

    Args:
        live: the run's state, which all others show.
        progress: what the terminal shows.
        events: TensorBoard's files.
        metrics: Prometheus' port.
    """

    live: LiveRun
    progress: RunProgress
    events: EventFiles | None
    metrics: MetricsPort | None

    def start(self, evaluation: Evaluation | None, after: int, claims: Claims | None = None) -> None:
        """Note that rounds begin, with a model after round ``after`` that is measured so."""
        self.live.begin(evaluation, claims)
        self.progress.start()
        if self.events is not None:
            self.events.start(evaluation, after, claims)

    def add(self, record: RoundRecord) -> None:
        """Note a round that has ended."""
        for each in (self.live, self.progress, self.events, self.metrics):
            if each is not None:
                each.add(record)


@contextmanager
def watched(
    transport: Transport, config: Config, out: Path, after: int, monitoring: Monitoring, console: Console
) -> Iterator[Observers]:
    """Within: the run is shown as it goes.

    Args:
        transport: where the clients are; its watchers are shown the run too.
        config: of the run.
        out: the run folder.
        after: the last round that is there already, in a resumed run.
        monitoring: what shows it.
        console: of the user.

    Raises:
        ConfigError: the port for Prometheus, or that of the page, cannot be opened.
    """
    live = of_run(transport, config, out)
    again: deque[RoundRecord] = deque(maxlen=_AGAIN)
    for record in each_round(out) if after else ():
        live.add(record)
        again.append(record)
    with ExitStack() as stack:
        metrics = monitoring.serve(live)
        if metrics is not None:
            stack.callback(metrics.stop)
            log.info("metrics for Prometheus on %s", metrics.url)
            console.print(f"metrics for Prometheus on {metrics.url}", highlight=False)
        if monitoring.web is not None:
            stack.enter_context(_page(monitoring.web, live, out))
        events = monitoring.write(out, again)
        if events is not None:
            stack.callback(events.stop)
        transport.show(live.to_json)
        progress = stack.enter_context(RunProgress(console, live, quiet=monitoring.quiet))
        yield Observers(live, progress, events, metrics)


@contextmanager
def _page(options: WebOptions, live: LiveRun, out: Path) -> Iterator[None]:
    """Within: the coordinator's page is served. Its URL is printed, also with ``--quiet``, and never logged."""
    from server.monitor.web.page import WebPage, forget_token, kept_token

    page = WebPage(options, live.to_json, kept_token(out))
    log.info("the page is served on %s", page.address)
    sys.stdout.write(f"page: {page.url}\n")
    sys.stdout.flush()
    try:
        yield
    finally:
        page.stop()
        if live.state()["status"] in ("finished", "diverged"):  # any other run may go on, and open pages with it
            forget_token(out)


def of_run(transport: Transport | None, config: Config, out: Path) -> LiveRun:
    """Return the state of a run that no round of is known yet.

    Args:
        transport: where its clients are; None where that is not known.
        config: of the run.
        out: its folder.
    """
    title = Title.of(config, out.name)
    if transport is None or transport.polled:  # to look costs messages there
        return LiveRun(title)
    return LiveRun(title, lambda: len(transport.nodes()), transport.address, transport.seats, transport.expected)
