"""Logs: as text or as JSON, one line a record, whatever a peer has written into it."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import logs
from deploy.logs import LogOptions, to_file, to_terminal
from foundation.text import escaped, one_line

FORGED = "x\n2026-01-01T00:00:00.000Z ERROR   breakwater.server: all is lost\r\x1b[2J\x85\u2028\u202eend"


@pytest.fixture
def logger(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """The logger of our code, as in a process that has set nothing up."""
    ours = logging.getLogger("breakwater")
    before = ours.handlers, ours.level, ours.propagate
    monkeypatch.setattr(ours, "handlers", [])
    monkeypatch.setattr(logs._Json, "run_id", "")
    ours.setLevel(logging.NOTSET)
    yield logging.getLogger("breakwater.test")
    for handler in ours.handlers:
        handler.close()
    ours.handlers, level, ours.propagate = before
    ours.setLevel(level)


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_a_text_log_has_time_level_and_logger(tmp_path: Path, logger: logging.Logger) -> None:
    to_file(tmp_path / "logs" / "server.log")
    logger.info("round %d", 7)
    logger.debug("not written")
    (line,) = lines(tmp_path / "logs" / "server.log")
    assert line.endswith("Z INFO    breakwater.test: round 7")
    assert line[10] == "T"


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_peers_words_cannot_forge_a_line(tmp_path: Path, logger: logging.Logger, form: logs.Form) -> None:
    to_file(tmp_path / "a.log", LogOptions(form=form))
    logger.warning("rejected: %s", FORGED)
    (line,) = lines(tmp_path / "a.log")
    assert line.isprintable()
    said = json.loads(line)["message"] if form == "json" else line
    assert said.endswith("end")
    assert (FORGED in said) == (form == "json"), "JSON's readers get what was said"


def test_a_traceback_has_no_line_that_could_be_a_record(tmp_path: Path, logger: logging.Logger) -> None:
    to_file(tmp_path / "a.log")
    try:
        raise ValueError(FORGED)
    except ValueError:
        logger.exception("it broke")
    first, *rest = lines(tmp_path / "a.log")
    assert first.endswith("it broke")
    assert any("all is lost" in line for line in rest), "the traceback is there"
    assert all(line.startswith("    ") and line.isprintable() for line in rest)


def test_a_json_log_names_process_and_run(tmp_path: Path, logger: logging.Logger) -> None:
    to_file(tmp_path / "client-3.log", LogOptions(form="json"))
    logger.info("before")
    logger.info("it begins", extra={"run_id": 2**62})
    try:
        raise ValueError("broken")
    except ValueError:
        logger.exception("after")
    before, begins, after = (json.loads(line) for line in lines(tmp_path / "client-3.log"))
    assert (before["level"], before["logger"], before["process"]) == ("info", "breakwater.test", "client-3")
    assert before["time"].endswith("Z")
    assert "run_id" not in before
    assert (begins["run_id"], after["run_id"]) == (str(2**62), str(2**62))
    assert after["exception"].endswith("ValueError: broken")


def test_levels_of_files_and_of_the_terminal(
    tmp_path: Path, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", shown := io.StringIO())
    to_terminal(options=LogOptions(level=logging.DEBUG))
    to_file(tmp_path / "all.log", LogOptions(level=logging.DEBUG))
    to_file(tmp_path / "few.log", LogOptions(level=logging.ERROR))
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logger.log(level, "level %d", level)
    assert len(lines(tmp_path / "all.log")) == 4
    assert len(lines(tmp_path / "few.log")) == 1
    assert shown.getvalue().splitlines() == ["level 30", "level 40"]


def test_the_terminal_gets_json_too(logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", shown := io.StringIO())
    to_terminal(logging.INFO, LogOptions(form="json"), "alice")
    logger.info("joined")
    told = json.loads(shown.getvalue())
    assert (told["message"], told["process"], told["level"]) == ("joined", "alice", "info")


def test_the_terminal_cannot_be_forged_either(logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", shown := io.StringIO())
    to_terminal()
    logger.warning("%s", FORGED)
    assert shown.getvalue().count("\n") == 1
    assert shown.getvalue().strip().isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, with umlauts: äöü", "plain, with umlauts: äöü"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("\u202e\u2028\x85", "\\u202e\\u2028\\x85"),
        ("\udcff", "\\udcff"),
    ],
)
def test_what_is_not_printable_is_escaped(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_one_line_is_short_and_printable() -> None:
    assert one_line("a\nb\x1b\u202e" + 500 * "c", 10) == "a?b??ccccc"
