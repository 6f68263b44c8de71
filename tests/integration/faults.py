"""Faults, and a federation of real processes to inject them into.

A client may sit behind a ``Gate``, a TCP proxy that holds back what passes at a byte of the test's choice: so a fault
hits a process, or a message, at exactly the moment that it is about, and no test has to hope for the right one.
"""

import enum
import fcntl
import os
import random
import signal
import socket
import struct
import sys
import termios
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from examples.plain_loop import trajectory
from experiment.config import load
from experiment.opened import Experiment, open_experiment
from strategies.byz_vr_marina_pp import ByzVRMarinaPP
from strategies.method import Vector
from strategies.randomness import Role, stream
from strategies.vectors import norm
from tests.integration.fork_server import ForkServer
from tests.integration.processes import (
    SOON_S,
    Process,
    Proxy,
    rounds_of,
    sets,
    summary_of,
    until,
)
from tests.reference.compressed_loops import dasha_page
from tests.reference.plain_methods import descent
from tests.saved import x_of

CLIENTS = 6
ROUNDS = 150
SOON = 20
"""The round from which on a fault is injected: the federation is well under way."""
EVERY = 15
"""Rounds between checkpoints, where there are to be many."""

SMALL = f"""
[federation]
clients = {CLIENTS}
seed = 3
deadline_s = {SOON_S}
heartbeat_s = 10.0
[task]
kind = "digits"
model = "softmax"
[strategy]
kind = "byz-vr-marina-pp"
rounds = {ROUNDS}
gamma = 0.3
p = 0.2
cohort = 5
batch = 16
alpha = 2.0
[evaluation]
every = 10
"""
"""A small federation. Its deadline is far: what is waited for is meant to come, or to be noticed as lost."""

REPLY_BYTES = 4 * 650
"""The length of a reply of it, in float32."""

BIG = (
    *("task.model=mlp", "task.hidden=2000", "task.dtype=float64"),
    *("strategy.rounds=30", "strategy.p=0.05", "strategy.batch=4", "evaluation.every=30"),
)
BIG_REPLY_BYTES = 8 * (64 * 2000 + 2000 + 2000 * 10 + 10)
"""With these a reply is 1.2 MB, which travels in two chunks."""

LEFT = {
    "config.toml",
    "curve.png",
    "report.html",
    "logs",
    "metrics.jsonl",
    "model.safetensors",
    "summary.json",
    "run.json",
    "checkpoints",
}
"""What a run folder holds in the end."""


_NO_PING_BYTES = 200
"""More than HTTP/2's own frames that may come together, less than any instruction or reply."""


class Fault(enum.Enum):
    """What goes wrong; the value says it in a few words."""

    CLIENT_KILLED_BEFORE_ITS_REPLY = "SIGKILL after the instruction, before the reply"
    CLIENT_KILLED_DURING_ITS_REPLY = "SIGKILL when half of the reply is out"
    CLIENT_KILLED_AFTER_ITS_REPLY = "SIGKILL after the reply, in the same round"
    CLIENT_STOPPED = "SIGSTOP for some rounds, then SIGCONT"
    CLIENT_STOPPED_UNTIL_GIVEN_UP = "SIGSTOP until its heartbeats are missed, then SIGCONT"
    CUT_IN_A_REPLY = "the connection breaks in the middle of a big reply"
    CUT_IN_AN_INSTRUCTION = "the connection breaks in the middle of a big instruction"
    CLIENT_RESTARTED_UNDER_ITS_NAME = "another process takes the name while the old one hangs"
    ALL_CLIENTS_GONE_AND_BACK = "SIGKILL to all clients, then others under the same names"
    CLOCK_JUMPS = "a client's wall clock jumps, forwards and back, by hours and by decades"
    BELOW_THE_RULES_MINIMUM = "fewer usable replies than the rule takes"
    NO_QUORUM_IN_A_FULL_ROUND = "less than half of a full round's replies"
    SERVER_KILLED_AT_RANDOM = "SIGKILL to the server at a random moment, twice, then --resume"
    SERVER_RESTARTED = "SIGTERM to the server; --resume after a while in which its clients keep trying"
    NEWEST_CHECKPOINT_DAMAGED = "SIGKILL to the server, and half of its newest checkpoint is lost"
    DISK_FULL = "no room on the server's disk, for a hundred rounds"
    FOLDER_UNWRITABLE = "the run folder is not there for a hundred rounds"


