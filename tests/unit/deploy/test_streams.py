"""Standard output that cannot be written: dropped where it is a convenience, an error where it is the result."""

import errno
import io
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import files
from deploy.cli import main
from deploy.streams import OutputLost, Sink
from foundation.errors import ConfigError

ROOT = Path(__file__).parents[3]
DEMO = str(ROOT / "deploy" / "configs" / "demo.toml")


@pytest.fixture
def full() -> Iterator[int]:
    fd = os.open("/dev/full", os.O_WRONLY)
    yield fd
    os.close(fd)


def test_a_full_disk_is_told_once_and_tried_again(full: int, monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    sink = Sink(full, said)
    assert sink.write(b"abc") == 3
    assert sink.write(b"abc") == 3
    assert said.getvalue() == "breakwater: standard output: No space left on device; continuing without it\n"
    written: list[bytes] = []

    def write(fd: int, data: bytes) -> int:
        written.append(bytes(data))
        return len(data)

    monkeypatch.setattr(os, "write", write)
    assert sink.write(b"room") == 4
    assert written == [b"room"]


def test_a_reader_that_has_left_is_no_news() -> None:
    read, write = os.pipe()
    os.close(read)
    said = io.StringIO()
    sink = Sink(write, said)
    assert [sink.write(b"abc"), sink.write(b"abc")] == [3, 3]
    assert said.getvalue() == ""
    assert os.write(write, b"as a library of C would") == 23
    os.close(write)


def test_output_that_is_the_result_raises_once(full: int) -> None:
    sink = Sink(full)
    sink.strict = True
    with pytest.raises(OutputLost, match=r"^standard output: No space left on device$") as lost:
        sink.write(b"abc")
    assert not lost.value.reader_left
    assert sink.write(b"abc") == 3


def test_a_busy_terminal_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    answers: list[OSError | int] = [BlockingIOError(errno.EAGAIN, "busy"), 3]

    def busy(fd: int, data: bytes) -> int:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(os, "write", busy)
    assert Sink(write).write(b"abc") == 3
    for fd in (read, write):
        os.close(fd)


def test_closed_streams_are_opened_on_nothing() -> None:
    code = (
        "import os, sys\n"
        "for fd in range(3): os.close(fd)\n"
        "sys.stdin = sys.stdout = sys.stderr = None\n"
        "from deploy.streams import prepare\n"
        "prepare()\n"
        "print('dropped'); print('dropped', file=sys.stderr)\n"
        "good = sys.stdin.read() == '' and os.open('/dev/null', os.O_RDONLY) > 2\n"
        "good = good and all(os.get_inheritable(fd) for fd in range(3))\n"
        "os._exit(7 if good else 1)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, b"", b"")


# --- folders and files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", DEMO, "--out", "blocker/out"),
        ("run", DEMO, "--out", "n" * 300),
        ("server", DEMO, "--listen", "127.0.0.1:0", "--out", "blocker/out"),
        ("client", "--connect", "127.0.0.1:1", "--name", "a", "--patience", "0", "--log-file", "blocker/a.log"),
        ("client", "--connect", "127.0.0.1:1", "--name", "a", "--patience", "0", "--log-file", "."),
        ("demo", "--out", "blocker/out"),
        ("certs", "init", "blocker/certs", "--host", "localhost"),
        ("sweep", str(ROOT / "benchmarks" / "experiments" / "clipping-a9a.toml"), "--reduced", "--out", "blocker/s"),
    ],
)
def test_what_cannot_be_made_is_one_line(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blocker").touch()
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    given = arguments[2] if arguments[0] == "certs" else arguments[-1]
    assert line.startswith("breakwater: error: ")
    assert given in line
    assert [path.name for path in tmp_path.iterdir()] == ["blocker"]


@pytest.mark.parametrize(
    ("limit", "raised"),
    [((64, 256), [(190, 256)]), ((64, resource.RLIM_INFINITY), [(190, -1)]), ((190, 190), []), ((-1, -1), [])],
)
def test_the_soft_limit_of_open_files_is_raised(
    limit: tuple[int, int], raised: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limit)
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: found.append(new))
    files.allow(files.for_server(30), "a run of 30 clients")
    assert found == raised


def test_a_hard_limit_that_is_too_low_names_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 128))
    with pytest.raises(ConfigError, match=r"30 clients needs up to 190 open files, and the limit is 128 .*to 190"):
        files.allow(files.for_server(30), "a run of 30 clients")
