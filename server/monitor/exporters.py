"""What watches a run from outside: TensorBoard's event files, and a port that Prometheus reads.

Both are optional, and so are the libraries that they need (`pip install 'breakwater[monitor]'`). They are fed as the
live view is, and neither ends a run: a failed write is logged once, and the rest left out.
"""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from foundation.errors import ConfigError
from link.address import Address, parse_host
from server.monitor.live import LiveRun
from server.monitor.web.options import WebOptions
from server.run_folder.record import CLAIMED, MEASURES, Counts, finite

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from server.monitor.parties import Row
    from strategies.claims import Claims
    from strategies.method import Evaluation
    from strategies.strategy import RoundRecord

log = logging.getLogger("breakwater.server")

QUIET, TENSORBOARD, METRICS_PORT, METRICS_HOST = "quiet", "tensorboard", "metrics-port", "metrics-host"
"""Keys of a Flower run config, see ``Monitoring``. A ``metrics-port`` of -1 is none."""
LOOPBACK = "127.0.0.1"

_INSTALL = "; install it with: pip install 'breakwater[monitor]' (in a checkout: pip install -e '.[monitor]')"
_FLUSH_S = 5.0
"""Seconds between two writes of event files to the disk."""
_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper ends of the histogram of seconds a round."""


@dataclass(frozen=True, kw_only=True)
class Monitoring:
    """What a user wants to see of a run, beside its run folder.

    Args:
        quiet: show only the last line and errors.
        tensorboard: write event files: the folder, where "" is ``tensorboard`` in the run folder. None for none.
        metrics_port: the port that Prometheus reads; 0 for any that is free, None for none.
        metrics_host: the address to bind it to.
        web: where the coordinator's page is served; None for nowhere.
        pictures: leave a picture and a report in the run folder; together they take a second or two.
        silent: do not even print the last line.
    """

    quiet: bool = False
    tensorboard: str | None = None
    metrics_port: int | None = None
    metrics_host: str = LOOPBACK
    web: WebOptions | None = None
    pictures: bool = True
    silent: bool = False

    @classmethod
    def of(cls, run_config: Mapping[str, object]) -> Self:
        """Read a Flower run config; ``tensorboard = "."`` is the run folder's own.

        Raises:
            ConfigError: a value is none of those that its key may have; one line.
        """
        folder, port = str(run_config.get(TENSORBOARD, "")), run_config.get(METRICS_PORT, -1)
        quiet, host = run_config.get(QUIET, False), str(run_config.get(METRICS_HOST) or LOOPBACK)
        if not isinstance(quiet, bool):
            raise ConfigError(f'run config: {QUIET} = "{quiet}": must be true or false, without quotes')
        if isinstance(port, bool) or not isinstance(port, int) or not -1 <= port <= 65535:
            raise ConfigError(f'run config: {METRICS_PORT} = "{port}": must be a port from 0 to 65535, or -1 for none')
        return cls(
            quiet=quiet,
            tensorboard=None if not folder else "" if folder == "." else folder,
            metrics_port=None if port < 0 else port,
            metrics_host=parse_host(host, what=f"run config: {METRICS_HOST} ="),
        )

    def with_tls(self, folder: Path | None) -> Self:
        """Return the same; a page that needs TLS and has no certificate of its own takes the one in this folder."""
        return self if self.web is None else replace(self, web=self.web.or_tls(folder))

    def check(self, said_in: str = "--") -> None:
        """Make sure, before a run begins, that it can be watched so.

        Args:
            said_in: the prefix of a key, as the user has written it: of an option, or of a run config.

        Raises:
            ConfigError: a library is missing, or a port is taken; one line.
        """
        for wanted, key, library in (
            (self.tensorboard is not None, TENSORBOARD, "tensorboardX"),
            (self.metrics_port is not None, METRICS_PORT, "prometheus_client"),
        ):
            if wanted and find_spec(library) is None:
                raise ConfigError(f"{said_in}{key}: needs the library {library}{_INSTALL}")
        if self.metrics_port is not None:
            try:
                Address(self.metrics_host, self.metrics_port).try_to_bind()
            except OSError as error:
                raise self._unbound(error, said_in) from None
        if self.web is not None:
            self.web.check()

    def serve(self, live: LiveRun) -> "MetricsPort | None":
        """Open the port for Prometheus, if it is wanted.

        Raises:
            ConfigError: it cannot be opened.
        """
        if self.metrics_port is None:
            return None
        try:
            return MetricsPort(live, self.metrics_host, self.metrics_port)
        except OSError as error:
            raise self._unbound(error) from None

    def write(self, out: Path, again: Iterable["RoundRecord"]) -> "EventFiles | None":
        """Begin to write event files, if they are wanted.

        Args:
            out: the run folder.
            again: the last rounds of a resumed run, see ``EventFiles``.
        """
        if self.tensorboard is None:
            return None
        return EventFiles(Path(self.tensorboard) if self.tensorboard else out / "tensorboard", again)

    def _unbound(self, error: OSError, said_in: str = "--") -> ConfigError:
        where = f"{said_in}{METRICS_PORT}: {Address(self.metrics_host, self.metrics_port or 0)}"
        return ConfigError(f"{where} cannot be bound: {error.strerror or error}; choose another port")


# --- TensorBoard ------------------------------------------------------------------------------------------------------


@contextmanager
def _without_torch() -> Iterator[None]:
    """Within: torch cannot be imported, unless it has been.

    tensorboardX imports torch where it is installed, which takes seconds and 200 MB and is of no use for scalars.
    """
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it then fails
    try:
        yield
    finally:
        del sys.modules["torch"]


class EventFiles:
    """Writes each round's numbers as TensorBoard's scalars.

    A resumed run begins a new file. It makes TensorBoard forget later rounds of older files, and the last ones
    before: a server that was killed may not have written them all, so they are written again.

    Args:
        folder: where; made if it is not there.
        again: the last rounds of a resumed run; none for a new run.
    """

    def __init__(self, folder: Path, again: Iterable["RoundRecord"] = ()) -> None:
        with _without_torch():
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.proto.summary_pb2 import Summary
        self._event, self._summary = Event, Summary
        self._folder = folder
        self._writer: Any = None
        self._flushed = time.monotonic()
        with self._or_give_up():
            folder.mkdir(parents=True, exist_ok=True)
            # Two files of one second would have one name.
            self._writer = EventsWriter(str(folder / "events"), f".{time.time_ns() % 10**9:09d}")
            for i, record in enumerate(again):
                if not i:
                    start = SessionLog(status=SessionLog.START)
                    self._writer.write_event(Event(wall_time=time.time(), step=record.round, session_log=start))
                self.add(record)
            self._writer.flush()

    def start(self, evaluation: "Evaluation | None", after: int, claims: "Claims | None" = None) -> None:
        """Write the measures of the starting point; those of a resumed run are there."""
        if not after:
            self._write(0, _measures(evaluation, claims))

    def add(self, record: "RoundRecord") -> None:
        self._write(record.round, _scalars(record))

    def stop(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with self._or_give_up():
                writer.close()

    def _write(self, round_: int, numbers: Mapping[str, float | None]) -> None:
        if self._writer is None:
            return
        known = {tag: number for tag, number in numbers.items() if finite(number) is not None}
        values = [self._summary.Value(tag=tag, simple_value=number) for tag, number in known.items()]
        event = self._event(wall_time=time.time(), step=round_, summary=self._summary(value=values))
        with self._or_give_up():
            self._writer.write_event(event)
            if time.monotonic() - self._flushed >= _FLUSH_S:
                self._flushed = time.monotonic()
                self._writer.flush()

    @contextmanager
    def _or_give_up(self) -> Iterator[None]:
        """Within: a failed write is logged, and is the last one."""
        try:
            yield
        except OSError as error:
            self._writer = None
            log.error("%s: event files cannot be written: %s; no more of them", self._folder, error.strerror or error)


def _scalars(record: "RoundRecord") -> dict[str, float | None]:
    """Return the scalars of a round by tag."""
    counts = Counts.of(record)
    return {
        **{f"round/{name}": getattr(record, name) for name in ("bytes_up", "bytes_down", "step_norm", "lam")},
        "round/seconds": record.round_s,
        **{f"clients/{name}": count for name, count in counts._asdict().items()},
        "clients/answered": counts.accepted,  # the former tag, for one release
        **_measures(record.evaluation, record.claims),
    }


def _measures(evaluation: "Evaluation | None", claims: "Claims | None") -> dict[str, float | None]:
    """Return what the server measured, and apart from it the medians of what clients claim."""
    claimed = None if claims is None else claims.evaluation
    found = {} if evaluation is None else {f"model/{name}": getattr(evaluation, name) for name in MEASURES}
    return found if claimed is None else found | {f"claimed/{name}": getattr(claimed, name) for name in CLAIMED}


# --- Prometheus -------------------------------------------------------------------------------------------------------


class MetricsPort:
    """Serves Prometheus over HTTP. Metrics are collected on request; a round only adds its seconds.

    Args:
        live: the run.
        host: the address to bind.
        port: the port; 0 for any that is free.

    Raises:
        OSError: it cannot be bound.
    """

    def __init__(self, live: LiveRun, host: str, port: int) -> None:
        from prometheus_client import CollectorRegistry, Histogram, start_http_server

        registry = CollectorRegistry()  # without the metrics of this Python and of other runs
        self._live = live
        about = "Seconds that rounds took."
        self._seconds = Histogram("breakwater_round_duration_seconds", about, buckets=_BUCKETS, registry=None)
        registry.register(self)
        Address(host, port).try_to_bind()  # the library does not say why it cannot
        self._server, self._thread = start_http_server(port, host, registry)
        self.url = f"http://{Address(host, self._server.server_port)}/metrics"

    def add(self, record: "RoundRecord") -> None:
        self._seconds.observe(record.round_s)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def collect(self) -> "Iterable[Metric]":
        """Yield the metrics; the library calls this for every request."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

        state = self._live.state(parties=True)

        about = {key: str(state[key] or "") for key in ("run", "method", "rule", "task", "attack")}
        yield InfoMetricFamily("breakwater_run", "The run.", value=about)
        whole = state["all"]
        measured = state if state["measured_by"] == "server" else dict.fromkeys(MEASURES)
        for name, text, value in (
            ("running", "1 while rounds are run.", float(state["status"] == "running")),
            ("held", "1 while the run is held because too few replies count.", float(bool(state["held"]))),
            ("planned_rounds", "Rounds that the run has.", state["rounds"]),
            ("loss", "Training loss of the model, as last measured by the server.", measured["loss"]),
            ("objective_gap", "Loss minus its minimum, where that is known.", measured["gap"]),
            (
                "accuracy_ratio",
                "Share of correct predictions, 0 to 1, as the server measured it.",
                measured["accuracy"],
            ),
            (
                "trigger_success_ratio",
                "Share of test images that a simulated attacker's trigger turns into its class, 0 to 1.",
                measured["trigger"],
            ),
            ("measured_round", "Round of the last measurement, or of the last claims.", state["measured"]),
            ("clipping_radius", "Clipping radius of the last round.", state["lam"]),
            ("step_norm", "Length of the last step.", state["step_norm"]),
            ("last_round_timestamp_seconds", "When the last round of this server ended.", state["round_at"]),
            ("clients", "Seats of the federation.", state["clients"]),
            ("connected_clients", "Clients that are connected and ready.", state["connected"]),
        ):
            if value is not None:
                yield GaugeMetricFamily(f"breakwater_{name}", text, value=value)
        for name, text, value in (
            ("incomplete_rounds", "Rounds with too few replies to use any.", state["incomplete"]),
            ("failed_attacks", "Replies of attackers whose attack failed.", state["attack_failed"]),
            ("rounds", "Rounds that have ended.", state["round"]),
            ("received_bytes", "Bytes from clients.", state["up"]),
            ("sent_bytes", "Bytes to clients.", state["down"]),
            ("sampled_clients", "Clients sampled, summed over rounds.", whole["sampled"]),
            ("received_replies", "Replies that arrived in time, good or bad.", whole["replied"]),
            ("accepted_replies", "Replies that counted.", whole["accepted"]),
            ("clipped_replies", "Replies that were clipped.", whole["clipped"]),
        ):
            yield CounterMetricFamily(f"breakwater_{name}", text, value=value)
        for name, text, label, counts in (
            ("rejected", "Replies that did not count, missing ones too, by reason.", "reason", state["reasons"]),
            ("client_rejected", "The same by client, at most as many as seats.", "client", state["rejected_of"]),
        ):
            family = CounterMetricFamily(f"breakwater_{name}_replies", text, labels=[label])
            for key, count in counts.items():
                family.add_metric([key], count)
            yield family
        yield from _of_parties(state["parties"])
        yield from self._claimed(state["claims"])
        for histogram in self._seconds.collect():
            histogram.samples = [sample for sample in histogram.samples if not sample.name.endswith("_created")]
            yield histogram

    def _claimed(self, claims: "Mapping[str, Any] | None") -> "Iterable[Metric]":
        """Yield what clients claim: the medians, and the claims of each."""
        from prometheus_client.core import GaugeMetricFamily

        if claims is None:
            return
        yield GaugeMetricFamily("breakwater_claims", "Clients whose claims are usable.", value=claims["answers"])
        for key, name, what in (
            ("loss", "claimed_loss", "Loss of the model"),
            ("accuracy", "claimed_accuracy_ratio", "Share of correct predictions, 0 to 1,"),
        ):
            if (found := claims[key]) is not None:
                about = f"{what} as clients claim it, the median over them."
                yield GaugeMetricFamily(f"breakwater_{name}", about, value=found["median"])
            about = f"{what} as one client claims it on its own data."
            family = GaugeMetricFamily(f"breakwater_client_{name}", about, labels=["client"])
            for client, claim in claims["clients"].items():
                if key in claim:
                    family.add_metric([client], claim[key])
            yield family


