"""The dashboard and the alerts of deploy/monitoring: their metrics are there, and Prometheus' own tool takes them."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from link.seats import Seat, node_id
from server.monitor.live import LiveRun
from strategies.claims import Claim, Claims
from strategies.evidence import Evidence
from tests.deployment.files import ran, read
from tests.packages import ROOT
from tests.rounds import MEASURED, START
from tests.unit.server.monitor.test_exporters import port, scraped
from tests.unit.server.monitor.test_terminal import TITLE, rounds

MONITORING = ROOT / "deploy" / "monitoring"
ALERTS, DASHBOARD = MONITORING / "alerts.yml", MONITORING / "grafana.json"
VARIABLES = {"$job": "x", "$instance": "x", "$__rate_interval": "1m"}


@pytest.fixture(scope="module")
def metrics() -> set[str]:
    """The names of all samples that a run gives."""
    live = LiveRun(TITLE, lambda: 1, "", lambda: {0: Seat("a", 0, node_id("a"), connected=True)})
    live.begin(START, Claims.of({"a": Claim(0.5, 0.75, 10)}, {}, 0))
    with port(live) as made:
        three = [0, 2, 3]  # fewer have nobody to be compared with
        seen = Evidence(three, 3 * [1.0], 3 * [0.5])
        for record in rounds(4):
            measured = record.evaluation and replace(MEASURED, trigger=0.5)
            live.add(replace(record, cohort=[0, 1, 2, 3], accepted=three, evidence=seen, evaluation=measured))
            made.add(record)
        return set(scraped(made.url))


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("needs promtool: apt-get install prometheus")
    return found


def panels() -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads(read(DASHBOARD))["panels"]
    return loaded


def expressions() -> Iterator[tuple[str, str]]:
    """Yield title and expression of everything that is shown or alerts."""
    for panel in panels():
        for target in panel["targets"]:
            yield f"panel {panel['title']!r}", target["expr"]
    for group in yaml.safe_load(read(ALERTS))["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def test_every_metric_that_is_named_is_there(metrics: set[str]) -> None:
    named = {name for _, text in expressions() for name in re.findall(r"breakwater_\w+", text)}
    assert len(named) > 20
    assert named - metrics == set()
    for line in re.findall(r"^\| (`breakwater_.*?) \|", read(ROOT / "docs" / "watching.md"), re.MULTILINE):
        for name in re.findall(r"breakwater_\w+", line):
            assert name in metrics or f"{name}_count" in metrics, f"docs/watching.md: {name}"


def test_every_metric_is_in_the_documentation(metrics: set[str]) -> None:
    text = read(ROOT / "docs" / "watching.md")
    missing = {name for name in metrics if re.sub("_(bucket|count|sum)$", "", name) not in text}
    assert missing == set()


def test_the_alerts_are_taken_and_do_what_they_say(promtool: str) -> None:
    for command in ("check config prometheus.yml", "check rules alerts.yml", "test rules alerts.test.yml"):
        done = ran(promtool, *command.split(), cwd=MONITORING)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested() -> None:
    alerts = [name for name, _ in expressions() if not name.startswith("panel")]
    text = read(MONITORING / "alerts.test.yml")
    for name in alerts:
        assert text.count(f"alertname: {name}}}") == text.count(f'alertname="{name}"') == 1, name


def test_the_expressions_of_the_dashboard_are_queries(promtool: str, tmp_path: Path) -> None:
    rules = []
    for i, (title, text) in enumerate(expressions()):
        for name, value in VARIABLES.items():
            text = text.replace(name, value)
        assert "$" not in text, title
        rules.append({"record": f"x:{i}", "expr": text})
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    done = ran(promtool, "check", "rules", tmp_path / "rules.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_panels_of_the_dashboard_have_room_and_one_source() -> None:
    shown = panels()
    assert len({panel["id"] for panel in shown}) == len(shown)
    boxes = [panel["gridPos"] for panel in shown]
    assert all(box["x"] >= 0 and box["x"] + box["w"] <= 24 for box in boxes)
    for a, b in combinations(boxes, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert beside or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
    sources = [each["datasource"] for panel in shown for each in (panel, *panel["targets"])]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
    for panel in shown:
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs), panel["title"]
