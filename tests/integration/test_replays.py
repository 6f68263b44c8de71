"""Replies that were good once, or elsewhere: replayed, early, twice, another's, another run's, or after a break.

One federation with averaging, which every reply that counts moves: the model must have the bits of a loop over the
honest workers and the one reply of each other client that may count.
"""

import re
import threading
from pathlib import Path

import numpy as np
import pytest

from experiment.config import load
from experiment.opened import open_experiment
from strategies.method import Vector
from strategies.randomness import Role, stream
from tests.integration.fork_server import ForkServer
from tests.integration.processes import DIGITS, SOON_S, Processes, rounds_of, sets, summary_of, until
from tests.integration.test_bad_clients import DIM, BadClient, answer, content, ones, packet
from tests.saved import x_of

pytestmark = pytest.mark.slow

ROUNDS = 12
LEAVES_AT = 3
HONEST = (0, 1)
ONE, TWO = ones(DIM), np.full(DIM, 2.0, np.float32).tobytes()
NAN = np.full(DIM, np.nan, np.float32).tobytes()


@pytest.fixture
def processes(forked: ForkServer) -> Processes:
    return forked


class Past:
    """What has been overheard or said: frames by who sent them; and what each client makes of it."""

    def __init__(self) -> None:
        self.said: dict[str, list[bytes]] = {}
        self.complete = threading.Event()

    def proper(self, id_: int, round_: int) -> list[bytes]:
        """A good reply, which the others overhear; after the break it waits until all are there again."""
        if round_ > LEAVES_AT:
            assert self.complete.wait(SOON_S)
        return self._keep("proper", packet(id_, round_, ONE))

    def replays(self, id_: int, round_: int) -> list[bytes]:
        """The packet of the round before in every round, under the number that is due."""
        return [answer(id_, content(round_ - 1, ONE))]

    def repeats(self, id_: int, round_: int) -> list[bytes]:
        """Its very own frame of the last round, then of all before, then a packet that is refused."""
        before = list(self.said.get("repeats", []))
        return [*before[::-1], *self._keep("repeats", packet(id_, round_, NAN))]

    def twice(self, id_: int, round_: int) -> list[bytes]:
        """A good reply and then others: the first counts."""
        return [packet(id_, round_, ONE), packet(id_, round_, TWO), packet(id_, round_, NAN)]

    def early(self, id_: int, round_: int) -> list[bytes]:
        """Replies to what is not asked yet, and the one that is due."""
        return [*(packet(id_ + n, round_ + 1, TWO) for n in (1, 2, 5, 30)), packet(id_, round_, ONE)]

    def overhears(self, id_: int, round_: int) -> list[bytes]:
        """Another node's frames as they were, number and all, and then one that is refused."""
        return [*self.said.get("proper", [])[-3:], packet(id_, round_, NAN)]

    def elsewhere(self, id_: int, round_: int) -> list[bytes]:
        """What was said in another run, in the same round under the same number: it is this client's word even so."""
        return [packet(id_, round_, TWO)]

    def _keep(self, name: str, frame: bytes) -> list[bytes]:
        self.said.setdefault(name, []).append(frame)
        return [frame]


COUNTS = {"proper": 1.0, "twice": 1.0, "early": 1.0, "elsewhere": 2.0}
"""Whose replies count, and the gradient that they claim."""
REFUSED = {"replays": "wrong round: ", "repeats": "not finite: ", "overhears": "not finite: "}
NAMES = [*COUNTS, *REFUSED, "returns"]


class Leaver(BadClient):
    """Leaves in a round without an answer, and gives it on the next stream, before what is asked there."""

    def __init__(self, address: str, asked: list[bytes]) -> None:
        self._asked = asked
        super().__init__(address, "returns", self._answer)

    def _answer(self, id_: int, round_: int) -> list[bytes]:
        if round_ == LEAVES_AT:
            self._asked.append(packet(id_, round_, TWO))
            self._out.put(None)
            return []
        return [*self._asked, packet(id_, round_, ONE)]


