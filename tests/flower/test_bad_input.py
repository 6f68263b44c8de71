"""What users of Flower's commands get wrong: one clear line each, where the mend is."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flower.conftest import CONFIG
from tests.flower.environments import NEWEST, environment
from tests.flower.harness import SETTINGS, FailedError, Flower
from tests.integration.processes import Processes, free_address, rounds_of

pytestmark = [pytest.mark.flower, pytest.mark.slow]

TOO_OLD = "1.38.0"
"""A Flower that pyproject.toml does not allow."""


@pytest.fixture(scope="module")
def flower(
    processes: Processes, installed: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Flower]:
    """A SuperLink, and three SuperNodes none of which can take part."""
    made = Flower(processes, installed(NEWEST), tmp_path_factory.mktemp("flower"), env=SETTINGS)
    try:
        made.ready()
        made.node(0, {"partition-id": 7})
        made.node(1, {"atack": "alie"})
        made.node(2, {"attack": "aile"})
        made.online()
        yield made
    finally:
        made.close()


def test_supernodes_that_cannot_take_part_say_why_and_so_does_the_run(
    flower: Flower, app: Path, tmp_path: Path
) -> None:
    changes = "federation.join_timeout_s=5 federation.flower_deadline_s=300"
    run = flower.run(app, tmp_path / "run", config=CONFIG, set=changes)
    assert run.wait() == "finished:failed"
    reasons = {
        0: r"node config: partition-id = 7: must be 0 \.\. 3",
        1: r"node config: atack: unknown key; did you mean attack\?",
        2: r'\[attack\] kind = "aile": unknown; did you mean alie\?',
    }
    log = run.log()
    for worker, reason in reasons.items():
        assert re.search(reason, log), log
        flower.nodes[worker].line(reason)
    assert re.search(r"0 of 4 clients joined within \d+ s \(federation\.join_timeout_s = 5\); 1 of 3 nodes: ", log)
    assert rounds_of(run.out) == []


def test_run_configs_that_cannot_be_end_their_runs_with_a_line(flower: Flower, app: Path, tmp_path: Path) -> None:
    wrong = {
        "config": ("deploy/configs/flowr.toml", r'config = "deploy/configs/flowr\.toml": no such file in the bundle'),
        "set": ("strategy.round=3", r"\[strategy\] round: unknown key; did you mean rounds\?"),
        "link": ("localhost", r"link = .localhost.: must be HOST:PORT"),
        "metrics-port": (70000, 'metrics-port = "70000": must be a port from 0 to 65535, or -1 for none'),
        "quiet": ("no", 'quiet = "no": must be true or false, without quotes'),
    }
    setting: dict[str, Any]
    runs = {}
    for key, (value, _) in wrong.items():
        setting = {key: value}
        runs[key] = flower.run(app, tmp_path / key, **setting)
    for key, (_, complaint) in wrong.items():
        assert runs[key].wait() == "finished:failed"
        above, _, _ = runs[key].log().partition("Traceback")
        assert re.search(complaint, above), runs[key].log()
        assert not (tmp_path / key / "summary.json").exists()


def test_a_key_that_the_app_does_not_have_is_refused_at_once(flower: Flower, app: Path, tmp_path: Path) -> None:
    with pytest.raises(FailedError, match=r"(?i)run configuration"):
        flower.run(app, tmp_path / "run", confg=CONFIG)


def test_a_superlink_that_is_not_there_is_named(flower: Flower, app: Path, tmp_path: Path) -> None:
    """`flwr run` says it itself; our app has not started yet."""
    nobody, home = free_address(), tmp_path / "home"
    home.mkdir()
    connection = f'[superlink]\ndefault = "test"\n[superlink.test]\naddress = "{nobody}"\ninsecure = true\n'
    (home / "config.toml").write_text(connection, encoding="utf-8")
    said = flower.command("flwr", "run", app, "test", env={"FLWR_HOME": str(home)})
    assert re.search(
        r"(?i)superlink.*(unavailable|connect|not reach)|(unavailable|connect|not reach).*superlink", said
    ), said
    assert "Traceback" not in said


def test_a_flower_that_is_too_old_is_named(processes: Processes, installed: Callable[..., str], app: Path) -> None:
    commands = environment(installed(TOO_OLD, bare=True), bare=True)
    for component in ("server.app", "client.app"):
        process = processes.start("env", "-C", app, commands / "python", "-c", f"import {component}")
        assert process.wait() == 1
        process.line(rf"^ImportError: Breakwater needs flwr >= 1\.39 and < 2, here is {re.escape(TOO_OLD)}")
