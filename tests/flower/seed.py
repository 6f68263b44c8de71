"""Flower's commands as forks of one process that has imported Flower: a deployment starts one for every message.

A SuperNode starts `flwr-clientapp` anew for each message, which costs 2.5 s of a core, nearly all of it imports. In its
place on PATH stands a stub (``write_stubs``) that hands arguments, environment, working folder and files over to this
process; it forks, and the fork is the command: Flower's code with Flower's arguments, a process of its own. The stub
lives as long as the fork, passes signals on and ends as it ends. The forking process has one thread and opens no
connection, which makes forking it safe.

Run by the Python of a Flower environment as a script, so it needs the standard library and flwr alone.
"""

import gc
import importlib
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path

_LONGEST = 1 << 17
"""Of a request, in bytes: arguments and environment."""

_USED = ("flwr.clientapp", "flwr.serverapp", "pydantic", "safetensors.numpy", "scipy.sparse", "scipy.special")
"""What our apps import beside Flower."""

_STUB = """#!{python} -IS
import os, signal, socket, sys, time
door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda number, frame: door.send(b"%d" % number))
while True:
    try:
        door.connect({socket!r})
        break
    except (FileNotFoundError, ConnectionRefusedError):
        if os.getppid() == 1:
            raise
        time.sleep(0.02)
words = [{command!r}, *sys.argv[1:]]
env = [b"%s=%s" % pair for pair in os.environb.items()]
request = [b"%d" % len(words), os.getcwdb(), *map(os.fsencode, words), *env]
socket.send_fds(door, [b"\\0".join(request)], [0, 1, 2])
status = int(door.recv(64) or 255)
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
"""


def write_stubs(folder: Path, commands: Path, path: str) -> None:
    """Write a stub for each command of a Flower environment.

    Args:
        folder: gets the stubs; to be the first on PATH.
        commands: the environment's own.
        path: of the socket that ``main`` listens on.
    """
    folder.mkdir()
    for command in commands.iterdir():
        if command.name.startswith(("flwr", "flower-")):
            stub = folder / command.name
            text = _STUB.format(python=commands / "python", socket=path, command=str(command))
            stub.write_text(text, encoding="utf-8")
            stub.chmod(0o755)


def main(path: str) -> None:
    """Import all that is needed, then fork on request until we are killed; in a fork, be the command."""
    commands = {
        each.name: each for each in entry_points(group="console_scripts") if each.dist and each.dist.name == "flwr"
    }
    loaded = {name: each.load() for name, each in commands.items()}
    for module in _USED:
        importlib.import_module(module)
    gc.freeze()  # a fork that ends would collect all that was imported, and copy the pages that it shares for it
    words = _serve(path)
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).parent))  # as for a script
    sys.exit(loaded[Path(words[0]).name]())


def _serve(path: str) -> list[str]:
    """Fork on request; return, in a fork, the words of its command."""
    woken, waker = socket.socketpair()
    woken.setblocking(False)
    waker.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker.fileno())
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"{path}.new")
    listener.listen(64)
    Path(f"{path}.new").rename(path)  # who finds it finds it open
    stubs: dict[socket.socket, int] = {}  # the pid of its fork; 0 before it has asked for one

    while True:
        readable, _, _ = select.select([listener, woken, *stubs], [], [])
        if woken in readable:
            woken.recv(4096)
            for pid, status in iter(_reap, None):
                for stub in [each for each, of in stubs.items() if of == pid]:
                    with suppress(OSError):
                        stub.send(b"%d" % status)
                    del stubs[stub]
                    stub.close()
        if listener in readable:
            stubs[listener.accept()[0]] = 0
        for stub in [each for each in readable if each in stubs]:
            pid = stubs[stub]
            if pid:
                number = stub.recv(64)
                with suppress(ProcessLookupError):
                    os.kill(
                        pid, int(number) if number else signal.SIGKILL
                    )  # a stub that was killed takes its fork along
                if not number:
                    del stubs[stub]
                    stub.close()
                continue
            message, files, _, _ = socket.recv_fds(stub, _LONGEST, 3)
            if not message:
                del stubs[stub]
                stub.close()
                continue
            pid = os.fork()
            if not pid:
                return _become(message, files, [listener, woken, waker, *stubs])
            for file in files:
                os.close(file)
            stubs[stub] = pid


def _become(message: bytes, files: list[int], ours: list[socket.socket]) -> list[str]:
    """Take on what the stub was started with; return the words of the command."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for end in ours:
        end.close()
    count, folder, *rest = message.split(b"\0")
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    words, env = rest[: int(count)], rest[int(count) :]
    os.environb.clear()
    os.environb.update(dict(pair.split(b"=", 1) for pair in env))
    return [os.fsdecode(word) for word in words]


def _reap() -> tuple[int, int] | None:
    """Return pid and exit status of a fork that has ended, if there is one."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, os.waitstatus_to_exitcode(status)) if pid else None


if __name__ == "__main__":
    main(sys.argv[1])