class Gate(Proxy):
    """A proxy for one client that can hold back what passes, at any byte, and break the connection there.

    Ways are "up", to the server, and "down".
    """

    def __init__(self, target: str) -> None:
        self._moved = threading.Condition()
        self._may: dict[str, int | None] = {"up": None, "down": None}  # bytes that may still pass; None for all
        self._held: dict[str, tuple[int, socket.socket | None]] = {"up": (0, None), "down": (0, None)}
        self._open: list[socket.socket] = []
        super().__init__(target)

    def hold(self, way: str, after: int = 0) -> None:
        """Let so many more bytes pass, and no others."""
        with self._moved:
            self._may[way] = after

    def release(self, way: str) -> None:
        """Let everything pass again."""
        with self._moved:
            self._may[way] = None
            self._moved.notify_all()

    def wait_until_held(self, way: str) -> None:
        """Wait until (the rest of) a message has come that may not pass; pings and the like are none."""
        until(lambda: self._waiting(way) >= _NO_PING_BYTES, f"a message {way}")

    def _waiting(self, way: str) -> int:
        """Return the bytes that may not pass: those that were read, and those behind them that can be."""
        with self._moved:
            data, source = self._held[way]
            if source is None or source not in self._open:
                return 0
            behind = bytearray(4)
            fcntl.ioctl(source, termios.FIONREAD, behind)
            return data + int.from_bytes(behind, sys.byteorder)

    def cut(self) -> None:
        """Break the connection at both ends, and lose what is held; the next one passes freely."""
        with self._moved:
            for end in self._open:
                with suppress(OSError):
                    # Closing with an urgent linger of 0 s is a reset; shutting down wakes who reads.
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    end.shutdown(socket.SHUT_RDWR)
            self._open.clear()
            self._may = {"up": None, "down": None}
            self._moved.notify_all()

    def wait_until_closed(self) -> None:
        """Wait until both ends have closed the connection."""
        with self._moved:
            closed = self._moved.wait_for(lambda: not self._open, SOON_S)
        assert closed, "the connection is still open"

    def close(self) -> None:
        """Take no more connections, and end those that are open."""
        self.cut()
        super().close()

    def _pump(self, source: socket.socket, sink: socket.socket, way: str, kept: dict[str, bytearray]) -> None:
        with self._moved:
            self._open.append(source)

        def pass_on(data: bytes) -> int:
            """Wait until some of it may pass; return how much."""
            with self._moved:
                self._held[way] = len(data), source
                self._moved.wait_for(lambda: self._may[way] != 0 or source not in self._open)
                self._held[way] = 0, None
                if source not in self._open:
                    return 0
                may = self._may[way]
                passes = len(data) if may is None else min(len(data), may)
                if may is not None:
                    self._may[way] = may - passes
                return passes

        with suppress(OSError):
            while data := source.recv(1 << 16):
                while data and (passes := pass_on(data)):
                    setattr(self, way, getattr(self, way) + passes)
                    sink.sendall(data[:passes])
                    data = data[passes:]
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        with self._moved:
            if source in self._open:
                self._open.remove(source)
            self._moved.notify_all()
        source.close()


