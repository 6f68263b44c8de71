"""The target ``watch``: what `breakwater watch` makes of a server that sends anything.

An input is what the streams of one server bring, one after another: states, nearly states, refusals, goodbyes, bytes,
errors of gRPC. The command itself reads them, in one of its three forms: JSON, lines, the view of a terminal. Checked
are: it comes to an end, with a status or with an error that is one printable line; what it prints has a bounded length,
and no control characters but those that the view itself draws with; its JSON is JSON. The clock is the input's: no
time passes.
"""

import argparse
import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from functools import cache
from types import SimpleNamespace
from typing import Any, NoReturn, Self
from unittest import mock

import grpc  # type: ignore[import-untyped]  # grpcio ships no types

import server.monitor.terminal  # noqa: F401  # the command imports it late, when the fuzzer no longer looks at branches
from deploy.cli import _parser
from foundation.errors import BreakwaterError
from link import link_pb2 as pb
from link import watch
from link.watchers import WATCH
from server.monitor.live import LiveRun, State, Title
from tests.fuzz import frames
from tests.fuzz.script import Script
from tests.rounds import RECORD, START

_FORMS = ((), ("--json",), ("terminal",))
_ADDRESS = "127.0.0.1:1"
_MOST_FRAMES, _MOST_STREAMS = 12, 1000
_DRAWN = re.compile(r"\x1b\[([0-9;]*m|\?25[lh]|[12]K|[0-9]*A)|\r")
"""What rich draws the view with: colours, the cursor hidden and shown, a line cleared, a line up."""
_SCREEN, _LINE = 20_000, 1000
"""Characters that the view of a terminal may take, for each state; and a line."""
_HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b5A\r\nforged\u202e\u2028[red]line"
_DEEP = "[" * 900 + "]" * 900
_CODES = (
    grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INTERNAL,
    grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNKNOWN,
)  # fmt: skip


def read_watched(data: bytes) -> None:
    """Watch a server of which the input says everything."""
    s = Script(data)
    form = s.pick(_FORMS)
    server, out, said = _Server(s), _Output(isatty="terminal" in form), io.StringIO()
    options = _options(json="--json" in form)
    with (
        mock.patch.multiple(watch, grpc=server, time=server, socket=server, what_is_wrong=server.look),
        mock.patch.dict(os.environ, {"TERM": "xterm", "COLUMNS": "80"}),
        redirect_stdout(out),
        redirect_stderr(said),
    ):
        try:
            assert options.command(options) in (0, 1)
        except BreakwaterError as error:
            said.write(f"{error}\n")
    complaints, shown = said.getvalue(), out.getvalue()
    for line in complaints.splitlines():
        assert line.isprintable(), line
        assert len(line) < _LINE, line
    assert "Traceback" not in complaints
    if "--json" in form:
        for line in shown.splitlines():
            assert line.isprintable(), line
            assert isinstance(json.loads(line, parse_constant=_no_json), dict)
        return
    rest = _DRAWN.sub("", shown) if "terminal" in form else shown
    assert rest.replace("\n", "").isprintable(), rest
    assert len(shown) < _SCREEN * (1 + server.sent) + _LINE
    assert all(len(line) <= _LINE for line in rest.splitlines())


@cache
def _options(*, json: bool) -> argparse.Namespace:
    return _parser().parse_args(["watch", _ADDRESS, "--patience", "20", *(["--json"] if json else [])])


