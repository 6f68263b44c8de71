"""What is agreed on with clients that have their own data: within what honest clients said, whatever f liars say."""

import json
import subprocess
import sys
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from experiment.agreement import Agreement, claimed_smoothness, median_count
from foundation.errors import ConfigError
from strategies.method import AGREEMENT
from tasks.identity import TaskIdentity
from tests.packages import ROOT

LIES = ["", "0", "-5", "1e9", "nan", "inf", "x", "9" * 400, "999999999999", "1", "0.5", "1e300", "١٢"]


def declared(samples: list[str], smoothness: list[str] | None = None) -> dict[str, TaskIdentity]:
    claims = smoothness or [""] * len(samples)
    texts = (json.dumps({"samples": m, "smoothness": each}) for m, each in zip(samples, claims, strict=True))
    return {f"c{i}": TaskIdentity.parse(text) for i, text in enumerate(texts)}


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=9), st.lists(st.sampled_from(LIES), max_size=8))
def test_liars_cannot_move_m_beyond_what_honest_clients_declare(honest: list[int], lies: list[str]) -> None:
    f = len(lies)
    claims = declared([str(m) for m in honest] + lies)
    try:
        m = median_count(claims, f)
    except ConfigError:
        assert len(honest) <= 2 * f
        return
    assert min(honest) <= m <= max(honest)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9), st.lists(st.sampled_from(LIES), max_size=8))
def test_liars_cannot_inflate_the_claimed_smoothness(honest: list[float], lies: list[str]) -> None:
    f, texts = len(lies), [repr(value) for value in honest]
    claims = declared(["1"] * (len(texts) + f), texts + lies)
    try:
        found = claimed_smoothness(claims, f)
    except ConfigError:
        return
    assert 0 < found <= max(honest)


def test_too_few_declarations_give_an_error_that_says_so() -> None:
    with pytest.raises(ConfigError, match="2 clients declare how many samples they have, of which 1 may lie"):
        median_count(declared(["10", "20", ""]), 1)
    with pytest.raises(ConfigError, match="1 clients report an L, of which 1 may lie: at least 3"):
        claimed_smoothness(declared(["1"] * 3, ["2.0", "", "nan"]), 1)


def test_median_and_second_largest() -> None:
    claims = declared(["10", "40", "20", "1000000"], ["1.0", "9.0", "2.0", "1e30"])
    assert median_count(claims, 1) == 30
    assert claimed_smoothness(claims, 1) == 9.0


def test_an_agreement_survives_records_and_text() -> None:
    agreement = Agreement(samples=12, smoothness=0.5, scaling='{"a": 1}')
    assert Agreement.read(RecordDict({AGREEMENT: agreement.record()})) == agreement
    assert Agreement.from_json(agreement.to_json()) == agreement
    assert Agreement.read(RecordDict()) is None
    assert Agreement.read(RecordDict({AGREEMENT: Agreement().record()})) == Agreement()


@pytest.mark.parametrize(
    "values",
    [{"samples": 0}, {"samples": True}, {"samples": 1.5}, {"smoothness": -1.0}, {"smoothness": 1}, {"scaling": b"x"}],
)
def test_an_agreement_of_a_hostile_server_is_refused(values: Any) -> None:
    with pytest.raises(ConfigError, match="the server's agreement has"):
        Agreement.read(RecordDict({AGREEMENT: ConfigRecord(values)}))


def test_an_agreement_that_is_no_record_of_values_is_refused() -> None:
    with pytest.raises(ConfigError, match="no record of values"):
        Agreement.read(RecordDict({AGREEMENT: ArrayRecord()}))


def test_what_explains_a_config_needs_no_flower() -> None:
    said = "import sys, experiment.explain; print('flwr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, cwd=ROOT).stdout == "False\n"
