"""TensorBoard's event files and the port for Prometheus, read back as their readers do."""

import logging
import socket
import struct
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from foundation.errors import ConfigError
from server.monitor import exporters as monitor
from server.monitor.exporters import EventFiles, MetricsPort, Monitoring
from server.monitor.live import LiveRun
from tests.rounds import MEASURED, RECORD, START
from tests.unit.server.monitor.test_terminal import HOSTILE, TITLE, again, rounds, run

SOON_S = 60.0


def events(folder: Path) -> list[Any]:
    """Return the events of all files of a folder: length and checksum, data and checksum, one after the other."""
    with monitor._without_torch():
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            length, check = struct.unpack_from("<QI", data, at)
            assert check == masked_crc32c(data[at : at + 8])
            event = data[at + 12 : at + 12 + length]
            assert struct.unpack_from("<I", data, at + 12 + length)[0] == masked_crc32c(event)
            found.append(Event.FromString(event))
            at += 16 + length
    return found


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Return what TensorBoard would show: by tag and round; a start at a step hides what came before it from there."""
    shown: dict[str, dict[int, float]] = {}
    for event in events(folder):
        if event.HasField("session_log"):
            for steps in shown.values():
                for step in [step for step in steps if step >= event.step]:
                    del steps[step]
        for value in event.summary.value:
            steps = shown.setdefault(value.tag, {})
            assert event.step not in steps, f"round {event.step} twice"
            steps[event.step] = value.simple_value
    return shown


@contextmanager
def port(live: LiveRun, number: int = 0) -> Iterator[MetricsPort]:
    made = MetricsPort(live, "127.0.0.1", number)
    try:
        yield made
    finally:
        made.stop()


def scraped(url: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Return the samples of a scrape by name and values of labels."""
    with urllib.request.urlopen(url, timeout=SOON_S) as answer:  # noqa: S310  # our own address
        text = answer.read().decode()
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


# --- TensorBoard ---


def test_event_files_hold_every_round(tmp_path: Path) -> None:
    files = EventFiles(tmp_path / "made" / "here")
    files.start(START, 0)
    for record in rounds(6):
        files.add(record)
    files.stop()
    shown = scalars(tmp_path / "made" / "here")
    assert shown["model/loss"] == {0: 2.0, 2: 0.5, 4: 0.5, 6: 0.5}
    assert shown["model/accuracy"] == {0: 0.25, 2: 0.75, 4: 0.75, 6: 0.75}
    assert shown["model/gap"] == {0: 1.5, 2: 0.25, 4: 0.25, 6: 0.25}
    for tag, value in (
        ("round/bytes_up", 100),
        ("round/bytes_down", 1000),
        ("round/lam", 0.5),
        ("round/step_norm", 0.25),
        ("clients/sampled", 3),
        ("clients/replied", 3),
        ("clients/accepted", 2),
        ("clients/answered", 2),  # the former tag
        ("clients/rejected", 1),
        ("clients/clipped", 1),
    ):
        assert shown[tag] == dict.fromkeys(range(1, 7), float(value)), tag
    assert shown["round/seconds"][1] == pytest.approx(RECORD.round_s)


def test_a_run_that_goes_on_shows_no_round_twice(tmp_path: Path) -> None:
    first = EventFiles(tmp_path)
    first.start(START, 0)
    for record in rounds(8):
        first.add(record)
    first.stop()
    before = again([replace(record, step_norm=4.0) for record in rounds(5)])
    second = EventFiles(tmp_path, before[2:])  # killed after round 8, the checkpoint is of round 5
    second.start(MEASURED, 5)
    for record in rounds(10)[5:]:
        second.add(replace(record, step_norm=9.0))
    second.stop()
    assert len(list(tmp_path.iterdir())) == 2
    shown = scalars(tmp_path)
    assert sorted(shown["round/step_norm"]) == list(range(1, 11))
    assert [shown["round/step_norm"][k] for k in (2, 3, 5, 6, 10)] == [0.25, 4.0, 4.0, 9.0, 9.0]
    assert sorted(shown["model/loss"]) == [0, 2, 4, 6, 8, 10]


def test_numbers_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    files = EventFiles(tmp_path)
    files.add(replace(RECORD, lam=None, step_norm=float("inf"), evaluation=replace(MEASURED, loss=float("nan"))))
    files.stop()
    shown = scalars(tmp_path)
    assert {"round/lam", "round/step_norm", "model/loss"}.isdisjoint(shown)
    assert shown["model/accuracy"] == {1: 0.75}


def test_a_folder_that_cannot_be_written_is_told_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("breakwater"), "propagate", True)
    (tmp_path / "file").write_text("in the way")
    files = EventFiles(tmp_path / "file")
    files.start(START, 0)
    files.add(RECORD)
    files.stop()
    assert caplog.text.count("event files cannot be written") == 1


def test_writing_event_files_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from server.monitor.exporters import EventFiles\n"
        "EventFiles(Path(sys.argv[1])).stop()\n"
        "assert 'torch' not in sys.modules; assert 'tensorboardX' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=SOON_S)


# --- Prometheus ---