class Site:
    """One federation: a server, and clients of which each may be behind a gate.

    Args:
        nursery: starts the processes.
        folder: for config and run folder.
        changes: to the config, ``section.key=value``.
    """

    def __init__(self, fork_server: ForkServer, folder: Path, *changes: str) -> None:
        self._fork_server = fork_server
        self.out = folder / "run"
        self.config = folder / "config.toml"
        self.config.write_text(SMALL, encoding="utf-8")
        self.changes = changes
        self.address = ""
        self.servers: list[Process] = []
        self.clients: dict[int, Process] = {}
        """The living process of each seat."""
        self.gates: dict[int, Gate] = {}
        self._gone: list[Process] = []
        self._disk: Path | None = None
        self._open_disk: int | None = None

    def __enter__(self) -> Self:
        """Nothing to do yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take down what is no process."""
        for gate in self.gates.values():
            gate.close()
        if self._open_disk is not None:
            os.close(self._open_disk)

    # --- what happens -------------------------------------------------------------------------------------------------

    def begin(
        self, gated: Sequence[int] = (), *, server_prelude: str = "", preludes: Mapping[int, str] | None = None
    ) -> None:
        """Start the server and all clients, and wait until the run is well under way.

        Args:
            gated: the clients that sit behind a gate.
            server_prelude: Python that the server's process runs first.
            preludes: the same for clients.
        """
        options: tuple[str | Path, ...] = ("--listen", "127.0.0.1:0", "--out", self.out, *sets(*self.changes))
        self.serve("server", self.config, *options, prelude=server_prelude)
        if self._disk is not None:  # the disk lives as long as somebody has it open
            self._open_disk = os.open(f"/proc/{self.servers[0].pid}/root{self._disk}", os.O_PATH | os.O_DIRECTORY)
            self.out = Path(f"/proc/self/fd/{self._open_disk}/run")
        for i in gated:
            self.gates[i] = Gate(self.address)
        for i in self.parties:
            self.join(i, prelude=(preludes or {}).get(i, ""))
        self.reach(SOON if self.rounds_wanted > SOON else self.rounds_wanted // 4)

    def serve(self, *arguments: str | Path, prelude: str = "") -> Process:
        """Start a server and wait until it listens."""
        server = self._fork_server.breakwater(*arguments, prelude=prelude)
        address = server.line(r"^listening on (\S+)")[1]
        assert address == (self.address or address), "it comes back where its clients look for it"
        self.address = address
        self.servers.append(server)
        return server

    @property
    def parties(self) -> range:
        """The processes of clients by their (first) seat; attackers are one process, the last."""
        federation = self.experiment.config.federation
        return range(CLIENTS - federation.byzantine + (federation.byzantine > 0))

    def join(self, i: int, *, prelude: str = "") -> Process:
        """Start client i."""
        address = self.gates[i].address if i in self.gates else self.address
        config = self.experiment.config
        seat = () if i in self.clients else ("--worker", str(i))  # who comes again is known by name
        byzantine: tuple[str, ...] = ()
        if config.attack is not None and i == CLIENTS - config.federation.byzantine:
            byzantine = ("--attack", config.attack.kind, "--seats", str(config.federation.byzantine))
        self.clients[i] = self._fork_server.breakwater(
            "client", "--connect", address, "--name", name(i), *seat, *byzantine, prelude=prelude
        )
        return self.clients[i]

    def small_disk(self) -> str:
        """Let the run folder be on a disk that only the server has; return the prelude that makes it."""
        disk = self.out.parent / "disk"
        disk.mkdir()
        self.out = disk / "run"
        prelude = f"FOLDER = {bytes(disk)!r}" + SMALL_DISK
        probe = self._fork_server.breakwater("--version", prelude=prelude)
        if probe.wait():
            pytest.skip(f"this machine forbids to mount a small disk: {probe.said()}")
        self._disk = disk
        return prelude

    def refused(self, *arguments: str | Path) -> None:
        """Run a command that must say in one line that it cannot."""
        process = self._fork_server.breakwater(*arguments)
        process.ends(2)
        (line,) = process.err
        assert line.startswith("breakwater: error: ")

    def kill_server(self) -> int:
        """Send SIGKILL to the server and see it end; return the rounds that are in its metrics."""
        self.servers[-1].send(signal.SIGKILL)
        assert self.servers[-1].wait() == -signal.SIGKILL
        return len(self.rounds)

    def resume(self) -> int:
        """Start a server that goes on with the run, as a user would; return the round that it goes on after."""
        server = self.serve("server", "--resume", self.out)
        return int(server.line(r"^going on after round (\d+)")[1])

    def kill(self, i: int) -> None:
        """Send SIGKILL to client i and see it end."""
        self.clients[i].send(signal.SIGKILL)
        assert self.clients[i].wait() == -signal.SIGKILL
        self._gone.append(self.clients[i])

    def open_round(self, i: int) -> int:
        """Hold back the next reply of client i, behind its gate; return the round, which now waits for it."""
        self.gates[i].hold("up")
        self.gates[i].wait_until_held("up")
        return len(self.rounds) + 1

    def open_round_of(self, i: int, other: int) -> int:
        """The same, for a round in which another client is asked too; its reply passes."""
        while True:
            round_ = self.open_round(i)
            if other in cohort_of(self.experiment, round_):
                return round_
            self.gates[i].release("up")
            self.reach(round_)

    def reach(self, round_: int) -> None:
        """Wait for a round to end."""
        until(lambda: len(self.rounds) >= round_, f"round {round_}")

    def finish(self) -> list[dict[str, Any]]:
        """Wait for the end of everybody, look for what was left behind, return the rounds."""
        self.servers[-1].ends(0, 2 * SOON_S)
        for i, client in self.clients.items():
            if client not in self._gone:
                client.ends(0)
                assert client.out == [f"{name(i)}: the run is over"]
        for process in (*self.servers, *self._gone):
            assert "Traceback" not in process.said(), process.said()
        host, _, port = self.address.rpartition(":")
        with socket.socket() as probe:  # fails where somebody still listens
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, int(port)))
        rounds = self.rounds
        assert {path.name for path in self.out.iterdir()} <= LEFT
        assert [path.name for path in (self.out / "logs").iterdir()] == ["server.log"]
        assert {path.suffix for path in (self.out / "checkpoints").glob("*")} <= {".safetensors"}
        summary = summary_of(self.out)
        assert summary["status"] == "finished"
        assert summary["rejected_by_client"] == _counts(rounds)
        assert [line["round"] for line in rounds] == list(range(1, self.rounds_wanted + 1))
        return rounds

    # --- what it should come to ---------------------------------------------------------------------------------------

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """What metrics.jsonl says so far."""
        return rounds_of(self.out)

    @property
    def experiment(self) -> Experiment:
        """The experiment."""
        return _experiment(self.config, self.changes)

    @property
    def rounds_wanted(self) -> int:
        """How many rounds there are to be."""
        return self.experiment.config.strategy.rounds

    @property
    def model(self) -> Vector:
        """The model in the run folder."""
        return x_of(self.out)


