"""A real server among clients that break every rule: the run ends well and nobody else is disturbed.

One federation holds them all. Only workers 0 and 1 are honest, in processes of their own. The others speak the link by
hand, or die in the middle of a round. Averaging is used, which a single accepted reply of theirs would change: the
model must have the bits of a loop over the honest workers alone.
"""

import os
import queue
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc  # type: ignore[import-untyped]  # grpcio ships no types
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from experiment.code import code_fingerprint
from experiment.config import load
from experiment.opened import open_experiment
from link import codec
from link import link_pb2 as pb
from link.node import Prepared, join
from link.wire import METHOD, PROTOCOL, Parcel, Payload, Reader, Welcome, control_frame, error_frame, reply_head
from strategies.method import Ask, Packet
from strategies.randomness import Role, stream
from tests.integration.fork_server import ForkServer
from tests.integration.processes import DIGITS, SOON_S, Processes, rounds_of, sets, summary_of
from tests.saved import x_of

pytestmark = pytest.mark.slow

ROUNDS, DIM, HONEST = 8, 650, (0, 1)
HANGS_FROM, DIES_AT = 7, 3
DEADLINE_S = 4.0

Misbehave = Callable[[int, int], list[bytes]]
"""(instruction id, round) -> the frames that a bad client sends."""


@pytest.fixture
def processes(forked: ForkServer) -> Processes:
    return forked


def packet(id_: int, round_: int, values: bytes, kind: str = "identity", seed: int | None = None) -> bytes:
    """Return an answer to an instruction, well-formed but for what is given."""
    return answer(id_, content(round_, values, kind, seed))


def content(round_: int, values: bytes, kind: str = "identity", seed: int | None = None) -> RecordDict:
    sent = Packet(kind, DIM, np.frombuffer(values, np.uint8), seed)
    return codec.write_packet(sent, Ask(round_, "gradient", {}))


def answer(id_: int, content: RecordDict) -> bytes:
    return Payload(content).envelope(reply_head(id_))


def bulky(n_bytes: int, dtype: str = "uint8") -> RecordDict:
    """Return a reply whose packet stands in an array."""
    return RecordDict({"p": ArrayRecord({"": Array(dtype, (n_bytes,), "raw.le", bytes(n_bytes))})})


def ones(count: int) -> bytes:
    return np.ones(count, np.float32).tobytes()


NAN, HUGE = np.full(DIM, np.nan, np.float32).tobytes(), np.full(DIM, np.inf, np.float32).tobytes()

FAULTS: dict[str, tuple[Misbehave, str]] = {
    "nan": (lambda i, r: [packet(i, r, NAN)], "not finite: "),
    "infinite": (lambda i, r: [packet(i, r, HUGE)], "not finite: "),
    "short": (lambda i, r: [packet(i, r, ones(DIM - 1))], "wrong shape: a packet of 2596 bytes, expected 2600"),
    "ragged": (lambda i, r: [packet(i, r, ones(DIM)[:-1])], "wrong shape: a packet of 2599 bytes, expected 2600"),
    "late": (lambda i, r: [packet(i, r - 1, ones(DIM))], "wrong round: "),
    "sparse": (lambda i, r: [packet(i, r, ones(DIM), kind="rand-k", seed=1)], "wrong kind: 'rand-k'"),
    "empty": (lambda i, _: [answer(i, RecordDict())], "undecodable: no packet"),
    "typed": (lambda i, _: [answer(i, bulky(3000, "float32"))], "wrong dtype: 'float32'"),
    "unlabelled": (lambda i, _: [answer(i, bulky(3000))], "wrong round: 0"),
    "oversize": (lambda i, _: [answer(i, bulky(4 * DIM + 8000))], "oversize: "),
    "boaster": (
        lambda i, _: [control_frame(pb.Envelope(id=i, content=pb.Content(body_bytes=100)))],
        "undecodable: a body of 100 bytes for records that take 0",
    ),
    "garbage": (lambda *_: [os.urandom(50) for _ in range(4)], "undecodable: "),
    "greedy": (lambda i, r: [packet(i, r, NAN), *[packet(i, r, ones(DIM))] * 5], "not finite: "),
    "forger": (lambda i, r: [packet(i + 1, r, ones(DIM)), packet(i, r, NAN)], "not finite: "),
    "server": (lambda *_: [control_frame(pb.Goodbye(reason="away with you", final=True))], "out of order: a Goodbye"),
    "error": (lambda i, _: [error_frame(i, Error(1, "no\n\x1b[31mthanks"))], "error: no??[31mthanks"),
    "hangs": (lambda i, r: [packet(i, r, NAN)] if r < HANGS_FROM else [], "not finite: "),
}
"""For each bad client what it sends, and how the reason begins that it is rejected for."""


