"""What strangers and hostile clients can cost a server on the live link, with honest clients beside them.

A federation of real processes trains all the while (``besieged``), and the attacker is a process too (``hostile``).
In each test rounds at most double, the server's memory grows by no more than is said here, a new client can join
while the attack goes on, and afterwards the server holds no more connections than before.

A busy machine can double a round too. So medians of many rounds are compared, before against during, and an attack
gets up to four attempts: one that truly costs as much costs it each time.
"""

import json
import re
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp

from experiment.code import code_fingerprint
from link.guard import LINES, MAX_UNAUTHENTICATED
from link.identity.authority import Authority
from link.identity.tls import AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE, Identity
from link.node import Prepared, join
from link.wire import Welcome
from tests.integration import besieged
from tests.integration.fork_server import ForkServer
from tests.integration.processes import SOON_S, Process, until

pytestmark = pytest.mark.slow

WINDOW_S = 0.8
"""Seconds of rounds that are compared with those during an attack."""
ATTEMPTS = 4
FEWEST = 20
"""So many rounds make a median."""
MEMORY_MB = 48
"""By so much the server's memory may grow, whatever it is that comes: 256 strangers of 80 KiB each, and what a busy
moment keeps in buffers. The attack that makes the server hold 8 MiB for a client has a bound of its own."""
TLS_MEMORY_MB = 96
"""The same where each of up to ``ROOM`` strangers has begun a TLS handshake, 120 KiB each."""


@dataclass
class Outcome:
    """What an attack has cost.

    Args:
        ratio: a round's time during it to before; the best of some attempts.
        grown_mb: the server's memory, the most of all attempts, in MB above that before the first.
        counts: what the attacker says happened to it, of the last attempt.
    """

    ratio: float
    grown_mb: float
    counts: dict[str, int]