def name(i: int) -> str:
    """Return the name of client i."""
    return f"client-{i}"


def cohort_of(experiment: Experiment, k: int) -> list[int]:
    """Return who is sampled in a round of byz-vr-marina-pp if everybody is there."""
    config = experiment.config
    s, seed = experiment.method, config.federation.seed
    assert isinstance(s, ByzVRMarinaPP)
    full = k == 1 or bool(stream(seed, Role.COIN, round_=k).random() < s.p)
    order: list[int] = stream(seed, Role.COHORT, round_=k).permutation(CLIENTS).tolist()
    return sorted(order[: s.full_cohort if full else s.cohort])


def wait_until_idle(*processes: Process) -> None:
    """Wait until processes have done what there is to do: all their threads sleep, ten times that one looks."""
    looks = 0

    def idle() -> bool:
        nonlocal looks
        tasks = [path for process in processes for path in Path(f"/proc/{process.pid}/task").glob("*/stat")]
        states = {path.read_text(encoding="ascii").rpartition(")")[2].split()[0] for path in tasks}
        looks = looks + 1 if states == {"S"} else 0
        return looks >= 10

    until(idle, "idle processes")


def reasons_in(line: Mapping[str, Any]) -> dict[str, str]:
    """Return the kind of the reason that each reply of a round was missing for, by name."""
    return {entry["client"]: entry["reason"].partition(":")[0] for entry in line["rejected"]}


