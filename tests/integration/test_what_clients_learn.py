"""What the server tells a client, frame by frame: what the round's method asks of it, and nothing about anybody else.

Every frame that the server sends is written down, with the name of the client that it goes to, while a method runs over
the link; the grid and the clients are in this process.
"""

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

from client.preparation import Preparation, PreparationOptions
from experiment.code import code_fingerprint
from experiment.config import load, parse
from experiment.opened import CONFIG, open_experiment
from link import codec
from link import link_pb2 as pb
from link.invitation import TASK
from link.node import Prepared, join
from link.replies import App
from link.streams import Stream
from link.wire import Parcel, Reader, Welcome
from server.link import open_link
from strategies.cohorts import sample
from strategies.method import HELD, Ask, Method, Vector
from strategies.randomness import Role, stream
from strategies.strategy import RobustStrategy, RoundRecord
from tests.integration.processes import SOON_S, Processes, rounds_of, sets

pytestmark = pytest.mark.slow

EXPERIMENT = """
[federation]
clients = 4
byzantine = 1
seed = 5
server_seed = 123456789123456789
reveal_cohort = {reveal}
[task]
kind = "digits"
model = "softmax"
[strategy]
kind = "{kind}"
rounds = 10
gamma = 0.1
{strategy}
{compressor}
[evaluation]
every = 10
"""
TOP, RAND = '[compressor]\nkind = "top-k"\nratio = 0.2', '[compressor]\nkind = "rand-k"\nratio = 0.2'
METHODS = {
    "byz-vr-marina-pp": ("p = 0.3\ncohort = 2\nbatch = 16\nalpha = 2.0", RAND),
    "robust-sgd": ("batch = 16", ""),
    "rosdhb": ("batch = 16", '[compressor]\nkind = "masked"\nratio = 0.2'),
    "byz-ef21": ("", TOP),
    "byz-ef21-bc": ("", TOP),
    "byz-ef21-sgdm": ("batch = 16", TOP),
    "byz-dm21": ("batch = 16\nvr = true", TOP),
    "byz-dasha-page": ("batch = 16", RAND),
    "robust-momentum-sgd": ("batch = 16", ""),
    "byz-nsgdm": ("batch = 16", ""),
    "demoa": ("batch = 16\ncohort = 3", ""),
}
STATEFUL = {"byz-ef21", "byz-ef21-bc", "byz-ef21-sgdm", "byz-dm21", "byz-dasha-page", "robust-momentum-sgd"}
STATEFUL |= {"byz-nsgdm"}
ROUNDS = 10
UNLUCKY, LOST_IN = 2, 4
"""This worker's reply is lost in this round, so that it is sent its state again where there is one."""
PIECE = 64
"""So many bytes of a packet, or of a vector, are not there by chance."""


