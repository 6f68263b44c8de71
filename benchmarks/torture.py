"""A federation whose server is killed again and again: nothing is lost but rounds since the last checkpoint.

Server and clients are processes of their own. The server gets SIGKILL at random moments: while it starts, while its
clients come back, in the middle of rounds, before the first checkpoint, while it writes one; each time
``breakwater server --resume`` goes on. After some of the kills the newest checkpoint is damaged as well. No client is
ever started again. In the end model, metrics and checkpoint must equal, bit for bit, those of a run that nobody
disturbed.

    python -m benchmarks.torture [--kills N] [--seed N] [--config FILE] [--set SECTION.KEY=VALUE] [--out DIR]
"""

import argparse
import os
import random
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import load_file

from experiment.config import Config, load
from foundation.errors import ConfigError
from tests.integration.processes import Process, Processes, rounds_of, sets, summary_of, until

EXPERIMENT = """
[federation]
clients = 7
byzantine = 2
seed = 1
deadline_s = 120.0          # nobody is to be late, however busy the machine
heartbeat_s = 60.0
join_timeout_s = 600.0
[task]
kind = "digits"
model = "softmax"
[strategy]
kind = "byz-dasha-page"     # workers keep state, and must go back with the server
rounds = 1
gamma = 0.3
batch = 16
p = 0.2
[compressor]
kind = "rand-k"
ratio = 0.1
[attack]
kind = "alie"               # so does the attackers' brain
view = "omniscient"
z = 1.06
[checkpoint]
every = 20
[evaluation]
every = 20
"""
WHEN = ("start-up", "return", "round", "round", "writing", "round", "writing", "round")
"""When the server is killed: while it starts or clients come back, some rounds later, while it writes a checkpoint."""
DAMAGED, DAMAGES = 0.2, ("truncated", "bit flipped", "zeroed")
"""How often the newest checkpoint is damaged after a kill, and how."""
UNDISTURBED = (
    *("kind", "cohort", "accepted", "rejected", "resynced", "clipped", "lam", "step_norm", "loss", "accuracy", "note"),
)
"""What of a round does not depend on the clock, nor on how often the clients had to say hello."""
_START_S, _RETURN_S, _ROUND_S = 2.0, 1.0, 0.02
"""About as long as it takes a server to start, clients to return and a round to be made, in seconds."""
_LONG_S = 600.0
"""Bound for what must happen at all, in seconds."""


@dataclass(frozen=True)
class Moment:
    """When the server is to be killed.

    Args:
        when: see ``WHEN``.
        rounds: how many new ones it makes before, where it is that.
        damage: to do to the newest checkpoint then, if it is not the only one; "" for none.
    """

    when: str
    rounds: int = 0
    damage: str = ""


def rounds_between(config: Config) -> int:
    """Return how many rounds are between checkpoints.

    Raises:
        ConfigError: the config leaves it open, or wants too few.
    """
    every = config.checkpoint.every
    if every is None or every < 2:
        raise ConfigError("checkpoint.every: must be at least 2 rounds here; add --set checkpoint.every=20")
    return every


def plan(kills: int, every: int, chance: random.Random) -> list[Moment]:
    """Return random moments, the first one before there is a checkpoint; ``every`` rounds make one."""
    first, *others = [
        Moment(
            chance.choice(WHEN),
            chance.randint(1, 2 * every - 1),
            chance.choice(DAMAGES) if chance.random() < DAMAGED else "",
        )
        for _ in range(kills)
    ]
    return [Moment("round", 1 + first.rounds % (every - 1)), *others]


