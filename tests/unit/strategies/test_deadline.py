"""The deadline that is learnt: what it follows, and what it does not."""

import pytest

from strategies.deadline import FIRST_S, SHORTEST_S, LearntDeadline


def learnt(*rounds: list[float], clients: int = 10, byzantine: int = 3, kind: str = "full") -> float:
    """Return the deadline after rounds in which replies came after so many seconds."""
    deadline = LearntDeadline(clients, byzantine)
    for waits in rounds:
        deadline.observe(kind, 10, waits, deadline.seconds(kind))
    return deadline.seconds(kind)


def test_until_enough_is_known_it_is_the_longest() -> None:
    assert learnt() == learnt(*[[0.01] * 10] * 4) == FIRST_S


def test_it_is_never_shorter_than_a_hiccup_nor_longer_than_the_first() -> None:
    assert learnt(*[[0.01] * 10] * 5) == SHORTEST_S
    assert learnt(*[[8.0] * 10] * 5) == FIRST_S


def test_it_is_a_multiple_of_when_the_honest_were_there() -> None:
    assert learnt(*[[0.5] * 10] * 5) == pytest.approx(10.0)


@pytest.mark.parametrize("attackers", [[], [0.0, 0.0, 0.0], [29.0, 29.0, 29.0]], ids=["silent", "quick", "late"])
def test_a_byzantine_minority_does_not_lead_it(attackers: list[float]) -> None:
    assert learnt(*[[*[0.3, 0.4, 0.5, 0.5, 0.6, 0.7, 0.8], *attackers]] * 9) == pytest.approx(20 * 0.7, rel=0.5)


def test_single_rounds_without_enough_replies_do_not_lead_it() -> None:
    good, bad = [0.5] * 10, [0.5] * 3
    assert learnt(*[good, bad] * 5, good) == pytest.approx(10.0)


def test_when_everybody_becomes_slow_it_grows() -> None:
    assert learnt(*[[0.01] * 10] * 20, *[[]] * 11) == FIRST_S


def test_kinds_of_rounds_are_apart() -> None:
    deadline = LearntDeadline(4, 1)
    for _ in range(5):
        deadline.observe("full", 4, [1.0] * 4, FIRST_S)
        deadline.observe("difference", 2, [0.3] * 2, FIRST_S)
    assert (deadline.seconds("full"), deadline.seconds("difference")) == (20.0, 6.0)


def test_a_round_that_asked_nobody_tells_nothing() -> None:
    deadline = LearntDeadline(4, 1)
    for _ in range(9):
        deadline.observe("full", 0, [], FIRST_S)
        deadline.observe("full", 1, [], FIRST_S)
    assert deadline.seconds("full") == FIRST_S
