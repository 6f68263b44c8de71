"""The rows of a run's clients: who is here, who answers, who never came, and what a hostile name costs."""

import json
from dataclasses import replace

import pytest

from link.seats import Seat, Seats, node_id
from server.monitor import parties as module
from server.monitor.live import LiveRun, Title, checked
from server.monitor.parties import MOST, Parties, Row
from server.monitor.suspects import tally
from strategies.evidence import Evidence
from strategies.strategy import RoundRecord
from tests.rounds import RECORD
from tests.unit.server.monitor.test_terminal import HOSTILE, TITLE


def seat(worker: int, name: str, *, connected: bool = True, since: float | None = 50.0) -> Seat:
    return Seat(name, worker, node_id(name), connected=connected, since=since)


def round_of(
    number: int, accepted: list[int], rejected: dict[int, str], names: list[str], **more: object
) -> RoundRecord:
    cohort = sorted([*accepted, *rejected])
    reasons = [(names[worker], reason) for worker, reason in rejected.items()]
    named = [names[worker] for worker in cohort]
    record = replace(RECORD, round=number, cohort=cohort, accepted=accepted, rejected=reasons, clipped=[], names=named)
    return replace(record, **more)  # type: ignore[arg-type]  # of the record


def by_name(rows: list[Row]) -> dict[str, Row]:
    return {row["name"]: row for row in rows}


def test_a_row_counts_what_a_client_did_and_says_what_it_did_last() -> None:
    names = ["a", "b", "c"]
    made = Parties(4, 1, lambda: {0: seat(0, "a"), 1: seat(1, "b", connected=False, since=60.0), 2: seat(2, "c")})
    made.add(round_of(1, [0, 1], {2: "oversize: 9 bytes"}, names, clipped=[1]), 100.0)
    made.add(round_of(2, [0], {1: "silent: no reply", 2: "silent: no reply"}, names), 200.0)
    rows = by_name(made.rows())
    assert [(row["worker"], row["connected"], row["since"]) for row in rows.values()] == [
        (0, True, 50.0),
        (1, False, 60.0),
        (2, True, 50.0),
    ]
    assert [row["asked"] for row in rows.values()] == [2, 2, 2]
    assert [row["accepted"] for row in rows.values()] == [2, 1, 0]
    assert [row["rejected"] for row in rows.values()] == [0, 1, 2]
    assert [row["clipped"] for row in rows.values()] == [0, 1, 0]
    assert [(row["answered"], row["answered_at"]) for row in rows.values()] == [(2, 200.0), (1, 100.0), (1, 100.0)], (
        "a bad reply is an answer, and silence is none"
    )
    assert [(row["reason_round"], row["reason"]) for row in rows.values()] == [
        (None, ""),
        (2, "silent: no reply"),
        (2, "silent: no reply"),
    ]


def test_who_is_on_the_list_and_never_came_has_a_row() -> None:
    made = Parties(4, 1, lambda: {0: seat(0, "b")}, lambda: {"c", "b", "a"})
    rows = made.rows()
    assert [(row["name"], row["worker"], row["connected"]) for row in rows] == [
        ("b", 0, True),
        ("a", None, False),
        ("c", None, False),
    ]
    assert rows[0].keys() == rows[1].keys()


def test_without_seats_the_rounds_say_who_there_is() -> None:
    made = Parties(3, 0)
    made.add(round_of(1, [0, 2], {}, ["", "", "node-7"]), None)
    assert [(row["name"], row["connected"], row["answered_at"]) for row in made.rows()] == [
        ("worker 0", None, None),
        ("node-7", None, None),
    ]


def test_the_score_is_that_of_suspects_over_the_last_rounds_and_is_not_computed_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [f"c{i}" for i in range(6)]
    records = [
        round_of(r, list(range(6)), {}, names, evidence=Evidence(list(range(6)), [9.0, *5 * [1.0]], 6 * [0.5]))
        for r in range(1, 400)
    ]
    asked: list[int] = []

    def counted(recent: list[RoundRecord], byzantine: int) -> object:
        asked.append(len(recent))
        return tally(recent, byzantine)

    monkeypatch.setattr(module, "tally", counted)
    made = Parties(6, 1)
    for record in records:
        made.add(record, 1.0)
    first = made.rows()
    assert (first[0]["because"], first[1]["because"]) == ("far away", "")
    expected = {each.worker: each.score for each in tally(records[-256:], 1)}
    assert {row["worker"]: row["score"] for row in first} == expected
    assert made.rows() == first
    made.add(replace(records[0], round=400), 2.0)
    made.rows()
    assert asked == [256], "computing took longer ago than a hundredth of the time since"


def test_hostile_names_and_many_of_them_stay_rows_of_bounded_size() -> None:
    title = replace(TITLE, clients=600, byzantine=10)
    seats = {i: seat(i, f"{HOSTILE}{i}") for i in range(600)}
    live = LiveRun(title, lambda: 600, "", lambda: seats, lambda: [f"absent-{i}" for i in range(600)])
    for k in range(1, 4):
        live.add(replace(RECORD, round=k, rejected=[(f"{HOSTILE}{j}", f"r: {HOSTILE}") for j in range(2000)]))
    text = live.to_json()
    rows = json.loads(text)["parties"]
    assert len(rows) == MOST
    assert len(text) < 1 << 20, "a state fits into a frame of the link"
    assert all(row["name"].isprintable() and len(row["name"]) <= 160 for row in rows)
    state = json.loads(text)
    assert checked(state) == state


@pytest.mark.parametrize(
    "flaw",
    [{"name": 3}, {"name": "x" * 161}, {"connected": "yes"}, {"score": float("nan")}, {"asked": -1}, {"more": 1}],
)
def test_a_row_from_the_network_is_checked(flaw: dict[str, object]) -> None:
    live = LiveRun(TITLE, seats=lambda: {0: seat(0, "a")})
    state = json.loads(live.to_json())
    with pytest.raises(ValueError, match="parties"):
        checked(state | {"parties": [state["parties"][0] | flaw]})
    assert "parties" not in checked({k: v for k, v in state.items() if k != "parties"}), "an older server sends none"


def test_a_seat_knows_since_when_its_client_is_here_or_away() -> None:
    seats = Seats(2, {"held": 0})
    assert seats.all()[0].since is None
    came = seats.take("held").since
    assert came is not None
    seats.leave("held")
    left = seats.all()[0].since
    assert left is not None
    assert left >= came


def test_rounds_of_an_earlier_server_have_no_time() -> None:
    live = LiveRun(Title(**(vars(TITLE) | {"clients": 3})))
    live.add(RECORD)
    assert (live.state()["round_at"], live.state(parties=True)["parties"][0]["answered_at"]) == (None, None)
    live.begin()
    live.add(replace(RECORD, round=2))
    now = live.state(parties=True)
    assert now["round_at"] == now["parties"][0]["answered_at"] <= now["now"]