class Siege:
    """A federation that trains, and those who would rather it did not."""

    def __init__(self, processes: ForkServer, folder: Path, certificates: Path | None = None) -> None:
        self._processes = processes
        self._parts: list[Process] = []
        self._certificates = certificates
        self._rounds = folder / "rounds"
        tls: list[str | Path] = [] if certificates is None else [certificates / "server"]
        self.server = processes.start(sys.executable, "-m", "tests.integration.besieged", str(self._rounds), *tls)
        self._parts.append(self.server)
        self.address = self.server.line(r"listening on (\S+)").group(1)
        for i in range(besieged.CLIENTS):
            name = f"{besieged.HONEST}{i}"
            own = ["--name", name] if certificates is None else ["--tls", certificates / name]
            client = processes.breakwater("client", "--connect", self.address, "--worker", str(i), *own)
            self._parts.append(client)
        until(lambda: len(self.rounds(0.0)) > 3 * FEWEST, f"the first rounds: {self.server.said()}")
        self._newcomer()

    def rounds(self, since: float, to: float = 1e18) -> list[float]:
        """Return the seconds of the rounds that ended between two times."""
        if not self._rounds.exists():
            return []
        with self._rounds.open("rb") as file:
            file.seek(max(0, self._rounds.stat().st_size - (1 << 18)))
            lines = [line.split() for line in file.read().decode("ascii").splitlines(keepends=True)[1:-1]]
        return [float(took) for at, took in lines if since <= float(at) <= to]

    def under(self, kind: str, seconds: float = 1.5, **goals: int) -> Outcome:
        """Attack for so long, and until a count has reached its goal, and return what that costs."""
        before_mb, outcome = self._memory_mb(), Outcome(float("inf"), 0.0, {})
        for _ in range(ATTEMPTS):
            before = self._round_s()
            attacker = self._attacker(kind, seconds, goals)
            begun = time.monotonic()
            with ThreadPoolExecutor() as pool:
                newcomer = pool.submit(self._newcomer)
                while attacker.running():
                    outcome.grown_mb = max(outcome.grown_mb, self._memory_mb() - before_mb)
                    time.sleep(0.05)
                attacker.ends(0)
                ended = time.monotonic()
                newcomer.result()
            outcome.counts = json.loads(attacker.line(r"^done (.*)").group(1))
            during = self.rounds(begun, ended)
            assert len(during) >= 3, f"{len(during)} rounds in {ended - begun:.1f} s of {kind}:\n{self.server.said()}"
            outcome.ratio = min(outcome.ratio, statistics.median(during) / before)
            print(f"{kind}: {1000 * before:.1f} ms a round before, {1000 * statistics.median(during):.1f} during, "
                  f"{len(during)} rounds, memory +{outcome.grown_mb:.1f} MB, {outcome.counts}")  # fmt: skip
            if outcome.ratio <= 2:
                break
        until(lambda: self._connections() <= besieged.CLIENTS, "the end of the attacker's connections")
        self._newcomer()
        assert self.server.running()
        assert outcome.ratio <= 2, outcome
        return outcome

    def _round_s(self) -> float:
        """Return the median of the rounds of the next moments."""
        began = time.monotonic()
        until(lambda: len(self.rounds(began)) >= FEWEST and time.monotonic() - began >= WINDOW_S, "rounds")
        return statistics.median(self.rounds(began))

    def _attacker(self, kind: str, seconds: float, goals: Mapping[str, int]) -> Process:
        tls = [] if self._certificates is None else ["--tls", str(self._certificates)]
        code, told = Path(__file__).with_name("hostile.py"), ["--fingerprint", code_fingerprint(), *tls]
        for goal, number in goals.items():
            told += ["--goal", goal, str(number)]
        process = self._processes.start(sys.executable, code, kind, self.address, str(seconds), *told)
        process.line("^begun")
        return process

    def _newcomer(self) -> None:
        """Join as an honest client does, and go."""
        name, stop = "late", threading.Event()
        identity = None if self._certificates is None else Identity.load(self._certificates / name)
        seen = threading.Event()

        def prepare(welcome: Welcome) -> Prepared:
            seen.set()
            stop.set()
            return Prepared(ClientApp(), Context(welcome.run_id, welcome.node_id, {}, RecordDict(), {}))

        join(
            self.address,
            name,
            prepare,
            fingerprint=code_fingerprint(),
            identity=identity,
            stop=stop,
            patience_s=SOON_S,
        )
        assert seen.is_set()

    def _memory_mb(self) -> float:
        text = Path(f"/proc/{self.server.pid}/status").read_text(encoding="ascii")
        return int(re.findall(r"^VmRSS:\s+(\d+) kB", text, re.MULTILINE)[0]) / 1024

    def _connections(self) -> int:
        port = int(self.address.rpartition(":")[2])
        table = Path(f"/proc/{self.server.pid}/net/tcp").read_text(encoding="ascii").splitlines()[1:]
        return sum(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "01" for line in table)

    def end(self) -> None:
        """End the federation."""
        for process in self._parts:
            process.end()