_PER_CLIENT = (
    ("connected", "1 while the client is connected, 0 while it is away or never came.", "connected"),
    ("last_answer_timestamp_seconds", "When its last answer in time came, good or bad.", "answered_at"),
    ("score", "How far it stands out over the last rounds; it has no effect.", "score"),
)
_COUNTED_PER_CLIENT = (
    ("sampled_rounds", "Rounds in which it was sampled.", "asked"),
    ("accepted_replies", "Its replies that counted.", "accepted"),
    ("clipped_replies", "Its replies that were clipped.", "clipped"),
)


def _of_parties(rows: "Iterable[Row]") -> "Iterable[Metric]":
    """Yield what is known of each client; ``server.monitor.parties`` bounds how many there are."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    by_name = {row["name"]: row for row in rows}
    for name, text, key in _PER_CLIENT:
        gauge = GaugeMetricFamily(f"breakwater_client_{name}", text, labels=["client"])
        for client, row in by_name.items():
            if row[key] is not None:
                gauge.add_metric([client], float(row[key]))
        yield gauge
    for name, text, key in _COUNTED_PER_CLIENT:
        counter = CounterMetricFamily(f"breakwater_client_{name}", text, labels=["client"])
        for client, row in by_name.items():
            counter.add_metric([client], row[key])
        yield counter
