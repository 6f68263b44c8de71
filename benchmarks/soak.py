"""Soak: a federation of real processes under churn for ten thousand rounds, and what its processes hold meanwhile.

Of 20 clients four are left in peace, and so is a coalition of three seats that attacks. Ten others are killed and
started again under the same name, stopped for a while and continued, or leave and come back; three more break their
replies on the wire in every round that samples them, one of them its connection. Every few seconds the memory, file
descriptors and threads of the server and of the clients that live as long are read from /proc. What must hold:

- after the first 1,000 rounds the memory of each stays within 5 %, and its file descriptors and threads do not grow;
- no round is longer than its deadline, whoever has stopped answering;
- the run ends with all its rounds, and every honest client with status 0.

    python -m benchmarks.soak [--rounds N] [--clients N] [--out DIR] [--quick] [--set SECTION.KEY=VALUE]

It writes soak.png and soak.json beside the run folder, and ends with status 1 if something does not hold.
"""

import json
import multiprocessing
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from benchmarks.bench import arguments
from client.process import ClientOptions, run_client
from deploy import logs
from foundation.errors import BreakwaterError

EXPERIMENT = """
[federation]
clients = {clients}
byzantine = {byzantine}
seed = 1
deadline_s = {deadline_s}
heartbeat_s = 0.75
[task]
kind = "digits"
model = "softmax"
[strategy]
kind = "byz-vr-marina-pp"
rounds = {rounds}
gamma = 0.05
p = 0.05
cohort = {cohort}
batch = 16
alpha = 2.0
[aggregator]
kind = "cm"
[compressor]
kind = "rand-k"
k = 65
[evaluation]
every = 100
"""
SINGLE_THREADED = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
FAULTS = ("disconnect", "garbage", "oversize")
"""What the clients with broken replies do, in turn."""
DEADLINE_S = 1.0
"""Shorter than a heartbeat takes to tell that a stopped client is gone, so that rounds do end by it."""
PATIENCE_S = 20.0
"""For how long an honest client looks for the server; one that attacks may have been told to stay away for longer."""
PEACE = 4
"""Honest clients that are left in peace."""
EVENT_S, SAMPLE_S, LOOK_S = 1.5, 2.0, 0.1
"""Seconds between two events of the churn, two samples, two looks at what is due."""
AWAY_S, STOPPED_S = (0.2, 6.0), (0.05, 4.0)
"""For how long a client is away, or stopped: from less than a round to beyond what a heartbeat forgives."""
SETTLED, CALM = 0.1, 300
"""The share of the rounds after which memory must be flat; rounds before the end in which all clients are back."""
WITHIN = 1.05
"""How much more than then a process may hold."""
MORE = 2
"""How many more file descriptors or threads: an old connection may overlap with a new one."""
SLACK_S = 0.25
"""What a round may take beside waiting: to ask, to aggregate, and to be given a busy processor."""
SOON_S = 120.0
"""A bound for what takes a few seconds."""


@dataclass(frozen=True)
class Sample:
    """What one process held at one moment.

    Args:
        at_s: seconds since the first sample.
        round: rounds that were written by then.
        who: the process.
        rss_mb: resident memory, shared pages and all.
        pss_mb: the same with each shared page divided among those who share it.
        own_mb: memory that nobody else has.
        fds: open file descriptors.
        threads: threads.
    """

    at_s: float
    round: int
    who: str
    rss_mb: float
    pss_mb: float
    own_mb: float
    fds: int
    threads: int


COUNTS: dict[str, Callable[[Sample], int]] = {
    "file descriptors": lambda sample: sample.fds,
    "threads": lambda sample: sample.threads,
}


@dataclass(frozen=True)
class Finding:
    """One thing that must hold: a measured value and its bound."""

    what: str
    value: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether the value is within its bound."""
        return self.value <= self.bound


def hold(pid: int, who: str, at_s: float, round_: int) -> Sample:
    """Return what a process holds now.

    Raises:
        OSError: there is no such process.
    """
    folder = Path("/proc") / str(pid)
    status, maps = (folder / "status").read_text("ascii"), (folder / "smaps_rollup").read_text("ascii")

    def megabytes(key: str) -> float:
        return sum(int(kb) for kb in re.findall(rf"^{key}: +(\d+) kB", maps, re.MULTILINE)) / 1024

    return Sample(
        at_s=round(at_s, 1),
        round=round_,
        who=who,
        rss_mb=megabytes("Rss"),
        pss_mb=megabytes("Pss"),
        own_mb=megabytes("Private_(?:Clean|Dirty)"),
        fds=len(os.listdir(folder / "fd")),
        threads=int(re.findall(r"^Threads:\s+(\d+)", status, re.MULTILINE)[0]),
    )


class Checkpointer:
    """Follows ``metrics.jsonl`` while it is written."""

    def __init__(self, path: Path) -> None:
        self.lines: list[dict[str, Any]] = []
        self._path = path
        self._offset = 0

    def read(self) -> int:
        """Read what is new; return how many rounds there are."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._offset)
                whole, newline, _ = file.read().rpartition(b"\n")
            self._offset += len(whole) + len(newline)
            self.lines += [json.loads(line) for line in whole.splitlines()]
        return len(self.lines)


