"""The live targets: a server's end of the link with its port open, an honest client, and streams that say anything.

Every input is the frames of one round, or those of a stranger. The round's instruction goes to the honest client and to
the stream of the input. Checked are: the honest client's reply is there and right; the other's is a reply or an error
with one of the link's reasons; nothing was raised on the server's thread. The next round waits until the server has
gone through all frames: an instruction is only sent to who has answered the one before.

Of ``watchers`` every input is what a connection asks that wants to watch, while the honest client has a round and an
honest watcher looks on. Checked are: the client's reply; the watcher sees this round; nobody is shown a state who did
not ask as one must, and the others are shown one of this round at the earliest, or told why not; whoever has left is
no watcher any more.
"""

import atexit
import itertools
import json
import logging
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import Any

import grpc  # type: ignore[import-untyped]  # grpcio ships no types
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from google.protobuf.message import DecodeError

from link import codec, watchers
from link import link_pb2 as pb
from link.grid import StreamGrid
from link.guard import HELLO_BYTES
from link.node import Prepared, join
from link.watch import follow
from link.watchers import MAX_WATCHERS, WATCH
from link.wire import METHOD, PROTOCOL, Parcel, Payload, Reader, Welcome, control_frame, error_frame, reply_head
from strategies.compressors import Identity
from tasks.identity import TaskIdentity
from tests.fuzz import frames
from tests.fuzz.script import Script
from tests.fuzz.targets import ASK, X, check_line, check_verdict

_TASK = TaskIdentity(dim="3", data="a b 1,2,3", files="own.py:1")
_CODE = "code"
_BOUND, _SHORT = 1 << 17, 5000
_SEATS = 6
_SOON_S = 30.0
_MOST_FRAMES = 24
_FULL = f"{MAX_WATCHERS} are watching already, which is the limit"


def serve_streams(data: bytes) -> None:
    """Run one round, or meet one stranger."""
    world().meet(Script(data))


def serve_watchers(data: bytes) -> None:
    """Run one round while somebody asks to watch it."""
    world().look_on(Script(data))


class _Complaints(logging.Handler):
    """Collects what is raised where nobody catches it."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.heard: list[str] = []
        for name in ("grpc", "grpc._cython.cygrpc", "asyncio"):
            logging.getLogger(name).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Note it."""
        self.heard.append(self.format(record))


class _Stream:
    """A client's end that sends what it is told, on a connection of its own: a server may hang up on a stranger."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        self._out: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._call = self._channel.stream_stream(METHOD)(iter(self._out.get, None))
        self._reader = Reader(1 << 40)

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return bool(self._call.is_active())

    def send(self, *sent: bytes) -> None:
        for one in sent:
            self._out.put(one)

    def receive(self) -> Any:
        """Return the next frame of the server; None at the end of the stream."""
        with suppress(grpc.RpcError):
            for raw in self._call:
                frame = self._reader.feed(raw)
                if frame is not None:
                    return frame
        return None

    def end(self) -> None:
        self._out.put(None)
        self._call.cancel()
        self._channel.close()


class _Watched(threading.Thread):
    """An honest watcher, and the last round that it has seen."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self._address = address
        self._seen = 0
        self._changed = threading.Condition()
        self.over = False
        self.start()

    def run(self) -> None:
        """Look on until the server says goodbye."""
        for state in follow(self._address):
            assert "away" not in state, state
            with self._changed:
                self._seen = state.get("round", self._seen)
                self._changed.notify()
            self.over = "goodbye" in state

    def sees(self, number: int) -> bool:
        """Wait until it has seen a round; return False if it does not."""
        with self._changed:
            return self._changed.wait_for(lambda: self._seen >= number, _SOON_S)


class _Looker:
    """A connection that asks to watch, in words of its own.

    Args:
        address: of the server.
        asked: what is sent on each of its streams.
        stays: whether more may follow that; else the streams' ends do.
    """

    def __init__(self, address: str, asked: list[list[bytes]], *, stays: bool) -> None:
        self._channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        self._never = threading.Event()
        self.calls = [
            self._channel.stream_stream(WATCH)(self._requests(sent) if stays else iter(sent), timeout=_SOON_S)
            for sent in asked
        ]

    def _requests(self, sent: list[bytes]) -> Iterator[bytes]:
        yield from sent
        self._never.wait()

    def frames(self, call: Any, most: int) -> Iterator[pb.WatchFrame]:
        """Yield what the server sends on a stream, to its end or as many."""
        with suppress(grpc.RpcError):
            for raw in itertools.islice(call, most):
                yield pb.WatchFrame.FromString(raw)
            return
        assert call.code() not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED), call.details()

    def end(self) -> None:
        self._never.set()
        for call in self.calls:
            call.cancel()
        self._channel.close()