class Watched:
    """A method that writes down what it asks and whom it sends what beside that."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self.asks: dict[int, Ask] = {}
        self.extras: dict[tuple[int, int], Mapping[str, Vector]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    def ask(self, state: Any, rng: np.random.Generator) -> Ask:
        ask = self._method.ask(state, rng)
        self.asks[ask.round] = ask
        return ask

    def resync(self, state: Any, i: int) -> Mapping[str, Vector]:
        extra = self._method.resync(state, i)
        if extra:
            self.extras[state.round, i] = extra
        return extra


@dataclass
class Tape:
    """What went over the link in one run.

    Args:
        method: it, watched.
        config: that of the experiment, as the server has it.
        sent: the frames that each worker was sent, raw.
        packets: the bytes of every packet that each worker has sent.
        rounds: the record of each.
        turn: one client computes at a time.
    """

    method: Watched
    config: str
    sent: dict[int, list[bytes]] = field(default_factory=lambda: {worker: [] for worker in range(4)})
    packets: dict[int, list[bytes]] = field(default_factory=lambda: {worker: [] for worker in range(4)})
    rounds: list[RoundRecord] = field(default_factory=list)
    turn: threading.Lock = field(default_factory=threading.Lock)

    def frames(self, worker: int) -> list[Any]:
        """Return what a worker reads in these frames."""
        reader = Reader(1 << 30)
        return [frame for raw in self.sent[worker] if (frame := reader.feed(raw)) is not None]


def played(monkeypatch: pytest.MonkeyPatch, kind: str, *, reveal: bool = False) -> Tape:
    """Run a method over the link and return the tape."""
    strategy, compressor = METHODS[kind]
    text = EXPERIMENT.format(kind=kind, strategy=strategy, compressor=compressor, reveal=str(reveal).lower())
    experiment = open_experiment(text, None, None)
    config = experiment.config
    tape = Tape(Watched(experiment.method), config.to_toml())
    send = Stream.send

    async def written_down(stream: Stream, frame: bytes) -> None:
        tape.sent[stream.seat.worker].append(bytes(frame))
        await send(stream, frame)

    monkeypatch.setattr(Stream, "send", written_down)
    grid = open_link(experiment, 7, None)
    address = grid.listen("127.0.0.1:0")
    clients = [threading.Thread(target=take_part, args=(address, tape, worker)) for worker in range(4)]
    try:
        for client in clients:
            client.start()
        assert grid.wait(4, SOON_S) == 4
        RobustStrategy(
            cast(Method, tape.method),
            codec=codec,
            roster=grid,
            clients=4,
            seed=config.federation.seed_of_server,
            deadline_s=SOON_S,
            reveal_cohort=config.reveals_cohort,
            on_round=tape.rounds.append,
        ).start(grid, codec.to_arrays(experiment.problem.initial()), ROUNDS)
    finally:
        grid.close("the run is over")
        for client in clients:
            client.join(SOON_S)
    assert [client for client in clients if client.is_alive()] == []
    assert [record.round for record in tape.rounds] == list(range(1, ROUNDS + 1))
    return tape


def take_part(address: str, tape: Tape, worker: int) -> None:
    """Be an honest client that writes down its packets, and of whose replies one is lost."""
    preparation = Preparation(PreparationOptions())

    def prepare(welcome: Welcome) -> Prepared:
        made = preparation(welcome)
        return replace(made, app=partial(answer, made.app))

    def answer(app: App, message: Message, context: Context) -> Message:
        with tape.turn:
            reply = app(message, context)
        tape.packets[worker].append(cast(bytes, reply.content.config_records["p"][""]))
        if (worker, codec.read_ask(message.content).round) == (UNLUCKY, LOST_IN):
            raise RuntimeError("the reply is lost")
        return reply

    name = f"worker-{worker}"
    join(address, name, prepare, worker=worker, fingerprint=code_fingerprint())


def arrays_of(content: RecordDict) -> set[tuple[str, str]]:
    """Return record and key of every array of an instruction."""
    return {(name, key) for name, record in content.array_records.items() for key in record}


@pytest.mark.parametrize("kind", METHODS)
def test_a_client_is_sent_what_the_method_asks_of_it_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    tape = played(monkeypatch, kind)
    method = tape.method
    lost = tape.rounds[LOST_IN - 1]
    assert UNLUCKY not in lost.accepted, "the reply that is lost"
    assert {worker for _, worker in method.extras} == ({UNLUCKY} if kind in STATEFUL else set())
    assert "server_seed" in tape.config
    for worker in range(4):
        assert b"123456789123456789" not in b"".join(tape.sent[worker])
        welcome, *instructions, goodbye = tape.frames(worker)
        assert isinstance(welcome, pb.Welcome)
        assert isinstance(goodbye, pb.Goodbye)
        settings = dict(welcome.settings)
        task = json.loads(settings.pop(TASK))  # digests of the task that all have
        assert task.keys() == {"dim", "dtype", "samples", "data", "start"}
        assert settings == {CONFIG: tape.config.replace("server_seed = 123456789123456789\n", "")}
        assert {field.name for field, _ in welcome.ListFields()} <= {
            *("run_id", "node_id", "worker", "clients", "settings", "heartbeat_s", "max_reply_bytes", "chunk_bytes")
        }
        asked = [record.round for record in tape.rounds if worker in record.cohort]
        assert len(instructions) == len(asked), "of a round without it a client hears nothing"
        for round_, parcel in zip(asked, instructions, strict=True):
            assert isinstance(parcel, Parcel)
            assert isinstance(parcel.answer, RecordDict)
            ask, extra = method.asks[round_], method.extras.get((round_, worker), {})
            words, content = {"round", "kind"}, parcel.answer
            words |= {"seed"} if ask.seed is not None else set()
            words |= {key for key in content.config_records["ask"] if key.startswith("packet") and ask.packet}
            assert set(content.config_records["ask"]) == words
            assert set(content) == {"ask", "vectors"} | ({"packet"} if ask.packet else set())
            packet = {("packet", "values"), ("packet", "marks")} if ask.packet else set()
            assert arrays_of(content) - packet == {("vectors", name) for name in (*ask.vectors, *extra)}
            told = codec.read_ask(content)
            assert told.cohort is None
            for name, vector in {**ask.vectors, **extra}.items():
                np.testing.assert_array_equal(told.vectors[name], vector)
            assert (parcel.message_type, parcel.group_id) == ("train", str(round_))


@pytest.mark.parametrize("kind", METHODS)
def test_no_client_is_sent_a_packet_or_the_state_of_another(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    tape = played(monkeypatch, kind)
    assert all(tape.packets.values())
    sent = {worker: b"".join(frames) for worker, frames in tape.sent.items()}
    for worker in range(4):
        others = b"".join(sent[other] for other in range(4) if other != worker)
        for packet in tape.packets[worker]:
            assert packet[:PIECE] not in others
        held = [extra[HELD] for (_, i), extra in tape.method.extras.items() if i == worker and HELD in extra]
        for vector in held:
            assert vector.tobytes() in sent[worker]
            assert vector.tobytes()[:PIECE] not in others
    assert bool(tape.method.extras) is (kind in STATEFUL)


def test_who_else_was_sampled_is_told_only_where_the_config_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    tape = played(monkeypatch, "byz-vr-marina-pp", reveal=True)
    assert any(len(record.cohort) < 4 for record in tape.rounds)
    for worker in range(4):
        cohorts = [codec.read_ask(parcel.answer).cohort for parcel in tape.frames(worker)[1:-1]]
        assert cohorts == [tuple(record.cohort) for record in tape.rounds if worker in record.cohort]


def test_what_the_server_draws_cannot_be_foreseen_from_what_clients_know(
    processes: Processes, digits: Path, tmp_path: Path
) -> None:
    changes = ("strategy.rounds=40", "strategy.cohort=2", "strategy.p=0.3", "federation.server_seed=4711")
    processes.breakwater("run", digits, "--out", tmp_path / "run", *sets(*changes)).ends(0)
    config = load(tmp_path / "run" / "config.toml")
    told = parse(config.for_clients().to_toml()).federation
    assert (config.federation.server_seed, told.server_seed, told.seed) == (4711, None, 3)
    lines = rounds_of(tmp_path / "run")

    def drawn(seed: int) -> list[list[int]]:
        return [
            sample(5, len(line["cohort"]), range(5), stream(seed, Role.COHORT, round_=line["round"])) for line in lines
        ]

    assert [line["cohort"] for line in lines] == drawn(4711)
    assert [line["cohort"] for line in lines] != drawn(told.seed)
