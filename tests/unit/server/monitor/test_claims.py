"""Claims wherever they are shown: metrics, live state, terminal, exporters and report say whose the figures are."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import breakwater
from experiment.config import parse
from server.monitor.exporters import EventFiles
from server.monitor.live import LiveRun, State, checked
from server.monitor.report import write_report
from server.monitor.terminal import last_line, plain
from server.run_folder.reader import read_rounds
from server.run_folder.record import from_line, to_line
from server.run_folder.writer import RunFolder
from strategies.claims import Claim, Claims, Figure
from strategies.method import Evaluation
from strategies.strategy import RoundRecord
from tests.rounds import MEASURED, RECORD, START
from tests.unit.server.monitor.test_exporters import port, scalars, scraped
from tests.unit.server.monitor.test_terminal import HOSTILE, TITLE, drawn, shown
from tests.unit.server.run_folder.test_folder import TEXT, finish

CLAIMS = Claims.of(
    {
        "a": Claim(0.5, 0.5, 10),
        "b": Claim(1.0, 0.75),
        HOSTILE[:60]: Claim(2.0, None, 2**53),
        "d": Claim(1e300, 0.25, 1),
        "e": Claim(0.25, 1.0, 7),
    },
    {"f": "silent: no reply within 5 s", "g": "declined: evaluation"},
    1,
    bytes_up=70,
    bytes_down=700,
)
SHORT = Claims.of({"a": Claim(1.0)}, {"b": "not finite: loss is nan"}, 1, bytes_up=5, bytes_down=6)
CLAIMED = replace(RECORD, claims=CLAIMS)
BOTH = replace(CLAIMED, evaluation=MEASURED)


def live_of(record: RoundRecord, claims: Claims | None = None, evaluation: Evaluation | None = None) -> LiveRun:
    live = LiveRun(TITLE, lambda: 4, "127.0.0.1:9090")
    live.begin(evaluation, claims)
    live.add(record)
    return live


def state_of(record: RoundRecord) -> State:
    """Return a state as a watcher gets it."""
    return checked(json.loads(live_of(record).to_json()))


@pytest.mark.parametrize("record", [CLAIMED, BOTH, replace(RECORD, claims=SHORT), RECORD])
def test_a_round_is_read_as_it_was_written(record: RoundRecord) -> None:
    read = from_line(to_line(record, {}), {})
    assert read.claims == record.claims
    assert read.evaluation == record.evaluation
    assert read.measured_by == record.measured_by
    assert read.headline == record.headline


def test_a_line_names_the_headline_and_whose_it_is() -> None:
    line, both, short = (json.loads(to_line(replace(RECORD, evaluation=e, claims=c), {})) for e, c in (
        (None, CLAIMS), (MEASURED, CLAIMS), (None, SHORT),
    ))  # fmt: skip
    assert (line["loss"], line["accuracy"], line["measured_by"]) == (1.0, 0.625, "clients")
    assert line["claims"]["loss"] == {"median": 1.0, "low": 0.5, "high": 2.0}
    assert line["claims"]["accuracy"] == {"median": 0.625}
    assert line["claims"]["clients"]["b"] == {"loss": 1.0, "accuracy": 0.75}
    assert line["claims"]["missing"] == CLAIMS.missing
    assert line["claims"]["bytes"] == [70, 700]
    assert (both["loss"], both["measured_by"]) == (0.5, "server")
    assert ("loss" in short, short["measured_by"]) == (False, "none")
    assert "measured_by" not in json.loads(to_line(replace(RECORD, evaluation=MEASURED), {}))


@pytest.mark.parametrize("bad", [[], {"answers": 1}, {"answers": 1, "byzantine": 0, "clients": [1]}, "x"])
def test_a_line_whose_claims_are_none_is_no_round(bad: Any) -> None:
    line = json.loads(to_line(CLAIMED, {})) | {"claims": bad}
    with pytest.raises(ValueError, match="not a round"):
        from_line(json.dumps(line), {})


def test_the_summary_has_the_headline_its_source_and_the_bytes_of_evaluations(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.begin(parse(TEXT), None, CLAIMS)
    folder.add(CLAIMED)
    folder.add(replace(RECORD, round=2))
    summary = finish(folder)
    assert (summary["loss"], summary["accuracy"], summary["measured_by"]) == (1.0, 0.625, "clients")
    assert summary["start"] == {"loss": 1.0, "accuracy": 0.625}
    assert summary["evaluation_bytes"] == {"up": 140, "down": 1400}
    assert (summary["bytes_up"], summary["bytes_down"]) == (200, 2000)
    assert summary["claims"]["answers"] == 5
    run = breakwater.Run(tmp_path)
    assert (run.measured_by, run.loss, run.accuracy) == ("clients", 1.0, 0.625)
    assert run.metrics["claimed"].tolist() == [True, False]
    assert run.metrics["measured"].tolist() == [False, False]
    assert repr(run).endswith("(claimed)>")


@pytest.mark.parametrize(
    ("records", "changes"),
    [
        ([replace(RECORD, claims=SHORT)], {}),
        ([RECORD], {}),
        ([CLAIMED, replace(RECORD, round=2, diverged=True)], {"status": "diverged"}),
        ([CLAIMED], {"status": "stalled", "stall": {"text": "stalled: x", "model_of": 0}}),
    ],
)
def test_where_nothing_is_known_of_the_last_model_the_summary_says_so(
    records: list[RoundRecord], changes: dict[str, Any], tmp_path: Path
) -> None:
    """Too few claims, nobody asked, a model that is not finite, or one that is older than the last claims."""
    folder = RunFolder(tmp_path)
    folder.begin(parse(TEXT), None)
    for record in records:
        folder.add(record)
    summary = finish(folder, **changes)
    assert (summary["loss"], summary["accuracy"], summary["measured_by"]) == (None, None, "none")
    assert "loss" not in last_line(summary, tmp_path)
    run = breakwater.Run(tmp_path)
    assert (run.loss, run.accuracy, run.measured_by) == (None, None, "none")
    write_report(tmp_path)


def test_the_state_has_the_claims_and_says_whose_the_loss_is() -> None:
    state = state_of(CLAIMED)
    assert (state["loss"], state["accuracy"], state["measured_by"], state["measured"]) == (1.0, 0.625, "clients", 1)
    claims = state["claims"]
    assert claims["loss"] == {"median": 1.0, "low": 0.5, "high": 2.0}
    assert (claims["round"], claims["answers"], claims["byzantine"]) == (1, 5, 1)
    assert claims["clients"]["a"] == {"loss": 0.5, "accuracy": 0.5, "samples": 10}
    assert all(name.isprintable() for name in claims["clients"])
    assert state_of(BOTH)["measured_by"] == "server"
    assert state_of(RECORD)["measured_by"] == "none"
    assert state_of(RECORD)["claims"] is None


def test_the_state_of_an_older_server_has_no_claims_and_is_shown() -> None:
    old = json.loads(live_of(replace(RECORD, evaluation=MEASURED)).to_json())
    del old["claims"], old["measured_by"]
    assert "claims" not in drawn(checked(old))


@pytest.mark.parametrize(
    "claims",
    [
        {"round": 1},
        {"loss": {"median": math.inf}},
        {"clients": {"a": {"loss": "low"}}},
        {"clients": {"a": {"loss": 1.0, "samples": -1}}},
        {"more": 1},
        [],
    ],
)
def test_a_watcher_refuses_claims_of_another_form(claims: Any) -> None:
    state = json.loads(live_of(CLAIMED).to_json())
    state["claims"] = {**state["claims"], **claims} if isinstance(claims, dict) and claims != {"round": 1} else claims
    with pytest.raises(ValueError, match="claims"):
        checked(state)


def test_the_terminal_marks_claims() -> None:
    state = state_of(CLAIMED)
    assert "loss 1  accuracy 62.5 %  (claimed)" in plain(state)
    view = drawn(state)
    assert "claimed" in view.splitlines()[2]
    assert "claims     loss 1 (0.5 to 2)  accuracy 62.5 %  of 5 clients" in view
    assert "claimed" not in drawn(state_of(replace(RECORD, evaluation=MEASURED)))
    assert "no figure from 1 usable answer: 3 are needed where 1 may lie" in drawn(
        state_of(replace(RECORD, claims=SHORT))
    )
    assert "(claimed)" in shown([replace(CLAIMED, round=100)])


def test_prometheus_has_claims_under_names_of_their_own() -> None:
    with port(live_of(CLAIMED)) as made:
        found = scraped(made.url)
    assert "breakwater_loss" not in found
    assert "breakwater_accuracy_ratio" not in found
    assert found["breakwater_claimed_loss"] == {(): 1.0}
    assert found["breakwater_claimed_accuracy_ratio"] == {(): 0.625}
    assert found["breakwater_claims"] == {(): 5}
    assert found["breakwater_client_claimed_loss"][("a",)] == 0.5
    assert len(found["breakwater_client_claimed_accuracy_ratio"]) == 4
    with port(live_of(BOTH)) as made:
        found = scraped(made.url)
    assert (found["breakwater_loss"], found["breakwater_claimed_loss"]) == ({(): 0.5}, {(): 1.0})
    with port(live_of(replace(RECORD, claims=SHORT))) as made:
        found = scraped(made.url)
    assert "breakwater_claimed_loss" not in found
    assert found["breakwater_claims"] == {(): 1}


def test_tensorboard_has_claims_under_tags_of_their_own(tmp_path: Path) -> None:
    files = EventFiles(tmp_path)
    files.start(None, 0, CLAIMS)
    files.add(BOTH)
    files.stop()
    found = scalars(tmp_path)
    assert found["claimed/loss"] == {0: 1.0, 1: 1.0}
    assert found["claimed/accuracy"] == {0: 0.625, 1: 0.625}
    assert found["model/loss"] == {1: 0.5}


def test_the_report_has_a_row_for_each_client_and_marks_what_is_claimed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.begin(parse(TEXT), None, CLAIMS)
    folder.add(CLAIMED)
    folder.add(replace(CLAIMED, round=2, kind="difference"))
    finish(folder)
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in (
        "What clients claim",
        "accuracy (claimed)",
        "Claimed loss: median 1, quartiles 0.5 and 2.",
        "Claimed accuracy: median 62.5 %.",
        "Claimed by each client about the model of round 2",
        "silent: no reply within 5 s",
        "declined: evaluation",
        "loss and accuracy are medians of what clients report",
    ):
        assert words in page
    assert "\x1b" not in page
    assert "<td>10</td>" in page


def test_a_report_says_why_there_is_no_figure(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.begin(parse(TEXT), START)
    folder.add(replace(RECORD, claims=SHORT))
    finish(folder)
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "No figure: 1 usable answer, and up to 1 may be lies; at least 3 are needed (2 byzantine + 1)." in page
    assert read_rounds(tmp_path)[0].claims == SHORT


def test_figures_are_of_the_claims() -> None:
    assert CLAIMS.loss == Figure(1.0, 0.5, 2.0)
    assert CLAIMS.accuracy == Figure(0.625)
