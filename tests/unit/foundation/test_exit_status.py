"""The exit status of each command is what docs/troubleshooting.md says; also `--version` and what a shell completes.

Whatever needs real processes to happen is raised by a stand-in here; tests/integration has the real ones.
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import shtab

import client.process
import deploy.certs
import deploy.demo
import deploy.doctor
import deploy.local
import deploy.sweeps.sweep
import deploy.versions
import experiment.explain
import experiment.model_file
import link.watch
import server.monitor.report
import server.monitor.suspects
import server.process
from deploy.cli import EPILOG, _parser, main
from deploy.doctor import Finding
from foundation import origin
from foundation.errors import ConfigError, Refused, ServerGone, Unwritten
from server.monitor.live import LiveRun, Title
from strategies.strategy import NoClientsError
from tasks.table_model import Predictions

ROOT = Path(__file__).parents[3]
DEMO = str(ROOT / "deploy" / "configs" / "demo.toml")
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
TABLE = {row[0].strip(" `"): [cell.strip() for cell in row[1:]] for row in (
    line.strip("|").split("|") for line in re.findall(r"^\| `[a-z]+` \|.*\|.*\|.*\|.*\|$", PAGE, re.MULTILINE)
)}  # fmt: skip
"""What the page says of status 0, 1, 2 and 130, by command."""


def commands() -> dict[str, argparse.ArgumentParser]:
    (found,) = (each for each in _parser()._actions if isinstance(each, argparse._SubParsersAction))
    return dict(found.choices)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BREAKWATER_DATA", raising=False)


def ended(*arguments: str) -> int:
    try:
        return main(arguments)
    except SystemExit as end:  # argparse ends this way
        return int(end.code or 0)


def a_run(folder: str) -> None:
    """Make the folder of a run without a round, in the folder of the test."""
    Path(folder).mkdir()
    shutil.copy(DEMO, Path(folder) / "config.toml")
    (Path(folder) / "metrics.jsonl").touch()


def watched(**last: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Return what has a server whose one state says this."""
    title = Title(run="a", method="m", rule="cm", task="digits", attack=None, clients=4, byzantine=1, rounds=9)
    state = LiveRun(title).state() | last
    return lambda patch: patch.setattr(link.watch, "follow", lambda *_, **__: iter([state]))


class AModel:
    """Predicts one row."""

    def predict(self, table: Path) -> Predictions:
        return Predictions(np.ones(1), (), None, None, 0)


def returns(value: object) -> Callable[..., object]:
    return lambda *_, **__: value


def raises(error: BaseException) -> Callable[..., NoReturn]:
    def broken(*_: object, **__: object) -> NoReturn:
        raise error

    return broken


def test_the_page_has_every_command() -> None:
    assert set(commands()) <= set(TABLE)
    assert all(len(cells) == 4 for cells in TABLE.values())


def test_the_help_says_what_the_status_means() -> None:
    for status in ("0 ", "1 ", "2 ", "130 "):
        assert status in EPILOG
    assert "docs/troubleshooting.md" in EPILOG


