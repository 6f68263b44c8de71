"""A whole federation on this machine: one server process and the clients' processes, started, watched and reaped.

Importing Flower, SciPy or torch takes seconds, and twenty processes that each do it take minutes of processor time and
gigabytes of memory. So one helper process (the standard library's fork server) imports what the config needs, once, and
every process of the federation is forked from it: separate processes with shared read-only memory, up in milliseconds.
The helper never opens a connection and has a single thread, which is what makes forking it safe.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from types import FrameType

from deploy import logs
from deploy.signals import raising
from link.config import Config
from link.errors import BreakwaterError, ConfigError
from server.monitor import Monitoring

log = logging.getLogger("breakwater.deploy")

GRACE_S = 10.0
"""How long processes may take to end by themselves before they are killed."""

UNUSABLE = 2
"""Exit status of a process that cannot use what the user gave."""

SINGLE_THREADED = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Many processes on few cores: one compute thread each. It is also what makes results the same bit for bit."""


@dataclass(frozen=True, kw_only=True)
class LocalOptions:
    """What ``breakwater run`` was told: see ``server.process.ServerOptions``; ``log_options`` is how logs are written.

    With ``silent`` the server's process writes to its log alone, as one of many runs.
    """

    config: Config
    out: Path
    data: Path | None = None
    config_dir: Path | None = None
    monitoring: Monitoring = field(default_factory=Monitoring)
    log_options: logs.LogOptions = field(default_factory=logs.LogOptions)
    silent: bool = False


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
    _ended: set[str] = field(default_factory=set)  # the clients whose end has been told

    def start(self) -> None:
        """Start the server, wait until it listens, start the clients.

        Raises:
            ConfigError: the config says that some clients are Byzantine, but not what they do.
            BreakwaterError: the server could not start; its own message.
        """
        config = self.options.config
        n, f = config.federation.clients, config.federation.byzantine
        check_attack(config)
        context = fork_server(config.task.modules())
        here, there = context.Pipe()
        self.server = context.Process(target=_serve, args=(self.options, there), name="server")
        self.server.start()
        there.close()
        self.address = self._await_address(here)
        self._pipe = here
        width = len(str(n - 1))
        for worker in range(n - f):
            self._spawn(context, f"client-{worker:0{width}}", worker, seats=1)
        if f:
            self._spawn(context, "byzantine", n - f, seats=f)

    def wait(self) -> int:
        """Wait for the server to end, telling of clients that die before it; return the exit status of the run."""
        while (status := self.look()) is None:
            wait(self.sentinels())
        return status

    def sentinels(self) -> list[int]:
        """Return what becomes ready when a process ends that ``look`` does not know of yet."""
        if self.server is None:
            raise RuntimeError("wait before start")
        return [self.server.sentinel, *(p.sentinel for name, p in self.clients.items() if name not in self._ended)]

    def look(self) -> int | None:
        """Tell of clients that have died; return the exit status of the run, None while it goes on."""
        if self.server is None:
            raise RuntimeError("wait before start")
        for name, process in self.clients.items():
            if name in self._ended or process.is_alive():
                continue
            self._ended.add(name)
            if process.exitcode == UNUSABLE:
                return UNUSABLE  # what it cannot use is the experiment, and the others have the same
            if process.exitcode != 0 and self.server.is_alive():
                self._tell(f"{name} {how_it_ended(process)}; the run goes on without it (log: {self._log_of(name)})")
        if self.server.is_alive():
            return None
        if (self.server.exitcode or 0) < 0:
            self.say(f"the server {how_it_ended(self.server)}; the run ends here (log: {self._log_of('server')})")
            return 1
        return self.server.exitcode or 0

    def stop(self) -> None:
        """Leave no process behind: ask, wait, kill. Safe to call at any time, and again."""
        # One whose start was interrupted has no pid that we know; it ends by itself when it finds the launcher gone.
        processes = [p for p in (self.server, *self.clients.values()) if p is not None and p.pid is not None]
        if self.server in processes and self.server.is_alive():
            self.server.terminate()  # it writes its summary and tells the clients goodbye
            self.server.join(GRACE_S)
        end = time.monotonic() + (GRACE_S if self.server in processes and self.server.exitcode == 0 else 1.0)
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
        for ask in (ForkServerProcess.terminate, ForkServerProcess.kill):
            for process in processes:
                if process.is_alive():
                    ask(process)
            end = time.monotonic() + 2.0
            for process in processes:
                process.join(max(0.0, end - time.monotonic()))
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def _tell(self, line: str) -> None:
        """Tell the user while the server runs: a terminal is the server's, which draws the live view there."""
        if self._pipe is not None and sys.stdout.isatty():
            with suppress(OSError):  # it has just ended
                self._pipe.send(line)
                return
        self.say(line)

    def _spawn(self, context: ForkServerContext, name: str, worker: int, seats: int) -> None:
        process = context.Process(target=_take_part, args=(self.options, self.address, name, worker, seats), name=name)
        process.start()
        self.clients[name] = process

    def _await_address(self, pipe: Connection) -> str:
        """Read what the server reports: its address, or why there is none."""
        try:
            answer: str | BreakwaterError = pipe.recv()
        except EOFError:
            self.stop()
            raise BreakwaterError(f"the server process {how_it_ended(self.server)} before it listened") from None
        if isinstance(answer, str):
            return answer
        self.stop()
        raise answer

    def _log_of(self, name: str) -> Path:
        return self.options.out / "logs" / f"{name}.log"