def test_a_scrape_says_what_the_run_does() -> None:
    live = run([])
    with port(live) as made:
        for record in rounds(4):
            live.add(record)
            made.add(record)
        found = scraped(made.url)
        once_more = scraped(made.url)
    expected = {
        "breakwater_running": 1,
        "breakwater_rounds_total": 4,
        "breakwater_planned_rounds": 100,
        "breakwater_loss": 0.5,
        "breakwater_objective_gap": 0.25,
        "breakwater_accuracy_ratio": 0.75,
        "breakwater_measured_round": 4,
        "breakwater_clipping_radius": 0.5,
        "breakwater_step_norm": 0.25,
        "breakwater_clients": 5,
        "breakwater_connected_clients": 4,
        "breakwater_received_bytes_total": 400,
        "breakwater_sent_bytes_total": 4000,
        "breakwater_sampled_clients_total": 12,
        "breakwater_received_replies_total": 12,
        "breakwater_accepted_replies_total": 8,
        "breakwater_clipped_replies_total": 4,
    }
    assert {name: found[name][()] for name in expected} == expected
    assert found["breakwater_rejected_replies_total"] == {("wrong shape",): 4}
    assert found["breakwater_client_rejected_replies_total"] == {("client-1",): 4}
    assert found["breakwater_round_duration_seconds_count"][()] == 4
    assert found["breakwater_round_duration_seconds_sum"][()] == pytest.approx(4 * RECORD.round_s)
    buckets = found["breakwater_round_duration_seconds_bucket"]
    assert (buckets[("0.01",)], buckets[("0.02",)], buckets[("+Inf",)]) == (0, 4, 4)
    assert once_more == found, "a scrape changes nothing"
    assert not [name for name in found if name.startswith(("python_", "process_"))]


def test_a_run_that_waits_has_no_measures() -> None:
    with port(LiveRun(TITLE)) as made:
        found = scraped(made.url)
    assert found["breakwater_running"] == {(): 0}
    assert "breakwater_loss" not in found
    assert "breakwater_connected_clients" not in found, "nobody can tell"


def test_names_and_reasons_cannot_flood_or_forge_metrics() -> None:
    live = run([])
    for k in range(1, 200):
        live.add(replace(RECORD, round=k, rejected=[(f'c{k}"}} 1\nbreakwater_loss 0 #{HOSTILE}', f"r{k}\n{HOSTILE}")]))
    with port(live) as made:
        found = scraped(made.url)
    assert found["breakwater_loss"] == {(): 2.0}
    by_client = found["breakwater_client_rejected_replies_total"]
    assert len(by_client) == TITLE.clients + 1
    assert sum(by_client.values()) == 199
    assert len(found["breakwater_rejected_replies_total"]) <= 33
    assert all(label.isprintable() and len(label) <= 160 for (label,) in by_client)


def test_a_port_that_is_taken_is_told_before_the_run() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        monitoring = Monitoring(metrics_port=number)
        words = rf"^--metrics-port: 127\.0\.0\.1:{number} cannot be bound: Address already in use; choose another port$"
        with pytest.raises(ConfigError, match=words):
            monitoring.check()
        with pytest.raises(ConfigError, match=words):
            monitoring.serve(run([]))
    with pytest.raises(ConfigError, match=r"--metrics-port: no host\.invalid:1 cannot be bound"):
        Monitoring(metrics_port=1, metrics_host="no host.invalid").check()


@pytest.mark.parametrize(
    ("library", "monitoring", "option"),
    [
        ("tensorboardX", Monitoring(tensorboard=""), "--tensorboard"),
        ("prometheus_client", Monitoring(metrics_port=0), "--metrics-port"),
    ],
)
def test_a_library_that_is_missing_is_named_with_the_command_that_installs_it(
    library: str, monitoring: Monitoring, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "find_spec", lambda name: None)
    words = rf"^{option}: needs the library {library}; install it with: pip install 'breakwater\[monitor\]'"
    with pytest.raises(ConfigError, match=words):
        monitoring.check()
    Monitoring().check()


@pytest.mark.parametrize(
    ("given", "monitoring"),
    [
        (
            {"quiet": False, "tensorboard": "", "metrics-port": -1, "metrics-host": ""},
            Monitoring(),
        ),
        (
            {"quiet": True, "tensorboard": ".", "metrics-port": 0},
            Monitoring(quiet=True, tensorboard="", metrics_port=0),
        ),
        (
            {"tensorboard": "/tmp/somewhere", "metrics-port": 9100, "metrics-host": "0.0.0.0"},  # noqa: S104, S108  # words
            Monitoring(tensorboard="/tmp/somewhere", metrics_port=9100, metrics_host="0.0.0.0"),  # noqa: S104, S108
        ),
    ],
)
def test_a_run_config_says_what_is_wanted(given: dict[str, object], monitoring: Monitoring) -> None:
    assert Monitoring.of(given) == monitoring


def test_a_run_config_that_says_nothing_wants_nothing() -> None:
    assert Monitoring.of({}) == Monitoring()
    with pytest.raises(ConfigError, match='metrics-port = "70000": must be a port from 0 to 65535, or -1 for none'):
        Monitoring.of({"metrics-port": 70000})
