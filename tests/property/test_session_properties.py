"""A server's sessions without sockets: whatever frames clients send, in whatever order, each instruction is answered
once, an honest client's with its own reply, and no session raises or lasts longer than its stream."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import grpc  # type: ignore[import-untyped]  # grpcio ships no types
from flwr.app import ConfigRecord, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from link import codec
from link import link_pb2 as pb
from link.grid import StreamGrid
from link.wire import PROTOCOL, Parcel, Payload, Reader, control_frame, reply_head
from strategies.compressors import Identity
from tests.fuzz import frames
from tests.fuzz.script import Script
from tests.fuzz.targets import ASK, X, check_verdict

BOUND = 5000
READY = control_frame(pb.Ready())

Actions = list[tuple[str, bytes]]
"""What happens next: ``"hostile"`` or ``"late"`` sends frames, ``"push"`` sends an instruction to everybody ready."""
ACTIONS: st.SearchStrategy[Actions] = st.lists(
    st.tuples(st.sampled_from(["hostile", "hostile", "late", "push"]), st.binary(max_size=100)), max_size=12
)


@dataclass
class Context:
    """What gRPC gives a session, and both ends of it in memory."""

    to_server: "asyncio.Queue[Any]" = field(default_factory=asyncio.Queue)
    to_client: "asyncio.Queue[bytes]" = field(default_factory=asyncio.Queue)
    reader: Reader = field(default_factory=lambda: Reader(1 << 40))

    def peer(self) -> str:
        return "unix:"

    def auth_context(self) -> dict[str, Any]:
        return {}

    async def read(self) -> Any:
        return await self.to_server.get()

    async def write(self, frame: bytes) -> None:
        self.to_client.put_nowait(frame)

    def send(self, *sent: Any) -> None:
        for frame in sent:
            self.to_server.put_nowait(frame)

    def received(self) -> list[Any]:
        """Return the messages that have come since the last call."""
        got = []
        while not self.to_client.empty():
            frame = self.reader.feed(self.to_client.get_nowait())
            if frame is not None:
                got.append(frame)
        return got


async def settle() -> None:
    """Let the sessions go on until they wait again: no session waits for anything but frames."""
    for _ in range(60):
        await asyncio.sleep(0)


async def run(actions: Actions) -> None:
    running = asyncio.get_running_loop()
    raised: list[Any] = []
    running.set_exception_handler(lambda _, what: raised.append(what))
    grid = StreamGrid(run_id=5, clients=3, welcome=lambda *_: {}, fingerprint="code", max_reply_bytes=BOUND)
    grid._loop = running
    contexts = {name: Context() for name in ("honest", "hostile", "late")}
    sessions = {name: asyncio.ensure_future(grid._session(None, context)) for name, context in contexts.items()}
    for name in ("honest", "hostile"):
        contexts[name].send(control_frame(pb.Hello(name=name, protocol=PROTOCOL, fingerprint="code")), READY)
    await settle()
    assert len(grid.nodes()) == 2
    last_id, pushed = 1, dict[str, tuple[str, int]]()
    names = {seat.node_id: seat.name for seat in grid.seats().values()}
    for number, (what, data) in enumerate([*actions, ("push", b"")]):
        if what == "push":
            nodes = list(grid.get_node_ids())
            content = RecordDict({"n": ConfigRecord({"n": number})})
            ids = grid.push_messages([Message(content, node, "train") for node in nodes])
            pushed |= {id_: (names.get(node, "late"), number) for id_, node in zip(ids, nodes, strict=True)}
        else:
            s = Script(data)
            while s.more:
                contexts[what].send(frames.frame(s, last_id))
        await settle()
        for parcel in contexts["honest"].received():
            if isinstance(parcel, Parcel):
                assert isinstance(parcel.answer, RecordDict)
                contexts["honest"].send(Payload(parcel.answer).envelope(reply_head(parcel.id)))
        last_id = max([last_id, *(frame.id for frame in contexts["hostile"].received() if isinstance(frame, Parcel))])
        await settle()
    for context in contexts.values():
        context.send(grpc.aio.EOF)
    await settle()
    assert all(session.done() for session in sessions.values())
    assert [session.exception() for session in sessions.values()] == [None] * 3
    assert raised == []
    check(grid, pushed)


def check(grid: StreamGrid, pushed: dict[str, tuple[str, int]]) -> None:
    """Check that each instruction was answered at most once, and the honest client's with what it said."""
    assert grid.nodes() == {}
    replies = {reply.metadata.reply_to_message_id: reply for reply in grid.pull_messages(pushed)}
    for id_, (name, number) in pushed.items():
        reply = replies.get(id_)
        if name == "honest":
            assert reply is not None
            assert reply.content.config_records["n"]["n"] == number
        elif reply is not None:  # a client may pass
            check_verdict(codec.read_reply(reply, ASK, Identity(), X), Identity(), X, told=True)
    assert list(grid.pull_messages(pushed)) == []


@settings(max_examples=150)
@given(ACTIONS)
def test_no_frames_in_any_order_raise_or_reach_another_client(actions: Actions) -> None:
    asyncio.run(run(actions))


@given(st.lists(st.binary(max_size=40), max_size=4))
def test_no_first_frames_get_in_without_a_hello(first: list[bytes]) -> None:
    asyncio.run(run([("late", data) for data in first]))
