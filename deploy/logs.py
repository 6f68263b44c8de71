"""Logs of the processes: warnings to the terminal, everything to a file; as text or as JSON.

One record is one line, whatever it contains: control characters are escaped, and the lines of a traceback are indented,
so that a name or a reason cannot forge a record.
"""

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foundation.errors import ConfigError
from foundation.text import escaped

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
"""What ``--log-level`` takes."""
Form = Literal["text", "json"]

_FORMAT = "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s"
_TIME = "%Y-%m-%dT%H:%M:%S"


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """The values of ``--log-format`` and ``--log-level``.

    Args:
        form: of every line, in files and on standard error.
        level: the minimum level; None for INFO in files, and on the terminal for the command's own.
    """

    form: Form = "text"
    level: int | None = None


def to_terminal(level: int = logging.WARNING, options: LogOptions | None = None, process: str = "") -> None:
    """Write our log to standard error.

    Args:
        level: from which on, where the options do not ask for less.
        options: see there.
        process: who writes, for JSON.
    """
    options = options or LogOptions()
    handler = _Terminal()
    shown = "%(message)s" if level >= logging.WARNING else "%(levelname)s %(message)s"
    handler.setFormatter(_Json(process) if options.form == "json" else _Text(shown))
    _add(handler, max(level, options.level or level))


def make_folder(folder: Path, what: str) -> None:
    """Create a folder and its parents, if they do not exist.

    Args:
        folder: to create.
        what: the name of its use, for the message.

    Raises:
        ConfigError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{what}: {folder} cannot be made: {reason}; choose another folder") from None


def to_file(
    path: Path, options: LogOptions | None = None, process: str = "", *, what: str = "", at_once: bool = False
) -> None:
    """Append our log to a file; times are UTC.

    Args:
        path: its folder is created if missing.
        options: see there.
        process: who writes, for JSON; "" for the name of the file.
        what: the name of its use, for the message; "" for the name of the file.
        at_once: open it now, not with the first line; otherwise an empty log leaves no file.

    Raises:
        ConfigError: its folder cannot be created, it is a folder itself, or it cannot be opened.
    """
    options = options or LogOptions()
    make_folder(path.parent, what or f"log file {path}")
    try:
        handler = _File(path, encoding="utf-8", errors="backslashreplace", delay=not at_once)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{what or path}: cannot be written: {reason}; name another file") from None
    handler.setFormatter(_Json(process or path.stem) if options.form == "json" else _Text(_FORMAT, _TIME))
    _add(handler, logging.INFO if options.level is None else options.level)


@contextmanager
def within(path: Path, *, terminal: bool) -> Iterator[None]:
    """Within: our log goes to a file, and warnings to standard error; afterwards logging is as it was before.

    For a run inside of somebody else's process.

    Args:
        path: of the file.
        terminal: whether warnings are shown.

    Raises:
        ConfigError: as ``to_file`` does.
    """
    logger = logging.getLogger("breakwater")
    before = list(logger.handlers), logger.level, logger.propagate
    try:
        to_file(path)
        if terminal:
            to_terminal()
        yield
    finally:
        for handler in [handler for handler in logger.handlers if handler not in before[0]]:
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(before[1])
        logger.propagate = before[2]


class _Text(logging.Formatter):
    """One line a record, and indented ones for a traceback."""

    converter = staticmethod(time.gmtime)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the name is logging's
        return escaped(super().formatMessage(record))

    def formatException(self, ei: object) -> str:  # noqa: N802  # the name is logging's
        """Return the traceback, of which no line can be taken for a record."""
        lines = super().formatException(ei).splitlines()  # type: ignore[arg-type]  # logging's own triple, passed on
        return "\n".join("    " + escaped(line) for line in lines)


class _Json(logging.Formatter):
    """One JSON object a record, on one line of ASCII."""

    run_id = ""
    """Of the run that this process takes part in: from the last record that had one. As text, because JSON readers lose
    digits of a number this long."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        _Json.run_id = str(getattr(record, "run_id", _Json.run_id))
        moment = time.strftime(_TIME, time.gmtime(record.created))
        line: dict[str, str | int] = {"time": f"{moment}.{int(record.msecs):03d}Z", "level": record.levelname.lower()}
        line |= {"logger": record.name, "message": record.getMessage()}
        line |= {"process": self._process, "pid": record.process or 0}
        if _Json.run_id:
            line["run_id"] = _Json.run_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class _File(logging.FileHandler):
    """Writes to a file as long as there is room: a full disk must not bury the terminal under tracebacks."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; the first one opens the file, which may fail as any other."""
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the name is logging's
        """Drop a line that cannot be written; the writer of the run folder reports the problem."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _Terminal(logging.Handler):
    """Writes to what standard error is at the moment: a live view puts itself in its place while it moves."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def _add(handler: logging.Handler, level: int) -> None:
    logger = logging.getLogger("breakwater")
    handler.setLevel(level)
    logger.addHandler(handler)
    logger.setLevel(min(level, logger.level or level))
    logger.propagate = False