def certificates(folder: Path) -> Path:
    """Make the folders of a server and its clients."""
    authority = Authority.create()
    identities = {"server": authority.issue_server(["127.0.0.1"])}
    names = [*(f"{besieged.HONEST}{i}" for i in range(besieged.CLIENTS)), "late"]
    identities |= {name: authority.issue_client(name) for name in names}
    for name, identity in identities.items():
        (folder / name).mkdir()
        files = {AUTHORITY_FILE: identity.authority, CERTIFICATE_FILE: identity.certificate, KEY_FILE: identity.key}
        for file, data in files.items():
            (folder / name / file).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def siege(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    folder = tmp_path_factory.mktemp("siege")
    with ForkServer() as processes:
        made = Siege(processes, folder, certificates(folder) if request.param == "tls" else None)
        yield made
        made.end()


open_port = pytest.mark.parametrize("siege", ["open"], indirect=True)
with_tls = pytest.mark.parametrize("siege", ["tls"], indirect=True)


# --- strangers --------------------------------------------------------------------------------------------------------


@open_port
def test_a_flood_of_connections_costs_no_round_twice_its_time(siege: Siege) -> None:
    outcome = siege.under("connections", connections=301)
    assert outcome.counts["connections"] > 300
    assert outcome.grown_mb < MEMORY_MB


@open_port
def test_half_open_connections_lose_their_places_to_those_who_come_later(siege: Siege) -> None:
    outcome = siege.under("half-open", hung_up_on=101)
    assert outcome.counts["most_at_a_time"] > MAX_UNAUTHENTICATED
    assert outcome.counts["hung_up_on"] > 100
    assert outcome.grown_mb < MEMORY_MB


@open_port
def test_who_says_everything_a_byte_at_a_time_is_hung_up_on(siege: Siege) -> None:
    outcome = siege.under("slow", hung_up_on=90)
    assert outcome.counts["hung_up_on"] >= 90
    assert outcome.grown_mb < MEMORY_MB


@open_port
def test_a_flood_of_streams_on_one_connection_ends_with_the_connection(siege: Siege) -> None:
    outcome = siege.under("streams", hung_up_on=1)
    assert outcome.counts["refused_streams"] > 100
    assert outcome.counts["hung_up_on"] >= 1
    assert outcome.grown_mb < MEMORY_MB


@open_port
def test_strangers_who_say_nonsense_ever_again_fill_neither_memory_nor_log(siege: Siege) -> None:
    outcome = siege.under("garbage", messages=51)
    assert outcome.counts["messages"] > 50
    assert outcome.grown_mb < MEMORY_MB
    assert sum("no hello" in line for line in siege.server.err) <= 3 * LINES


@open_port
def test_a_flood_of_pings_ends_the_connection(siege: Siege) -> None:
    outcome = siege.under("pings", told_to_go=1)
    assert outcome.counts["told_to_go"] >= 1
    assert outcome.grown_mb < MEMORY_MB


@open_port
def test_headers_without_end_and_messages_of_gigabytes_are_cut_off_while_they_arrive(siege: Siege) -> None:
    outcome = siege.under("huge-header", hung_up_on=1)
    assert outcome.counts["hung_up_on"] >= 1
    assert outcome.grown_mb < MEMORY_MB


@with_tls
def test_half_a_tls_handshake_holds_no_place_for_long(siege: Siege) -> None:
    outcome = siege.under("half-open", hung_up_on=101)
    assert outcome.counts["most_at_a_time"] > MAX_UNAUTHENTICATED
    assert outcome.counts["hung_up_on"] > 100
    assert outcome.grown_mb < TLS_MEMORY_MB


@with_tls
def test_who_has_no_certificate_gets_no_stream(siege: Siege) -> None:
    outcome = siege.under("no-certificate", hung_up_on=10)
    assert outcome.counts["hung_up_on"] >= 10
    assert "no hello" not in siege.server.said()
    assert outcome.grown_mb < MEMORY_MB


# --- clients that have joined -----------------------------------------------------------------------------------------


@open_port
def test_who_floods_with_small_frames_is_cut_off_and_kept_out_for_a_while(siege: Siege) -> None:
    outcome = siege.under("empty-replies", refused=3)
    assert outcome.counts["joined"] >= 1
    assert outcome.counts["refused"] >= 3
    siege.server.line("mallory-small: cut off: .* it may come back in 1 s")
    assert outcome.grown_mb < MEMORY_MB


@open_port
def test_a_reply_that_never_ends_is_cut_off_while_it_arrives(siege: Siege) -> None:
    outcome = siege.under("endless-reply", refused=3)
    assert outcome.counts["chunks"] >= 1
    assert outcome.counts["refused"] >= 3
    siege.server.line("mallory-endless: cut off: oversize: ")
    assert outcome.grown_mb < MEMORY_MB


@open_port
def test_a_reply_that_trickles_holds_nobody_up(siege: Siege) -> None:
    outcome = siege.under("trickled-reply", bytes_of_it=51)
    assert outcome.counts["bytes_of_it"] > 50
    assert outcome.grown_mb < MEMORY_MB


@open_port
def test_who_takes_nothing_is_cut_off_and_costs_one_instruction_of_memory(siege: Siege) -> None:
    outcome = siege.under("no-reader", hung_up_on=1)
    assert outcome.counts["hung_up_on"] >= 1
    siege.server.line("mallory-reader: cut off: it has read nothing for ")
    assert outcome.grown_mb < MEMORY_MB + 3 * besieged.BIG / 2**20