def seats_of(out: Path) -> list[tuple[str, int]]:
    """Return name and worker of each client that was seated, in the order in which they came."""
    text = (out / "logs" / "server.log").read_text(encoding="utf-8")
    return [(name, int(worker)) for worker, name in re.findall(r"seat (\d+) is taken by ([\w-]+)", text)]


def come_again(address: str, out: Path, asked: list[bytes]) -> Leaver:
    """Join once more, as soon as the server has noticed that the old stream has ended."""
    client = Leaver(address, asked)

    def joined() -> bool:
        nonlocal client
        if [name for name, _ in seats_of(out)].count("returns") == 2:
            return True
        if not client.is_alive():
            client.close()
            client = Leaver(address, asked)
        return False

    until(joined, "the client that left is seated again")
    return client


def model(config_text: str, workers: dict[str, int], returned: set[int]) -> Vector:
    """Average the replies that count in a plain loop.

    Args:
        config_text: the experiment.
        workers: by name.
        returned: the rounds in which the client that leaves and returns was heard.
    """
    experiment = open_experiment(config_text, None, None)
    problem, seed = experiment.problem, experiment.config.federation.seed
    x = problem.initial()
    for k in range(1, ROUNDS + 1):
        rows = {workers[name]: np.full(DIM, value, np.float32) for name, value in COUNTS.items()}
        if k in returned:
            rows[workers["returns"]] = np.ones(DIM, np.float32)
        for i in HONEST:
            rows[i] = problem.oracle(i).minibatch_gradients([x], 16, stream(seed, Role.WORKER, i, k))[0]
        g = experiment.config.aggregator(
            np.stack([rows[i] for i in sorted(rows)]), 0, stream(seed, Role.AGGREGATE, round_=k)
        )
        x = x - float(experiment.config.strategy.gamma) * g
    return x


def test_no_reply_counts_but_the_one_that_is_due(processes: Processes, tmp_path: Path) -> None:
    path, out, seats = tmp_path / "digits.toml", tmp_path / "run", len(HONEST) + len(NAMES)
    path.write_text(DIGITS, encoding="utf-8")
    changes = (
        *(f"federation.clients={seats}", f"federation.start_with={seats}", "federation.deadline_s=20"),
        *("strategy.kind=robust-sgd", f"strategy.rounds={ROUNDS}", "strategy.batch=16", "aggregator.kind=mean"),
    )
    server = processes.breakwater("server", path, "--listen", "127.0.0.1:0", "--out", out, *sets(*changes))
    address = server.line(r"^listening on (\S+)")[1]
    honest = [
        processes.breakwater("client", "--connect", address, "--name", f"honest-{i}", "--worker", str(i))
        for i in HONEST
    ]
    for process in honest:
        process.line("joined as worker")
    past, asked = Past(), list[bytes]()
    bad: list[BadClient] = [BadClient(address, name, getattr(past, name)) for name in NAMES[:-1]]
    bad.append(Leaver(address, asked))
    until(lambda: not bad[-1].is_alive(), "the client that leaves")
    bad.append(come_again(address, out, asked))
    past.complete.set()
    server.ends(0, 2 * SOON_S)
    for process in honest:
        process.ends(0)
    for client in bad:
        client.close()

    rounds, summary = rounds_of(out), summary_of(out)
    assert (summary["status"], summary["rounds"]) == ("finished", ROUNDS)
    workers = dict(seats_of(out))
    assert sorted(workers.values()) == list(range(seats))
    returned = {line["round"] for line in rounds if workers["returns"] in line["accepted"]}
    assert returned >= {1, 2, ROUNDS}
    assert LEAVES_AT not in returned
    for line in rounds:
        counted = {*HONEST, *(workers[name] for name in COUNTS)}
        assert set(line["accepted"]) - {workers["returns"]} == counted
        reasons = {entry["client"]: entry["reason"] for entry in line["rejected"]}
        for name, reason in REFUSED.items():
            assert reasons.pop(name).startswith(reason)
        if line["round"] == LEAVES_AT:
            assert reasons.pop("returns").startswith("disconnected: ")
        assert reasons == {}
    expected = model(load(path, changes).to_toml(), workers, returned)
    assert x_of(out).tobytes() == expected.tobytes()