class BadClient(threading.Thread):
    """Joins as it should, then sends what it likes; without ``misbehave`` it never says that it is ready."""

    def __init__(self, address: str, name: str, misbehave: Misbehave | None) -> None:
        super().__init__(name=name, daemon=True)
        self.goodbye: str | None = None
        self._misbehave = misbehave
        self._out: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        self._stream = self._channel.stream_stream(METHOD)(iter(self._out.get, None))
        self._out.put(control_frame(pb.Hello(protocol=PROTOCOL, name=name, fingerprint=code_fingerprint())))
        self.start()

    def run(self) -> None:
        """Answer every instruction until the stream ends."""
        reader = Reader(1 << 30)
        with suppress(grpc.RpcError):
            for raw in self._stream:
                frame = reader.feed(raw)
                if isinstance(frame, pb.Welcome) and self._misbehave:
                    self._out.put(control_frame(pb.Ready()))
                elif isinstance(frame, Parcel):
                    assert self._misbehave
                    assert isinstance(frame.answer, RecordDict)
                    round_ = frame.answer.config_records["ask"]["round"]
                    assert isinstance(round_, int)
                    for sent in self._misbehave(frame.id, round_):
                        self._out.put(sent)
                elif isinstance(frame, pb.Goodbye):
                    self.goodbye = frame.reason

    def close(self) -> None:
        """End the stream."""
        self._out.put(None)
        self.join(SOON_S)
        self._channel.close()
        assert not self.is_alive()


def dying_client(address: str, worker: int) -> None:
    """Be a client that sends NaN and dies in the middle of a round; the main function of a process."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        round_ = message.content.config_records["ask"]["round"]
        if round_ == DIES_AT:
            os._exit(9)
        assert isinstance(round_, int)
        return Message(content(round_, NAN), reply_to=message)

    def prepare(welcome: Welcome) -> Prepared:
        return Prepared(app, Context(welcome.run_id, welcome.node_id, {}, RecordDict(), {}))

    sys.exit(join(address, "dies", prepare, worker=worker, fingerprint=code_fingerprint()))


def honest_model(config_text: str) -> np.ndarray:
    """Average the honest workers' gradients in a plain loop."""
    experiment = open_experiment(config_text, None, None)
    problem, seed = experiment.problem, experiment.config.federation.seed
    gamma = float(experiment.config.strategy.gamma)
    x = problem.initial()
    for k in range(1, ROUNDS + 1):
        rows = [problem.oracle(i).minibatch_gradients([x], 16, stream(seed, Role.WORKER, i, k))[0] for i in HONEST]
        mean = experiment.config.aggregator(np.stack(rows), 0, stream(seed, Role.AGGREGATE, round_=k))
        x = x - gamma * mean
    return x


def test_no_bad_client_disturbs_anybody(processes: Processes, tmp_path: Path) -> None:
    path, out = tmp_path / "digits.toml", tmp_path / "run"
    path.write_text(DIGITS, encoding="utf-8")
    seats = len(HONEST) + len(FAULTS) + 2  # one that dies, and one that never gets ready
    changes = (
        *(f"federation.clients={seats}", f"federation.start_with={seats - 1}", f"federation.deadline_s={DEADLINE_S}"),
        *("strategy.kind=robust-sgd", f"strategy.rounds={ROUNDS}", "strategy.batch=16", "aggregator.kind=mean"),
    )
    server = processes.breakwater("server", path, "--listen", "127.0.0.1:0", "--out", out, *sets(*changes))
    address = server.line(r"^listening on (\S+)")[1]
    honest = [
        processes.breakwater("client", "--connect", address, "--name", f"honest-{i}", "--worker", str(i))
        for i in HONEST
    ]
    code = f"from tests.integration.test_bad_clients import dying_client; dying_client({address!r}, {seats - 1})"
    dying = processes.python(code)
    for process in honest:
        process.line("joined as worker")
    bad = [BadClient(address, name, misbehave) for name, (misbehave, _) in FAULTS.items()]
    bad.append(BadClient(address, "unready", None))
    host, port = address.split(":")
    with socket.create_connection((host, int(port))) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" + os.urandom(1000))
        server.ends(0, 2 * SOON_S)
    for process in honest:
        process.ends(0)
    assert dying.wait() == 9
    for client in bad:
        client.close()
    assert {client.goodbye for client in bad} == {"the run is over"}

    rounds, summary = rounds_of(out), summary_of(out)
    assert (summary["status"], summary["rounds"]) == ("finished", ROUNDS)
    assert all(line["accepted"] == list(HONEST) for line in rounds)
    for line in rounds:
        reasons = {entry["client"]: entry["reason"] for entry in line["rejected"]}
        expected = {name: reason for name, (_, reason) in FAULTS.items()}
        if line["round"] >= HANGS_FROM:
            expected["hangs"] = "silent: no reply within 4 s"
        if line["round"] <= DIES_AT:
            expected["dies"] = "disconnected: " if line["round"] == DIES_AT else "not finite: "
        assert set(reasons) == set(expected)
        for name, reason in reasons.items():
            assert reason.startswith(expected[name]), (line["round"], name, reason)
        assert (line["round_s"] >= DEADLINE_S) == (line["round"] >= HANGS_FROM)
    count = sum(len(line["rejected"]) for line in rounds)
    assert sum(summary["rejected"].values()) == count
    text = (out / "logs" / "server.log").read_text(encoding="utf-8")
    for name, (_, reason) in FAULTS.items():
        assert f"{name} rejected: {reason}" in text
    assert text.count(" rejected: ") == count  # all are in the file, the terminal hears of each reason once
    assert server.said().count(" rejected: ") == len(FAULTS) + 3

    model = x_of(out)
    assert model.tobytes() == honest_model(load(path, changes).to_toml()).tobytes()