@dataclass
class Kill:
    """One SIGKILL and what came of it.

    Args:
        number: from 1.
        when: see ``WHEN``.
        at: rounds in the metrics when the server was dead.
        damage: done to the newest checkpoint then; "" for none.
        after: the round that the next server went on after; None if it was killed before it got so far.
        seconds: from the start of that server until the first new round was in the metrics; None as above.
        half_written: a checkpoint was.
    """

    number: int
    when: str
    at: int
    damage: str = ""
    after: int | None = None
    seconds: float | None = None
    half_written: bool = False

    def row(self) -> str:
        """Return the line of the table."""
        when = f"{self.when}, half done" if self.half_written else self.when
        after = "-" if self.after is None else str(self.after)
        lost = "-" if self.after is None else str(self.at - self.after)
        seconds = "-" if self.seconds is None else f"{self.seconds:.1f}"
        return f"{self.number:4}  {when:18}  {self.at:8}  {self.damage or '-':14}  {after:>12}  {lost:>4}  {seconds:>7}"


HEAD = "kill  when                at round  newest damaged  resumed from  lost  seconds"


class Federation:
    """A server and its clients.

    Args:
        processes: starts them.
        config: the file.
        changes: to it.
        out: run folder.
    """

    def __init__(self, processes: Processes, config: Path, changes: Sequence[str], out: Path) -> None:
        self.processes = processes
        self.config = load(config, changes)
        self.out = out
        command: tuple[str | Path, ...] = (config, "--listen", "127.0.0.1:0", "--out", out, *sets(*changes))
        self.server = processes.breakwater("server", *command)
        self.began = time.monotonic()
        self.address = self.server.line(r"^listening on (\S+)")[1]
        self.clients = [self._client(i) for i in range(self._honest)]
        if self.config.attack is not None:
            f = self.config.federation.byzantine
            more = ("--attack", str(self.config.attack.kind), "--seats", str(f))
            self.clients.append(self._client(self._honest, "byzantine", *more))

    @property
    def _honest(self) -> int:
        federation = self.config.federation
        return federation.clients - (federation.byzantine if self.config.attack is not None else 0)

    def _client(self, worker: int, name: str = "", *more: str) -> Process:
        name = name or f"client-{worker}"
        return self.processes.breakwater(
            "client", "--connect", self.address, "--name", name, "--worker", str(worker), *more
        )

    def resume(self) -> None:
        """Start a server that goes on."""
        self.server = self.processes.breakwater("server", "--resume", self.out)
        self.began = time.monotonic()

    def rounds(self) -> int:
        """Return how many rounds are in the metrics."""
        try:
            return (self.out / "metrics.jsonl").read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0

    def reach(self, round_: int) -> None:
        """Wait for a round to end; server and clients must live."""

        def there() -> bool:
            for process in (self.server, *self.clients):
                assert process.running(), f"{process.command} has ended:\n{process.said()}"
            return self.rounds() >= round_

        until(there, f"round {round_}", _LONG_S)

    def went_on_after(self) -> int | None:
        """Return the round that the server says it goes on after, if it has come so far."""
        said = re.search(r"^going on after round (\d+)", "\n".join(self.server.out), re.MULTILINE)
        return int(said[1]) if said else None

    def checkpoints(self) -> list[Path]:
        """Return the files of checkpoints, oldest first."""
        return sorted((self.out / "checkpoints").glob("[0-9]*.safetensors"))

    def finish(self) -> None:
        """Wait for the end of all; nothing may be left behind."""
        self.server.ends(0, _LONG_S)
        for client in self.clients:
            client.ends(0)
            assert client.out[-1].endswith(": the run is over"), client.said()
        hidden = [path for path in self.out.rglob("*") if path.name.startswith(".")]
        assert not hidden, f"left behind: {hidden}"
        assert len(self.checkpoints()) <= self.config.checkpoint.keep
        host, _, port = self.address.rpartition(":")
        with socket.socket() as probe:  # fails where somebody still listens
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, int(port)))


