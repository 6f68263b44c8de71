"""Seats for nodes that come, go and come back."""

import logging

import pytest

from adapters.node_roster import NodeRoster
from tests.component_grid import LOST, AppGrid


def grid(*nodes: int) -> AppGrid:
    return AppGrid(dict.fromkeys(nodes, LOST))


def test_seats_in_the_order_of_appearance() -> None:
    nodes = grid(30, 10, 20)
    nodes.offline = {10}
    roster = NodeRoster(5, nodes)
    assert roster.nodes() == {0: 20, 1: 30}
    nodes.offline = set()
    assert roster.nodes() == {0: 20, 1: 30, 2: 10}
    assert roster.name(1) == "worker 1 (node 30)"


def test_a_node_that_comes_back_has_its_seat() -> None:
    nodes = grid(10, 20)
    roster = NodeRoster(2, nodes)
    roster.nodes()
    nodes.offline = {10}
    assert roster.nodes() == {1: 20}
    nodes.offline = set()
    assert roster.nodes() == {0: 10, 1: 20}


def test_a_new_id_takes_a_seat_that_was_never_held_and_only_then_one_of_a_node_that_is_away() -> None:
    nodes = grid(10, 20, 30, 40)
    nodes.offline = {30, 40}
    roster = NodeRoster(3, nodes)
    roster.nodes()
    nodes.offline = {10, 40}
    assert roster.nodes() == {1: 20, 2: 30}
    nodes.offline = {10}
    assert roster.nodes() == {0: 40, 1: 20, 2: 30}
    nodes.offline = {40}
    assert roster.nodes() == {0: 10, 1: 20, 2: 30}, "it is a new node then: the seat of the one that left is free again"


def test_more_nodes_than_seats(caplog: pytest.LogCaptureFixture) -> None:
    nodes = grid(10, 20, 30)
    roster = NodeRoster(2, nodes)
    with caplog.at_level(logging.WARNING, "flwr.breakwater"):
        assert roster.nodes() == roster.nodes() == {0: 10, 1: 20}
    assert [record.getMessage() for record in caplog.records] == [
        "node 30 is left out: all 2 seats are held by nodes that are online; `clients` is too small"
    ]
    nodes.offline = {10}
    assert roster.nodes() == {0: 30, 1: 20}


def test_waiting() -> None:
    assert NodeRoster(3, grid(10, 20)).wait(2, 60.0) == 2
    assert NodeRoster(3, grid(10, 20)).wait(3, 0.01) == 2
    assert NodeRoster(3).wait(1, 0.0) == 0
