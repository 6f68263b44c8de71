"""Round time of our gRPC link with a Flower Strategy, beside Flower's own gRPC stream.

Both sides run the same federation: one server process and n client processes on loopback; a round sends a vector of
float32 to every client, each adds one and sends it back, the server averages. Ours is a Message-API Strategy on
StreamGrid; the peer is ``flwr.server.start_server`` with FedAvg and NumPyClients under ``flwr.client.start_client``.
A round lasts from one configure call to the next, so it holds all that either framework does in it. The two sides take
turns in short blocks, so that both see the same machine.

    python -m benchmarks.link [--json FILE] [--rounds N] [--quick]
"""

import itertools
import logging
import signal
import socket
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from benchmarks.bench import Result, arguments, publish
from link.grid import StreamGrid
from link.node import Prepared, join
from link.wire import Welcome

POINTS = ((8, 1_000), (20, 1_000), (8, 1_000_000))
"""Clients, floats."""
BLOCKS = 6
"""Turns that each side takes at a point."""
PEER = "Flower start_server"
Vector = np.ndarray[Any, np.dtype[np.float32]]

_fork = get_context("fork")  # clients start from this process, which has imported Flower once


def model_of(x: Vector) -> RecordDict:
    """Return what the server sends: the vector as one array of plain little-endian bytes."""
    record = ArrayRecord()
    record["x"] = Array("float32", x.shape, "raw", x.astype("<f4", copy=False).tobytes())
    return RecordDict({"model": record})


def packet_of(x: Vector) -> RecordDict:
    """Return what a client sends: the vector's values as bytes of a config record."""
    return RecordDict({"packet": ConfigRecord({"values": x.astype("<f4", copy=False).tobytes()})})


def values_of(content: RecordDict) -> Vector:
    """Return the vector of either."""
    record = content["model"] if "model" in content else content["packet"]
    data = record["x"].data if isinstance(record, ArrayRecord) else record["values"]
    assert isinstance(data, bytes)
    return np.frombuffer(data, "<f4")


class MeanStrategy(Strategy):
    """The smallest honest strategy: everybody, every round; the mean of what they send.

    Args:
        beat: called at the start of every round.
    """

    def __init__(self, beat: Callable[[], None]) -> None:
        self._beat = beat

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: object, grid: Grid) -> Iterable[Message]:
        """Send the model to all nodes."""
        self._beat()
        content = RecordDict({"model": arrays})
        group = str(server_round)
        return [Message(content, node, "train", group_id=group) for node in grid.get_node_ids()]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average what came."""
        rows = [values_of(reply.content) for reply in replies]
        mean = rows[0].copy()
        for row in rows[1:]:
            mean += row
        mean /= len(rows)
        return model_of(mean).array_records["model"], None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: object, grid: Grid
    ) -> Iterable[Message]:
        """Evaluate nothing."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Evaluate nothing."""
        return None

    def summary(self) -> None:
        """Say nothing."""


def our_server(clients: int, floats: int, address: str, control: Connection) -> None:
    """Serve blocks of rounds on our link until killed."""
    grid = StreamGrid(
        run_id=1,
        clients=clients,
        welcome=lambda name, worker: {},
        fingerprint="benchmark",
        max_reply_bytes=4 * floats + 4096,
    )
    grid.listen(address)
    assert grid.wait(clients, 60) == clients
    starts: list[float] = []
    strategy = MeanStrategy(lambda: starts.append(time.perf_counter()))
    x = model_of(np.zeros(floats, np.float32)).array_records["model"]
    control.send("ready")
    while True:
        rounds = control.recv()
        starts.clear()
        x = strategy.start(grid, x, num_rounds=rounds + 1).arrays
        control.send([end - start for start, end in itertools.pairwise(starts)])