def torture(
    processes: Processes,
    config: Path,
    changes: Sequence[str],
    folder: Path,
    moments: Sequence[Moment],
    chance: random.Random,
) -> list[Kill]:
    """Run a federation twice, disturbed and not, and compare; print a table on the way.

    Args:
        processes: starts everything.
        config: the experiment; ``strategy.rounds`` is set to what is needed.
        changes: ``section.key=value`` on top of it.
        folder: for the two run folders, ``disturbed`` and ``undisturbed``.
        moments: when the server is killed.
        chance: decides what the moments leave open, such as milliseconds.

    Returns:
        The kills.

    Raises:
        AssertionError: something was lost that must not be.
    """
    kills, every = len(moments), rounds_between(load(config, changes))
    # A life makes less than two checkpoints' worth of rounds, and loses some of them: the run is not over too soon.
    changes = [*changes, f"strategy.rounds={(kills + 3) * every}"]
    federation = Federation(processes, config, changes, folder / "disturbed")
    pids = [client.pid for client in federation.clients]
    began, life = time.monotonic(), _Life(federation)
    print(HEAD, flush=True)
    done: list[Kill] = []
    for number, moment in enumerate(moments, 1):
        life.wait_for(moment, chance)
        done.append(life.kill(number, moment.when))
        if moment.damage and len(life.whole()) > 1:
            life.damage(moment.damage, chance)
        federation.resume()
    life.see_it_go_on()
    federation.finish()
    life.learn()
    took = time.monotonic() - began
    assert [client.pid for client in federation.clients] == pids

    calm = Federation(processes, config, changes, folder / "undisturbed")
    calm.finish()
    compare(calm.out, federation.out)
    lost = [kill.at - kill.after for kill in done if kill.after is not None]
    damaged, halves = sum(bool(kill.damage) for kill in done), sum(kill.half_written for kill in done)
    print(
        f"{kills} kills in {took:.0f} s, {damaged} with the newest checkpoint damaged, {halves} with one half written: "
        f"at most {max(lost)} rounds lost ({every} between checkpoints, twice that where one is damaged); "
        f"{federation.rounds()} rounds, model and metrics equal to those of an undisturbed run; {len(pids)} client "
        "processes, never restarted",
        flush=True,
    )
    return done


class _Life:
    """The server from one start to the next, and what is to be expected of it.

    Args:
        federation: whose server it is.
    """

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._every = rounds_between(federation.config)
        self._pending: list[Kill] = []  # of which it is not known yet what was lost
        self._damaged: set[Path] = set()

    def whole(self) -> list[Path]:
        """Return the checkpoints that are not damaged, oldest first."""
        return [path for path in self._federation.checkpoints() if path not in self._damaged]

    def see_it_go_on(self) -> int:
        """Wait until the server has made a new round; return the one that it went on after, 0 for a new run."""
        federation, after = self._federation, 0
        if self._pending:
            after = int(federation.server.line(r"^going on after round (\d+)", _LONG_S)[1])
        federation.reach(after + 1)
        if self._pending:
            self._pending[-1].seconds = time.monotonic() - federation.began
        return after

    def wait_for(self, moment: Moment, chance: random.Random) -> None:
        """Wait until the server is to be killed."""
        if moment.when == "start-up":
            self._linger(chance.uniform(0.0, _START_S))
            return
        if moment.when == "return":
            self._federation.server.line("^listening on ", _LONG_S)
            self._linger(chance.uniform(0.0, _RETURN_S))
            return
        after = self.see_it_go_on()
        if moment.when == "writing":
            _wait_for_a_draft(self._federation)
        else:
            self._federation.reach(after + moment.rounds)
            time.sleep(chance.uniform(0.0, _ROUND_S))

    def _linger(self, seconds: float) -> None:
        """Wait, but not until the server has made many rounds: the run must not be over before the last kill."""
        federation, end = self._federation, time.monotonic() + seconds
        while time.monotonic() < end:
            after = federation.went_on_after()
            if after is not None and federation.rounds() >= after + self._every:
                return
            time.sleep(min(0.01, seconds))

    def kill(self, number: int, when: str) -> Kill:
        """Kill the server, and see what is there."""
        federation = self._federation
        federation.server.send(signal.SIGKILL)
        status = federation.server.wait()
        assert status == -signal.SIGKILL, f"it has ended by itself, with status {status}:\n{federation.server.said()}"
        self.learn()
        drafts = [path for path in (federation.out / "checkpoints").glob(".*") if path.is_file()]
        kill = Kill(number, when, federation.rounds(), half_written=bool(drafts))
        self._pending.append(kill)
        return kill

    def damage(self, how: str, chance: random.Random) -> None:
        """Damage the newest checkpoint as a disk may, after a kill."""
        newest = self.whole()[-1]
        data = bytearray(newest.read_bytes())
        at = chance.randrange(len(data))
        if how == "truncated":
            del data[at:]
        elif how == "zeroed":
            data[at:] = bytes(len(data) - at)
        else:
            data[at] ^= 1 << chance.randrange(8)
        newest.write_bytes(data)
        self._damaged.add(newest)
        self._pending[-1].damage = how

    def learn(self) -> None:
        """Check what a server that has ended says it went on after, if it came so far, and print what was lost."""
        said, after = self._federation.server.said(), self._federation.went_on_after()
        assert "Traceback" not in said, said
        if not self._pending or after is None:
            return
        # A server that was killed before it came so far has lost nothing more: all that are pending have the same end.
        lost, harm = max(kill.at for kill in self._pending) - after, len(self._damaged)
        assert after % self._every == 0
        assert 0 <= lost <= self._every * (1 + harm), f"{lost} rounds lost, {self._every} between checkpoints"
        for path in self._damaged:
            assert f"{path}: " in said, f"it does not say that {path} is damaged:\n{said}"
        for kill in self._pending:
            kill.after = after
            print(kill.row(), flush=True)
        self._pending.clear()
        self._damaged.clear()  # the server has removed them


