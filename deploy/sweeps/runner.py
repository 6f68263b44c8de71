"""Runs many federations, several at a time, each in its own processes, which are always reaped.

A run is either one process that holds the whole federation (``deploy.inprocess``) or a local federation of real
processes (``deploy.local``). Everything is forked from one helper, so a run begins within tenths of a second.
"""

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from deploy import logs
from deploy.local import (
    GRACE_S,
    INTERRUPTED,
    LOST,
    UNUSABLE,
    LocalFederation,
    LocalOptions,
    begin,
    fork_server,
    how_it_ended,
    reachable,
)
from deploy.sweeps.experiment import Plan, PlannedRun
from deploy.sweeps.results import NOTE, Outcome, note, outcome_of
from foundation.errors import BreakwaterError
from foundation.signals import ignore, raising
from server.monitor.exporters import Monitoring

log = logging.getLogger("breakwater.deploy")

IN_PROCESS, PROCESSES = "in process", "processes"
"""How a run is run."""


def default_jobs(in_process: bool) -> int:
    """Return the default number of runs at a time, by the number of cores."""
    cores = len(os.sched_getaffinity(0))
    return cores if in_process else max(1, cores // 4)


@dataclass
class Alone:
    """A whole federation in one separate process.

    Args:
        options: of the run.
        say: takes a line when something goes wrong.
    """

    options: LocalOptions
    say: Callable[[str], None]
    _process: ForkServerProcess | None = None
    _pipe: Connection | None = None

    def start(self) -> None:
        context = fork_server(self.options.config.task.modules())
        self._pipe, there = context.Pipe(duplex=False)
        self._process = context.Process(target=_alone, args=(self.options, there), name="run")
        self._process.start()
        there.close()

    def sentinels(self) -> list[int]:
        """Return what becomes ready at the end."""
        return [] if self._process is None else [self._process.sentinel]

    def look(self) -> int | None:
        """Return the exit status; None while it runs."""
        if self._process is None or self._process.is_alive():
            return None
        self._process.join()
        with suppress(EOFError, OSError):  # it sent no message
            if self._pipe is not None and self._pipe.poll():
                self.say(str(self._pipe.recv()))
        code = self._process.exitcode or 0
        if 0 <= code != LOST:
            return code
        lost = "the helper process that started it was killed"
        self.say(lost if code == LOST else f"the process {how_it_ended(self._process)}")
        return 1

    def stop(self) -> None:
        """Leave no process behind: ask, wait, kill."""
        if self._process is None or self._process.pid is None:
            return
        process = reachable(self._process)
        for ask in (process.terminate, process.kill):
            if process.is_alive():
                ask()
                process.join(GRACE_S)


def _alone(options: LocalOptions, pipe: Connection) -> None:
    """Run one federation; the target of a process."""
    from deploy.inprocess import run_in_process
    from strategies.strategy import StalledError

    try:
        with raising(for_good=True):
            begin(server=True)
            logs.to_file(options.out / "logs" / "server.log")
            with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
                try:
                    run_in_process(options)
                    ignore()
                except StalledError:
                    ignore()
                    sys.exit(1)  # the summary has the reason
                except BreakwaterError as error:
                    ignore()
                    pipe.send(str(error))
                    sys.exit(UNUSABLE)
                except Exception as error:  # any failure of one run becomes a row of the table
                    ignore()
                    log.exception("the run failed")
                    pipe.send(f"{type(error).__name__}: {error}"[:500])
                    sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


@dataclass
class Slot:
    """One run under way, and what is known of it.

    Args:
        run: which.
        folder: its run folder.
        running: its processes.
        began: monotonic seconds.
        said: lines about problems.
    """

    run: PlannedRun
    folder: Path
    running: Alone | LocalFederation
    began: float
    said: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SweepOptions:
    """The options of ``breakwater sweep``.

    Args:
        path: the experiment file.
        plan: its content.
        out: the sweep's folder.
        jobs: how many runs at a time.
        in_process: each run is one process.
        data: folder of data files.
    """

    path: Path
    plan: Plan
    out: Path
    jobs: int
    in_process: bool
    data: Path | None

    @property
    def how(self) -> str:
        """How runs are run, in words."""
        return IN_PROCESS if self.in_process else PROCESSES


def run_all(runs: Sequence[PlannedRun], options: SweepOptions) -> Iterator[tuple[Outcome, float]]:
    """Yield each run with its seconds as it ends. When this generator ends, so do the processes of its runs."""
    waiting = list(reversed(runs))
    slots: list[Slot] = []
    try:
        while waiting or slots:
            while waiting and len(slots) < options.jobs:
                slot = _slot(waiting.pop(), options)
                slots.append(slot)
                try:
                    slot.running.start()
                except BreakwaterError as error:
                    slots.remove(slot)
                    slot.running.stop()
                    yield _outcome(slot, UNUSABLE, str(error), options), time.monotonic() - slot.began
            if not slots:
                continue
            wait([sentinel for slot in slots for sentinel in slot.running.sentinels()])
            for slot in list(slots):
                status = slot.running.look()
                if status is not None:
                    slots.remove(slot)
                    slot.running.stop()
                    yield _outcome(slot, status, "; ".join(slot.said), options), time.monotonic() - slot.began
    finally:
        for slot in slots:
            slot.running.stop()


def _slot(run: PlannedRun, options: SweepOptions) -> Slot:
    """Return a run that has not begun, its folder fresh."""
    folder = options.out / run.folder
    if (folder / NOTE).exists():  # ours, and not finished or of another config
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NOTE).write_text(note(run, options.how), encoding="utf-8")
    quiet, place = Monitoring(quiet=True, pictures=False), options.plan.base.parent
    local = LocalOptions(
        config=run.config, out=folder, data=options.data, config_dir=place, monitoring=quiet, silent=True
    )
    said: list[str] = []
    running = Alone(local, said.append) if options.in_process else LocalFederation(local, said.append)
    return Slot(run, folder, running, time.monotonic(), said)


def _outcome(slot: Slot, status: int, reason: str, options: SweepOptions) -> Outcome:
    """Return how a run ended."""
    found = outcome_of(slot.run, slot.folder, options.how)
    if found is not None and (status == 0 or found.status == "stalled"):
        return found
    log = slot.folder / "logs" / "server.log"
    reason = " ".join(reason.split()) or f"ended with status {status}; see {log.relative_to(options.out)}"
    return Outcome(slot.run, "failed", slot.folder, reason=reason)
