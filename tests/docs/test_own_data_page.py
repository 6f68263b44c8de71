"""docs/own-data.md: its rehearsal works, and the answers, options and keys that it lists are those of the code."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from client.node_config import NodeConfig
from deploy import local
from deploy.cli import main
from deploy.inprocess import run_in_process
from deploy.local import LocalOptions
from server.monitor.exporters import Monitoring
from strategies.claims import NO_EVALUATION
from strategies.method import DECLINED, FAILED, STALE, UNPREPARED
from tests.docs.blocks import blocks_of, commands, read
from tests.parties import federation

PAGE = "docs/own-data.md"
TABLES = re.findall(r"^\| `(.+?)`", read(PAGE), re.MULTILINE)


def test_the_rehearsal_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation(tmp_path)
    monkeypatch.chdir(tmp_path)
    runs: list[LocalOptions] = []

    def in_process(options: LocalOptions) -> int:
        runs.append(options)
        out = tmp_path / f"run-{len(runs)}"
        run_in_process(replace(options, out=out, monitoring=Monitoring(quiet=True, pictures=False)))
        return 0

    monkeypatch.setattr(local, "run_local", in_process)
    (block,) = (block for block in blocks_of(PAGE) if block.kind == "run by")
    for command in commands(block.text):
        program, *arguments = shlex.split(command)
        assert program == ".venv/bin/breakwater"
        assert main(arguments) == 0
    attackers = [options.parties() for options in runs]
    assert [list(found.names.values())[-1] for found in attackers if found is not None] == ["p3", "p1", "p3"]


def test_the_fixed_answers_of_the_page_are_those_of_a_client() -> None:
    answers = {row.partition(":")[0] for row in TABLES if ": " in row}
    assert answers == {FAILED, DECLINED, UNPREPARED, STALE}
    assert f"`{NO_EVALUATION}`" in read(PAGE)


def test_the_limits_of_the_page_are_options_and_keys_of_a_node(capsys: pytest.CaptureFixture[str]) -> None:
    rows = re.findall(r"^\| `(--[\w-]+)[^|]*\| `([\w-]+)(?:=(\w+))?` \|", read(PAGE), re.MULTILINE)
    assert len(rows) >= 6
    with pytest.raises(SystemExit):
        main(["client", "--help"])
    options = capsys.readouterr().out
    for option, key, value in rows:
        assert option in options
        given: object = False if value else 8 if key.startswith("m") else "x"
        assert NodeConfig.read({key: given}) != NodeConfig()
