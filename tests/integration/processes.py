"""Real processes for the integration tests: started, listened to, signalled and always reaped.

Every process that a test starts carries a mark in its environment, and so does whatever that starts: what is left
behind is found in /proc, however it was forked.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).with_name("breakwater")
SOON_S = 60.0
"""A bound for what takes a few seconds, on a machine that is busy."""

DIGITS = """
[federation]
clients = 5
seed = 3
[task]
kind = "digits"
model = "softmax"
[strategy]
kind = "byz-vr-marina-pp"
rounds = 1000000
gamma = 0.3
p = 0.2
cohort = 4
batch = 16
alpha = 2.0
"""
"""A small federation without attackers that runs until it is told to stop; tests add to it by --set."""

ATTACKED = ("federation.byzantine=2", "attack.kind=alie", "attack.view=omniscient", "attack.z=1.06")
"""What makes attackers of two clients of DIGITS."""


def until(condition: Callable[[], object], what: str, timeout_s: float = SOON_S) -> None:
    """Wait for what no event tells of."""
    end, tick = time.monotonic() + timeout_s, threading.Event()
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s:g} s in vain: {what}"
        tick.wait(0.05)


def sets(*changes: str) -> list[str]:
    """Return the changes as options of the command line."""
    return [word for change in changes for word in ("--set", change)]


def free_address() -> str:
    """Return a loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def rounds_of(out: Path) -> list[dict[str, Any]]:
    """Return the rounds that a run has written so far. NaN and infinity are no JSON and fail here."""
    path = out / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line, parse_constant=_refuse) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def summary_of(out: Path) -> dict[str, Any]:
    """Return the summary of a run that has ended."""
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"), parse_constant=_refuse)
    return summary


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


class Begun(Protocol):
    """What ``Process`` needs of a process that has begun; ``subprocess.Popen`` is one."""

    pid: int
    stdout: IO[str] | None
    stderr: IO[str] | None

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...

    def kill(self) -> None: ...