def _counts(rounds: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Return how often replies were missing, by name and kind of reason."""
    counts: dict[str, Counter[str]] = {}
    for line in rounds:
        for who, reason in reasons_in(line).items():
            counts.setdefault(who, Counter())[reason] += 1
    return {who: dict(reasons) for who, reasons in counts.items()}


def assert_takes_part(rounds: Sequence[Mapping[str, Any]], i: int, after: int) -> None:
    """Check that the replies of client i count after a round, whenever it is asked, and that it is asked."""
    later = [line for line in rounds[after:] if i in line["cohort"]]
    assert later, f"client {i} is asked no more after round {after}"
    assert all(i in line["accepted"] for line in later)


def missing(rounds: Sequence[Mapping[str, Any]], first: int = 1) -> dict[str, set[str]]:
    """Return the kinds of reasons that replies were missing for, by name, from a round on."""
    found: dict[str, set[str]] = {}
    for line in rounds[first - 1 :]:
        for entry in line["rejected"]:
            found.setdefault(entry["client"], set()).add(entry["reason"].partition(":")[0])
    return found


@cache
def _experiment(config: Path, changes: tuple[str, ...]) -> Experiment:
    return open_experiment(load(config, changes).to_toml(), None, None)


def as_in_the_books(experiment: Experiment, rounds: Sequence[Mapping[str, Any]]) -> Vector:
    """Return the model that byz-vr-marina-pp gives if exactly those replies count that metrics.jsonl says did.

    Written from the method and not from our classes, like ``examples.plain_loop``, whose loop this is but for
    the replies that are missing. So the books are right about who counted, or the model differs in its bits.
    """
    config, problem = experiment.config, experiment.problem
    n, f, seed = config.federation.clients, config.federation.byzantine, config.federation.seed
    s = experiment.method
    assert isinstance(s, ByzVRMarinaPP)
    assert isinstance(s.alpha, float)
    x, x_prev, g = problem.initial(), None, None
    due = True
    for line in rounds:
        k = line["round"]
        full = bool(stream(seed, Role.COIN, round_=k).random() < s.p) or due
        assert line["kind"] == ("full" if full else "difference")
        size = s.full_cohort if full else s.cohort
        assert set(line["accepted"]) <= set(line["cohort"])
        assert len(line["cohort"]) <= size
        assert len(line["accepted"]) + len(line["rejected"]) == len(line["cohort"])
        rows: list[Vector] = []
        for i in line["accepted"]:
            if full:
                rows.append(problem.oracle(i).full_gradient(x))
                continue
            assert x_prev is not None
            rng = stream(seed, Role.WORKER, i, k)
            new, old = problem.oracle(i).minibatch_gradients([x, x_prev], s.batch, rng)
            row = config.compressor.decompress(config.compressor.compress(new - old, rng), x.dtype)
            lam, length = s.alpha * norm(x - x_prev), norm(row)
            rows.append((row.astype(np.float64) / length * lam).astype(row.dtype) if length > lam else row)
        enough = config.aggregator.tolerates(len(rows)) >= 0 if rows else False
        due = full and (len(rows) <= size // 2 or not enough)
        assert ("no quorum" in line.get("note", "")) == due
        assert ("too few" in line.get("note", "") or "no usable" in line.get("note", "")) == (not full and not enough)
        if enough and not due:
            share = min(-(-f * len(rows) // n), config.aggregator.tolerates(len(rows)))
            total = config.aggregator(np.stack(rows), share, stream(seed, Role.AGGREGATE, round_=k))
            g = total if full or g is None else g + total
        x, x_prev = (x if g is None else x - s.gamma_at(k) * g), x
    return x


# --- the faults, each injected into a running federation --------------------------------------------------------------
#
# Each injector starts a federation, does its harm, sees the run end and looks at what is its own: who was missing, when
# and why, and whether who came back takes part again. What all have in common is looked at by the test.


def killed_before_its_reply(site: Site) -> None:
    """The server has asked; the client has the instruction and is killed before it has said anything."""
    site.begin(gated=(1,))
    site.gates[1].hold("down")
    site.gates[1].wait_until_held("down")
    round_ = len(site.rounds) + 1
    site.clients[1].send(signal.SIGSTOP)
    site.gates[1].release("down")
    site.kill(1)
    rounds = site.finish()
    assert reasons_in(rounds[round_ - 1]) == {name(1): "disconnected"}
    assert missing(rounds) == {name(1): {"disconnected"}}, "it is missed in that one round"
    assert all(1 not in line["cohort"] for line in rounds[round_:])


def killed_during_its_reply(site: Site) -> None:
    """Half of the reply has reached the server, the other half never will."""
    site.begin(gated=(1,))
    site.gates[1].hold("up", after=REPLY_BYTES // 2)
    site.gates[1].wait_until_held("up")
    round_ = len(site.rounds) + 1
    site.kill(1)
    site.gates[1].cut()
    rounds = site.finish()
    assert reasons_in(rounds[round_ - 1]) == {name(1): "disconnected"}
    assert missing(rounds) == {name(1): {"disconnected"}}


def killed_after_its_reply(site: Site) -> None:
    """The reply is there, the round still waits for another client: the reply counts, dead as its sender may be."""
    site.begin(gated=(1, 2))
    round_ = site.open_round_of(2, other=1)
    wait_until_idle(site.clients[1], site.servers[0])
    site.kill(1)
    site.gates[1].wait_until_closed()
    wait_until_idle(site.servers[0])
    assert len(site.rounds) == round_ - 1, "the round waits for 2"
    site.gates[2].release("up")
    rounds = site.finish()
    assert 1 in rounds[round_ - 1]["accepted"]
    assert missing(rounds) == {}
    assert all(1 not in line["cohort"] for line in rounds[round_:])


def stopped(site: Site) -> None:
    """A client hangs for some rounds, each of which waits for its deadline, and goes on: its late reply is dropped."""
    site.begin()
    site.clients[1].send(signal.SIGSTOP)
    until(lambda: len([line for line in site.rounds if reasons_in(line)]) > 1, "two rounds without client 1")
    site.clients[1].send(signal.SIGCONT)
    rounds = site.finish()
    assert missing(rounds) == {name(1): {"silent"}}
    last = max(line["round"] for line in rounds if line["rejected"])
    assert all(line["round_s"] > _SHORT_S for line in rounds if line["rejected"])
    assert_takes_part(rounds, 1, after=last)
    assert site.clients[1].said().count("joined as worker") == 1, "its stream has held"


def stopped_until_given_up(site: Site) -> None:
    """A client hangs until the server has missed its heartbeats; it finds its stream dead and comes back by itself."""
    site.begin()
    site.clients[1].send(signal.SIGSTOP)
    until(lambda: missing(site.rounds), "client 1 is given up")
    site.clients[1].send(signal.SIGCONT)
    rounds = site.finish()
    assert missing(rounds) == {name(1): {"disconnected"}}
    assert_takes_part(rounds, 1, after=ROUNDS - 20)
    assert site.clients[1].said().count("joined as worker 1 of") == 2


def cut_in_a_reply(site: Site) -> None:
    """The TCP connection breaks in the middle of a message of two chunks; the client comes back by itself."""
    _cut(site, "up")


def cut_in_an_instruction(site: Site) -> None:
    """The same on the way down."""
    _cut(site, "down")


def _cut(site: Site, way: str) -> None:
    site.begin(gated=(1,))
    site.gates[1].hold(way, after=BIG_REPLY_BYTES // 2)
    site.gates[1].wait_until_held(way)
    round_ = len(site.rounds) + 1
    site.gates[1].cut()
    rounds = site.finish()
    assert reasons_in(rounds[round_ - 1]) == {name(1): "disconnected"}
    assert missing(rounds) == {name(1): {"disconnected"}}
    assert_takes_part(rounds, 1, after=round_)
    assert site.clients[1].said().count("joined as worker 1 of") == 2


def restarted_under_its_name(site: Site) -> None:
    """The old process hangs and holds the name; the new one is refused until the old one is dead, and has its seat."""
    site.begin(gated=(2,))
    site.open_round(2)
    old = site.clients[1]
    old.send(signal.SIGSTOP)
    new = site.join(1)
    new.line(f"'{name(1)}' is connected already")
    old.send(signal.SIGKILL)
    assert old.wait() == -signal.SIGKILL
    new.line(r"joined as worker 1 of")
    site.gates[2].release("up")
    rounds = site.finish()
    assert missing(rounds).get(name(1), set()) <= {"disconnected"}  # where it was asked in that round
    assert missing(rounds).keys() <= {name(1)}
    assert_takes_part(rounds, 1, after=ROUNDS - 20)


def all_gone_and_back(site: Site) -> None:
    """All clients die in one round; the server waits, others come under the same names, and the run goes on."""
    site.begin(gated=(2,))
    round_ = site.open_round(2)
    for i in range(CLIENTS):
        site.kill(i)
    site.gates[2].cut()
    site.servers[0].line("no client is connected; waiting")
    assert len(site.rounds) == round_
    for i in range(CLIENTS):
        site.join(i)
    rounds = site.finish()
    assert missing(rounds).keys() <= {name(i) for i in range(CLIENTS)}
    assert {reason for reasons in missing(rounds).values() for reason in reasons} == {"disconnected"}
    assert missing(rounds, round_ + 1) == {}
    for i in range(CLIENTS):
        assert_takes_part(rounds, i, after=ROUNDS - 20)


def clock_jumps(site: Site) -> None:
    """The wall clocks of two clients and of the server jump; nothing here may depend on them."""
    site.begin(server_prelude=JUMPING, preludes=dict.fromkeys((1, 2), JUMPING))
    for i in range(4):
        for process in (site.clients[1], site.clients[2], site.servers[0]):
            process.send(signal.SIGUSR1)
            process.line(f"clock jump {i}")
        site.reach(min(len(site.rounds) + 10, site.rounds_wanted))  # a slow process may let the run end meanwhile
    assert missing(site.finish()) == {}


def below_the_rules_minimum(site: Site) -> None:
    """Four of six hang: two replies are fewer than Krum takes. The estimate stays, and the others are waited for."""
    site.begin()
    _stop_four_until(site, "too few for the rule")


def no_quorum_in_a_full_round(site: Site) -> None:
    """Four of six hang: the full round's replies are not used, and full rounds follow until one has its quorum."""
    site.begin()
    rounds = _stop_four_until(site, "no quorum")
    without = [line["round"] for line in rounds if "no quorum" in line.get("note", "")]
    assert all(rounds[k]["kind"] == "full" for k in without)


def _stop_four_until(site: Site, note: str) -> list[dict[str, Any]]:
    for i in range(4):
        site.clients[i].send(signal.SIGSTOP)
    until(lambda: len([line for line in site.rounds if note in line.get("note", "")]) > 1, f"two rounds noted: {note}")
    for i in range(4):
        site.clients[i].send(signal.SIGCONT)
    rounds = site.finish()
    assert missing(rounds) == {name(i): {"silent"} for i in range(4)}
    for i in range(4):
        assert_takes_part(rounds, i, after=ROUNDS - 20)
    return rounds


def server_killed_at_random(site: Site) -> None:
    """A method whose workers and attackers keep state: they go back to the checkpoint with the server."""
    site.begin()
    chance = random.Random(5)
    for _ in range(2):
        site.reach(len(site.rounds) + chance.randrange(2 * EVERY))
        threading.Event().wait(chance.uniform(0.0, 0.02))
        reached = site.kill_server()
        after = site.resume()
        assert after % EVERY == 0
        assert 0 <= reached - after <= EVERY
    assert missing(site.finish()) == {}


def server_restarted(site: Site) -> None:
    """An orderly restart, as by a service manager: the round that is open is lost, no other."""
    site.begin()
    site.servers[0].send(signal.SIGTERM)
    site.servers[0].ends(130)
    reached = len(site.rounds)
    for i in site.parties:
        site.clients[i].line("no stream to .*: the server was stopped, and may go on; trying again")
        site.clients[i].line("Connection refused; trying again")
    assert site.resume() == reached
    assert missing(site.finish()) == {}


def newest_checkpoint_damaged(site: Site) -> None:
    """The server says which file is damaged, and how, and goes on from the one before."""
    site.begin()
    site.reach(3 * EVERY)
    site.kill_server()
    newest = max((site.out / "checkpoints").glob("*.safetensors"))
    before = int(newest.stem) - EVERY
    os.truncate(newest, newest.stat().st_size // 2)
    assert site.resume() == before
    assert f"{newest}: cannot be read: " in site.servers[-1].said()
    assert missing(site.finish()) == {}


def disk_full(site: Site) -> None:
    """The run goes on; what could not be written is written when there is room again: nothing is missing in the end."""
    site.begin(server_prelude=site.small_disk())
    filler = site.out.parent / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 10))
    _away_for_a_while(site, "No space left on device")
    filler.unlink()
    assert missing(site.finish()) == {}