SERVER = ("server", DEMO, "--listen", "127.0.0.1:0")
CLIENT = ("client", "--connect", "127.0.0.1:1", "--name", "a")
SWEEP = ("sweep", str(ROOT / "benchmarks" / "experiments" / "clipping-a9a.toml"), "--reduced", "--out", "swept")
PREDICT = ("predict", "a-model", "a.csv")
WATCH = ("watch", "127.0.0.1:1")
CASES: dict[tuple[str, int], tuple[tuple[str, ...], Callable[[pytest.MonkeyPatch], object]]] = {
    ("demo", 0): (("demo",), lambda p: p.setattr(deploy.demo, "demo", returns(0))),
    ("demo", 1): (("demo",), lambda p: p.setattr(deploy.demo, "demo", returns(1))),
    ("demo", 2): (("demo", "--out", DEMO), lambda p: None),
    ("run", 0): (("run", DEMO), lambda p: p.setattr(deploy.local, "run_local", returns(0))),
    ("run", 1): (("run", DEMO), lambda p: p.setattr(deploy.local, "run_local", raises(Unwritten("full")))),
    ("run", 2): (("run", "absent.toml"), lambda p: None),
    ("server", 0): (SERVER, lambda p: p.setattr(server.process, "serve", returns(None))),
    ("server", 1): (SERVER, lambda p: p.setattr(server.process, "serve", raises(NoClientsError("nobody")))),
    ("server", 2): (("server", DEMO, "--listen", "nonsense"), lambda p: None),
    ("client", 0): (CLIENT, lambda p: p.setattr(client.process, "run_client", returns("the run is over"))),
    ("client", 1): (("client", "--connect", "127.0.0.1:1", "--name", "a", "--patience", "0"), lambda p: None),
    ("client", 2): (CLIENT, lambda p: p.setattr(client.process, "run_client", raises(Refused("not you")))),
    ("certs", 0): (("certs", "init", "certs", "--host", "h"), lambda p: None),
    ("certs", 2): (("certs", "issue", "nowhere", "a"), lambda p: None),
    ("check", 0): (("check", DEMO), lambda p: None),
    ("check", 2): (("check", DEMO, "--set", "federation.clients=0"), lambda p: None),
    ("sweep", 0): (SWEEP, lambda p: p.setattr(deploy.sweeps.sweep, "sweep", returns(0))),
    ("sweep", 1): (SWEEP, lambda p: p.setattr(deploy.sweeps.sweep, "sweep", returns(1))),
    ("sweep", 2): (("sweep", "absent.toml", "--out", "swept"), lambda p: None),
    ("report", 0): (("report", "a-run"), lambda p: a_run("a-run")),
    ("report", 2): (("report", "absent"), lambda p: None),
    ("predict", 0): (PREDICT, lambda p: p.setattr(experiment.model_file, "load_model", returns(AModel()))),
    ("predict", 2): (PREDICT, lambda p: None),
    ("suspects", 0): (("suspects", "a-run"), lambda p: a_run("a-run")),
    ("suspects", 2): (("suspects", "absent"), lambda p: None),
    ("watch", 0): (WATCH, watched(goodbye="the run is over", line="finished after 5 rounds")),
    ("watch", 1): (WATCH, watched(goodbye="the server was stopped", line="")),
    ("watch", 2): (("watch", "nonsense"), lambda p: None),
    ("doctor", 0): (("doctor",), lambda p: p.setattr(deploy.doctor, "examine", returns([]))),
    ("doctor", 1): (
        ("doctor",),
        lambda p: p.setattr(deploy.doctor, "examine", returns([Finding("problem", "disk", "full", "make room")])),
    ),
    ("doctor", 2): (("doctor", "--fly"), lambda p: None),
    ("completion", 0): (("completion", "zsh"), lambda p: None),
    ("completion", 2): (("completion", "elvish"), lambda p: None),
}


