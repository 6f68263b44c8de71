"""A local run in a child process of the caller's program, and the program that the child runs.

A script, a notebook or a thread may ask for a run: none of them can be forked from, has signal handlers of ours, or may
be imported again. So a fresh interpreter is the launcher, as on the command line. A socket joins the two: the caller
sends the options, the child sends back what went wrong. When the caller is gone, however it went, the socket closes,
and the child ends the run in order.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from deploy.environment import with_ours_first
from foundation.errors import BreakwaterError, ConfigError, ProcessEnded

LONGEST_S = 90.0
"""How long a child that was asked to end may take; its server writes its results first."""

_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class ChildOptions:
    """A run for a child process.

    Args:
        config: as TOML.
        out: the run folder.
        data: folder of data files.
        config_dir: folder of the config file, for custom tasks.
        quiet: print nothing but problems.
        attackers: names of the clients that attack, where clients have their own data.
        server_data: folder of the server's test set, in the same case.
    """

    config: str
    out: str
    data: str | None = None
    config_dir: str | None = None
    quiet: bool = False
    attackers: Sequence[str] = ()
    server_data: str | None = None


def run_in_child(options: ChildOptions) -> None:
    """Run a federation of processes to its end; no process is left behind, whatever happens.

    Its output goes to this process's own, line by line where ``sys.stdout`` is not the file that a child inherits.

    Args:
        options: of the run.

    Raises:
        ConfigError: the config, its task or the run folder cannot be used.
        BreakwaterError: the run could not be completed.
        KeyboardInterrupt: Ctrl-C; the run has then ended in order.
    """
    inherited = _inherited(sys.stdout, 1) and _inherited(sys.stderr, 2)
    here, there = socket.socketpair()
    with here:
        with there:
            process = subprocess.Popen(  # ourselves
                [sys.executable, "-P", "-m", "deploy.child"],
                env={**os.environ, **with_ours_first()},
                stdin=there.fileno(),
                stdout=None if inherited else subprocess.PIPE,
                stderr=None if inherited else subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
            )
        try:
            with suppress(OSError):  # it has ended already
                here.sendall(json.dumps(vars(options)).encode() + b"\n")
            for line in process.stdout or ():
                print(line, end="", flush=True)
            process.wait()
        except BaseException:
            _end(process)
            raise
        finally:
            if process.stdout is not None:
                process.stdout.close()
        answer = _received(here)
    _check(process.returncode, answer)


def _inherited(stream: Any, number: int) -> bool:
    """Return whether what a child writes to this file descriptor comes out where the stream writes."""
    try:
        stream.flush()
        return bool(stream.fileno() == number)
    except (OSError, ValueError, AttributeError):
        return False


def _end(process: subprocess.Popen[str]) -> None:
    """End the child in order, and wait for that, through further interrupts; in the end kill it."""
    until = time.monotonic() + LONGEST_S
    process.terminate()
    if process.stdout is not None:  # what it still writes must not hold it up
        threading.Thread(target=_drain, args=(process.stdout,), daemon=True).start()
    while process.returncode is None:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except KeyboardInterrupt:  # the first one has been taken
            continue
        except subprocess.TimeoutExpired:
            process.kill()


def _drain(stream: IO[str]) -> None:
    with suppress(OSError, ValueError):
        while stream.read(1 << 12):
            pass


def _received(channel: socket.socket) -> dict[str, Any]:
    """Return what the child has sent before it ended; nothing if it was killed."""
    channel.setblocking(False)  # whoever inherited the other end does not matter
    parts = []
    with suppress(OSError):
        while part := channel.recv(1 << 16):
            parts.append(part)
    try:
        answer = json.loads(b"".join(parts))
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _check(status: int, answer: dict[str, Any]) -> None:
    """Raise what went wrong in the child, if it is more than a run that ended early with its results written."""
    text = str(answer.get("text", ""))
    if answer.get("invalid"):
        raise ConfigError(text)
    if text:
        raise ProcessEnded(text)
    if status < 0:
        raise ProcessEnded(f"the process of the run was killed by {signal.Signals(-status).name}")
    if status and not answer:
        raise ProcessEnded(f"the process of the run ended with status {status}")


# --- in the child ----------------------------------------------------------------------------------------------------


def main() -> int:
    """Run what the caller asks for; return the exit status."""
    channel = _prepare()
    options = ChildOptions(**json.loads(_line(channel)))
    threading.Thread(target=_watch, args=(channel,), name="caller-watch", daemon=True).start()

    from deploy import streams
    from deploy.environment import settle

    streams.prepare()
    settle()
    status, answer = _run(options)
    with suppress(OSError):
        channel.sendall(json.dumps(answer).encode())
    return status


def _prepare() -> socket.socket:
    """Return the socket to the caller, which is our standard input; let signals end us until there is more to end."""
    number = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    return socket.socket(fileno=number)


def _line(channel: socket.socket) -> bytes:
    with channel.makefile("rb", buffering=0) as reader:
        return reader.readline()


def _watch(channel: socket.socket) -> None:
    """End this process in order when the caller is gone."""
    with suppress(OSError):
        while channel.recv(1):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


def _run(options: ChildOptions) -> tuple[int, dict[str, Any]]:
    """Run the federation; return the exit status, and what the caller must know of it."""
    from deploy.local import LocalOptions, run_local
    from experiment.config import parse
    from foundation.signals import raising
    from server.monitor.exporters import Monitoring
    from server.run_folder.reader import read_summary

    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        print(line, file=sys.stderr, flush=True)

    out = Path(options.out)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with raising(for_good=True):
            local = LocalOptions(
                config=parse(options.config),
                out=out,
                data=None if options.data is None else Path(options.data),
                config_dir=None if options.config_dir is None else Path(options.config_dir),
                monitoring=Monitoring(quiet=options.quiet),
                silent=options.quiet,
                attackers=options.attackers,
                server_data=None if options.server_data is None else Path(options.server_data),
            )
            status = run_local(local, say)
    except KeyboardInterrupt:
        return _INTERRUPTED, {"status": _INTERRUPTED}
    except BreakwaterError as error:
        return 1, {"text": str(error), "invalid": isinstance(error, ConfigError)}
    if status in (0, _INTERRUPTED) or (read_summary(out) or {}).get("status") == "stalled":
        return status, {"status": status}
    if status == 2:
        return status, {"text": f"a client could not use the experiment; see {out / 'logs'}", "invalid": True}
    return status, {"text": said[-1] if said else _last_error(out / "logs" / "server.log")}


def _last_error(log: Path) -> str:
    """Return why a server ended, from its log."""
    with suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line.partition(": ")[2] for line in lines if " ERROR " in line[:40]]
        if errors:
            return errors[-1]
    return f"the run ended early; see {log}"


if __name__ == "__main__":
    sys.exit(main())