def folder_unwritable(site: Site) -> None:
    """The run folder is moved away, and back after a while; in its place is a file, which no run can be written to."""
    site.begin()
    away = site.out.with_name("away")
    site.out.rename(away)
    site.out.touch()
    site.refused("server", site.config, "--listen", "127.0.0.1:0", "--out", site.out)
    site.refused("server", "--resume", site.out)
    _away_for_a_while(site, "Not a directory")
    site.out.unlink()
    away.rename(site.out)
    assert missing(site.finish()) == {}


def _away_for_a_while(site: Site, reason: str) -> None:
    """Wait until the server has complained, and has gone on for many rounds all the same."""
    server = site.servers[0]
    server.line(f"a checkpoint cannot be written: .*{reason}.*; trying again")
    server.line(rf"round {ROUNDS - 20}/{ROUNDS}")
    assert server.said().count("a checkpoint cannot be written") == 1, "it is said once"


_SHORT_S = 1.0
"""The deadline where rounds are meant to miss it."""

JUMPING = """
import datetime, os, signal, sys, time
shift, count, real, original = 0.0, 0, time.time, datetime.datetime
jumps = 3600.0, -7200.0, 1e9, -2e9
class Shifted(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(shifted(), tz)
def shifted():
    return real() + shift
def jump(*_):
    global shift, count
    shift += jumps[count]
    os.write(2, f"clock jump {count}: {time.ctime(time.time())}\\n".encode())
    count += 1
for module in list(sys.modules.values()):
    for key, value in list(vars(module).items()) if hasattr(module, "__dict__") else ():
        if value is real:
            setattr(module, key, shifted)
        elif value is original:
            setattr(module, key, Shifted)
signal.signal(signal.SIGUSR1, jump)
"""
"""Makes the wall clock of a process jump at each SIGUSR1: time.time and datetime, wherever they have been imported."""

