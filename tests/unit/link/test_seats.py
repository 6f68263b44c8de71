"""Who may sit where, case by case."""

import pytest

from link.seats import NoSeat, Seat, Seats, node_id


def test_without_a_wish_the_lowest_free_seat() -> None:
    seats = Seats(3)
    assert seats.take("b", worker=1) == Seat("b", 1, node_id("b"), connected=True)
    assert [seats.take(name).worker for name in "ac"] == [0, 2]
    assert [seat.name for seat in seats.all().values()] == ["a", "b", "c"]


def test_the_former_seat_is_preferred_if_it_is_free() -> None:
    seats = Seats(3)
    assert seats.take("a", former=2).worker == 2
    assert seats.take("b", former=2).worker == 0
    assert seats.take("c", former=9).worker == 1


def test_a_seat_is_kept_while_its_owner_is_away() -> None:
    seats = Seats(2)
    seats.take("a", worker=1)
    seats.confirm("a")
    seats.leave("a")
    assert not seats.all()[1].connected
    with pytest.raises(NoSeat, match="seat 1: taken by 'a'") as refusal:
        seats.take("b", worker=1)
    assert not refusal.value.retry
    with pytest.raises(NoSeat, match="seat 0: 'a' already holds seat 1"):
        seats.take("a", worker=0)
    assert seats.take("a").worker == 1


def test_a_name_that_is_here_may_try_again_later() -> None:
    seats = Seats(2)
    seats.take("a")
    with pytest.raises(NoSeat, match="one name, one live stream") as refusal:
        seats.take("a")
    assert refusal.value.retry


@pytest.mark.parametrize("name", ["", "x" * 65, "a b", "a\n", "ä", "a/b"])
def test_names_are_plain(name: str) -> None:
    with pytest.raises(NoSeat, match="must be 1 to 64 characters"):
        Seats(1).take(name)


def test_seats_out_of_range_and_run_out() -> None:
    seats = Seats(1)
    with pytest.raises(NoSeat, match="seat 1: must be from 0 to 0"):
        seats.take("a", worker=1)
    seats.take("a")
    with pytest.raises(NoSeat, match="all 1 seats are taken"):
        seats.take("b")


def test_a_node_id_is_the_names_own_for_ever() -> None:
    assert node_id("a") == 2 + 0xCA978112CA1BBDCA % (2**63 - 2)  # SHA-256 of "a" begins ca978112ca1bbdca
    assert len({node_id(f"client-{i}") for i in range(1000)}) == 1000


def test_who_was_never_ready_gives_the_seat_back() -> None:
    seats = Seats(1)
    seats.take("a")
    seats.leave("a")
    assert seats.all() == {}
    assert seats.take("b").worker == 0


def test_where_seats_are_given_by_name_no_other_name_may_sit() -> None:
    seats = Seats(2, {"a": 0, "b": 1}, closed="has no weight")
    with pytest.raises(NoSeat, match="'eve': has no weight") as refusal:
        seats.take("eve")
    assert not refusal.value.retry
    with pytest.raises(NoSeat, match="'eve': has no weight"):
        seats.take("eve", worker=0)
    assert seats.take("b").worker == 1
    with pytest.raises(NoSeat, match="seat 1: 'a' already holds seat 0"):
        seats.take("a", worker=1)
    seats.leave("b")
    assert seats.take("b").worker == 1