def take_part(options: ClientOptions, log: Path) -> None:
    """Be a client until the run is over, or until interrupted."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logs.to_file(log)
    try:
        run_client(options)
    except KeyboardInterrupt:
        sys.exit(130)
    except BreakwaterError as error:
        sys.exit(f"{options.name}: {error}")


@dataclass
class Client:
    """A client process, which may be started many times."""

    context: ForkServerContext
    options: ClientOptions
    log: Path
    process: ForkServerProcess | None = None

    def start(self) -> None:
        """Start it."""
        self.process = self.context.Process(target=take_part, args=(self.options, self.log), name=self.options.name)
        self.process.start()

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it runs."""
        if self.process is not None and self.process.pid is not None and self.process.is_alive():
            os.kill(self.process.pid, number)

    def end(self, number: signal.Signals) -> None:
        """End it by a signal and wait for that; a stopped one is continued."""
        if self.process is not None:
            self.send(number)
            self.send(signal.SIGCONT)
            self.process.join(SOON_S)
            self.process.close()
            self.process = None


@dataclass
class Churn:
    """What happens to the clients that are not left in peace; each is in one trouble at a time."""

    clients: Sequence[Client]
    chance: random.Random
    events: dict[str, int] = field(default_factory=dict)
    _due: list[tuple[float, Client, Callable[[], None]]] = field(default_factory=list)
    _next: float = 0.0

    def look(self, now: float) -> None:
        """Do what is due, and now and then something new."""
        for entry in [entry for entry in self._due if entry[0] <= now]:
            self._due.remove(entry)
            entry[2]()
        if now < self._next:
            return
        self._next = now + EVENT_S
        troubled = [entry[1] for entry in self._due]
        well = [client for client in self.clients if client not in troubled]
        if not well:
            return
        client = self.chance.choice(well)
        kind = self.chance.choice(("killed", "left", "stopped"))
        self.events[kind] = self.events.get(kind, 0) + 1
        if kind == "stopped":
            client.send(signal.SIGSTOP)
            self._due.append((now + self.chance.uniform(*STOPPED_S), client, lambda: client.send(signal.SIGCONT)))
        else:
            client.end(signal.SIGKILL if kind == "killed" else signal.SIGINT)
            self._due.append((now + self.chance.uniform(*AWAY_S), client, client.start))

    def calm(self) -> None:
        """Bring everybody back."""
        for _, _, mend in self._due:
            mend()
        self._due.clear()