def our_client(name: str, address: str) -> None:
    """Add one to whatever comes, until killed."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(packet_of(values_of(message.content) + np.float32(1)), reply_to=message)

    def prepare(welcome: Welcome) -> Prepared:
        return Prepared(app, Context(welcome.run_id, welcome.node_id, {}, RecordDict(), {}))

    join(address, name, prepare, fingerprint="benchmark")


def their_server(clients: int, floats: int, address: str, control: Connection) -> None:
    """Serve blocks of rounds on Flower's stream until killed."""
    from flwr.common import ndarrays_to_parameters
    from flwr.server import ServerConfig, start_server
    from flwr.server.strategy import FedAvg

    starts: list[float] = []
    left = [0]

    class Gated(FedAvg):
        """FedAvg that waits for its turn between blocks."""

        def configure_fit(self, *args: Any, **kwargs: Any) -> Any:
            starts.append(time.perf_counter())
            if not left[0]:
                control.send([end - start for start, end in itertools.pairwise(starts)])
                left[0] = control.recv()
                starts[:] = [time.perf_counter()]
            left[0] -= 1
            return super().configure_fit(*args, **kwargs)

    strategy = Gated(
        fraction_evaluate=0.0,
        min_fit_clients=clients,
        min_available_clients=clients,
        initial_parameters=ndarrays_to_parameters([np.zeros(floats, np.float32)]),
    )
    start_server(server_address=address, config=ServerConfig(num_rounds=1_000_000), strategy=strategy)


def their_client(name: str, address: str) -> None:
    """Add one to whatever comes, until killed."""
    from flwr.client import NumPyClient, start_client

    class AddOne(NumPyClient):
        """The smallest client."""

        def fit(self, parameters: Any, config: Any) -> Any:
            """Return the parameters plus one."""
            return [parameters[0] + np.float32(1)], 1, {}

    start_client(server_address=address, client=AddOne().to_client())


def quiet(job: Callable[..., None], *args: object) -> None:
    """Run a job in its process without Flower's log and warnings (it warns that its gRPC stream is deprecated)."""
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    job(*args)


class Side:
    """One federation in processes of its own, that runs a block of rounds when asked to.

    Args:
        server: what the server process runs.
        client: what each client process runs.
        clients: n.
        floats: length of the vector.
    """

    def __init__(self, server: Callable[..., None], client: Callable[..., None], clients: int, floats: int) -> None:
        self.round_s: list[float] = []
        address = f"127.0.0.1:{free_port()}"
        self._control, theirs = _fork.Pipe()
        jobs: list[tuple[object, ...]] = [(server, clients, floats, address, theirs)]
        jobs += [(client, f"client-{i}", address) for i in range(clients)]
        self._processes: list[BaseProcess] = [_fork.Process(target=quiet, args=job, daemon=True) for job in jobs]
        for process in self._processes:
            process.start()
        theirs.close()
        self._control.recv()

    def run(self, rounds: int) -> None:
        """Run one block and keep its round times."""
        self._control.send(rounds)
        self.round_s += self._control.recv()

    def end(self) -> None:
        """End all processes; what has been measured is here, so none of them is asked politely."""
        for process in reversed(self._processes):  # clients first: theirs complain when their server vanishes
            process.kill()
            process.join()


def free_port() -> int:
    """Return a loopback port that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def measure(clients: int, floats: int, rounds: int) -> Result:
    """Return the median round of both sides at one point."""
    ours = Side(our_server, our_client, clients, floats)
    theirs = Side(their_server, their_client, clients, floats)
    sides = (ours, theirs)
    for side in sides:
        side.run(max(rounds // 10, 3))  # warm up
        side.round_s.clear()
    for _ in range(BLOCKS):
        for side in sides:
            side.run(max(rounds // BLOCKS, 1))
    for side in sides:
        side.end()
    ours_ms, theirs_ms = (1e3 * statistics.median(side.round_s) for side in sides)
    name = f"round, {clients} clients x {floats:,} floats"
    return Result(name=name, value=ours_ms, unit="ms", peer=PEER, peer_value=theirs_ms, ratio=theirs_ms / ours_ms)


def main() -> None:
    """Measure all points and print them."""
    options = arguments(__doc__ or "", rounds=600).parse_args()
    rounds = options.rounds // 5 if options.quick else options.rounds
    results = []
    for clients, floats in POINTS:
        # A round of long vectors takes twenty times as long as one of short ones: a tenth of them is enough.
        results.append(measure(clients, floats, rounds if floats < 100_000 else rounds // 10))
    publish(results, options.json)


if __name__ == "__main__":
    main()