def _no_json(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is no JSON")


class _Output(io.StringIO):
    """Standard output, of a terminal or not."""

    def __init__(self, *, isatty: bool) -> None:
        super().__init__()
        self.isatty = lambda: isatty  # type: ignore[method-assign]  # a method that says so all its life


class _Broken(grpc.RpcError):  # type: ignore[misc]  # grpcio ships no types
    """A stream that ends with an error."""

    def __init__(self, code: grpc.StatusCode, details: str | None) -> None:
        super().__init__()
        self.code, self.details = lambda: code, lambda: details


class _Server:
    """Stands for the modules that ``link.watch`` meets a server with: grpc, socket and time.

    Args:
        s: what the server does.
    """

    RpcError, StatusCode = grpc.RpcError, grpc.StatusCode

    def __init__(self, s: Script) -> None:
        self.sent = self._streams = 0
        self._s = s
        self._now = 0.0

    def monotonic(self) -> float:
        """Return the time, which passes by ``sleep`` alone."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        assert 0 < seconds < 60
        self._now += seconds

    def create_connection(self, *_: object) -> Any:
        """Listen, or do not."""
        if self._s.below(2):
            raise ConnectionRefusedError(111, "Connection refused")
        return SimpleNamespace(close=lambda: None)

    async def look(self, *_: object) -> str | None:
        """Return what is wrong with the server."""
        return self._s.pick((None, "it speaks TLS; give this client its certificate with --tls DIR"))

    def insecure_channel(self, *_: object) -> Self:
        """Return a channel to the server: itself."""
        return self

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """End."""

    def unary_stream(self, method: str) -> Any:
        """Return what opens a stream."""
        assert method == WATCH
        return self._stream

    def _stream(self, request: bytes) -> Iterator[bytes]:
        assert pb.WatchRequest.FromString(request).protocol
        self._streams += 1
        assert self._streams < _MOST_STREAMS, "it tries again and again"
        s = self._s
        for _ in range(_MOST_FRAMES):
            if not s.more:
                raise _Broken(grpc.StatusCode.UNAVAILABLE, "gone")
            what = s.below(16)
            if what == 0:
                raise _Broken(s.pick(_CODES), s.pick((None, "", "gone", _HOSTILE, "x" * 10_000)))
            if what == 1:
                return
            self.sent += 1
            yield _frame(s)


def _frame(s: Script) -> bytes:
    match s.below(16):
        case 0:
            return s.blob(255)
        case 1:
            return frames.frame(s)
        case 2:
            refusal = pb.Refusal(reason=_text(s), retry=bool(s.below(2)))
            return s.damaged(pb.WatchFrame(refusal=refusal).SerializeToString())
        case 3:
            goodbye = pb.Goodbye(reason=_text(s), final=bool(s.below(2)))
            return s.damaged(pb.WatchFrame(goodbye=goodbye).SerializeToString())
        case 4:
            return s.damaged(pb.WatchFrame(state=_state(s)).SerializeToString())
        case _:
            return pb.WatchFrame(state=_state(s)).SerializeToString()


def _text(s: Script) -> str:
    return s.pick((frames.name(s), _HOSTILE, "x" * 1000))


def _state(s: Script) -> str:
    """Return a state as JSON, nearly one, or anything."""
    how = s.below(16)
    if how == 0:
        return s.blob(255).decode(errors="ignore")
    if how == 1:
        return s.pick(
            ("[" * 100_000, '{"a":' * 2000, "{}", "null", "[]", "NaN", "", '{"goodbye": "x"}', '{"line": "\\ud800"}')
        )
    state = deepcopy(s.pick(_states()))
    for _ in range(s.pick((0, 1, 1, 1, 2, 3, 5))):
        inner = s.pick((state, state, state, *(value for value in state.values() if isinstance(value, dict | list))))
        value = s.pick(_values(s))
        if isinstance(inner, list):
            inner[:] = [value] if s.below(2) else [*inner, value]
        elif s.below(4) == 0:
            inner.pop(s.pick((*inner, "")), None)
        else:
            inner[s.pick((*inner, "away", "goodbye", "extra"))] = value
    text = json.dumps(state).replace('"DEEP"', _DEEP)
    return s.damaged(text.encode()).decode(errors="ignore") if s.below(4) == 0 else text


def _values(s: Script) -> list[Any]:
    return [
        _HOSTILE, -1, 0, 10**400, -(10**12), 2**63, s.number(), True, None, float("nan"), float("inf"), 1.7e308,
        -1.7e308, 1e-320, 0.5, "", "1", "x" * 10_000, frames.name(s), [], [None, 1.0], [_HOSTILE], 1000 * [0.5],
        [1.7e308, -1.7e308], {}, {_HOSTILE: _HOSTILE}, {"loss": [1.0], "accuracy": [], "gap": []}, "DEEP",
        {"round": _HOSTILE, "client": 5, "reason": None}, {"round": 2, "client": _HOSTILE, "reason": "x" * 10_000},
        {"sampled": -1, "answered": 10**400, "rejected": "", "clipped": 0.5},
    ]  # fmt: skip


@cache
def _states() -> tuple[State, ...]:
    """Return the states of a run that waits, of one that goes on, and of one that has ended."""
    title = Title(
        run="first", method="byz-ef21", rule="nnm + cm", task="digits", attack="alie", clients=5, byzantine=2, rounds=20
    )
    live = LiveRun(title, lambda: 4, "127.0.0.1:9090")
    waiting = live.state()
    live.begin(START)
    live.add(RECORD)
    running = live.state()
    live.end("finished", "finished after 5 rounds")
    return running, waiting, live.state(), running | {"measured": 0, "left_s": 5.0, "rounds_s": 0.5, "up_s": 3.0}