class Soak:
    """One trial.

    Args:
        clients: n, at least 10.
        rounds: how many.
        out: an empty folder.
        changes: ``section.key=value`` on top of EXPERIMENT.
    """

    def __init__(self, clients: int, rounds: int, out: Path, changes: Sequence[str]) -> None:
        self.samples: list[Sample] = []
        self.checkpointer = Checkpointer(out / "run" / "metrics.jsonl")
        self.statuses: dict[str, int | None] = {}
        self.seconds = 0.0
        coalition, broken = max(clients * 3 // 20, 1), max(clients * 3 // 20, 1)
        config = out / "soak.toml"
        text = EXPERIMENT.format(
            clients=clients,
            rounds=rounds,
            byzantine=coalition + broken,
            cohort=max(clients // 2, 2),
            deadline_s=DEADLINE_S,
        )
        config.write_text(text, encoding="utf-8")
        self._out = out
        self._rounds = rounds
        self._server = self._serve(config, changes)
        address = self._await(lambda: re.search(r"^listening on (\S+)", self._said(), re.MULTILINE))[1]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["client.process", "client.coalition", "deploy.logs", "tasks.digits"])
        honest = clients - coalition - broken

        def client(name: str, **options: Any) -> Client:
            log = out / "logs" / f"{name}.log"
            patience_s = None if "attack" in options else PATIENCE_S
            return Client(context, ClientOptions(connect=address, name=name, patience_s=patience_s, **options), log)

        names = [f"client-{i:02}" for i in range(honest)]
        self._steady = [client(name, worker=i) for i, name in enumerate(names[:PEACE])]
        churned = [client(name, worker=i) for i, name in enumerate(names[PEACE:], PEACE)]
        faulty = [
            client(
                f"broken-{i}", worker=honest + i, attack="wire", settings=(f"attack.fault={FAULTS[i % len(FAULTS)]}",)
            )
            for i in range(broken)
        ]
        settings = "attack.z=1.06", "attack.view=coalition"
        alie = client("coalition", worker=honest + broken, seats=coalition, attack="alie", settings=settings)
        self._steady += [*faulty[:1], alie]
        self._clients = [*self._steady, *churned, *faulty[1:]]
        self.churn = Churn(churned, random.Random(1))

    def run(self) -> None:
        """Let it run to its end."""
        try:
            for client in self._clients:
                client.start()
            self._await(lambda: self.checkpointer.read() or self._server.poll() is not None)
            self._watch()
            for client in self._clients:
                if client.process is not None and client.options.attack is None:
                    client.process.join(SOON_S)
                    self.statuses[client.options.name] = client.process.exitcode
            self.checkpointer.read()
        finally:
            self._server.kill()
            self._server.wait()
            for client in self._clients:
                client.end(signal.SIGKILL)

    def _watch(self) -> None:
        began = time.monotonic()
        sampled = -SAMPLE_S
        while self._server.poll() is None:
            now = time.monotonic() - began
            if len(self.checkpointer.lines) < self._rounds - CALM:
                self.churn.look(now)
            else:
                self.churn.calm()
            if now >= sampled + SAMPLE_S:
                sampled = now
                rounds = self.checkpointer.read()
                # When all rounds are there the server draws its picture, for which it loads what draws pictures.
                for who, pid in self._watched() if rounds < self._rounds else ():
                    with suppress(OSError):  # it has just ended
                        self.samples.append(hold(pid, who, now, rounds))
            time.sleep(LOOK_S)
        self.seconds = time.monotonic() - began

    def _watched(self) -> Iterator[tuple[str, int]]:
        yield "server", self._server.pid
        for client in self._steady:
            if client.process is not None and client.process.pid is not None:
                yield client.options.name, client.process.pid

    def _serve(self, config: Path, changes: Sequence[str]) -> subprocess.Popen[bytes]:
        words = [word for change in changes for word in ("--set", change)]
        command = [sys.executable, "-m", "deploy.cli", "server", str(config), "--listen", "127.0.0.1:0"]
        with (self._out / "server.txt").open("wb") as said:
            return subprocess.Popen(
                [*command, "--out", str(self._out / "run"), *words],
                stdout=said,
                stderr=said,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **SINGLE_THREADED, "PYTHONUNBUFFERED": "1"},
            )

    def _said(self) -> str:
        return (self._out / "server.txt").read_text(encoding="utf-8")

    def _await(self, condition: Callable[[], Any]) -> Any:
        end = time.monotonic() + SOON_S
        while not (found := condition()):
            if self._server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server does not come up:\n{self._said()}")
            time.sleep(LOOK_S)
        return found