class World:
    """The server, its honest client, an honest watcher once there is a need, and the stream that inputs are sent on."""

    def __init__(self) -> None:
        self.rounds = self.frames = self.streams = self.states = self.refusals = 0
        self._complaints = _Complaints()
        self._log = logging.getLogger("breakwater.link")
        self._level = self._log.level
        self._log.setLevel(logging.CRITICAL)  # what it says about inputs is no news
        self.grid = StreamGrid(
            run_id=5,
            clients=_SEATS,
            welcome=lambda name, worker: {},
            fingerprint=_CODE,
            max_reply_bytes=_BOUND,
            reply_bound=lambda content: _SHORT if content else _BOUND,  # a round's, and that of what follows it
            judge=lambda name, said: "; ".join(TaskIdentity.parse(said).differences(_TASK)) or None,
        )
        self.address = self.grid.listen("127.0.0.1:0")
        self._honest = threading.Thread(target=self._stay, daemon=True)
        self._honest.start()
        assert self.grid.wait(1, _SOON_S) == 1
        self._node = self.grid.nodes()[0]
        self._names = (f"fuzz-{i}" for i in itertools.count())
        self._stream: _Stream | None = None
        self._name, self._id = "", 0
        self._watcher: _Watched | None = None
        self._every = watchers.EVERY_S
        self._before = 0  # streams of the connection before: of one that has just left a request may be on its way
        atexit.register(self.close)

    def close(self) -> None:
        """End the server; the honest client ends with it."""
        if self._stream is not None:
            self._stream.end()
        self.grid.close("over")
        self._honest.join(_SOON_S)
        assert not self._honest.is_alive()
        if self._watcher is not None:
            self._watcher.join(_SOON_S)
            assert self._watcher.over
        watchers.EVERY_S = self._every
        self._log.setLevel(self._level)

    def _stay(self) -> None:
        app = ClientApp()

        @app.train()
        def train(message: Message, context: Context) -> Message:
            return Message(message.content, reply_to=message)

        def prepare(welcome: Welcome) -> Prepared:
            return Prepared(app, Context(welcome.run_id, welcome.node_id, {}, RecordDict(), {}))

        join(self.address, "honest", prepare, worker=0, fingerprint=_CODE)

    def meet(self, s: Script) -> None:
        """Use an input."""
        if s.below(8) == 0:
            self._stranger(s)
        else:
            self._round(s)
        assert not self._complaints.heard, self._complaints.heard[0]

    # --- a round ---

    def _round(self, s: Script) -> None:
        stream, node = self._joined()
        number = self.rounds = self.rounds + 1
        content = RecordDict({"n": ConfigRecord({"n": number})})
        ids = list(self.grid.push_messages([Message(content, to, "train") for to in (self._node, node)]))
        asked = stream.receive()
        if isinstance(asked, Parcel):
            sent: list[bytes] = []
            while s.more and len(sent) < _MOST_FRAMES:
                sent.append(frames.frame(s, asked.id))
            self.frames += len(sent)
            # The last one frees the stream, unless a frame before it did.
            stream.send(*sent, control_frame(pb.Ready()), error_frame(asked.id, Error(1, "that was all")))
        replies = self._wait(ids[:1])
        assert not replies[0].has_error(), f"the honest client: {replies[0].error.reason}"
        answer = replies[0].content.config_records["n"]["n"]
        assert answer == number, f"the honest client's reply to {number} says {answer!r}"
        self._barrier(stream, node)
        for reply in self.grid.pull_messages(ids[1:]):
            check_verdict(codec.read_reply(reply, ASK, Identity(), X), Identity(), X, told=True)

    def _barrier(self, stream: _Stream, node: int) -> None:
        """Wait until the server has read all that was sent: it sends an instruction once the one before is answered."""
        (id_,) = self.grid.push_messages([Message(RecordDict(), node, "train")])
        asked = stream.receive()
        if isinstance(asked, Parcel):
            # Frames that came behind an answer may be taken for one to this; any error will do, and so does the reply.
            stream.send(control_frame(pb.Ready()), Payload(RecordDict()).envelope(reply_head(asked.id)))
            self._wait([id_])
        else:  # the server has ended the stream
            self._wait([id_])
            self._part()

    def _wait(self, ids: list[str]) -> list[Message]:
        end = time.monotonic() + _SOON_S
        while True:
            replies = list(self.grid.pull_messages(ids))
            if replies:
                return replies
            assert time.monotonic() < end, "no reply"
            time.sleep(0.0002)

    def _joined(self) -> tuple[_Stream, int]:
        """Return the stream, a new one under a new name if the last has ended, and its node."""
        end = time.monotonic() + _SOON_S
        while self._stream is None or self._id not in self.grid.nodes().values():
            assert time.monotonic() < end, "the stream of the inputs cannot join"
            if self._stream is None:
                self._join()
            elif self._stream.alive:
                time.sleep(0.0002)
            else:
                self._part()
        return self._stream, self._id

    def _join(self) -> None:
        self.streams += 1
        self._name = next(self._names)
        stream = _Stream(self.address)
        stream.send(control_frame(pb.Hello(protocol=PROTOCOL, name=self._name, fingerprint=_CODE)))
        welcome = stream.receive()
        if isinstance(welcome, pb.Welcome):
            stream.send(control_frame(pb.Ready()))
            self._stream, self._id = stream, welcome.node_id
        else:
            stream.end()

    def _part(self) -> None:
        """Let the stream go, and its seat."""
        assert self._stream is not None
        self._stream.end()
        self._stream = None
        self._vacate(self._name)

    def _vacate(self, *names: str) -> None:
        end = time.monotonic() + _SOON_S
        while any(seat.connected and seat.name in names for seat in self.grid.seats().values()):
            assert time.monotonic() < end
            time.sleep(0.0002)
        for name in names:
            self.grid.vacate(name)

    # --- somebody who watches ---

    def look_on(self, s: Script) -> None:
        """Run a round while a connection asks to watch."""
        if self._watcher is None:
            watchers.EVERY_S = 0.005
            self._watcher = _Watched(self.address)
        number = self.rounds = self.rounds + 1
        state = json.dumps({"round": number, "long": s.pick((0, 0, 0, 100_000)) * "x"})
        self.grid.show(lambda: state)
        ids = self.grid.push_messages([Message(RecordDict({"n": ConfigRecord({"n": number})}), self._node, "train")])
        asked = [[_request(s) for _ in range(s.pick((1, 1, 1, 0, 2, 3)))] for _ in range(s.pick((1, 1, 1, 2, 3, 8)))]
        stays, most = bool(s.below(2)), s.below(4)
        looker = _Looker(self.address, asked, stays=stays)
        self.streams += len(asked)
        try:
            for sent, call in zip(asked, looker.calls, strict=True):
                if sent or not stays:  # else the server waits for a hello, for longer than this does
                    self._shown(sent[0] if sent else None, list(looker.frames(call, most)), number, len(asked))
            (reply,) = self._wait(list(ids))
            assert not reply.has_error(), f"the honest client: {reply.error.reason}"
            assert reply.content.config_records["n"]["n"] == number
            assert self._watcher.sees(number), f"the honest watcher does not see round {number}"
        finally:
            looker.end()
        self._before = len(asked)
        end = time.monotonic() + _SOON_S
        while len(self.grid._watchers._watching) > 1:  # `peers` is for the server's thread alone
            assert time.monotonic() < end, "who has left watches still"
            time.sleep(0.0002)
        assert not self._complaints.heard, self._complaints.heard[0]

    def _shown(self, request: bytes | None, shown: list[pb.WatchFrame], number: int, streams: int) -> None:
        """Check what is shown to who has asked with this."""
        kinds = [frame.WhichOneof("kind") for frame in shown]
        try:
            asked = None if request is None or len(request) > HELLO_BYTES else pb.WatchRequest.FromString(request)
            protocol = None if asked is None else asked.protocol
        except DecodeError:
            protocol = None
        assert set(kinds) <= {"state"} or kinds == ["refusal"], kinds
        assert protocol is not None or not kinds, kinds
        assert protocol == PROTOCOL or "state" not in kinds, protocol
        for frame in shown:
            if frame.HasField("state"):
                self.states += 1
                assert json.loads(frame.state)["round"] == number
            else:
                self.refusals += 1
                check_line(frame.refusal.reason, (f"protocol version {protocol}", _FULL))
                assert protocol != PROTOCOL or streams + self._before >= MAX_WATCHERS

    # --- a stranger ---

    def _stranger(self, s: Script) -> None:
        """Open a stream with any first frame; one that is let in goes on with the others and leaves."""
        self.streams += 1
        name = next(self._names)
        stream = _Stream(self.address)
        known = s.below(4) == 0
        first = control_frame(pb.Hello(protocol=PROTOCOL, name=name, fingerprint=_CODE)) if known else b""
        stream.send(s.damaged(first) if known else frames.frame(s))
        welcome = stream.receive()
        while s.more and isinstance(welcome, pb.Welcome) and self.frames % _MOST_FRAMES:
            stream.send(frames.frame(s))
            self.frames += 1
        stream.end()
        self._vacate(*(seat.name for seat in self.grid.seats().values() if seat.name not in ("honest", self._name)))


def _request(s: Script) -> bytes:
    """Return what asks to watch, nearly does, or does not."""
    how = s.below(8)
    if how == 0:
        return frames.frame(s)
    if how == 1:
        return s.blob(255)
    if how == 2:
        return pb.WatchRequest(protocol=s.number() % 2**32).SerializeToString()
    request = pb.WatchRequest(protocol=PROTOCOL).SerializeToString()
    if how == 3:  # with what nobody knows, up to more than may be asked
        return request + b"\x7a" + b"\xa0\x1f" + bytes(s.pick((4000, 4000, 4090, 4096, 5000)))
    return s.damaged(request)


@cache
def world() -> World:
    """Return the one world of this process."""
    return World()
