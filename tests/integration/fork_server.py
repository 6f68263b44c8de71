"""Breakwater commands as forks of one process that has imported everything: real processes, up in a tenth of a second.

Each has its own pid, session, output and end, as one that was started on the command line has; only the two seconds of
imports are spared. The forking process has a single thread and opens no connection, which makes forking it safe, as in
``breakwater run``. It answers on a socket: a request comes with the two pipes of the new process.
"""

import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from tests.integration.processes import COMMAND, ROOT, SOON_S, Process, Processes

_LONGEST = 1 << 16
"""Of a message on the socket, in bytes."""


class ForkServer(Processes):
    """Forks commands for one test after the other; ``swept`` is to be called between them."""

    def __enter__(self) -> Self:
        """Start the process that forks."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._answers: list[dict[str, int]] = []
        self._told = threading.Condition()
        self._statuses: dict[int, int] = {}
        self._ended = False
        name, _, value = self._mark.partition("=")
        # One thread of arithmetic, as in ``breakwater run``; nothing of gRPC on standard error, as on the command line.
        alone = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "GRPC_VERBOSITY": "none"}
        with theirs:
            self._parent = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.fork_server", str(theirs.fileno())],
                cwd=ROOT,
                env={**os.environ, **alone, name: value},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the process that forks; nobody else may be left."""
        self.swept(strict=kind is None)
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._listener.join(SOON_S)
        self._socket.close()
        assert self._parent.wait(SOON_S) == 0
        super().__exit__(kind, error, at)

    def breakwater(self, *arguments: str | Path, prelude: str = "") -> Process:
        """Fork a breakwater command; ``prelude`` is Python that runs before it."""

        def begin(command: list[str], env: dict[str, str]) -> _Fork:
            return self._fork(command[1:], prelude)

        process = Process([COMMAND, *arguments], {}, begin)
        self._started.append(process)
        return process

    def living(self) -> dict[int, str]:
        """Return all with our mark but the process that forks."""
        return {pid: line for pid, line in super().living().items() if pid != self._parent.pid}

    def swept(self, *, strict: bool) -> None:
        """Kill what is left of a test, and forget it; if ``strict``, complain of what it did not end itself."""
        unended = [process.command for process in self._started if process.running()]
        left = {} if unended else self.living()
        for process in self._started:
            process.end()
        for pid in self.living():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._started:
            process.close()
        self._started.clear()
        assert not (strict and unended), f"the test did not wait for {unended}"
        assert not (strict and left), f"left behind: {left}"

    # --- what a fork needs --------------------------------------------------------------------------------------------

    def status(self, pid: int, timeout_s: float | None) -> int | None:
        """Return the exit status of a fork, waiting for it; None if it has none in time."""
        with self._told:
            self._told.wait_for(lambda: pid in self._statuses or self._ended, timeout_s)
            return self._statuses.get(pid)

    def _fork(self, arguments: list[str], prelude: str) -> "_Fork":
        request = json.dumps({"arguments": arguments, "prelude": prelude}).encode()
        pipes = [os.pipe(), os.pipe()]
        socket.send_fds(self._socket, [request], [write for _, write in pipes])
        for _, write in pipes:
            os.close(write)
        with self._told:
            self._told.wait_for(lambda: self._answers or self._ended, SOON_S)
            assert self._answers, "the process that forks does not answer"
            pid = self._answers.pop(0)["pid"]
        out, err = (os.fdopen(read, encoding="utf-8", errors="replace") for read, _ in pipes)
        return _Fork(pid, out, err, self.status)

    def _listen(self) -> None:
        with suppress(ConnectionError):
            while message := self._socket.recv(_LONGEST):
                answer = json.loads(message)
                with self._told:
                    if "status" in answer:
                        self._statuses[answer["pid"]] = answer["status"]
                    else:
                        self._answers.append(answer)
                    self._told.notify_all()
        with self._told:
            self._ended = True
            self._told.notify_all()


class _Fork:
    """A forked process, with the methods of ``subprocess.Popen`` that ``Process`` calls."""

    def __init__(self, pid: int, out: IO[str], err: IO[str], status: Callable[[int, float | None], int | None]) -> None:
        self.pid = pid
        self.stdout: IO[str] | None = out
        self.stderr: IO[str] | None = err
        self._status = status

    def poll(self) -> int | None:
        return self._status(self.pid, 0)

    def wait(self, timeout: float | None = None) -> int:
        status = self._status(self.pid, timeout)
        if status is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return status

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


# --- the process that forks -------------------------------------------------------------------------------------------


def serve(channel: socket.socket) -> list[str] | None:
    """Fork on request and tell of ends, until the other end hangs up.

    Returns:
        In a fork, the arguments of its command; in the process that forks None, at the end.
    """
    woken, waker = socket.socketpair()
    woken.setblocking(False)
    waker.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    before = signal.set_wakeup_fd(waker.fileno())

    while True:
        readable, _, _ = select.select([channel, woken], [], [])
        if woken in readable:
            woken.recv(_LONGEST)
            for pid, status in iter(_reap, None):
                channel.send(json.dumps({"pid": pid, "status": status}).encode())
        if channel not in readable:
            continue
        message, pipes, _, _ = socket.recv_fds(channel, _LONGEST, 2)
        if not message:
            return None
        request: dict[str, Any] = json.loads(message)
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(before)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for end in (channel, woken, waker):
                end.close()
            os.setsid()
            for number, pipe in enumerate(pipes, 1):
                os.dup2(pipe, number)
                os.close(pipe)
            exec(request["prelude"], {"__name__": "prelude"})  # noqa: S102  # what a test wants of one process
            arguments: list[str] = request["arguments"]
            return arguments
        for pipe in pipes:
            os.close(pipe)
        channel.send(json.dumps({"pid": pid}).encode())


def _reap() -> tuple[int, int] | None:
    """Return pid and exit status of a fork that has ended, if there is one."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, os.waitstatus_to_exitcode(status)) if pid else None


def main() -> int:
    """Import what the commands need, then serve; in a fork, be the command."""
    from deploy.cli import main as command
    from experiment.code import code_fingerprint

    for module in ("client.process", "server.process", "threadpoolctl", "matplotlib.backends.backend_agg"):
        importlib.import_module(module)
    code_fingerprint()  # all forks then have the same one, whatever becomes of the files
    gc.freeze()  # a fork that ends would collect all that was imported, and copy the pages that it shares for it
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        arguments = serve(channel)
    return 0 if arguments is None else command(arguments)


if __name__ == "__main__":
    sys.exit(main())