def judge(soak: Soak, rounds: int) -> list[Finding]:
    """Compare all that must hold with what was seen."""
    findings = [Finding("rounds missing", rounds - len(soak.checkpointer.lines), 0)]
    for who in dict.fromkeys(sample.who for sample in soak.samples):
        settled = [s for s in soak.samples if s.who == who and s.round >= SETTLED * rounds]
        if not settled:
            findings.append(Finding(f"{who}: samples missing", 1, 0))
            continue
        first, later = settled[0], settled[1:] or settled
        quarter = max(len(settled) // 4, 1)
        memory = max(sample.rss_mb for sample in later) / first.rss_mb
        findings.append(Finding(f"{who}: resident memory, most / after {first.round} rounds", memory, WITHIN))
        for what, count in COUNTS.items():
            grown = max(map(count, settled[-quarter:])) - max(map(count, settled[:quarter]))
            findings.append(Finding(f"{who}: most {what}, last quarter - first", grown, MORE))
    over = [line["round_s"] - line.get("deadline_s", DEADLINE_S) for line in soak.checkpointer.lines]
    findings.append(Finding("seconds that a round was longer than its deadline", max(over, default=0.0), SLACK_S))
    ended = sum(status != 0 for status in soak.statuses.values())
    return [*findings, Finding("honest clients that ended with another status than 0", ended, 0)]


def draw(soak: Soak, path: Path) -> None:
    """Draw memory, file descriptors, threads and round times against rounds."""
    from matplotlib.figure import Figure  # late: the clients import this file too

    figure = Figure(figsize=(12, 8), layout="constrained")
    (server, clients), (counts, times) = figure.subplots(2, 2)
    whom = list(dict.fromkeys(sample.who for sample in soak.samples))
    for who in whom:
        mine = [sample for sample in soak.samples if sample.who == who]
        axes, at = (server if who == whom[0] else clients), [sample.round for sample in mine]
        axes.plot(at, [sample.rss_mb for sample in mine], label=f"{who}, resident")
        axes.plot(at, [sample.own_mb for sample in mine], label=f"{who}, its own", linestyle=":")
        if who == whom[0]:
            counts.plot(at, [sample.fds for sample in mine], label="file descriptors of the server")
            counts.plot(at, [sample.threads for sample in mine], label="threads of the server")
    lines = soak.checkpointer.lines
    times.plot([line["round"] for line in lines], [line["round_s"] for line in lines], ".", markersize=2, label="round")
    deadlines = [line.get("deadline_s", DEADLINE_S) for line in lines]
    times.plot([line["round"] for line in lines], deadlines, label="its deadline")
    times.set_yscale("log")
    for axes, label in ((server, "MB"), (clients, "MB"), (counts, ""), (times, "seconds")):
        _finish(axes, label)
    figure.savefig(path, dpi=100)


def _finish(axes: Any, label: str) -> None:
    axes.set(xlabel="round", ylabel=label)
    if label != "seconds":
        axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(frameon=False, fontsize=7, ncols=2)


def publish(soak: Soak, findings: Sequence[Finding], out: Path, options: Namespace) -> None:
    """Print the tables and write what was measured."""
    print(f"{'':14}{'resident MB':>22}{'its own MB':>22}{'descriptors':>22}{'threads':>16}")
    for who in dict.fromkeys(sample.who for sample in soak.samples):
        mine = [s for s in soak.samples if s.who == who and s.round >= SETTLED * options.rounds]
        if mine:
            a, b = mine[0], mine[-1]
            cells = f"{a.rss_mb:.1f} -> {b.rss_mb:.1f}", f"{a.own_mb:.1f} -> {b.own_mb:.1f}", f"{a.fds} -> {b.fds}"
            print(f"{who:14}" + "".join(f"{cell:>22}" for cell in cells) + f"{f'{a.threads} -> {b.threads}':>16}")
    times = sorted(line["round_s"] for line in soak.checkpointer.lines)
    rejected = sum(len(line["rejected"]) for line in soak.checkpointer.lines)
    if times:
        print(
            f"{len(times)} rounds in {soak.seconds:.0f} s: median {1000 * statistics.median(times):.1f} ms, "
            f"longest {times[-1]:.3f} s; {rejected} replies rejected or missing; churn {soak.churn.events}"
        )
    for finding in findings:
        print(f"{'ok  ' if finding.holds else 'FAIL'}  {finding.what}: {finding.value:.4g} (at most {finding.bound:g})")
    written = {
        "rounds": options.rounds,
        "clients": options.clients,
        "seconds": soak.seconds,
        "events": soak.churn.events,
        "findings": [asdict(finding) | {"holds": finding.holds} for finding in findings],
        "samples": [asdict(sample) for sample in soak.samples],
    }
    (out / "soak.json").write_text(json.dumps(written) + "\n", encoding="utf-8")
    draw(soak, out / "soak.png")
    print(f"{out / 'soak.json'}  {out / 'soak.png'}")


def main() -> int:
    """Run the trial; return the exit status."""
    parser = arguments(__doc__ or "", rounds=10_000)
    parser.add_argument("--clients", type=int, default=20, help="clients, 10 or more (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="an empty folder (default: a temporary one)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change the experiment")
    options = parser.parse_args()
    options.rounds = options.rounds // 10 if options.quick else options.rounds
    out: Path = options.out or Path(tempfile.mkdtemp(prefix="soak-"))
    out.mkdir(parents=True, exist_ok=True)
    os.environ.update(SINGLE_THREADED)
    soak = Soak(options.clients, options.rounds, out.absolute(), options.set)
    soak.run()
    findings = judge(soak, options.rounds)
    publish(soak, findings, out, options)
    return 0 if all(finding.holds for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