def check_attack(config: Config) -> None:
    """Refuse a config whose Byzantine clients a local run would not know what to do with.

    Raises:
        ConfigError: the config says that some clients are Byzantine, but not what they do.
    """
    f = config.federation.byzantine
    if f and config.attack is None:
        raise ConfigError(
            f"federation.byzantine = {f} without an [attack] section: a local run would not know what they do; add "
            "one, or set federation.byzantine = 0"
        )


def run_local(options: LocalOptions, say: Callable[[str], None] = print) -> int:
    """Run a federation to its end and return the exit status; nothing is left behind, whatever happens."""
    federation = LocalFederation(options, say)
    with raising():
        try:
            federation.start()
            return federation.wait()
        finally:
            federation.stop()
            if sys.stdout.isatty():
                print("\x1b[?25h", end="", flush=True)  # a server that was killed has left the cursor hidden


def interrupt(number: int, frame: FrameType | None) -> None:
    """Take a signal for Ctrl-C; a handler."""
    raise KeyboardInterrupt


def fork_server(modules: Sequence[str]) -> ForkServerContext:
    """Return the context whose processes are forked from a helper that has imported what they need.

    Args:
        modules: the heavy ones that the task needs. The helper is started once: later calls change nothing.
    """
    os.environ.update(SINGLE_THREADED)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deploy.local", "client.process", "server.process", *modules])
    # Ctrl-C reaches every process of a terminal, but is for the launcher alone, which ends the others in order. They
    # inherit the mask, so that it cannot hit one that has only just started. The tracker, a helper of the standard
    # library that the fork server would start, first: it lifts the mask.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return context


def how_it_ended(process: ForkServerProcess | None) -> str:
    """Say how a process ended, after its name: "ended with status 1"."""
    code = None if process is None else process.exitcode
    if code is None:
        return "has not ended"
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"


# --- in the processes ------------------------------------------------------------------------------------------------


def _serve(options: LocalOptions, pipe: Connection) -> None:
    """Be the server, until the run ends or the launcher says so."""
    try:
        signal.signal(signal.SIGTERM, interrupt)  # from here on; before, it ends us without a word
        _be_server(options, pipe)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # we are ending; the launcher's word to end is no news
    except KeyboardInterrupt:
        sys.exit(130)


def _be_server(options: LocalOptions, pipe: Connection) -> None:
    """Serve, or report why not."""
    from server.process import ServerOptions, serve
    from strategies.strategy import NoClientsError

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the launcher, which ends us in order
    end_with_launcher()
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

    try:
        serve(
            ServerOptions(
                config=options.config,
                listen="127.0.0.1:0",
                own=True,
                out=options.out,
                data=options.data,
                config_dir=options.config_dir,
                monitoring=options.monitoring,
            ),
            on_listening,
        )
    except (BreakwaterError, NoClientsError) as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if listening:
            log.error("%s", error)
            sys.exit(1)
        pipe.send(error)
        sys.exit(UNUSABLE)


def _take_part(options: LocalOptions, address: str, name: str, worker: int, seats: int) -> None:
    """Be a client, or the coalition."""
    from client.process import ClientOptions, run_client

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_launcher()
    logs.to_file(options.out / "logs" / f"{name}.log", options.log_options)
    attack = options.config.attack if seats > 1 or name == "byzantine" else None
    try:
        run_client(
            ClientOptions(
                connect=address,
                name=name,
                worker=worker,
                seats=seats,
                attack=None if attack is None else attack.kind,
                config_dir=options.config_dir,
                data=options.data,
                tried=True,
            )
        )
    except BreakwaterError as error:
        log.error("%s", error)
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(UNUSABLE)


def end_with_launcher() -> None:
    """End this process when the launcher is gone, however it went."""
    launcher = multiprocessing.parent_process()

    def watch() -> None:
        if launcher is not None:
            launcher.join()
            os._exit(1)

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()
