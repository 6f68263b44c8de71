"""What follows from claims: medians and quartiles by hand, and what is no claim at all."""

import math
from typing import Any

import pytest

from strategies.claims import MOST_SAMPLES, Claim, Claims, Figure, flaw_of, headline, measured_by
from strategies.method import Evaluation

SERVER = Evaluation(loss=1.0, accuracy=0.5)


@pytest.mark.parametrize(
    ("values", "byzantine", "expected"),
    [
        ([], 0, None),
        ([3.0], 0, Figure(3.0, 3.0, 3.0)),
        ([3.0, 1.0], 1, None),
        ([5.0, 1.0, 3.0], 1, Figure(3.0)),
        ([4.0, 1.0, 2.0, 3.0], 1, Figure(2.5)),
        ([5.0, 1.0, 4.0, 2.0, 3.0], 1, Figure(3.0, 2.0, 4.0)),
        ([1.0, 2.0], 0, Figure(1.5, 1.25, 1.75)),
    ],
)
def test_a_median_needs_more_than_2f_values_and_quartiles_more_than_4f(
    values: list[float], byzantine: int, expected: Figure | None
) -> None:
    assert Figure.of(values, byzantine) == expected


def test_each_measure_counts_those_that_have_it() -> None:
    """Three of four clients are enough for a loss with f = 1, two of them are not for an accuracy."""
    clients = {"a": Claim(1.0, 0.5), "b": Claim(2.0, 0.75, 10), "c": Claim(3.0)}
    claims = Claims.of(clients, {"d": "silent: no reply within 1 s"}, 1)
    assert (claims.answers, claims.loss, claims.accuracy, claims.shortage) == (3, Figure(2.0), None, "")
    assert claims.evaluation == Evaluation(2.0, None)


def test_too_few_answers_are_named_with_the_bound() -> None:
    claims = Claims.of({"a": Claim(1.0), "b": Claim(1.0)}, {}, 1)
    assert claims.evaluation is None
    needed = "at least 3 are needed (2 byzantine + 1)"
    assert claims.shortage == f"no figure: 2 usable answers, and up to 1 may be lies; {needed}"


@pytest.mark.parametrize(
    ("claims", "server", "source"),
    [
        (None, None, "none"),
        (None, SERVER, "server"),
        (Claims.of({"a": Claim(3.0, 0.1)}, {}, 0), None, "clients"),
        (Claims.of({"a": Claim(3.0, 0.1)}, {}, 0), SERVER, "server"),
        (Claims.of({}, {}, 0), None, "none"),
    ],
)
def test_the_servers_own_measures_come_first(claims: Claims | None, server: Evaluation | None, source: str) -> None:
    assert measured_by(server, claims) == source
    shown = headline(server, claims)
    assert (shown and shown.loss) == {"none": None, "server": 1.0, "clients": 3.0}[source]


@pytest.mark.parametrize(
    ("loss", "accuracy", "samples", "flaw"),
    [
        (0.0, None, None, ""),
        (1e308, 1.0, MOST_SAMPLES, ""),
        (math.nan, 0.5, 1, "not finite: loss is nan"),
        (math.inf, 0.5, 1, "not finite: loss is inf"),
        (1.0, math.nan, 1, "not finite: accuracy is nan"),
        (-0.5, 0.5, 1, "out of bounds: loss = -0.5"),
        (1.0, 1.0001, 1, "out of bounds: accuracy = 1.0001"),
        (1.0, -1e-9, 1, "out of bounds: accuracy"),
        (2**70, 0.5, 1, "wrong type: loss is of type int"),
        (None, 0.5, 1, "wrong type: loss is of type NoneType"),
        ([1.0], 0.5, 1, "wrong type: loss is of type list"),
        ("0.1", 0.5, 1, "wrong type: loss is of type str"),
        (1.0, True, 1, "wrong type: accuracy is of type bool"),
        (1.0, 0.5, 2**70, "out of bounds: samples = 1180591620717411303424"),
        (1.0, 0.5, 10**400, "out of bounds: samples = 1000"),
        (1.0, 0.5, 0, "out of bounds: samples = 0"),
        (1.0, 0.5, -3, "out of bounds: samples = -3"),
        (1.0, 0.5, 3.0, "wrong type: samples is of type float"),
        (1.0, 0.5, True, "wrong type: samples is of type bool"),
    ],
)
def test_what_is_no_claim_is_named(loss: Any, accuracy: Any, samples: Any, flaw: str) -> None:
    found = flaw_of(loss, accuracy, samples)
    assert found.startswith(flaw)
    assert bool(found) == bool(flaw)
    assert len(found) < 200
