"""What browsers may cost: event streams, slow and silent peers, and what a restart leaves them."""

import json
import logging
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from server.monitor.web import connections, streams
from server.monitor.web.gate import new_token
from server.monitor.web.page import TOKEN_FILE, WebPage, forget_token, kept_token
from tests.unit.server.monitor.web.pages import SOON_S, State, Stream, ask, cookie_of, port_of, served


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "EVERY_S", 0.02)


@contextmanager
def opened(page: WebPage, count: int = 1) -> Iterator[list[Stream]]:
    cookie = cookie_of(page)
    made = [Stream(page, cookie) for _ in range(count)]
    try:
        yield made
    finally:
        for each in made:
            each.close()


def until(condition: Callable[[], bool]) -> None:
    end, tick = time.monotonic() + SOON_S, threading.Event()
    while not condition():
        assert time.monotonic() < end
        tick.wait(0.01)


def test_a_stream_brings_the_newest_state_and_the_last_one_as_a_goodbye() -> None:
    state = State(round=1)
    with served(state) as page, opened(page) as (stream,):
        assert (stream.status, stream.kind) == (200, "text/event-stream; charset=utf-8")
        assert stream.event() == ("message", {"round": 1})
        state.values["round"] = 2
        until(lambda: stream.event() == ("message", {"round": 2}))
        state.values["status"] = "finished"
        stopping = threading.Thread(target=page.stop)
        stopping.start()
        until(lambda: stream.event() == ("bye", {"round": 2, "status": "finished"}))
        assert stream.ended()
        stopping.join()


def test_a_state_is_written_once_for_all_and_not_at_all_for_nobody() -> None:
    state = State(round=1)
    with served(state) as page:
        with opened(page, 8) as made:
            for _ in range(10):
                for stream in made:
                    stream.event()
            assert state.asked < 40, "80 states were read"
        until(lambda: not page.streams)
        asked = state.asked
        threading.Event().wait(0.1)
        assert state.asked == asked


def test_streams_are_capped_and_the_state_is_still_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_STREAMS", 2)
    with served() as page:
        with opened(page, 2), opened(page) as (third,):
            assert third.status == 503
            assert ask(page, "/state", cookie_of(page)).status == 200
        until(lambda: not page.streams)
        with opened(page) as (again,):
            assert again.status == 200


def test_a_browser_that_reads_nothing_is_disconnected_and_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("breakwater"), "propagate", True)
    monkeypatch.setattr(streams, "SLOW_S", 0.2)
    state = State(round=1, much=(4 << 20) * "x")
    with served(state) as page, opened(page, 2) as (slow, quick):
        assert slow.status == 200
        until(lambda: bool(quick.event()) and page.streams == page.connections == 1)
        assert quick.event()[1]["round"] == 1
    assert caplog.text.count("has read nothing for 0.2 s: disconnected") == 1


@contextmanager
def silent(page: WebPage, count: int) -> Iterator[list[socket.socket]]:
    """Connections that begin a request and say nothing more."""
    made = [socket.create_connection(("127.0.0.1", port_of(page)), SOON_S) for _ in range(count)]
    try:
        for each in made:
            with suppress(ConnectionError):
                each.send(b"GET / HTTP/1.1\r\n")
        yield made
    finally:
        for each in made:
            each.close()


def has_ended(peer: socket.socket) -> bool:
    with suppress(ConnectionError):
        return peer.recv(1) == b""
    return True


def test_silent_peers_take_no_more_than_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST", 3)
    with served() as page:
        cookie = cookie_of(page)
        with opened(page, 2), silent(page, 8) as peers:
            assert sum(map(has_ended, peers[3:])) == 5
            assert page.connections == 5
        until(lambda: page.connections == 0)
        assert ask(page, "/state", cookie).status == 200


def test_silent_peers_last_for_a_while_and_streams_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LIFE_S", 0.2)
    with served() as page, opened(page) as (stream,), silent(page, 8) as peers:
        assert all(map(has_ended, peers))
        until(lambda: page.connections == 1)
        for _ in range(20):
            assert stream.event()[1] == {"round": 1}
        assert page.connections == 1


@pytest.mark.parametrize(
    "raw", [b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n", b"\x00" * 100_000, b"G" * 40_000]
)
def test_what_is_no_request_ends_its_own_connection_alone(raw: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with served() as page:
        with socket.create_connection(("127.0.0.1", port_of(page)), SOON_S) as peer:
            peer.sendall(raw)
            peer.shutdown(socket.SHUT_WR)
            try:
                while peer.recv(4096):
                    pass
            except ConnectionError:
                pass
        assert ask(page, "/state", cookie_of(page)).status == 200
    assert [record.name for record in caplog.records if not record.name.startswith("breakwater")] == []


def test_a_state_that_cannot_be_written_is_logged_once_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("breakwater"), "propagate", True)
    state = State(round=1)
    with served(state) as page, opened(page) as (stream,):
        stream.event()
        state.values["flaw"] = object()
        for _ in range(5):
            assert stream.event()[1] == {"round": 1}
    assert caplog.text.count("the state cannot be written") == 1


def test_open_pages_keep_their_access_when_the_server_is_started_again(tmp_path: Path) -> None:
    token = kept_token(tmp_path)
    path = tmp_path / TOKEN_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with served(token=token) as page:
        port, cookie = port_of(page), cookie_of(page)
        with opened(page) as (stream,):
            page.stop()
            until(lambda: stream.event()[0] == "bye")
    with served(State(round=2), token=kept_token(tmp_path), port=port) as page:
        assert ask(page, "/state", cookie).body == json.dumps({"round": 2})
    with served(token=new_token(), port=port) as page:
        assert ask(page, "/state", cookie).status == 401, "the token of another run"
    forget_token(tmp_path)
    assert not path.exists()
    forget_token(tmp_path)


def test_a_token_is_never_read_from_what_is_none_nor_written_through_a_link(tmp_path: Path) -> None:
    path, other = tmp_path / TOKEN_FILE, tmp_path / "other"
    path.write_bytes(b"\xff known to all")
    token = kept_token(tmp_path)
    assert path.read_text() == token + "\n"
    path.unlink()
    other.write_text("mine")
    path.symlink_to(other)
    assert kept_token(tmp_path) != token
    assert other.read_text() == "mine"
    assert not path.is_symlink()
