"""A party that comes back to a run with other data: what its client notices, and what it keeps for that."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from client import changed_data
from client.changed_data import compare, digest, state_folder
from client.preparation import PartyPreparation
from experiment.config import load
from foundation.errors import ConfigError
from tasks.contract import Problem
from tests.unit.client.parties import MARKER, options_of, study, write_rows


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "breakwater"


def problem_of(config: Path, name: str) -> Problem:
    """Return a party's task, loaded as a client that starts loads it."""
    return PartyPreparation(load(config), options_of(config, data=config.parent / name)).experiment.problem


def test_the_same_data_go_unnoticed(state: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = study(tmp_path)
    for _ in range(2):
        compare(problem_of(config, "alice"), 0, name="alice", run_id=7, reaction="refuse")
    assert not caplog.records
    assert [path.name for path in state.iterdir()] == ["alice-7.json"]


def test_other_data_are_a_warning_or_the_end(state: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = study(tmp_path)
    compare(problem_of(config, "alice"), 0, name="alice", run_id=7, reaction="warn")
    rows = (tmp_path / "alice" / "rows.csv").read_text().splitlines()
    (tmp_path / "alice" / "rows.csv").write_text("\n".join(["9" + rows[0].lstrip("-")[1:], *rows[1:]]))
    changed = problem_of(config, "alice")
    with caplog.at_level(logging.WARNING):
        compare(changed, 0, name="alice", run_id=7, reaction="warn")
    assert [record.getMessage() for record in caplog.records] == [
        "alice: the data are not those that this client had in run 7 before; the run goes on with them"
    ]
    with pytest.raises(ConfigError, match="restore them, or allow it with --changed-data warn"):
        compare(changed, 0, name="alice", run_id=7, reaction="refuse")
    compare(changed, 0, name="alice", run_id=8, reaction="refuse")  # another run


def test_what_is_kept_back_is_compared_too(state: Path, tmp_path: Path) -> None:
    config = study(tmp_path)
    problem = problem_of(config, "alice")
    assert sum(map(len, changed_data.data_of(problem, 0))) == 2 * 30


def test_secret_and_digest_are_the_owners_alone(state: Path, tmp_path: Path) -> None:
    config = study(tmp_path)
    for run_id in (1, 2):
        compare(problem_of(config, "bob"), 0, name="bob", run_id=run_id, reaction="warn")
    kept = [json.loads((state / f"bob-{run_id}.json").read_text()) for run_id in (1, 2)]
    assert all((state / f"bob-{run_id}.json").stat().st_mode & 0o777 == 0o600 for run_id in (1, 2))
    assert state.stat().st_mode & 0o777 == 0o700
    assert [len(each["secret"]) for each in kept] == [64, 64]
    assert kept[0]["digest"] != kept[1]["digest"]  # the same data, another secret
    assert MARKER not in str(kept)


def test_a_state_folder_that_cannot_be_written_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = study(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    for run_id in (1, 2):
        compare(problem_of(config, "alice"), 0, name="alice", run_id=run_id, reaction="refuse")
    (record,) = caplog.records
    assert "changed data would go unnoticed" in record.getMessage()


def test_a_file_that_is_none_is_written_anew(state: Path, tmp_path: Path) -> None:
    config = study(tmp_path)
    state.mkdir(parents=True)
    (state / "alice-7.json").write_text("[1")
    for _ in range(2):
        compare(problem_of(config, "alice"), 0, name="alice", run_id=7, reaction="refuse")
    assert len(json.loads((state / "alice-7.json").read_text())["digest"]) == 64


def test_a_relative_state_folder_is_ignored_as_the_specification_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "somewhere")
    assert state_folder() == Path.home() / ".local" / "state" / "breakwater"


def test_a_digest_sees_values_shapes_and_types() -> None:
    found = [
        digest([np.zeros((2, 3))], b"s"),
        digest([np.zeros((3, 2))], b"s"),
        digest([np.zeros((2, 3), "f4")], b"s"),
        digest([np.zeros((2, 3))], b"t"),
        digest([np.array(["a", None], object)], b"s"),
        digest([np.array(["b", None], object)], b"s"),
    ]
    assert len(set(found)) == len(found)


def test_data_of_another_party_are_other_data(state: Path, tmp_path: Path) -> None:
    config = study(tmp_path)
    compare(problem_of(config, "alice"), 0, name="x", run_id=7, reaction="refuse")
    write_rows(tmp_path / "dave", 9)
    with pytest.raises(ConfigError):
        compare(problem_of(config, "dave"), 0, name="x", run_id=7, reaction="refuse")
