"""``breakwater.run`` where people call it: scripts, threads, event loops, notebooks; and how it ends."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import failing_task, test_stalled
from tests.integration.processes import DIGITS, SOON_S, Processes, rounds_of, summary_of, until

pytestmark = pytest.mark.slow

SHORT = {"strategy.rounds": 5, "evaluation.every": 5}
WRONG = [
    {"strategy.rounds": 0},
    {"task.kind": "custom", "task.path": "missing.py:Task"},
    {"federation.byzantine": 1},
]
ENDLESS = {"strategy.rounds": 1_000_000, "evaluation.every": 1_000_000}


@pytest.fixture
def processes() -> Iterator[Processes]:
    with Processes() as started:
        yield started


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "digits.toml"
    path.write_text(DIGITS, encoding="utf-8")
    return path


def call(config: Path, out: Path, overrides: object = None, **options: object) -> str:
    """Return the call as a line of Python."""
    options = {"overrides": SHORT if overrides is None else overrides, "out": str(out), **options}
    return f"bw.run({str(config)!r}, {', '.join(f'{name}={value!r}' for name, value in options.items())})"


def decoys(folder: Path) -> Path:
    """Return a folder whose files have the names of our packages, and end whoever imports them."""
    for name in ("server", "client", "strategies", "deploy"):
        (folder / f"{name}.py").write_text("raise SystemExit('a decoy was imported')\n", encoding="utf-8")
    return folder


def test_it_runs_in_a_script_a_thread_and_an_event_loop_with_the_same_bits(
    processes: Processes, config: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("plain", "thread", "loop", "here", "loop-here", "thread-here")]
    attacked = {**SHORT, "federation.byzantine": 2, "attack.kind": "alie", "attack.view": "omniscient", "attack.z": 1.0}
    plain, thread, loop = (call(config, out, attacked, quiet=True) for out in folders[:3])
    here, loop_here, thread_here = (call(config, out, attacked, processes=False, quiet=True) for out in folders[3:])
    code = f"""
import asyncio, os, threading, sys
import breakwater as bw
os.chdir({str(decoys(tmp_path))!r})
runs = [{plain}]  # no "if __name__": this file must not be run again by a child
async def within(run):
    runs.append(run())
def in_thread(run):
    thread = threading.Thread(target=lambda: runs.append(run()))
    thread.start(); thread.join()
in_thread(lambda: {thread})
asyncio.run(within(lambda: {loop}))
runs.append({here})
asyncio.run(within(lambda: {loop_here}))
in_thread(lambda: {thread_here})
assert len(runs) == 6 and {{run.status for run in runs}} == {{"finished"}}, runs
first = runs[0]
assert first.config.folder is None and first.metrics["round"].tolist() == [1, 2, 3, 4, 5]
for run in runs:
    assert (run.model == first.model).all(), run
    assert (run.bytes_up, run.loss, run.accuracy) == (first.bytes_up, first.loss, first.accuracy), run
    assert [s.name for s in run.suspects()] == [s.name for s in first.suspects()], run
print("all equal")
"""
    script = tmp_path / "script.py"
    script.write_text(code, encoding="utf-8")
    process = processes.start(
        sys.executable, "-P", script
    )  # the decoys are there for children, which start in that folder
    process.ends(0, 3 * SOON_S)
    assert process.said() == "all equal"
    assert all(rounds_of(out) for out in folders)


def test_output_goes_where_a_notebook_has_its_own_and_errors_are_one_line(
    processes: Processes, config: Path, tmp_path: Path
) -> None:
    code = f"""
import io, sys
import breakwater as bw
shown, sys.stdout = sys.stdout, io.StringIO()
{call(config, tmp_path / "a")}
text, sys.stdout = sys.stdout.getvalue(), shown
assert "5 of 5 clients joined" in text and "finished after 5 rounds" in text, text
for wrong in {WRONG!r}:
    for apart in (True, False):
        try:
            bw.run({str(config)!r}, overrides={{**{SHORT!r}, **wrong}}, out={str(tmp_path / "b")!r}, processes=apart)
        except bw.ConfigError as error:
            print(str(error).replace({str(tmp_path)!r}, ""))
