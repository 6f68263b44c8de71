"""A round as a line of metrics.jsonl and back, and the two words for what clients did in it."""

import json
import math
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.inprocess import run_in_process
from deploy.local import LocalOptions
from experiment.config import load
from server.monitor.exporters import EventFiles, MetricsPort
from server.monitor.suspects import tally
from server.run_folder import METRICS
from server.run_folder.record import Counts, from_line, to_line
from strategies.evidence import Evidence
from strategies.method import Evaluation
from strategies.strategy import RoundRecord
from tests.rounds import MEASURED, RECORD
from tests.unit.server.monitor.test_exporters import scalars, scraped
from tests.unit.server.monitor.test_terminal import drawn, run

DEMO = Path(__file__).resolve().parents[4] / "deploy" / "configs" / "demo.toml"
SEEN = Evidence([0, 3], [1.0, 2.35], [0.1235, None], kept=[1.0, 0.123], weight=[0.5, 0.5], same=[[0, 3]])
WHOLE = replace(
    RECORD,
    round_s=0.012346,
    evaluation=MEASURED,
    note="diverged: model or loss is not finite after round 1",
    diverged=True,
    resynced=[1],
    deadline_s=5.0,
    names=["a", "b", "c"],
    evidence=SEEN,
    late=["d"],
    incomplete=True,
)


def test_a_whole_round_is_read_as_it_was_written() -> None:
    assert from_line(to_line(WHOLE, {}), {}) == WHOLE


@pytest.mark.parametrize(
    "record",
    [
        replace(RECORD, lam=math.inf, step_norm=math.nan, evaluation=Evaluation(math.nan, 0.5, math.inf)),
        replace(RECORD, evidence=Evidence([], [], [])),
        replace(RECORD, names=["a", "", "\u202e\n"], cohort=[7, 8, 9], accepted=[]),
    ],
    ids=["not finite", "no evidence", "odd names"],
)
def test_what_is_read_is_written_to_the_same_line(record: RoundRecord) -> None:
    line = to_line(record, {})
    assert to_line(from_line(line, {}), {}) == line
    json.loads(line, parse_constant=pytest.fail)


def test_every_line_of_a_run_is_read_and_written_to_the_same_line(tmp_path: Path) -> None:
    config = load(DEMO, ["strategy.rounds=12", "evaluation.every=5", "attack.kind=wire"])
    run_in_process(LocalOptions(config=config, out=tmp_path, config_dir=DEMO.parent))
    read: dict[int, str] = {}
    written: dict[int, str] = {}
    lines = (tmp_path / METRICS).read_text().splitlines()
    records = [from_line(line, read) for line in lines]
    assert [to_line(record, written) for record in records] == lines
    assert any(record.rejected for record in records)
    assert all(all(record.names) for record in records)


def test_a_line_of_an_older_version_is_a_round() -> None:
    line = {"round": 3, "cohort": [0, 1], "accepted": [1], "rejected": [], "clipped": []}
    record = from_line(json.dumps(line | {"bytes_up": 1, "bytes_down": 2, "round_s": 0.5, "of the future": [1]}), {})
    assert (record.round, record.kind, record.lam, record.evaluation, record.evidence) == (3, "", None, None, None)
    assert math.isnan(record.step_norm)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cohort": 5}, "'int' object is not iterable"),
        ({"rejected": [3]}, "'int' object is not subscriptable"),
        ({"accepted": [9]}, "a worker that is not in the cohort"),
        ({"loss": "x"}, "could not convert"),
        ({"names": [1]}, "has no attribute 'items'"),
        ({"bytes_up": None}, "int"),
        ({"round": 1e400}, "infinity"),
    ],
)
def test_a_line_that_is_no_round_is_refused_in_one_line(change: dict[str, object], said: str) -> None:
    line = json.loads(to_line(WHOLE, {})) | change
    with pytest.raises(ValueError, match=f"^not a round: .*{said}") as error:
        from_line(json.dumps(line), {})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "7", "[1, 2]", "null", '"x"', '{"round": 1}', "\x00\x00", "[" * 10_000])
def test_what_is_no_line_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not a round: "):
        from_line(text, {})


def test_replied_and_accepted_mean_the_same_everywhere(tmp_path: Path) -> None:
    """Of five sampled clients two were accepted, one sent a bad reply, one was silent and one not there."""
    rejected = [("c", "oversize: 9 bytes"), ("d", "silent: no reply within 3 s"), ("e", "not connected: node 5")]
    record = replace(RECORD, cohort=[0, 1, 2, 3, 4], accepted=[0, 1], rejected=rejected, names=list("abcde"))
    assert Counts.of(record) == (5, 3, 2, 3, 1)
    live = run([record])
    assert "sampled 5  accepted 2  rejected 3" in drawn(live.state())
    assert (live.state()["all"]["replied"], live.state()["all"]["accepted"]) == (3, 2)
    files = EventFiles(tmp_path)
    files.add(record)
    files.stop()
    assert [scalars(tmp_path)[f"clients/{name}"][1] for name in ("replied", "accepted")] == [3.0, 2.0]
    with ExitStack() as stack:
        port = MetricsPort(live, "127.0.0.1", 0)
        stack.callback(port.stop)
        found = scraped(port.url)
    assert found["breakwater_received_replies_total"] == {(): 3}
    assert found["breakwater_accepted_replies_total"] == {(): 2}
    suspects = sorted(tally([record]), key=lambda suspect: suspect.worker)
    assert [suspect.replied for suspect in suspects] == [1, 1, 1, 0, 0]
    assert [suspect.accepted for suspect in suspects] == [1, 1, 0, 0, 0]
