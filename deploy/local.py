"""A whole federation on this machine: one server process and the clients' processes, started, watched and reaped.

Importing Flower, SciPy or torch takes seconds, and twenty processes that each do it take minutes of processor time and
gigabytes of memory. So one helper process (the standard library's fork server) imports what the config needs, once, and
every process of the federation is forked from it: separate processes with shared read-only memory, up in milliseconds.
The helper never opens a connection and has a single thread, which is what makes forking it safe.
"""

import atexit
import logging
import multiprocessing
import os
import select
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partialmethod
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from types import FrameType
from typing import Any, Self

from deploy import files, folders, logs, streams
from deploy.environment import ours_first
from experiment.config import Config
from experiment.parties import Parties
from foundation.errors import BreakwaterError, ConfigError, ProcessEnded
from foundation.signals import ENDING, ignore, raising
from link.seats import flaw_of_name
from server.monitor.exporters import Monitoring

log = logging.getLogger("breakwater.deploy")

GRACE_S = 60.0
"""How long a server may take to write its results before it is killed."""

SLOW_S = 5.0
"""Seconds after which a message says what the launcher waits for."""

CLIENTS_S = 5.0
"""How long clients may take to end by themselves once their server has ended."""

LAST_S = 0.5
"""Seconds that a client continues after SIGTERM, so that the last round of a server that got it too is complete."""

HELPERS_S = 2.0
"""How long to wait at most for the helper processes, which end by themselves once their launcher has."""

_LONGEST_SOCKET = 100
"""The path of a Unix socket has at most 107 bytes on Linux, 103 on macOS."""

LOST = 255
"""What multiprocessing takes for the exit status of a process whose fork server is gone. It may still run."""

INTERRUPTED = 130
"""Exit status of a process that was asked to end, and did so in order."""

UNUSABLE = 2
"""Exit status of a process that cannot use what the user gave."""