@pytest.mark.parametrize(("command", "status"), CASES, ids=[f"{name}-{status}" for name, status in CASES])
def test_a_command_ends_with_the_status_that_the_page_says(
    command: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, prepare = CASES[command, status]
    prepare(monkeypatch)
    assert TABLE[command][[0, 1, 2, 130].index(status)] != "-"
    assert ended(*arguments) == status
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert status != 2 or re.search(r"^breakwater( \w+)*: error: ", said)


INTERRUPTED: dict[str, tuple[tuple[str, ...], object, str]] = {
    "demo": (("demo",), deploy.demo, "demo"),
    "run": (("run", DEMO), deploy.local, "run_local"),
    "server": (SERVER, server.process, "serve"),
    "client": (CLIENT, client.process, "run_client"),
    "certs": (("certs", "init", "certs", "--host", "h"), deploy.certs, "init"),
    "check": (("check", DEMO), experiment.explain, "explain"),
    "sweep": (SWEEP, deploy.sweeps.sweep, "sweep"),
    "report": (("report", "a-run"), server.monitor.report, "write_report"),
    "predict": (PREDICT, experiment.model_file, "load_model"),
    "suspects": (("suspects", "a-run"), server.monitor.suspects, "tally"),
    "watch": (WATCH, link.watch, "follow"),
    "doctor": (("doctor",), deploy.doctor, "examine"),
    "completion": (("completion", "zsh"), shtab, "complete"),
}
"""Arguments of each command, and what is interrupted: a module and the name of its function."""


@pytest.mark.parametrize("command", commands())
def test_every_status_that_the_page_names_has_a_case(command: str) -> None:
    named = {status for status, cell in zip((0, 1, 2), TABLE[command], strict=False) if cell != "-"}
    assert named == {status for name, status in CASES if name == command}
    assert command in INTERRUPTED


@pytest.mark.parametrize("command", INTERRUPTED)
def test_an_interrupted_command_ends_with_130(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, module, name = INTERRUPTED[command]
    a_run("a-run")
    monkeypatch.setattr(module, name, raises(KeyboardInterrupt()))
    assert ended(*arguments) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("breakwater: interrupted")
    assert TABLE[command][3].startswith("interrupted")


def test_a_server_that_nobody_can_watch_gives_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("watch", "127.0.0.1:1", "--patience", "0") == 1
    assert capsys.readouterr().err.startswith("breakwater: error: no server at 127.0.0.1:1 for 0 s: ")


@pytest.mark.parametrize("command", ["suspects", "report"])
@pytest.mark.parametrize("line", ['{"round": 1}', "5", '{"cohort": 5, "rejected": 5}'], ids=["poor", "five", "wrong"])
def test_rounds_that_cannot_be_read_give_2(command: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    a_run("a-run")
    Path("a-run", "metrics.jsonl").write_text(f"{line}\n", encoding="utf-8")
    assert ended(command, "a-run") == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("breakwater: error: a-run/metrics.jsonl: is not the metrics of a run: ")


def test_a_page_that_cannot_be_written_gives_2(capsys: pytest.CaptureFixture[str]) -> None:
    a_run("a-run")
    Path("a-run", ".report.html.new").mkdir()  # where the draft of the page would be written
    assert ended("report", "a-run") == 2
    assert "report.html: cannot be written: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status"), [(ServerGone("away"), 1), (Unwritten("full"), 1), (ConfigError("one\ntwo"), 2)]
)
def test_what_was_given_gives_2_and_what_happened_gives_1(
    error: Exception, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(deploy.local, "run_local", raises(error))
    assert ended("run", DEMO) == status
    assert capsys.readouterr().err == "".join(f"breakwater: error: {line}\n" for line in str(error).splitlines())


# --- versions ---------------------------------------------------------------------------------------------------------


def test_the_version_names_what_matters_in_a_bug_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("--version") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"breakwater {version('breakwater')}"
    told = dict(line.split(maxsplit=1) for line in lines[1:])
    assert told["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert {name: told[name] for name in ("flwr", "grpcio", "protobuf", "numpy")} == {
        name: version(name) for name in ("flwr", "grpcio", "protobuf", "numpy")
    }
    assert {"torch", "platform"} <= set(told)


def test_the_revision_is_that_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    assert "revision" not in deploy.versions.versions()
    git = shutil.which("git")
    if git is None:
        pytest.skip("needs git")
    me = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "--quiet"], ["add", "."], [*me, "commit", "--quiet", "--message", "x"]):
        (tmp_path / "file").write_text("one")
        subprocess.run([git, "-C", str(tmp_path), *arguments], check=True)
    clean = deploy.versions.versions()["revision"]
    assert re.fullmatch(r"[0-9a-f]{12}", clean)
    (tmp_path / "file").write_text("two")
    assert deploy.versions.versions()["revision"] == f"{clean}-dirty"
    monkeypatch.setenv("PATH", "")
    assert "revision" not in deploy.versions.versions(), "a machine without git"


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy.versions, "PACKAGES", ("no-such-package",))
    assert deploy.versions.versions()["no-such-package"] == "not installed"


# --- completion -------------------------------------------------------------------------------------------------------

SHELL = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(( $# - 1 ))
_shtab_breakwater breakwater "${@: -1}" ""
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script for bash, as a user writes it to a file."""
    path = tmp_path_factory.mktemp("completion") / "breakwater"
    command = [sys.executable, "-m", "deploy.cli", "completion", "bash"]
    path.write_bytes(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
    return path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ch", {"check"}),
        ("certs ", {"init", "issue", "revoke"}),
        ("certs init --h", {"--help", "--host"}),
        ("run deploy/configs/a9", {"deploy/configs/a9a.toml"}),
        ("run README", {""}),
        ("check deploy/con", {"deploy/configs/"}),
        ("client --attack ali", {"alie"}),
        ("doctor --tls doc", {"docs"}),
        ("doctor --config deploy/configs/demo.", {"deploy/configs/demo.toml"}),
        ("completion ", {"bash", "zsh", "tcsh"}),
        ("sweep benchmarks/experiments/cl", {"benchmarks/experiments/clipping-a9a.toml"}),
        ("sweep --out doc", {"docs"}),
        ("report deploy/con", {"deploy/configs"}),
        ("report docs --out README.m", {"README.md"}),
        ("suspects deploy/con", {"deploy/configs"}),
        ("watch deploy/con", {"deploy/configs"}),
        ("watch --tls doc", {"docs"}),
        ("watch --j", {"--json"}),
    ],
)
def test_bash_completes(words: str, expected: set[str], script: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    command = [bash, "--norc", "-c", SHELL, "bash", str(script), "breakwater", *words.split(" ")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stderr == ""
    assert set(ended.stdout.split("\n")) - {""} == expected - {""}


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_have_a_script_with_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("completion", shell) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in commands())
    assert "*.toml" in said
    program = shutil.which(shell)
    if program is not None:
        subprocess.run([program, "-n"], input=said, text=True, check=True)  # reads it and runs nothing
