"""Clients with other code: refused, or taken with a warning where revisions agree."""

import logging
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from client.preparation import Preparation, PreparationOptions
from deploy.doctor.network import NO_CODE
from experiment.code import Code, code_fingerprint
from experiment.config import parse
from experiment.opened import Experiment, open_config
from foundation.errors import Refused
from foundation.origin import named, release
from link.node import Prepared, join
from link.wire import Welcome
from server.link import open_link
from server.monitor.exporters import Monitoring
from server.run import run
from server.run_folder.reader import read_summary
from server.run_folder.writer import RunFolder

TEXT = """
[federation]
clients = 2
join_timeout_s = 30
same_code = "{mode}"
[task]
kind = "digits"
[strategy]
kind = "robust-sgd"
rounds = 2
gamma = 0.1
batch = 8
"""
OTHER = "0123456789ab"
SOON_S = 30.0


def opened(mode: str) -> Experiment:
    return open_config(parse(TEXT.replace("{mode}", mode)))


def member(address: str, name: str, code: Code, ended: dict[str, str]) -> None:
    """Take part as a client that reports this code."""
    preparation = Preparation(PreparationOptions())

    def prepare(welcome: Welcome) -> Prepared:
        made = preparation(welcome)
        return replace(made, task=code.added_to(made.task))

    try:
        ended[name] = join(address, name, prepare, fingerprint=code.fingerprint, patience_s=5)
    except Refused as refused:
        ended[name] = str(refused)


@pytest.mark.parametrize("fingerprint", [OTHER, NO_CODE, "", "x" * 500])
def test_other_code_is_refused_unless_the_config_says_otherwise(fingerprint: str) -> None:
    for mode in ("required", "warn"):
        grid = open_link(opened(mode), 7, None)
        ended: dict[str, str] = {}
        try:
            code = Code(version="9", fingerprint=fingerprint)
            member(grid.listen("127.0.0.1:0"), "a", code, ended)
        finally:
            grid.close("over")
        if mode == "warn" and fingerprint == OTHER:
            assert "revision of robust-sgd unknown at the client, 1 at the server" in ended["a"]
        else:
            theirs = named(release(), fingerprint)
            assert f"other code: {theirs}; this server runs {named(release(), code_fingerprint())}: run" in ended["a"]


def test_with_a_warning_other_versions_train_together_and_the_run_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    experiment = opened("warn")
    mine = Code.here(experiment.config)
    codes = {"same": mine, "newer": replace(mine, version="9.9\n", fingerprint=OTHER)}
    grid, ended = open_link(experiment, 8, None), dict[str, str]()
    address = grid.listen("127.0.0.1:0")
    clients = [threading.Thread(target=member, args=(address, name, code, ended)) for name, code in codes.items()]
    for client in clients:
        client.start()
    try:
        with RunFolder(tmp_path / "run") as folder:
            run(experiment, folder, grid, Monitoring(quiet=True))
    finally:
        grid.close("the run is over")
        for client in clients:
            client.join(SOON_S)
    assert ended == dict.fromkeys(codes, "the run is over")
    warned = [record.message for record in caplog.records if "runs 9.9? (0123456789ab)" in record.message]
    assert warned == [
        f'newer runs 9.9? (0123456789ab), this server {mine}: it takes part because federation.same_code = "warn"'
    ]
    summary = read_summary(tmp_path / "run")
    assert summary is not None
    assert summary["code"] == {"server": str(mine), "clients": {"newer": "9.9? (0123456789ab)"}}
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "newer runs other code: 9.9? (0123456789ab)" in page


def test_another_revision_is_refused_and_told_which() -> None:
    experiment = opened("warn")
    mine = Code.here(experiment.config)
    grid, ended = open_link(experiment, 9, None), dict[str, str]()
    try:
        code = replace(mine, fingerprint=OTHER, revisions={**mine.revisions, "robust-sgd": 2})
        member(grid.listen("127.0.0.1:0"), "a", code, ended)
    finally:
        grid.close("over")
    assert "revision of robust-sgd 2 at the client, 1 at the server: give both ends the same" in ended["a"]
