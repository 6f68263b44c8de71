"""However a run ends, and whatever becomes of its output, its results are there and no process is left."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.fork_server import ForkServer
from tests.integration.processes import COMMAND, ROOT, Process, Processes, free_address, rounds_of, summary_of, until

pytestmark = pytest.mark.slow

CONFIG = """
[federation]
clients = 2
seed = 1
join_timeout_s = 30.0
[task]
kind = "digits"
model = "softmax"
[strategy]
kind = "robust-sgd"
rounds = {rounds}
gamma = 0.5
[evaluation]
every = 2
"""


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    path = tmp_path / "endless.toml"
    path.write_text(CONFIG.format(rounds=10_000_000), encoding="utf-8")
    return path


@pytest.fixture
def short(tmp_path: Path) -> Path:
    path = tmp_path / "short.toml"
    path.write_text(CONFIG.format(rounds=6), encoding="utf-8")
    return path


def helper(processes: Processes) -> int:
    """Return the pid of the process that the others are forked from."""
    helpers = [pid for pid, line in processes.living().items() if "multiprocessing.forkserver" in line]
    (first,) = (pid for pid in helpers if _parent(pid) not in helpers)
    return first


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[1])


def twice(run: Process, number: signal.Signals) -> None:
    """Send a signal to the command and to its group, as `timeout` does."""
    run.send(number)
    os.killpg(run.pid, number)


ENDINGS: dict[str, tuple[int, str, Callable[[Process, Processes, Path], None]]] = {
    "a closed terminal": (130, "interrupted", lambda run, all_, out: os.killpg(run.pid, signal.SIGHUP)),
    "timeout": (130, "interrupted", lambda run, all_, out: twice(run, signal.SIGTERM)),
    "SIGHUP to the server": (
        130,
        "the server was stopped by a signal",
        lambda run, all_, out: os.kill(all_.holding(out / "metrics.jsonl"), signal.SIGHUP),
    ),
    "the helper killed": (
        1,
        "the helper process that started all others was killed",
        lambda run, all_, out: os.kill(helper(all_), signal.SIGKILL),
    ),
    "the launcher killed": (-signal.SIGKILL, "", lambda run, all_, out: run.send(signal.SIGKILL)),
}
"""How a run is ended in its midst: the exit status, what is said, and the deed."""


@pytest.mark.parametrize("how", ENDINGS)
def test_a_run_that_is_ended_leaves_all_its_results(
    processes: Processes, endless: Path, tmp_path: Path, how: str
) -> None:
    status, said, end = ENDINGS[how]
    run = processes.breakwater("run", endless, "--out", out := tmp_path / "run")
    until(lambda: len(rounds_of(out)) >= 4 or not run.running(), "four rounds")
    end(run, processes, out)
    run.ends(status)
    assert said in run.said()
    processes.none_left()
    summary, rounds = summary_of(out), rounds_of(out)
    assert (summary["status"], summary["rounds"]) == ("interrupted", len(rounds))
    assert [line["round"] for line in rounds] == list(range(1, len(rounds) + 1))
    assert all(line["rejected"] == [] for line in rounds), "clients end after their server"
    assert {"config.toml", "model.safetensors", "report.html"} <= {path.name for path in out.iterdir()}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_server_that_is_ended_while_it_waits_for_clients_leaves_a_summary(
    forked: ForkServer, endless: Path, tmp_path: Path, number: signal.Signals
) -> None:
    server = forked.breakwater("server", endless, "--listen", "127.0.0.1:0", "--out", out := tmp_path / "run")
    server.line("^listening on ")
    until(lambda: "waiting for" in (out / "logs" / "server.log").read_text(encoding="utf-8"), "the server to wait")
    server.send(number)
    server.ends(130)
    summary = summary_of(out)
    assert (summary["status"], summary["rounds"], summary["loss"]) == ("interrupted", 0, None)
    assert (out / "report.html").exists()


def test_a_hung_up_server_goes_on_and_one_under_nohup_is_not_hung_up(
    forked: ForkServer, endless: Path, tmp_path: Path
) -> None:
    address, out = free_address(), tmp_path / "run"
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    server = forked.breakwater("server", endless, "--listen", address, "--out", out)
    clients = [forked.breakwater("client", "--connect", address, "--name", name) for name in "ab"]
    until(lambda: len(rounds_of(out)) >= 4, "four rounds")
    server.send(signal.SIGHUP)
    server.ends(130)
    server.line(r"^breakwater: interrupted; `breakwater server --resume .*` continues it$")
    before = summary_of(out)["rounds"]
    checkpoints = sorted((out / "checkpoints").iterdir())
    assert checkpoints[-1].stem == f"{before:08d}", "the last round is in a checkpoint"

    more = f"strategy.rounds={before + 400}"
    server = forked.breakwater("server", "--resume", out, "--set", more, prelude=ignoring)
    until(lambda: len(rounds_of(out)) > before, "a round of the next server")
    server.send(signal.SIGHUP)
    server.ends(0)
    for client in clients:
        client.ends(0)
    assert (summary_of(out)["status"], summary_of(out)["starts"]) == ("finished", 2)


# --- output -----------------------------------------------------------------------------------------------------------

OUTPUTS = {
    "a full disk": (">/dev/full", "standard output: No space left on device; continuing without it"),
    "closed": (">&- 2>&- <&-", ""),
    "a reader that leaves": ("| head -1", ""),
}


@pytest.mark.parametrize("what", OUTPUTS)
def test_a_run_whose_output_cannot_be_written_is_complete(
    processes: Processes, short: Path, tmp_path: Path, what: str
) -> None:
    redirection, said = OUTPUTS[what]
    command = f'set -o pipefail; "$0" run "$1" --out "$2" {redirection}'
    run = processes.start("bash", "-c", command, COMMAND, short, out := tmp_path / "run")
    run.ends(0)
    processes.none_left()
    assert said in run.said()
    assert len(run.err) <= 1
    assert (summary_of(out)["status"], len(rounds_of(out))) == ("finished", 6)
    assert (out / "report.html").exists()


def test_a_run_needs_no_short_folder_for_temporary_files_and_no_name_that_can_be_shown(
    processes: Processes, short: Path, tmp_path: Path
) -> None:
    long = tmp_path / ("t" * 120)
    long.mkdir()
    out = tmp_path / os.fsdecode(b"l\xc3\xa4uf-\xff")
    run = processes.start("env", f"TMPDIR={long}", "PYTHONIOENCODING=ascii", COMMAND, "run", short, "--out", out)
    run.ends(0)
    run.line(r"run folder .*l\\xe4uf-\\udcff")
    assert summary_of(out)["status"] == "finished"
    assert (out / "report.html").exists()


def test_too_few_open_files_are_told_before_anything_starts(processes: Processes, short: Path, tmp_path: Path) -> None:
    command = 'ulimit -n 64; exec "$0" run "$1" --out "$2"'
    run = processes.start("bash", "-c", command, COMMAND, short, out := tmp_path / "run")
    run.ends(2)
    (line,) = run.err
    assert line.startswith("breakwater: error: a run of 2 clients needs up to 162 open files, and the limit is 64")
    assert not out.exists()


def test_a_disk_that_is_full_in_the_midst_of_a_run_gives_one_line_and_no_traceback(
    processes: Processes, tmp_path: Path
) -> None:
    unshare = shutil.which("unshare")
    probe = ["unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(tmp_path)]
    if unshare is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system of its own")
    config, disk = tmp_path / "config.toml", tmp_path / "disk"
    config.write_text(CONFIG.format(rounds=1500).replace("30.0", "4.0"), encoding="utf-8")
    disk.mkdir()
    command = (
        'mount -t tmpfs -o size=200k tmpfs "$2" && "$0" run "$1" --out "$2/run" --set checkpoint.every=0 > "$2/log"; '
        'status=$?; tail -c 1 "$2/run/metrics.jsonl" | od -An -c; cat "$2/run/summary.json"; exit $status'
    )
    run = processes.start("unshare", "-m", "bash", "-c", command, COMMAND, config, disk)
    run.ends(1)
    run.line("the results cannot be written: No space left on device; fix that, then ")
    run.line(r"^ +\\n$")
    run.line(r'"status": "finished"')
    run.line(r'"rounds": [1-9]\d*,')  # those that the metrics lack
    processes.none_left()


def test_output_that_is_the_result_must_be_written(processes: Processes) -> None:
    demo = ROOT / "deploy" / "configs" / "demo.toml"
    check = processes.start("bash", "-c", '"$0" check "$1" > /dev/full', COMMAND, demo)
    check.ends(1)
    assert check.err == ["breakwater: error: standard output: No space left on device"]
