"""The command line: invalid input of any kind ends with status 2, one clear line and no traceback."""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.cli import main
from deploy.commands import check
from deploy.commands.options import out_dir
from foundation.origin import examples

ROOT = Path(__file__).parents[3]
DEMO = str(ROOT / "deploy" / "configs" / "demo.toml")
A9A = str(ROOT / "deploy" / "configs" / "a9a.toml")


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder, and no data folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BREAKWATER_DATA", raising=False)


def status(*arguments: str) -> int:
    try:
        return main(arguments)
    except SystemExit as end:  # argparse ends this way
        return int(end.code or 0)


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line that these arguments cause."""
    assert status(*arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert re.match(r"breakwater( \w+)*: error: ", output.err)
    assert output.err.count("\n") == 1
    assert output.err.endswith("\n")
    return output.err.strip()


# --- refused by the parser ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["--fly"], "required: COMMAND"),
        (["run"], "required: CONFIG.toml"),
        (["run", DEMO, "--fly"], "unrecognized arguments: --fly"),
        (["run", DEMO, "--set"], "--set: expected one argument"),
        (["server", DEMO], "required: --listen"),
        (["server"], "required: CONFIG.toml, --listen; or only --resume DIR"),
        (["server", DEMO, "--resume", "d", "--out", "e"], "--resume DIR writes to DIR: omit --out"),
        (["client", "--name", "a"], "required: --connect"),
        (["client", "--connect", "h:1"], "required: --name, or --tls"),
        (["client", "--connect", "h:1", "--name", "a", "--worker", "x"], "--worker: invalid int value: 'x'"),
        (["client", "--connect", "h:1", "--name", "a", "--patience", "x"], "--patience: invalid float value: 'x'"),
        (["check"], "required: CONFIG.toml"),
        (["certs"], "required: COMMAND"),
        (["certs", "init", "d"], "required: --host"),
        (["certs", "issue", "d"], "required: NAME"),
    ],
)
def test_invalid_arguments(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = complaint(capsys, *arguments)
    assert words in output
    assert "--help)" in output


def test_a_run_that_does_not_exist_is_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = complaint(capsys, "server", "--resume", str(tmp_path / "none"))
    assert output.endswith("none: no run of `breakwater server` is there (run.json is missing)")
    assert not (tmp_path / "none").exists()


# --- refused by the commands ---


@pytest.mark.parametrize("command", [["check"], ["run"], ["server", "--listen", "127.0.0.1:0"]])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent.toml"], f"absent.toml: no such file; {examples()}"),
        ([DEMO, "--set", "strategy.round=3"], "[strategy] round: unknown key; did you mean rounds?"),
        ([DEMO, "--set", "rounds=3"], "--set rounds=3: must read section.key=value"),
        (
            [DEMO, "--set", "federation.byzantine=5"],
            "federation.byzantine = 5 of clients = 10: no rule withstands half",
        ),
        ([DEMO, "--set", "strategy.kind=fedavg"], '[strategy] kind = "fedavg": unknown'),
        ([DEMO, "--data", "nowhere"], "--data nowhere: no such folder"),
    ],
)
def test_experiments_that_cannot_be_run(
    command: list[str], arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in complaint(capsys, command[0], *arguments, *command[1:])


def test_every_problem_of_a_config_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("check", DEMO, "--set", "strategy.p=3.0", "--set", "evaluation.every=0") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"breakwater: error: {DEMO}: [") for line in lines)


def test_a_data_folder_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("BREAKWATER_DATA", "nowhere")
    assert "BREAKWATER_DATA nowhere: no such folder" in complaint(capsys, "check", DEMO)
    assert status("check", DEMO, "--data", str(tmp_path)) == 0, "the option takes precedence over the environment"
    monkeypatch.setenv("BREAKWATER_DATA", "")
    assert status("check", DEMO) == 0


def test_a_data_folder_that_is_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    assert "--data file: no such folder" in complaint(capsys, "check", DEMO, "--data", "file")


@pytest.mark.parametrize("command", [["demo"], ["run", DEMO], ["server", DEMO, "--listen", "127.0.0.1:0"]])
def test_a_run_folder_that_is_taken(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("full").mkdir()
    (Path("full") / "precious").write_text("x")
    Path("file").write_text("")
    for out in ("full", "file"):
        output = complaint(capsys, *command, "--out", out)
        assert f"--out {out}: exists and is not an empty folder; choose another one or remove it" in output
    assert (Path("full") / "precious").read_text() == "x"


def test_attackers_without_an_attack(capsys: pytest.CaptureFixture[str]) -> None:
    text = Path(DEMO).read_text()
    Path("plain.toml").write_text(text[: text.index("\n[attack]")])
    output = complaint(capsys, "run", "plain.toml", "--out", "out")
    assert "federation.byzantine = 3 without an [attack] section" in output
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("listen", "words"),
    [
        ("nonsense", "must be HOST:PORT"),
        ("127.0.0.1:99999", "a port from 0 to 65535"),
        ("127.0.0.1", "must be HOST:PORT"),
    ],
)
def test_an_address_that_cannot_be_listened_on(listen: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in complaint(capsys, "server", DEMO, "--listen", listen, "--set", "task.model=softmax")


def test_data_that_a_server_needs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = complaint(capsys, "server", A9A, "--listen", "127.0.0.1:0", "--data", str(tmp_path))
    assert "[task] " in output
    assert "a9a.gz" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seats", "2"], "--seats 2: only a coalition (--attack KIND) holds more than one seat"),
        (["--seats", "0", "--attack", "bf"], "--seats 0"),
        (["--config", "absent.toml"], "absent.toml: no such file"),
        (["--data", "nowhere"], "--data nowhere: no such folder"),
    ],
)
def test_invalid_clients(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in complaint(capsys, "client", "--connect", "127.0.0.1:1", "--name", "a", *arguments)


# --- success, interruption, closed output ---


def test_check_explains_a_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("check", DEMO, "--set", "aggregator.kind=mean") == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert output.out.startswith("clients      10, of which up to 3 Byzantine (30 %); seed 1\n")
    assert "\ntask         digits: d = 2410 (float32), m = 144 samples a client\n" in output.out
    assert '\nwarning      aggregator.kind = "mean" defends against nobody' in output.out


def test_check_succeeds_without_the_data_only_if_told_not_to_load_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert status("check", A9A, "--data", str(tmp_path)) == 2
    assert "a9a.gz" in capsys.readouterr().err
    assert status("check", A9A, "--data", str(tmp_path), "--no-load") == 0
    assert "\ntask         logistic; not loaded (--no-load)" in capsys.readouterr().out


def test_check_of_an_own_task_looks_beside_the_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = Path(DEMO).read_text()
    start, end = text.index("\n[task]"), text.index("\n[strategy]")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "own.toml").write_text(
        f'{text[:start]}\n[task]\nkind = "custom"\npath = "own.py:Own"\n{text[end:]}'
    )
    assert status("check", "sub/own.toml") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("breakwater: error: [task] path")
    assert f"there is no file {tmp_path / 'sub' / 'own.py'}" in line


def test_the_default_run_folder_is_named_after_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    options = argparse.Namespace(out=None)
    assert re.fullmatch(r"runs/a9a-\d{8}-\d{6}", str(out_dir(options, "a9a")))


def test_an_interrupted_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(options: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "_check", interrupted)
    assert status("check", DEMO) == 130
    assert capsys.readouterr().err == "breakwater: interrupted\n"


def test_closed_output_is_no_error() -> None:
    """``breakwater --help | head -0`` and similar: the status is 1, and nothing is printed."""
    code = (
        "import os, sys\n"
        "from deploy.cli import main\n"
        "read, write = os.pipe()\n"
        "os.close(read)\n"
        "os.dup2(write, 1)\n"
        f"sys.exit(main(['check', {DEMO!r}, '--set', 'task.model=softmax']))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, "")
