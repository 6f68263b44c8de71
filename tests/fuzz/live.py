"""The live target: a server's end of the link with its port open, an honest client, and streams that say anything.

Every input is the frames of one round, or those of a stranger. The round's instruction goes to the honest client and to
the stream of the input. Checked are: the honest client's reply is there and right; the other's is a reply or an error
with one of the link's reasons; nothing was raised on the server's thread. The next round waits until the server has
gone through all frames: an instruction is only sent to who has answered the one before.
"""

import atexit
import itertools
import logging
import queue
import threading
import time
from contextlib import suppress
from functools import cache
from typing import Any

import grpc  # type: ignore[import-untyped]  # grpcio ships no types
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from link import codec
from link import link_pb2 as pb
from link.grid import StreamGrid
from link.node import join
from link.wire import METHOD, PROTOCOL, Parcel, Payload, Reader, Welcome, control_frame, error_frame, reply_head
from strategies.compressors import Identity
from tests.fuzz import frames
from tests.fuzz.script import Script
from tests.fuzz.targets import ASK, X, check_verdict

_CODE = "code"
_BOUND, _SHORT = 1 << 17, 5000
_SEATS = 6
_SOON_S = 30.0
_MOST_FRAMES = 24


def serve_streams(data: bytes) -> None:
    """Run one round, or meet one stranger."""
    world().meet(Script(data))


class _Complaints(logging.Handler):
    """Collects what is raised where nobody catches it."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.heard: list[str] = []
        for name in ("grpc", "grpc._cython.cygrpc", "asyncio"):
            logging.getLogger(name).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Note it, unless it is gRPC that cannot send the end of a stream which the client has left at that moment."""
        said = self.format(record)
        if "SendStatusFromServerOperation" not in said:
            self.heard.append(said)


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


class World:
    """The server, its honest client, and the stream that inputs are sent on."""

    def __init__(self) -> None:
        self.rounds = self.frames = self.streams = 0
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
        )
        self.address = self.grid.listen("127.0.0.1:0")
        self._honest = threading.Thread(target=self._stay, daemon=True)
        self._honest.start()
        assert self.grid.wait_for(1, _SOON_S) == 1
        self._node = self.grid.nodes()[0]
        self._names = (f"fuzz-{i}" for i in itertools.count())
        self._stream: _Stream | None = None
        self._name, self._id = "", 0
        atexit.register(self.close)

    def close(self) -> None:
        """End the server; the honest client ends with it."""
        if self._stream is not None:
            self._stream.end()
        self.grid.close("over")
        self._honest.join(_SOON_S)
        assert not self._honest.is_alive()
        self._log.setLevel(self._level)

    def _stay(self) -> None:
        app = ClientApp()

        @app.train()
        def train(message: Message, context: Context) -> Message:
            return Message(message.content, reply_to=message)

        def prepare(welcome: Welcome) -> Context:
            return Context(welcome.run_id, welcome.node_id, {}, RecordDict(), {})

        join(self.address, "honest", app, prepare, worker=0, fingerprint=_CODE)

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


@cache
def world() -> World:
    """Return the one world of this process."""
    return World()
