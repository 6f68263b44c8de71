"""A grid that is asked for replies: what comes, when it is asked again, and what it counts."""

from collections.abc import Iterator

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

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