SINGLE_THREADED = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Many processes on few cores: one compute thread each. It is also what makes results the same bit for bit."""


@dataclass(frozen=True, kw_only=True)
class LocalOptions:
    """The options of ``breakwater run``: see ``server.process.ServerOptions``; ``log_options`` is how logs are written.

    With ``silent`` the server's process writes to its log alone, as one of many runs. Where clients have their own
    data, ``data`` has a sub-folder for each, ``attackers`` names those that attack (none for the last f), and
    ``server_data`` is the folder of the server's test set.
    """

    config: Config
    out: Path
    data: Path | None = None
    config_dir: Path | None = None
    monitoring: Monitoring = field(default_factory=Monitoring)
    log_options: logs.LogOptions = field(default_factory=logs.LogOptions)
    silent: bool = False
    attackers: Sequence[str] = ()
    server_data: Path | None = None

    def parties(self) -> Parties | None:
        """Return who has which seat and data, where clients have their own; None elsewhere.

        Raises:
            ConfigError: the folders are not those of the federation.
        """
        if not self.config.own_data:
            if self.attackers or self.server_data is not None:
                option = "--attackers" if self.attackers else "--server-data"
                raise ConfigError(f'{option}: needs [task] partition = "own"; else the last f clients attack')
            return None
        if self.attackers and self.config.attack is None:
            fix = "name one in [attack], or with --set attack.kind=foe"
            raise ConfigError(f"--attackers {','.join(self.attackers)}: the config has no attack; {fix}")
        parties = Parties.of(self.config, self.data, self.attackers)
        for name in parties.names.values():
            flaw = flaw_of_name(name)
            if name in ("server", "byzantine"):  # whose logs have these names
                flaw = f"name {name!r}: is taken"
            if flaw is not None:
                raise ConfigError(f"--data {self.data}: a sub-folder is named after its client, and {flaw}")
        return parties

    def seated(self) -> Self:
        """Return the options with the weights of clients by seat, where the config has them by name.

        Raises:
            ConfigError: a client has no weight, or ``parties`` does.
        """
        n, f = self.config.federation.clients, self.config.federation.byzantine
        f = 0 if self.config.mobile else f
        parties = self.parties()
        return replace(self, config=self.config.seated(list(parties.names.values()) if parties else names(n, f)))


@dataclass
class LocalFederation:
    """The processes of one local run.

    Args:
        options: see there.
        say: called with a line for the user when something happens to a process.
    """

    options: LocalOptions
    say: Callable[[str], None] = print
    server: ForkServerProcess | None = None
    clients: dict[str, ForkServerProcess] = field(default_factory=dict)
    address: str = ""
    _pipe: Connection | None = None
    _ended: set[str] = field(default_factory=set)  # the clients whose end has been reported

    def start(self) -> None:
        """Start the server, wait until it listens, start the clients.

        Raises:
            ConfigError: there are Byzantine clients, but no ``[attack]`` section; the run folder cannot be created; or
                more files must be open than this machine allows.
            ProcessEnded: the server, or the helper that starts the processes, was killed.
            BreakwaterError: the server could not start; this is its error.
        """
        config = self.options.config
        n = config.federation.clients
        check_attack(config)
        self.options = self.options.seated()
        parties, honest = self.options.parties(), n if config.attack is None else n - len(config.attackers)
        files.allow(files.for_server(n, page=self.options.monitoring.web is not None), f"a run of {n} clients")
        files.allow(files.for_launcher(honest + 2), f"a run of {n} clients")
        logs.make_folder(self.options.out / "logs", f"run folder {self.options.out}")
        try:
            context = fork_server(config.task.modules())
            here, there = context.Pipe()
            self.server = context.Process(target=_serve, args=(self.options, there), name="server")
            self.server.start()
            there.close()
            self.address = self._await_address(self.server, here)
            self._pipe = here
            width = len(str(n - 1))
            names = parties.names if parties else {worker: f"client-{worker:0{width}}" for worker in range(n)}
            parts = [(names[worker], [worker]) for worker in range(honest)]
            for name, seats in parts + [("byzantine", list(range(honest, n)))] * (honest < n):
                part = _Part(name, seats, None if parties is None else parties)
                process = context.Process(target=_take_part, args=(self.options, self.address, part), name=name)
                process.start()
                self.clients[name] = process
        except (EOFError, ConnectionError):
            raise ProcessEnded("the helper process that starts all others was killed") from None

    def wait(self) -> int:
        """Wait for the server to end, and report clients that die earlier; return the exit status of the run."""
        while (status := self.look()) is None:
            wait(self.sentinels())
        return status

    def sentinels(self) -> list[int]:
        """Return what becomes ready when a process ends that ``look`` has not reported yet."""
        clients = [process for name, process in self.clients.items() if name not in self._ended]
        return [process.sentinel for process in (self.server, *clients) if process is not None]

    def look(self) -> int | None:
        """Report clients that have died; return the exit status of the run, or None while it continues."""
        if self.server is None:
            raise RuntimeError("wait before start")
        if any(process.exitcode == LOST for process in (self.server, *self.clients.values())):
            self.server.join(1.0)  # it counts as lost too, a moment later
            self.say("the helper process that started all others was killed; the run ends here")
            return 1
        folder = self.options.out / "logs"
        for name, process in self.clients.items():
            if name in self._ended or process.is_alive():
                continue
            self._ended.add(name)
            if process.exitcode == UNUSABLE:
                return UNUSABLE  # it cannot use the experiment, which is the same for all others
            if process.exitcode != 0 and self.server.is_alive():
                self._tell(f"{name} {how_it_ended(process)}; the run continues without it (log: {folder / name}.log)")
        if self.server.is_alive():
            return None
        if (self.server.exitcode or 0) < 0:
            self.say(f"the server {how_it_ended(self.server)}; the run ends here (log: {folder / 'server.log'})")
            self._killed()
            return 1
        if self.server.exitcode == INTERRUPTED:
            self.say("the server was stopped by a signal; the run ends here")
        return self.server.exitcode or 0

    def stop(self) -> None:
        """End all processes: terminate, wait, kill. Safe to call at any time, and repeatedly."""
        # A process whose start was interrupted has no known pid; it ends by itself once the launcher is gone.
        known = [p for p in (self.server, *self.clients.values()) if p is not None and p.pid is not None]
        processes = [reachable(p) for p in known]
        server = processes[0] if known and known[0] is self.server else None
        if server is not None and server.is_alive():
            server.terminate()  # it writes its summary and dismisses the clients
            server.join(SLOW_S)
            if server.is_alive():
                self.say(f"waiting for the server, which writes its results, for up to {GRACE_S:g} s")
                server.join(GRACE_S)
        in_order = server is not None and server.exitcode in (0, INTERRUPTED)
        for ask, patience_s in ((None, CLIENTS_S if in_order else 1.0), ("terminate", 2.0), ("kill", 2.0)):
            for process in processes:
                if ask is not None and process.is_alive():
                    getattr(process, ask)()
            end = time.monotonic() + patience_s
            for process in processes:
                process.join(max(0.0, end - time.monotonic()))
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        with suppress(OSError):
            folders.remove_unused(self.options.out)

    def _tell(self, line: str) -> None:
        """Report a line while the server runs: on a terminal through the server, which draws the live view there."""
        if self._pipe is not None and sys.stdout.isatty():
            with suppress(OSError):  # it has just ended
                self._pipe.send(line)
                return
        self.say(line)

    def _await_address(self, server: ForkServerProcess, pipe: Connection) -> str:
        """Return the address that the server reports, or raise the error that it reports."""
        try:
            answer: str | BreakwaterError = pipe.recv()
        except EOFError:
            server.join(SLOW_S)
            self.stop()
            status = INTERRUPTED if server.exitcode == INTERRUPTED else 1
            raise ProcessEnded(f"the server process {how_it_ended(server)} before it listened", status) from None
        if isinstance(answer, str):
            return answer
        self.stop()
        raise answer

    def _killed(self) -> None:
        """Write the report of a run whose server was killed."""
        from server.monitor.report import REPORT, write_report

        if self.options.monitoring.pictures:
            try:
                write_report(self.options.out)
            except Exception as error:  # a failed report does not change the exit status
                self.say(f"{self.options.out / REPORT}: cannot be made: {error}")


def check_attack(config: Config) -> None:
    """Refuse a config with Byzantine clients, but without an attack.

    Where clients have their own data, all of them are then honest: it is the config of the real federation.

    Raises:
        ConfigError: there are Byzantine clients, but no ``[attack]`` section.
    """
    f = config.federation.byzantine
    if f and config.attack is None and not config.own_data:
        fix = "add one, or set federation.byzantine = 0"
        raise ConfigError(f"federation.byzantine = {f} without an [attack] section for a local run: {fix}")


def names(clients: int, attackers: int) -> list[str]:
    """Return the names of the clients of a local run by worker; of ``attackers`` that always attack."""
    width = len(str(clients - 1))
    honest = [f"client-{worker:0{width}}" for worker in range(clients - attackers)]
    return honest + (["byzantine"] if attackers == 1 else [f"byzantine-{i}" for i in range(attackers)])


def run_local(options: LocalOptions, say: Callable[[str], None] = print, *, last: bool = True) -> int:
    """Run a federation to its end and return the exit status; in any case, no process is left behind.

    Args:
        options: of the run.
        say: see ``LocalFederation``.
        last: no other run follows, so a signal after the end of the run is no interruption.
    """
    federation = LocalFederation(options, say)
    with raising(ctrl_c=KeyboardInterrupt):
        try:
            federation.start()
            return federation.wait()
        except KeyboardInterrupt:
            federation.stop()
            if last and federation.server is not None and federation.server.exitcode == 0:
                return 0
            raise
        finally:
            federation.stop()
            if sys.stdout.isatty():
                print("\x1b[?25h", end="", flush=True)  # a server that was killed has left the cursor hidden


class Orphan:
    """A process of which only the pid is known, as its fork server is gone; it ends as a ``Process`` does.

    Args:
        pid: of a process that ran a moment ago.
    """

    exitcode = None

    def __init__(self, pid: int) -> None:
        self._pid, self._fd, self._gone = pid, -1, False
        try:
            self._fd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._gone = True
        except (OSError, AttributeError):  # a system without: it is looked for again and again
            pass

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def is_alive(self) -> bool:
        """Return whether it runs."""
        self.join(0.0)
        return not self._gone

    def join(self, timeout: float) -> None:
        """Wait for its end."""
        end = time.monotonic() + timeout
        while not self._gone:
            left = max(0.0, end - time.monotonic())
            if self._fd >= 0:
                self._gone = bool(select.select([self._fd], [], [], left)[0])
            else:
                self.send(0)
                time.sleep(min(left, 0.05))
            if time.monotonic() >= end:
                return

    def send(self, number: int) -> None:
        """Send it a signal."""
        try:
            os.kill(self._pid, number)
        except ProcessLookupError:
            self._gone = True

    terminate = partialmethod(send, signal.SIGTERM)
    kill = partialmethod(send, signal.SIGKILL)


def reachable(process: ForkServerProcess) -> ForkServerProcess | Orphan:
    """Return a process that can be waited for and killed, whether its fork server is there or gone."""
    return Orphan(process.pid or 0) if process.exitcode == LOST else process


def fork_server(modules: Sequence[str]) -> ForkServerContext:
    """Return the context whose processes are forked from a helper that has imported what they need.

    Args:
        modules: the heavy ones that the task needs. The helper is started once: later calls change nothing.
    """
    os.environ.update(SINGLE_THREADED)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deploy.local", "client.process", "server.process", *modules])
    _short_sockets()
    atexit.unregister(_end_helpers)
    atexit.register(_end_helpers)
    # A signal to the whole group reaches every process, but is for the launcher, which ends the others in order, and
    # for those that know what to do with it. All inherit the mask, so that none is hit that has only just started, and
    # the helper never. The tracker, a helper of the standard library that the fork server would start, first: it lifts
    # the mask, but for SIGHUP.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        with ours_first():
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    return context


def _end_helpers() -> None:
    """Wait for the helper processes to end with this one, so that nothing runs any more when it has ended."""
    server: Any = forkserver._forkserver  # it has no public name for what follows
    alive, pid = getattr(server, "_forkserver_alive_fd", None), getattr(server, "_forkserver_pid", None)
    if alive is None or pid is None:
        return
    with suppress(OSError):
        os.close(alive)
        server._forkserver_alive_fd = None
        end = time.monotonic() + HELPERS_S
        while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < end:
            time.sleep(0.002)


def _short_sockets() -> None:
    """Let multiprocessing create its sockets in a folder whose path is short enough, even if TMPDIR is too long.

    Raises:
        ConfigError: no folder for temporary files can be written.
    """
    before = tempfile.tempdir
    try:
        given = tempfile.gettempdir()
        room = _LONGEST_SOCKET - len("/pymp-12345678/listener-12345678")
        for folder in (given, "/tmp", "/var/tmp", "/dev/shm", os.path.relpath(given)):  # noqa: S108  # it makes a private one there
            if os.access(folder, os.W_OK | os.X_OK) and len(os.fsencode(folder)) <= room:
                tempfile.tempdir = folder
                util.get_temp_dir()
                return
    except OSError as error:
        raise ConfigError(f"no folder for temporary files: {error.strerror or error}; set TMPDIR to one") from None
    finally:
        tempfile.tempdir = before
    raise ConfigError(f"TMPDIR {given}: is too long for the paths of sockets; set TMPDIR to a shorter one")


def how_it_ended(process: ForkServerProcess) -> str:
    """Say how a process ended, after its name: "ended with status 1"."""
    code = process.exitcode
    if code is None:
        return "has not ended"
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"


# --- in the processes ------------------------------------------------------------------------------------------------


def begin(*, server: bool) -> None:
    """Begin a process of a local run: from here on signals take effect. Before, they were blocked.

    Args:
        server: SIGTERM and SIGHUP are for it; within ``foundation.signals.raising``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the launcher, which ends us in order
    if not server:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the same
        signal.signal(signal.SIGTERM, _end_soon)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    end_with_launcher(server=server)
    streams.prepare()


