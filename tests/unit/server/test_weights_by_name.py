"""Weights by name at the server: which seat is whose, what a name must be, and a server that is started again."""

import pytest

from experiment.config import parse
from experiment.opened import open_config
from foundation.errors import ConfigError
from link.identity.authority import Authority
from server.link import open_link
from server.process import check_names

TEXT = """
[federation]
clients = 3
weights = { cy = 3.0, ada = 2.0, bob = 2.5 }
[task]
kind = "digits"
model = "softmax"
[strategy]
kind = "robust-sgd"
rounds = 1
gamma = 0.1
"""


@pytest.mark.parametrize("held", [{}, {"bob": 1}, {"ada": 0, "bob": 1, "cy": 2}], ids=["new", "resumed", "all"])
def test_the_link_keeps_the_seats_by_the_sorted_names(held: dict[str, int]) -> None:
    grid = open_link(open_config(parse(TEXT)), 7, None, held=held)
    assert {seat.name: worker for worker, seat in grid.seats().items()} == {"ada": 0, "bob": 1, "cy": 2}
    assert not any(seat.connected for seat in grid.seats().values())


def test_without_names_seats_are_free() -> None:
    grid = open_link(open_config(parse(TEXT, ["federation.weights=[1, 2, 2]"])), 7, None)
    assert grid.seats() == {}


def test_names_are_checked_at_the_start() -> None:
    identity = Authority.create().issue_server(["127.0.0.1"])
    config = parse(TEXT)
    check_names(config, identity)
    check_names(parse(TEXT, ["federation.weights=[1, 2, 2]"]), None)
    with pytest.raises(ConfigError, match="weights by name: without TLS anybody can claim a name; give --tls"):
        check_names(config, None)
    wrong = parse(TEXT, ['federation.weights={"no name"=1, ada=2, bob=2}'])
    with pytest.raises(ConfigError, match="weights: name 'no name': must be 1 to 64 characters"):
        check_names(wrong, identity)
