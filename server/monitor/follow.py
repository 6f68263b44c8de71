"""A run folder on this machine, followed while its run goes: for `breakwater watch DIR`."""

import time
from collections.abc import Iterator
from pathlib import Path

from experiment.config import load
from foundation.errors import ConfigError, ServerGone
from server.monitor.live import LiveRun, State, Title
from server.monitor.terminal import last_line
from server.run_folder import CONFIG, MANIFEST, METRICS
from server.run_folder.manifest import RunManifest
from server.run_folder.reader import read_summary
from server.run_folder.record import from_line

EVERY_S = 0.5
"""Seconds between two looks."""
PATIENCE_S = 300.0
"""How long to wait for a server that resumes the run."""

_STILL_S = 5.0
"""After this many seconds without a round, look whether a server runs it."""
_MOST = 16 << 20
"""At most this many bytes of metrics are read at a time."""


def follow_folder(path: Path, *, patience_s: float = PATIENCE_S) -> Iterator[State]:
    """Yield the states of the run in a folder, as its metrics grow, until its summary is there.

    The number of connected clients is missing, as only the server knows it. A run without a server is shown as away:
    another server may continue it.

    Args:
        path: the run folder.
        patience_s: how long to wait for a server.

    Raises:
        ConfigError: there is no run, or one that cannot be read.
        ServerGone: no server has run it for that long.
    """
    if not (path / CONFIG).exists() or not (path / METRICS).exists():
        raise ConfigError(f"{path}: holds no run ({CONFIG} and {METRICS}); give HOST:PORT, or a run folder")
    run, moved = _Followed(path), time.monotonic()
    while True:
        summary = read_summary(path) or {}
        if run.read():
            moved = time.monotonic()
        state = run.live.state(parties=True)
        if "status" in summary:
            yield state | {"status": summary["status"], "line": last_line(summary, path)}
            return
        still_s = time.monotonic() - moved
        if still_s > _STILL_S and not _is_run(path):
            if still_s > patience_s:
                raise ServerGone(f"{path}: no server has run this for {still_s:.0f} s")
            state |= {"away": f"no server runs this now; `breakwater server --resume {path}` continues it"}
        yield state
        time.sleep(EVERY_S)


class _Followed:
    """What has been read of a run folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._title = Title.of(load(path / CONFIG), path.name)
        self._address = RunManifest.read(path).listen if (path / MANIFEST).exists() else ""
        self._begin()

    def _begin(self) -> None:
        self.live = LiveRun(self._title, address=self._address)
        self._names: dict[int, str] = {}
        self._at = 0

    def read(self) -> bool:
        """Read the rounds that are new; return whether there are any.

        Raises:
            ConfigError: a line is no round.
        """
        path = self._path / METRICS
        try:
            if path.stat().st_size < self._at:  # a server has gone back to a checkpoint
                self._begin()
            with path.open("rb") as file:
                file.seek(self._at)
                new = file.read(_MOST)

            whole = new[: new.rfind(b"\n") + 1]
            for line in whole.splitlines():
                self.live.add(from_line(line, self._names))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from None
        if whole and not self._at:
            self.live.begin()  # from here on is what this process sees
        self._at += len(whole)
        return bool(whole)


def _is_run(path: Path) -> bool:
    """Return whether a process holds the folder's lock; True also where that cannot be found out.

    The lock is looked up and not tried: holding it for a moment could keep a server from starting.
    """
    try:
        inode = (path / METRICS).stat().st_ino
        locks = Path("/proc/locks").read_text(encoding="ascii")
    except (OSError, ValueError):
        return True
    return any(line.split()[1] == "FLOCK" and f":{inode} " in line for line in locks.splitlines())
