"""A short version of ``python -m benchmarks.torture``, whose server is killed again and again."""

import random
from pathlib import Path

import pytest

from benchmarks.torture import DAMAGES, EXPERIMENT, WHEN, Moment, plan, torture
from tests.integration.fork_server import ForkServer

pytestmark = pytest.mark.slow

EVERY = 50
"""Rounds between checkpoints: so many that the first kill comes in time before the first of them."""
MOMENTS = (
    Moment("round", 7),  # before there is a checkpoint of more than the beginning
    Moment("writing"),
    Moment("start-up"),
    Moment("round", 2 * EVERY - 1, "bit flipped"),  # rounds enough for one checkpoint at least
    Moment("return"),
)


def test_a_server_that_is_killed_again_and_again_loses_no_more_than_rounds_since_a_checkpoint(tmp_path: Path) -> None:
    config = tmp_path / "torture.toml"
    config.write_text(EXPERIMENT, encoding="utf-8")
    with ForkServer() as fork_server:
        kills = torture(fork_server, config, (f"checkpoint.every={EVERY}",), tmp_path, MOMENTS, random.Random(2))
        fork_server.none_left()
    assert [(kill.when, kill.damage) for kill in kills] == [(moment.when, moment.damage) for moment in MOMENTS]
    assert all(kill.after is not None for kill in kills)
    assert kills[0].after == 0 or kills[0].at >= EVERY  # a machine may stand still between a look and a kill


def test_a_plan_has_every_moment_and_damage_and_is_the_same_for_a_seed() -> None:
    first, *others = plan(200, 20, random.Random(1))
    assert plan(200, 20, random.Random(1)) == [first, *others]
    assert first.when == "round"
    assert all(moment.rounds < 40 for moment in others)
    assert 1 <= first.rounds < 20
    assert {moment.when for moment in others} == set(WHEN)
    assert {moment.damage for moment in others} == {"", *DAMAGES}
