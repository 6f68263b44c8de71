"""A server that trains with the clients named ``honest-...`` and lets a test see what its rounds take.

    python -m tests.integration.besieged ROUNDS [TLS FOLDER]

It is a ``breakwater server`` but for four things. Clients named ``mallory-...`` get instructions beside the rounds, so
that no round waits for them: what a silent client costs is the deadline's affair. Its limits of time are short. It
rests between rounds. And it writes one line to the file ROUNDS for each round: when it ended, and how many seconds it
took.
"""

import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from experiment.opened import open_experiment
from link import codec
from link import grid as grid_module
from link import guard as guarding
from link.grid import StreamGrid
from link.identity.access import AccessControl
from link.identity.tls import Identity, server_credentials
from server.link import open_link
from strategies.roster import Roster
from strategies.strategy import RobustStrategy, RoundRecord

HONEST, MALLORY = "honest-", "mallory-"
CLIENTS = 3
SEATS = 12
HELLO_S, UNAUTHENTICATED_S, SEND_S = 2.0, 3.0, 1.5
REST_S = 0.01
"""Between two rounds of some 4 ms, so that the attacked share of a machine is not all of it."""
BIG = 8 << 20
"""The bytes that ``mallory-reader`` is sent."""

CONFIG = f"""
[federation]
clients = {SEATS}
seed = 3
join_timeout_s = 600.0
heartbeat_s = 5.0
deadline_s = 30.0
[task]
kind = "digits"
model = "softmax"
[strategy]
kind = "robust-sgd"
rounds = 100000000
gamma = 0.1
batch = 32
[aggregator]
kind = "cwtm"
"""


class _Honest(Roster):
    """Lists the honest alone."""

    def __init__(self, grid: StreamGrid) -> None:
        self._grid = grid

    def name(self, worker: int) -> str:
        return self._grid.name(worker)

    def wait(self, count: int, timeout: float) -> int:
        return self._grid.wait(count, timeout)

    def traffic(self) -> tuple[int, int]:
        return self._grid.traffic()

    def nodes(self) -> Mapping[int, int]:
        seats = self._grid.seats()
        return {worker: node for worker, node in self._grid.nodes().items() if seats[worker].name.startswith(HONEST)}


class _Side:
    """Keeps an instruction in the hands of each attacker."""

    def __init__(self, grid: StreamGrid) -> None:
        self._grid = grid
        self._asked: dict[int, str] = {}
        self._small = RecordDict({"ask": ConfigRecord({"n": 1})})
        big = ArrayRecord()
        big["x"] = Array("uint8", (BIG,), "raw.le", bytes(BIG))
        self._big = RecordDict({"x": big})

    def ask(self) -> None:
        nodes, seats = self._grid.nodes(), self._grid.seats()
        for worker, node in nodes.items():
            name = seats[worker].name
            if not name.startswith(MALLORY):
                continue
            if node in self._asked and not list(self._grid.pull_messages([self._asked[node]])):
                continue
            content = self._big if name == "mallory-reader" else self._small
            (self._asked[node],) = self._grid.push_messages([Message(content, node, "train", ttl=60.0)])


def main() -> None:
    """Train until it is killed."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rounds = Path(sys.argv[1])
    identity = Identity.load(Path(sys.argv[2])) if len(sys.argv) > 2 else None
    guarding.HELLO_S, guarding.UNAUTHENTICATED_S, grid_module._SEND_S = HELLO_S, UNAUTHENTICATED_S, SEND_S
    experiment = open_experiment(CONFIG, None, None)
    credentials = None if identity is None else server_credentials(identity)
    grid = open_link(experiment, 5, credentials, None if identity is None else AccessControl.of(identity))
    print("listening on", grid.listen("127.0.0.1:0"), flush=True)
    roster, side = _Honest(grid), _Side(grid)
    grid.wait(CLIENTS, 600)
    with rounds.open("w", encoding="ascii", buffering=1) as file:

        def on_round(record: RoundRecord) -> None:
            assert len(record.accepted) == CLIENTS, record.rejected
            file.write(f"{time.monotonic()} {record.round_s}\n")
            side.ask()
            time.sleep(REST_S)

        strategy = RobustStrategy(
            experiment.method,
            codec=codec,
            roster=roster,
            clients=SEATS,
            seed=3,
            every=1 << 60,
            on_round=on_round,
        )
        strategy.start(grid, codec.to_arrays(experiment.problem.initial()), num_rounds=1 << 60)


if __name__ == "__main__":
    main()