def _wait_for_a_draft(federation: Federation) -> None:
    """Wait until a checkpoint is being written; look so often that it is seen before it is done, mostly."""
    folder, end = federation.out / "checkpoints", time.monotonic() + _LONG_S
    newest = federation.checkpoints()[-1].name
    while not any(name.startswith(".") or name > newest for name in os.listdir(folder)):
        assert time.monotonic() < end, "no checkpoint is written"


def compare(calm: Path, disturbed: Path) -> None:
    """Check that two run folders tell of the same run.

    Raises:
        AssertionError: they do not; the message says where.
    """
    ours, theirs = rounds_of(disturbed), rounds_of(calm)
    assert [line["round"] for line in ours] == list(range(1, len(theirs) + 1)), "rounds are not contiguous"
    for mine, other in zip(ours, theirs, strict=True):
        for key in UNDISTURBED:
            told, due = mine.get(key), other.get(key)
            assert told == due, f"round {mine['round']}: {key}: {told}, not {due}"
    first, second = summary_of(disturbed), summary_of(calm)
    assert first["status"] == second["status"] == "finished"
    for key in ("rounds", "loss", "accuracy", "start", "rejected", "seed"):
        assert first[key] == second[key], f"summary: {key}"
    same(disturbed / "model.safetensors", calm / "model.safetensors")
    newest = [max((folder / "checkpoints").glob("[0-9]*")) for folder in (disturbed, calm)]
    assert newest[0].name == newest[1].name
    same(*newest)


def same(one: Path, other: Path) -> None:
    """Check that two files hold the same arrays.

    Raises:
        AssertionError: they do not.
    """
    mine, theirs = load_file(one), load_file(other)
    assert mine.keys() == theirs.keys(), f"{one}: other arrays than {other}"
    for name, array in mine.items():
        assert array.tobytes() == theirs[name].tobytes(), f"{one}: array {name} differs from that of {other}"


def main() -> int:
    """Torture a server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how often the server is killed (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments and damages (default: %(default)s)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="another experiment")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change the experiment")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep the two run folders here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, Processes() as processes:
        folder: Path = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        config = options.config or folder / "torture.toml"
        if options.config is None:
            config.write_text(EXPERIMENT, encoding="utf-8")
        chance = random.Random(options.seed)
        moments = plan(options.kills, rounds_between(load(config, options.set)), chance)
        torture(processes, config, options.set, folder, moments, chance)
        processes.none_left()
    return 0


if __name__ == "__main__":
    sys.exit(main())
