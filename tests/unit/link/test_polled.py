"""A grid that is asked for replies: what comes, when it is asked again, and what it counts."""

from collections.abc import Iterator

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from google.protobuf.message import DecodeError

from link.polled import PolledGrid
from tests.local_grid import FIRST_NODE, LocalGrid


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.slept: list[float] = []
        monkeypatch.setattr("link.polled.time.monotonic", lambda: self.now)
        monkeypatch.setattr("link.polled.time.sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class LaterGrid(LocalGrid):
    """Replies are there to be pulled after so many seconds, by worker; never where none are given."""

    def __init__(self, clock: Clock, *after_s: float | None) -> None:
        super().__init__(len(after_s), echo)
        self._clock, self._after_s, self._began = clock, after_s, clock.now

    def pull_messages(self, message_ids: object) -> list[Message]:
        ready = [
            f"1-{i}"
            for i, after in enumerate(self._after_s)
            if after is not None and self._clock.now >= self._began + after
        ]
        return super().pull_messages(set(ready) & set(message_ids))  # type: ignore[call-overload]  # ids


def echo(worker: int, message: Message) -> Iterator[Message]:
    yield Message(RecordDict({"r": ConfigRecord({"a": b"12345"})}), reply_to=message)


def instructions(count: int) -> list[Message]:
    return [
        Message(RecordDict({"q": ConfigRecord({"abc": b"1234567"})}), FIRST_NODE + i, "train") for i in range(count)
    ]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_replies_are_found_within_a_tenth_of_the_wait(clock: Clock) -> None:
    grid = PolledGrid(LaterGrid(clock, 0.5, 7.0))
    replies = list(grid.send_and_receive(instructions(2), timeout=60.0))
    assert [reply.metadata.reply_to_message_id for reply in replies] == ["1-0", "1-1"]
    assert 7.0 <= clock.now - 100.0 <= 7.7
    assert len(clock.slept) < 60
    assert all(0.02 <= pause <= 1.0 for pause in clock.slept)


def test_a_long_round_is_looked_at_once_a_second(clock: Clock) -> None:
    list(PolledGrid(LaterGrid(clock, 600.0)).send_and_receive(instructions(1), timeout=None))
    assert clock.slept[-1] == 1.0
    assert clock.now - 100.0 <= 601.0


def test_a_node_that_does_not_answer_costs_the_deadline(clock: Clock) -> None:
    replies = list(PolledGrid(LaterGrid(clock, None, 1.0)).send_and_receive(instructions(2), timeout=5.0))
    assert len(replies) == 1
    assert clock.now - 100.0 == pytest.approx(5.0)


def test_what_could_not_be_sent_is_not_waited_for(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    below = LaterGrid(clock, 0.0)
    monkeypatch.setattr(below, "push_messages", lambda messages: [None])
    assert list(PolledGrid(below).send_and_receive(instructions(1), timeout=5.0)) == []
    assert clock.slept == []


def test_a_generator_is_sent_whole(clock: Clock) -> None:
    grid = LaterGrid(clock, 0.0, 0.0)
    assert len(list(PolledGrid(grid).send_and_receive((m for m in instructions(2)), timeout=5.0))) == 2
    assert len(grid.pushed[0]) == 2


def test_content_is_counted_both_ways(clock: Clock) -> None:
    grid = PolledGrid(LaterGrid(clock, 0.0, None))
    list(grid.send_and_receive(instructions(2), timeout=1.0))
    up, down = grid.traffic()
    one_up, one_down = ConfigRecord({"a": b"12345"}).count_bytes(), ConfigRecord({"abc": b"1234567"}).count_bytes()
    assert (up, down) == (one_up, 2 * one_down)


def test_the_rest_is_passed_on(clock: Clock) -> None:
    below = LaterGrid(clock, 0.0)
    grid = PolledGrid(below)
    assert list(grid.get_node_ids()) == [FIRST_NODE]
    assert grid.run.run_id == below.run.run_id
    assert [node.node_id for node in grid.get_nodes()] == [FIRST_NODE]


class Garbled(LocalGrid):
    """A grid that fails as Flower's does where a node has pushed objects that are none; what is pulled is gone."""

    def __init__(self, bad: set[str], error: Exception) -> None:
        super().__init__(4, echo)
        self._bad, self._error = bad, error
        self.asked: list[int] = []

    def pull_messages(self, message_ids: object) -> list[Message]:
        found = []
        wanted = sorted(message_ids)  # type: ignore[call-overload]  # ids
        self.asked.append(len(wanted))
        for message_id in wanted:
            pulled = super().pull_messages([message_id])
            if pulled and message_id in self._bad:
                raise self._error
            found += pulled
        return found


@pytest.mark.parametrize("error", [ValueError("no\nJSON"), KeyError("x"), DecodeError("no message"), RecursionError()])
def test_a_reply_that_flower_cannot_read_costs_others_one_round_at_most(error: Exception) -> None:
    inner = Garbled({"1-2", "2-1"}, error)
    grid = PolledGrid(inner)
    first = list(grid.send_and_receive(instructions(4), timeout=0.0))
    assert {r.metadata.reply_to_message_id: r.has_error() for r in first} == {"1-3": False}
    second = {r.metadata.reply_to_message_id: r for r in grid.send_and_receive(instructions(4), timeout=0.0)}
    assert {id_: r.has_error() for id_, r in second.items()} == {"2-0": False, "2-1": True, "2-2": False, "2-3": False}
    reason = second["2-1"].error.reason
    assert reason is not None
    assert reason.startswith("undecodable: Flower cannot read it: ")
    assert reason.isprintable()
    assert inner.asked == [4] + 8 * [1]


def test_what_the_connection_raises_is_raised() -> None:
    with pytest.raises(ConnectionError):
        list(PolledGrid(Garbled({"1-0"}, ConnectionError("gone"))).send_and_receive(instructions(1), timeout=0.0))