SMALL_DISK = """
import ctypes, os
libc, ids = ctypes.CDLL(None, use_errno=True), (os.geteuid(), os.getegid())
NEW_NAMESPACE, NEW_USER, PRIVATE = 0x20000, 0x10000000 if ids[0] else 0, 0x44000
if libc.unshare(NEW_NAMESPACE | NEW_USER):
    raise SystemExit(os.strerror(ctypes.get_errno()))
if NEW_USER:
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {ids[0]} 1"), ("gid_map", f"0 {ids[1]} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
if libc.mount(None, b"/", None, PRIVATE, None) or libc.mount(b"none", FOLDER, b"tmpfs", 0, b"size=400k"):
    raise SystemExit(os.strerror(ctypes.get_errno()))
"""
"""Mounts a small disk at FOLDER, which exists for this process alone."""


@dataclass(frozen=True)
class Case:
    """How a fault is injected, and what it must come to.

    Args:
        inject: does it.
        changes: to the config.
        harmless: it costs no reply that would count: the run has the bits of one that nothing disturbed.
        undisturbed: gives the models of such a run; a plain loop.
    """

    inject: Callable[[Site], None]
    changes: tuple[str, ...] = ()
    harmless: bool = False
    undisturbed: Callable[[Experiment], Iterator[Vector]] = trajectory