def _end_soon(number: int, frame: FrameType | None) -> None:
    """End by SIGTERM a moment later; a handler, of a client."""

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, LAST_S)


def _serve(options: LocalOptions, pipe: Connection) -> None:
    """Run the server until the run ends or the launcher stops it."""
    try:
        with raising(for_good=True):
            begin(server=True)
            _be_server(options, pipe)
            ignore()  # this process is ending anyway
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _be_server(options: LocalOptions, pipe: Connection) -> None:
    """Serve, or report why not."""
    from server.process import ServerOptions, serve

    if options.silent:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # for the rest of this process
    else:
        logs.to_terminal(options=options.log_options, process="server")
    logs.to_file(options.out / "logs" / "server.log", options.log_options)
    listening = False

    def on_listening(address: str) -> None:
        nonlocal listening
        listening = True
        pipe.send(address)
        threading.Thread(target=pass_on, name="news", daemon=True).start()

    def pass_on() -> None:
        with suppress(EOFError, OSError):  # the launcher has gone
            while True:
                log.warning("%s", pipe.recv())

    settings = ServerOptions(
        config=options.config,
        listen="127.0.0.1:0",
        out=options.out,
        data=options.server_data if options.config.own_data else options.data,
        config_dir=options.config_dir,
        monitoring=options.monitoring,
        own=True,
    )
    try:
        serve(settings, on_listening)
    except BreakwaterError as error:
        ignore()
        if listening:
            log.error("%s", error)
            sys.exit(1)
        pipe.send(error)
        sys.exit(UNUSABLE)