def _begin(command: list[str], env: dict[str, str], folder: Path = ROOT) -> Begun:
    return subprocess.Popen(
        command,
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


class Process:
    """One running command; what it says is collected line by line as it comes."""

    def __init__(
        self, command: Sequence[str | Path], env: dict[str, str], begin: Callable[..., "Begun"] | None = None
    ) -> None:
        self.out: list[str] = []
        self.err: list[str] = []
        self.began = time.monotonic()
        self._said = threading.Condition()
        self.command = [str(word) for word in command]
        self._popen = (begin or _begin)(self.command, env)
        self.pid = self._popen.pid
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self._popen.stdout, self.out), (self._popen.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def line(self, pattern: str, timeout_s: float = SOON_S) -> re.Match[str]:
        """Wait for a line, on standard output or standard error, that the pattern is found in."""

        def find() -> re.Match[str] | None:
            return next((match for line in (*self.out, *self.err) if (match := re.search(pattern, line))), None)

        with self._said:
            self._said.wait_for(lambda: find() or not any(r.is_alive() for r in self._readers), timeout_s)
            match = find()
        assert match, f"no line {pattern!r} in\n{self.said()}"
        return match

    def wait(self, timeout_s: float = SOON_S) -> int:
        """Wait for the end; return the exit status."""
        try:
            status = self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout_s:g} s:\n{self.said()}") from None
        for reader in self._readers:
            reader.join(timeout_s)  # ends when all who inherited the pipe have ended
            assert not reader.is_alive(), "somebody still holds the output of a command that has ended"
        return status

    def ends(self, status: int, timeout_s: float = SOON_S) -> None:
        """Wait for the end and check the exit status, and that no traceback was shown."""
        ended = self.wait(timeout_s)
        assert ended == status, f"exit status {ended}, expected {status}:\n{self.said()}"
        assert "Traceback" not in self.said(), self.said()

    def ctrl_c(self) -> None:
        """Interrupt it as a terminal does: the command and all that it has started in its session."""
        with suppress(ProcessLookupError):  # a fork that has ended is gone
            os.killpg(self.pid, signal.SIGINT)

    def running(self) -> bool:
        """Return whether it has not ended yet."""
        return self._popen.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to this process alone."""
        self._popen.send_signal(number)

    def said(self) -> str:
        """Return all that it has said."""
        return "\n".join([*self.out, *self.err])

    def end(self) -> None:
        """Kill it if it runs, and forget it."""
        self._popen.kill()
        self._popen.wait()

    def close(self) -> None:
        """Close the pipes, once everybody who wrote to them has gone."""
        for reader in self._readers:
            reader.join(SOON_S)
        for pipe in (self._popen.stdout, self._popen.stderr):
            if pipe is not None:
                pipe.close()

    def _read(self, pipe: IO[str], lines: list[str]) -> None:
        for line in pipe:
            with self._said:
                lines.append(line.rstrip("\n"))
                self._said.notify_all()
        with self._said:
            self._said.notify_all()


class Processes:
    """Starts processes; at the end of the block none may be left but those that the test holds, which are killed.

    Args:
        folder: where they start.
        command: what ``breakwater`` is.
    """

    def __init__(self, folder: Path = ROOT, command: Path = COMMAND) -> None:
        self._folder, self.command = folder, command
        self._mark = f"BREAKWATER_TEST_MARK={uuid.uuid4().hex}"
        self._started: list[Process] = []

    def __enter__(self) -> Self:
        """Nothing to do yet."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Leave nothing behind, and fail the test if a command that has ended did."""
        unended = [process for process in self._started if process.running()]
        left = {} if unended else self.living()
        for process in self._started:
            process.end()
        for pid in self.living():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._started:
            process.close()
        if kind is None:
            assert not unended, f"the test did not wait for {[process.command for process in unended]}"
            assert not left, f"left behind: {left}"

    def breakwater(self, *arguments: str | Path) -> Process:
        """Start a breakwater command."""
        return self.start(self.command, *arguments)

    def python(self, code: str, *arguments: str) -> Process:
        """Start Python on some code, at the root of the checkout."""
        return self.start(sys.executable, "-c", code, *arguments)

    def start(self, *command: str | Path) -> Process:
        """Start any command."""
        name, _, value = self._mark.partition("=")
        process = Process(command, {**os.environ, name: value}, partial(_begin, folder=self._folder))
        self._started.append(process)
        return process

    def living(self) -> dict[int, str]:
        """Return pid and command line of all processes with our mark; a zombie has none any more."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if self._mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                    found[int(folder.name)] = " ".join(words)
        return found

    def none_left(self, timeout_s: float = SOON_S) -> None:
        """Wait until all have ended."""
        until(lambda: not self.living(), "the end of all processes", timeout_s)

    def holding(self, path: Path) -> int:
        """Return the pid of the process that has a file open: tells the forked processes of a federation apart."""
        for pid in self.living():
            for link in Path(f"/proc/{pid}/fd").glob("*"):
                with suppress(OSError):
                    if link.readlink() == path.resolve():
                        return pid
        raise AssertionError(f"nobody has {path} open")

    def memory_mb(self) -> float:
        """Return the memory of all, each shared page counted once: the sum of their proportional set sizes."""
        kilobytes = 0
        for pid in self.living():
            with suppress(OSError):
                text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
                kilobytes += int(re.findall(r"^Pss: +(\d+) kB", text, re.MULTILINE)[0])
        return kilobytes / 1024


class Proxy:
    """A TCP proxy that counts the bytes it passes on, in both directions.

    Args:
        target: HOST:PORT.
        keep: keep the bytes too, in ``kept``.
    """

    def __init__(self, target: str, *, keep: bool = False) -> None:
        self.up = self.down = 0
        self.kept: list[dict[str, bytearray]] = []
        """What went "up" and "down" on each connection, in the order of their beginnings."""
        self._keep = keep
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads[0].start()

    def close(self) -> None:
        """Take no more connections, and wait for the end of those that are open."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(SOON_S)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
            except OSError:
                return
            kept = {"up": bytearray(), "down": bytearray()}
            self.kept.append(kept)
            for source, sink, way in ((client, server, "up"), (server, client, "down")):
                thread = threading.Thread(target=self._pump, args=(source, sink, way, kept), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket, way: str, kept: dict[str, bytearray]) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                with self._lock:
                    setattr(self, way, getattr(self, way) + len(data))
                    if self._keep:
                        kept[way] += data
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()
