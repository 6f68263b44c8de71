"""The run folder, and what is read from it: every file of it, and folders that cannot be used."""

import errno
import json
import math
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiment.config import load, parse
from foundation.errors import ConfigError, Unwritten
from server.monitor.plot import draw
from server.process import ServerOptions, serve
from server.run_folder import CONFIG, CURVE, MANIFEST, METRICS, MODEL, SUMMARY
from server.run_folder import writer as writer_module
from server.run_folder.checkpoints import Checkpoint
from server.run_folder.manifest import RunManifest, versions
from server.run_folder.reader import read_rounds
from server.run_folder.record import to_line
from server.run_folder.writer import Claim, RunFolder
from strategies.evidence import Evidence
from strategies.method import Evaluation
from tests.rounds import MEASURED, RECORD, START
from tests.saved import x_of

TEXT = """
[federation]
clients = 4
[task]
kind = "digits"
[strategy]
kind = "robust-sgd"
rounds = 10
gamma = 0.1
"""


def finish(folder: RunFolder, status: str = "finished", **known: Any) -> dict[str, Any]:
    return folder.finish(status=status, seed=7, joined_s=0.5, model=np.array([1.0, -2.0]), **known)


def test_a_run_leaves_these_files(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a" / "b")
    config = parse(TEXT)
    folder.begin(config, START)
    folder.add(RECORD)
    folder.add(replace(RECORD, round=2, kind="difference", rejected=[], evaluation=MEASURED, note="so it is"))
    summary = finish(folder)

    assert load(folder.path / CONFIG) == config
    lines = [json.loads(line) for line in (folder.path / METRICS).read_text().splitlines()]
    assert lines[0] == {
        "round": 1, "kind": "full", "cohort": [0, 1, 3], "accepted": [0, 3],
        "rejected": [{"client": "client-1", "reason": "wrong shape: 3 values, expected 4"}],
        "clipped": [3], "lam": 0.5, "step_norm": 0.25, "bytes_up": 100, "bytes_down": 1000, "round_s": 0.012346,
    }  # fmt: skip
    assert {key: lines[1][key] for key in ("note", "loss", "accuracy", "gap")} == {
        "note": "so it is", "loss": 0.5, "accuracy": 0.75, "gap": 0.25
    }  # fmt: skip
    assert json.loads((folder.path / SUMMARY).read_text()) == summary
    assert isinstance(summary["wall_s"], float)
    assert 0 <= summary["wall_s"] < 60
    assert {key: value for key, value in summary.items() if key not in ("versions", "wall_s")} == {
        "status": "finished", "rounds": 2, "loss": 0.5, "accuracy": 0.75, "gap": 0.25,
        "measured_by": "server", "start": {"loss": 2.0, "accuracy": 0.25, "gap": 1.5},
        "bytes_up": 200, "bytes_down": 2000, "joined_s": 0.5,
        "rejected": {"wrong shape": 1}, "rejected_by_client": {"client-1": {"wrong shape": 1}},
        "seed": 7, "starts": 1, "lives": 1,
    }  # fmt: skip
    assert x_of(folder.path).tolist() == [1.0, -2.0]


def test_evidence_late_replies_and_new_names_are_in_the_line_of_their_round(tmp_path: Path) -> None:
    seen = Evidence([0, 3], [1.0, 2.3456], [0.123456, None], kept=[1.0, 0.123456], weight=[0.5, 0.5], same=[[0, 3]])
    named = replace(RECORD, names=["a", "b", "c"], evidence=seen)
    with RunFolder(tmp_path) as folder:
        folder.add(named)
        folder.add(replace(named, round=2, late=["b"]))
        folder.add(replace(named, round=3, names=["a", "B", "c"], evidence=None))
    first, second, third = (json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines())
    assert {key: first[key] for key in ("distance", "cosine", "kept", "weight", "same")} == {
        "distance": [1.0, 2.35], "cosine": [0.1235, None], "kept": [1.0, 0.123], "weight": [0.5, 0.5], "same": [[0, 3]],
    }  # fmt: skip
    assert first["names"] == {"0": "a", "1": "b", "3": "c"}
    assert ("names" in second, second["late"], third["names"]) == (False, ["b"], {"1": "B"})
    assert "distance" not in third
    assert [record.names for record in read_rounds(tmp_path)] == [["a", "b", "c"], ["a", "b", "c"], ["a", "B", "c"]]


def test_a_round_is_in_the_file_before_the_next_begins(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for k in (1, 2, 3):
        folder.add(replace(RECORD, round=k))
        assert [r.round for r in read_rounds(tmp_path)] == list(range(1, k + 1))
    finish(folder)


def test_rejections_are_counted_by_reason_and_client(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.add(replace(RECORD, rejected=[("a", "silent: no reply within 3 s"), ("b", "not finite: NaN")]))
    folder.add(replace(RECORD, rejected=[("a", "silent: no reply within 3 s"), ("b", "silent: no reply within 3 s")]))
    summary = finish(folder)
    assert summary["rejected"] == {"silent": 3, "not finite": 1}
    assert summary["rejected_by_client"] == {"a": {"silent": 2}, "b": {"not finite": 1, "silent": 1}}


def test_numbers_of_numpys_types_are_written_and_an_accuracy_that_is_none_is_left_out(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    measured: Any = Evaluation(loss=np.float32(0.5), accuracy=None)  # type: ignore[arg-type]  # what users give
    folder.begin(parse(TEXT), measured)
    folder.add(replace(RECORD, bytes_up=np.int64(7), evaluation=measured))  # type: ignore[arg-type]  # as above
    folder.finish(status="finished", seed=7, joined_s=0.5, model=None, task={"dim": np.int64(6)})
    summary = json.loads((folder.path / SUMMARY).read_text())
    (record,) = read_rounds(folder.path)
    assert (record.evaluation, record.bytes_up) == (Evaluation(0.5, None, None), 7)
    assert (summary["loss"], summary["accuracy"], summary["start"]) == (0.5, None, {"loss": 0.5})
    assert (summary["bytes_up"], summary["task"]) == (7, {"dim": 6})


def test_numbers_that_json_has_not(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.begin(parse(TEXT), START)
    nowhere = Evaluation(loss=math.nan, accuracy=0.1, gap=math.inf)
    folder.add(replace(RECORD, lam=None, step_norm=math.inf, evaluation=nowhere))
    summary = finish(folder, "diverged")
    (line,) = (json.loads(text, parse_constant=pytest.fail) for text in (tmp_path / METRICS).read_text().splitlines())
    assert (line["lam"], line["step_norm"], line["loss"], line["gap"]) == (None, None, None, None)
    assert (summary["status"], summary["loss"], summary["gap"]) == ("diverged", None, None)
    json.loads((tmp_path / SUMMARY).read_text(), parse_constant=pytest.fail)


def test_a_task_without_an_optimum_has_no_gap(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.begin(parse(TEXT), replace(START, gap=None))
    folder.add(replace(RECORD, evaluation=replace(MEASURED, gap=None)))
    assert "gap" not in finish(folder)
    assert "gap" not in (tmp_path / METRICS).read_text()


def test_a_run_that_ended_before_its_first_round(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.begin(parse(TEXT), START)
    summary = folder.finish(status="interrupted", seed=7, joined_s=0.0, model=None)
    assert (summary["rounds"], summary["loss"], summary["status"]) == (0, 2.0, "interrupted")
    assert not (tmp_path / MODEL).exists()


def test_a_folder_that_holds_a_run(tmp_path: Path) -> None:
    finish(RunFolder(tmp_path))
    with pytest.raises(ConfigError, match="holds a run already; give --out another folder or remove it"):
        RunFolder(tmp_path)


class FullDisk:
    """A disk on which a file can grow to some size, as the system tells it: a part is written, then nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room: float = math.inf
        self._write = os.pwrite
        monkeypatch.setattr(os, "pwrite", self.pwrite)

    def pwrite(self, file: int, data: bytes, at: int) -> int:
        room = self.room - at
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._write(file, data[: int(min(room, len(data)))], at)


def test_a_full_disk_loses_no_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk, folder = FullDisk(monkeypatch), RunFolder(tmp_path)
    folder.begin(parse(TEXT), START)
    folder.add(RECORD)
    size = (tmp_path / METRICS).stat().st_size
    disk.room = size + 10
    for k in (2, 3, 4):
        folder.add(replace(RECORD, round=k))
        assert (tmp_path / METRICS).stat().st_size == size, "no half line is left"
    disk.room = math.inf
    folder.add(replace(RECORD, round=5))
    assert [record.round for record in read_rounds(tmp_path)] == [1, 2, 3, 4, 5]
    said = [record.message.removeprefix(f"{tmp_path}: ") for record in caplog.records]
    assert said == [
        "metrics.jsonl cannot be written: No space left on device; trying again",
        "metrics.jsonl can be written again",
    ]
    assert finish(folder)["rounds"] == 5


def test_results_wait_for_room_and_then_the_user_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk, folder = FullDisk(monkeypatch), RunFolder(tmp_path)
    folder.begin(parse(TEXT), START)
    disk.room = 0
    folder.add(RECORD)
    with pytest.raises(Unwritten, match=r"No space left on device; fix that, then `breakwater server --resume "):
        folder.finish(status="finished", seed=7, joined_s=0.5, model=None)
    left = json.loads((tmp_path / SUMMARY).read_text())
    assert (left["status"], left["rounds"], left["unwritten"]["rounds"]) == ("finished", 1, 1)
    make_room = threading.Timer(0.3, setattr, (disk, "room", math.inf))
    make_room.start()
    folder.finish(status="finished", seed=7, joined_s=0.5, model=None, patience_s=60.0)
    make_room.join()
    assert "trying again for 60 s" in caplog.text
    assert len(read_rounds(tmp_path)) == json.loads((tmp_path / SUMMARY).read_text())["rounds"] == 1


def test_rounds_do_not_pile_up_in_memory_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, folder = FullDisk(monkeypatch), RunFolder(tmp_path)
    monkeypatch.setattr(writer_module, "_MAX_UNWRITTEN", 2000)
    disk.room = 0
    added = 0

    def fill() -> None:
        nonlocal added
        while added < 100:
            added += 1
            folder.add(replace(RECORD, round=added))

    with pytest.raises(Unwritten, match="wait for room on the disk"):
        fill()
    assert 5 < added < 15


def test_two_servers_do_not_write_one_run(tmp_path: Path) -> None:
    begun = RunFolder(tmp_path)
    begun.add(RECORD)
    checkpoint = Checkpoint(1, "", {}, 0, 0.0, {}, {})
    with pytest.raises(ConfigError, match="another server is running this run"):
        RunFolder(tmp_path, checkpoint)
    begun.close()
    RunFolder(tmp_path, checkpoint).close()


def test_a_second_server_changes_nothing_of_a_run_that_is_going_on(tmp_path: Path) -> None:
    config = parse(TEXT)
    manifest = RunManifest(run_id=7, listen="h:1", data=None, config_dir=None, tls=None)
    begun = RunFolder(tmp_path)
    begun.add(RECORD)
    manifest.write(tmp_path, config.to_toml())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    heard: list[str] = []
    second = ServerOptions.of_run(tmp_path, manifest, config, listen="127.0.0.1:0", data=None, tls=None)
    with pytest.raises(ConfigError, match="another server is running this run"):
        serve(second, heard.append)
    assert heard == [], "it did not even listen"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    begun.close()


def test_a_claimed_folder_is_handed_over(tmp_path: Path) -> None:
    with Claim(tmp_path, goes_on=False) as claim:
        with pytest.raises(ConfigError, match="holds a run already"), Claim(tmp_path, goes_on=False):
            raise AssertionError("unreachable")
        with RunFolder(tmp_path, claim=claim) as folder:
            folder.add(RECORD)
            with pytest.raises(ConfigError, match="another server"), Claim(tmp_path, goes_on=True):
                raise AssertionError("unreachable")
    assert len(read_rounds(tmp_path)) == 1
    with Claim(tmp_path, goes_on=True):
        pass
    assert len(read_rounds(tmp_path)) == 1, "what was there stays, though nothing came of the claim"


def test_a_claim_that_comes_to_nothing_leaves_no_run(tmp_path: Path) -> None:
    with Claim(tmp_path / "new", goes_on=False):
        pass
    RunFolder(tmp_path / "new").close()


def test_who_goes_on_is_not_told_to_take_another_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "under"
    words = f"cannot be written: .*; fix that, then `breakwater server --resume {path}`"
    with pytest.raises(ConfigError, match=words):
        RunFolder(path, Checkpoint(0, "", {}, 0, 0.0, {}, {}))
    manifest = RunManifest(run_id=7, listen="h:1", data=None, config_dir=None, tls=None)
    with pytest.raises(ConfigError, match="; give --out another folder"):
        manifest.write(path, "")
    with pytest.raises(ConfigError, match=words):
        manifest.restarted().write(path, "")


def test_a_run_goes_on_after_its_checkpoint(tmp_path: Path) -> None:
    begun = RunFolder(tmp_path)
    begun.begin(parse(TEXT), START)
    begun.add(RECORD)
    begun.add(replace(RECORD, round=2, evaluation=MEASURED, rejected=[("b", "silent: so long")]))
    begun.add(replace(RECORD, round=3, evaluation=START))
    finish(begun, "interrupted")
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"round": 4, "torn')
    (tmp_path / f".{MODEL}").write_text("half")
    folder = RunFolder(tmp_path, Checkpoint(2, "", {}, 0, 5.0, {}, {}))
    assert [record.round for record in read_rounds(tmp_path)] == [1, 2]
    assert not (tmp_path / SUMMARY).exists()
    assert not (tmp_path / f".{MODEL}").exists()
    assert folder.wall_s == 5.0
    folder.begin(parse(TEXT), START)
    summary = finish(folder)
    assert (summary["rounds"], summary["bytes_up"], summary["loss"]) == (2, 200, 0.5)
    assert summary["rejected_by_client"] == {"b": {"silent": 1}, "client-1": {"wrong shape": 1}}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        pytest.param(['{"round": 1}'], "line 1: not a round: 'accepted' is missing; it cannot", id="incomplete"),
        pytest.param(["nonsense"], "line 1: not a round: Expecting value", id="nonsense"),
        pytest.param([], "ends with round 0, but the checkpoint is of round 2", id="short"),
    ],
)
def test_a_run_whose_rounds_are_lost_cannot_go_on(tmp_path: Path, lines: list[str], words: str) -> None:
    (tmp_path / METRICS).write_text("\n".join([*lines, ""]) if lines else "")
    with pytest.raises(ConfigError, match=words):
        RunFolder(tmp_path, Checkpoint(2, "", {}, 0, 0.0, {}, {}))


def test_the_manifest_of_a_run(tmp_path: Path) -> None:
    manifest = RunManifest(run_id=7, listen="h:1", data=None, config_dir="c", tls=None)
    manifest.write(tmp_path / "new", parse(TEXT).to_toml())
    assert RunManifest.read(tmp_path / "new") == manifest
    assert manifest.restarted() == replace(manifest, starts=2)

    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [CONFIG, MANIFEST]
    with pytest.raises(ConfigError, match=r"no run of `breakwater server` is there \(run.json is missing\)"):
        RunManifest.read(tmp_path)
    (tmp_path / MANIFEST).write_text('{"run_id": 1')
    with pytest.raises(ConfigError, match=r"run\.json: is damaged: "):
        RunManifest.read(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "under"):
        with pytest.raises(ConfigError, match=r"cannot be written: .*; give --out another folder"):
            RunFolder(path)


def test_a_last_line_cut_off_by_a_crash_is_left_out(tmp_path: Path) -> None:
    lines = [to_line(replace(RECORD, round=k), {}) for k in (1, 2, 3)]
    (tmp_path / METRICS).write_text("\n".join(lines)[:-5])
    assert [record.round for record in read_rounds(tmp_path)] == [1, 2]


def test_versions_name_what_a_result_may_depend_on() -> None:
    assert {"python", "breakwater", "flwr", "grpcio", "numpy", "scipy"} <= set(versions())


@pytest.mark.parametrize("gap", [None, 0.25, -1.0])
def test_a_curve_of_one_and_of_two_runs(tmp_path: Path, gap: float | None) -> None:
    measured = Evaluation(0.5, 0.7, gap)
    run = measured, [replace(RECORD, round=k, evaluation=measured if k < 3 else None) for k in (1, 2, 3)]
    for runs in ({"one": run}, {"one": run, "two": run}):
        path = tmp_path / CURVE
        draw(runs, path, title="a title")
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        path.unlink()


def test_a_curve_of_nothing_finite(tmp_path: Path) -> None:
    lost = replace(RECORD, evaluation=Evaluation(math.nan, math.nan))
    draw({"lost": (None, [lost])}, tmp_path / CURVE)
    assert (tmp_path / CURVE).stat().st_size > 0


def test_a_manifest_of_the_version_before_is_read(tmp_path: Path) -> None:
    before = {"run_id": 7, "listen": "h:1", "data": None, "config_dir": None, "tls": None, "lives": 3}
    (tmp_path / "run.json").write_text(json.dumps(before), encoding="utf-8")
    assert RunManifest.read(tmp_path).starts == 3
