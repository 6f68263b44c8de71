"""The link between real ends: Flower's FedAvg on it unchanged, every way to join, to misbehave and to be lost.

The grid runs in the test's process; nodes are threads of it, processes of their own, or, to misbehave, bare gRPC streams.
"""

import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]  # grpcio ships no types
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from link import grid as grid_module
from link import link_pb2 as pb
from link.errors import LinkError, Refused, ServerGone, Silent
from link.grid import StreamGrid
from link.node import join
from link.wire import (
    METHOD,
    PROTOCOL,
    Parcel,
    Payload,
    Reader,
    Welcome,
    control_frame,
    reply_head,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SOON_S = 30.0
"""A bound for what should take no time, on a machine that is busy."""


def context(welcome: Welcome) -> Context:
    node_config: dict[str, int | float | str | bool] = {"partition-id": welcome.worker, "name": welcome.name}
    return Context(
        run_id=welcome.run_id, node_id=welcome.node_id, node_config=node_config, state=RecordDict(), run_config={}
    )


def echo_app() -> ClientApp:
    """Answer with what came; a ``do`` in it says what to do instead."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        do = message.content.config_records.get("do", ConfigRecord()).get("what")
        if do == "raise":
            raise ValueError("boom")
        if do == "silent":
            raise Silent
        if do == "hold the GIL":
            3**3_000_000  # noqa: B018  # one call into C that keeps every Python thread waiting
        return Message(message.content, reply_to=message)

    return app


def add_one_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = [array + 1 for array in message.content["arrays"].to_numpy_ndarrays()]
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)

    return app


class Node(threading.Thread):
    """A client in a thread; ``outcome`` is what ``join`` returned or raised."""

    def __init__(self, address: str, name: str, app: ClientApp | None = None, **options: Any) -> None:
        super().__init__(name=f"node {name}", daemon=True)
        self.stop = threading.Event()
        self.outcome: str | BaseException | None = None
        self.prepared: list[Welcome] = []
        self._job = lambda: join(
            address, name, app or echo_app(), self._prepare, **{"fingerprint": "code", "stop": self.stop, **options}
        )
        self.start()

    def _prepare(self, welcome: Welcome) -> Context:
        self.prepared.append(welcome)
        return context(welcome)

    def run(self) -> None:
        try:
            self.outcome = self._job()
        except BaseException as error:  # noqa: BLE001  # the test looks at it
            self.outcome = error

    def result(self) -> "str | BaseException | None":
        self.join(SOON_S)
        assert not self.is_alive()
        return self.outcome


class Raw:
    """A bare stream that says what a test wants."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        self._out: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._in = self._channel.stream_stream(METHOD)(iter(self._out.get, None))
        self._reader = Reader(1 << 40)

    def send(self, *frames: bytes) -> None:
        for frame in frames:
            self._out.put(frame)

    def hello(self, name: str, **fields: Any) -> "Raw":
        self.send(control_frame(pb.Hello(**{"protocol": PROTOCOL, "name": name, "fingerprint": "code", **fields})))
        return self

    def ready(self, name: str) -> "Raw":
        self.hello(name)
        assert isinstance(self.receive(), pb.Welcome)
        self.send(control_frame(pb.Ready()))
        return self

    def receive(self) -> Any:
        """Return the next frame; None at the end of the stream."""
        for raw in self._in:
            frame = self._reader.feed(raw)
            if frame is not None:
                return frame
        return None

    def close(self) -> None:
        self._out.put(None)
        self._channel.close()


class Federation:
    """Makes grids, nodes and processes, and ends them all."""

    def __init__(self) -> None:
        self.grids: list[StreamGrid] = []
        self.nodes: list[Node] = []
        self.raws: list[Raw] = []
        self.processes: list[subprocess.Popen[str]] = []

    def grid(self, clients: int, address: str = "127.0.0.1:0", **options: Any) -> tuple[StreamGrid, str]:
        defaults: dict[str, Any] = {
            "run_id": 5, "welcome": lambda name, worker: {"to": name}, "fingerprint": "code", "max_reply_bytes": 1 << 20,
        }  # fmt: skip
        grid = StreamGrid(**{"clients": clients, **defaults, **options})
        self.grids.append(grid)
        return grid, grid.listen(address)

    def node(self, address: str, name: str, app: ClientApp | None = None, **options: Any) -> Node:
        self.nodes.append(Node(address, name, app, **options))
        return self.nodes[-1]

    def raw(self, address: str) -> Raw:
        self.raws.append(Raw(address))
        return self.raws[-1]

    def process(self, address: str, name: str, heartbeat_s: float = 5.0) -> "subprocess.Popen[str]":
        code = "from tests.integration.test_link import client_main; client_main()"
        command = [sys.executable, "-c", code, address, name, str(heartbeat_s)]
        self.processes.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        return self.processes[-1]

    def end(self) -> None:
        for node in self.nodes:
            node.stop.set()
        for grid in self.grids:
            grid.close("the test is over")
        for raw in self.raws:
            raw.close()
        for process in self.processes:
            process.kill()
            process.communicate()
        for node in self.nodes:
            node.join(SOON_S)
        assert [node.name for node in self.nodes if node.is_alive()] == []
        assert [thread for thread in threading.enumerate() if thread.name.startswith("link")] == []


def client_main() -> None:
    address, name, heartbeat_s = sys.argv[1:]
    reason = join(address, name, echo_app(), context, fingerprint="code", heartbeat_s=float(heartbeat_s))
    import resource

    print(reason, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


@pytest.fixture
def federation() -> Iterator[Federation]:
    made = Federation()
    try:
        yield made
    finally:
        made.end()


def ask(grid: StreamGrid, nodes: list[int], timeout: float | None = SOON_S, **config: Any) -> list[Message]:
    """Send one content to nodes and return the replies."""
    content = RecordDict({"do": ConfigRecord(config)})
    return list(grid.send_and_receive([Message(content, node, "train") for node in nodes], timeout=timeout))


def until(condition: Callable[[], bool]) -> None:
    """Wait for what no event tells of."""
    end, tick = time.monotonic() + SOON_S, threading.Event()
    while not condition():
        assert time.monotonic() < end
        tick.wait(0.01)


# --- rounds -------------------------------------------------------------------------------------------------------------


def test_flowers_own_fedavg_runs_unchanged(federation: Federation) -> None:
    grid, address = federation.grid(3)
    for name in "abc":
        federation.node(address, name, add_one_app())
    assert grid.wait_for(3, SOON_S) == 3
    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=3, min_train_nodes=3)
    result = strategy.start(grid, ArrayRecord([np.zeros((2, 3), np.float32)]), num_rounds=4, timeout=SOON_S)
    np.testing.assert_array_equal(result.arrays.to_numpy_ndarrays()[0], np.full((2, 3), 4, np.float32))


def test_replies_come_in_the_order_of_the_instructions_and_a_broadcast_is_serialised_once(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    serialised = []

    class Counting(Payload):
        def __init__(self, content: RecordDict) -> None:
            serialised.append(content)
            super().__init__(content)

    monkeypatch.setattr(grid_module, "Payload", Counting)
    grid, address = federation.grid(4)
    for name in "abcd":
        federation.node(address, name)
    assert grid.wait_for(4, SOON_S) == 4
    nodes = list(reversed(list(grid.get_node_ids())))
    content = RecordDict({"big": arrays(3 << 20)})
    grid._max_reply_bytes = 4 << 20
    messages = [Message(content, node, "train", group_id="7") for node in nodes]
    replies = list(grid.send_and_receive(messages, timeout=SOON_S))
    assert len(serialised) == 1
    assert [reply.metadata.src_node_id for reply in replies] == nodes
    assert [reply.metadata.reply_to_message_id for reply in replies] == [m.metadata.message_id for m in messages]
    assert {(reply.metadata.group_id, reply.metadata.run_id, reply.metadata.dst_node_id) for reply in replies} == {
        ("7", 5, 1)
    }