HASTY = f"federation.deadline_s={_SHORT_S}"
OFTEN = f"checkpoint.every={EVERY}"
DASHA = (
    *("strategy.kind=byz-dasha-page", "strategy.batch=16", "strategy.p=0.2", "compressor.kind=rand-k"),
    *("compressor.ratio=0.1", "federation.byzantine=2", "attack.kind=alie", "attack.view=omniscient", "attack.z=1.06"),
)
MOMENTUM = ("strategy.kind=robust-momentum-sgd", "strategy.batch=16", "strategy.gamma=0.1")

CASES: dict[Fault, Case] = {
    Fault.CLIENT_KILLED_BEFORE_ITS_REPLY: Case(killed_before_its_reply),
    Fault.CLIENT_KILLED_DURING_ITS_REPLY: Case(killed_during_its_reply),
    Fault.CLIENT_KILLED_AFTER_ITS_REPLY: Case(killed_after_its_reply),
    Fault.CLIENT_STOPPED: Case(stopped, (HASTY,)),
    Fault.CLIENT_STOPPED_UNTIL_GIVEN_UP: Case(stopped_until_given_up, ("federation.heartbeat_s=1.0",)),
    Fault.CUT_IN_A_REPLY: Case(cut_in_a_reply, BIG),
    Fault.CUT_IN_AN_INSTRUCTION: Case(cut_in_an_instruction, BIG),
    Fault.CLIENT_RESTARTED_UNDER_ITS_NAME: Case(restarted_under_its_name),
    Fault.ALL_CLIENTS_GONE_AND_BACK: Case(all_gone_and_back),
    Fault.CLOCK_JUMPS: Case(clock_jumps, harmless=True),
    Fault.BELOW_THE_RULES_MINIMUM: Case(below_the_rules_minimum, (HASTY, "aggregator.kind=krum", "strategy.p=1e-9")),
    Fault.NO_QUORUM_IN_A_FULL_ROUND: Case(no_quorum_in_a_full_round, (HASTY, "strategy.p=0.5")),
    Fault.SERVER_KILLED_AT_RANDOM: Case(server_killed_at_random, (OFTEN, *DASHA), True, dasha_page),
    Fault.SERVER_RESTARTED: Case(server_restarted, (OFTEN, *MOMENTUM), True, descent),
    Fault.NEWEST_CHECKPOINT_DAMAGED: Case(newest_checkpoint_damaged, (OFTEN,), True),
    Fault.DISK_FULL: Case(disk_full, (OFTEN,), True),
    Fault.FOLDER_UNWRITABLE: Case(folder_unwritable, (OFTEN,), True),
}