import os
assert not os.path.exists({str(tmp_path / "b")!r})
try:
    {call(config, tmp_path / "a")}
except bw.ConfigError as error:
    print(error)
os.chdir({str(tmp_path)!r})
print(bw.run({str(config)!r}, overrides={SHORT!r}, quiet=True) is not None)
print(len(os.listdir("runs")))
"""
    process = processes.python(code)
    process.ends(0, 3 * SOON_S)
    assert process.err == []
    missing = '[task] path = "missing.py:Task": there is no file /missing.py; the path is relative to the config file'
    attack = "federation.byzantine = 1 without an [attack] section for a local run: add one, or set federation.byz"
    zero = "/digits.toml: [strategy] rounds = 0: must be greater than or equal to 1"
    assert process.out[:4] == [zero, zero, missing, missing]
    assert all(line.startswith(attack) for line in process.out[4:6])
    assert process.out[6].startswith(f"out {tmp_path / 'a'}: exists and is not an empty folder")
    assert process.out[7:] == ["True", "1"]


@pytest.mark.parametrize("how", ["group", "alone", "killed"])
def test_whatever_ends_the_caller_ends_the_run_in_order(
    processes: Processes, config: Path, tmp_path: Path, how: str
) -> None:
    """Ctrl-C in a terminal reaches the whole group; a notebook's button the caller alone; SIGKILL nobody can handle."""
    out = tmp_path / "run"
    code = f"""
import breakwater as bw
try:
    {call(config, out, ENDLESS, quiet=True)}
except KeyboardInterrupt:
    print("interrupted", bw.Run({str(out)!r}).status)
"""
    process = processes.python(code)
    until(lambda: len(rounds_of(out)) > 3, "the first rounds")
    if how == "group":
        process.ctrl_c()
    else:
        number = {"alone": signal.SIGINT, "killed": signal.SIGKILL}[how]
        os.kill(process.pid, number)
    status = process.wait()
    if how in ("group", "alone"):
        assert (status, process.said()) == (0, "interrupted interrupted")
        assert processes.living() == {}, "all are reaped when run() returns"
    processes.none_left()
    assert summary_of(out)["status"] == "interrupted"


def test_ctrl_c_ends_a_run_in_this_process_in_order(processes: Processes, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code = f"""
import signal
import breakwater as bw
before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
try:
    {call(config, out, ENDLESS, processes=False, quiet=True)}
except KeyboardInterrupt:
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    print(bw.Run({str(out)!r}).status)
"""
    process = processes.python(code)
    until(lambda: len(rounds_of(out)) > 3, "the first rounds")
    process.send(signal.SIGINT)
    process.ends(0)
    assert process.said() == "interrupted"


@pytest.mark.parametrize("apart", [True, False], ids=["processes", "one-process"])
def test_a_run_that_stalls_is_a_run_with_that_status(processes: Processes, tmp_path: Path, apart: bool) -> None:
    shutil.copy(failing_task.__file__, tmp_path)
    path = tmp_path / "exp.toml"
    path.write_text(test_stalled.EXPERIMENT, encoding="utf-8")
    code = f"""
import breakwater as bw
run = {call(path, tmp_path / "run", {"federation.join_timeout_s": 3.0}, processes=apart, quiet=True)}
print(run.status, run.summary["stall"]["text"])
"""
    process = processes.python(code)
    process.ends(0)
    assert process.out[-1].startswith("stalled stalled: nothing since round")


def test_a_run_whose_server_is_killed_is_an_error_of_one_line(
    processes: Processes, config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    code = f"""
import breakwater as bw
try:
    {call(config, out, ENDLESS, quiet=True)}
except bw.BreakwaterError as error:
    print(type(error).__name__, error, bw.Run({str(out)!r}).status)
"""
    process = processes.python(code)
    until(lambda: len(rounds_of(out)) > 3, "the first rounds")
    os.kill(processes.holding(out / "metrics.jsonl"), signal.SIGKILL)
    process.ends(0)
    assert process.out[0].startswith("ProcessEnded the server was killed by SIGKILL; the run ends here")
    assert process.out[0].endswith("killed")
    processes.none_left()