@dataclass(frozen=True)
class _Part:
    """What one client process is in the federation.

    Args:
        name: of the process and, with one seat, of its client.
        seats: its workers; several for the coalition.
        parties: who has which data, where clients have their own.
    """

    name: str
    seats: Sequence[int]
    parties: Parties | None


def _take_part(options: LocalOptions, address: str, part: _Part) -> None:
    """Be a client, or the coalition."""
    from client.process import ClientOptions, run_client

    begin(server=False)
    config, name, parties = options.config, part.name, part.parties
    logs.to_file(options.out / "logs" / f"{name}.log", options.log_options)
    attacks = config.attack is not None and part.seats[0] in config.attackers
    settings = ClientOptions(
        connect=address,
        name=name,
        worker=part.seats[0],
        seats=len(part.seats),
        attack=config.attack.kind if config.attack is not None and attacks else None,
        config_dir=options.config_dir,
        data=options.data,
        # All processes read the same files of this machine: only a custom task may make its own data.
        reading="bits" if config.task.kind == "custom" else "none",
        tried=parties is None,
    )
    if config.mobile:  # one brain for all, honest or not
        settings = replace(settings, names=names(len(part.seats), 0))
    if parties is not None:
        folders = {worker: parties.folders[worker] for worker in part.seats}
        own = [folder.name for folder in folders.values()]
        settings = replace(settings, config=config, folders=folders, names=own)
    try:
        run_client(settings)
    except BreakwaterError as error:
        log.error("%s", error)
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(UNUSABLE)


def end_with_launcher(*, server: bool) -> None:
    """End this process when the launcher is gone, however it went: a server in order, clients after their server.

    Args:
        server: this process handles SIGTERM; it gets as long for its results as the launcher would give it.
    """
    launcher = multiprocessing.parent_process()

    def watch() -> None:
        if launcher is not None:
            launcher.join()
            if server:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(GRACE_S if server else CLIENTS_S)
            os._exit(1)

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()
