"""Where the processes write their logs: warnings to the terminal, everything to a file."""

import logging
import sys
import time
from pathlib import Path

_FORMAT = "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s"


def to_terminal(level: int = logging.WARNING) -> None:
    """Write our log from ``level`` on to standard error, one plain line each."""
    handler = _Terminal()
    handler.setFormatter(logging.Formatter("%(message)s" if level >= logging.WARNING else "%(levelname)s %(message)s"))
    _add(handler, level)


def to_file(path: Path) -> None:
    """Append everything from INFO on to a file; times are UTC."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _File(path, encoding="utf-8", delay=True)
    formatter = logging.Formatter(_FORMAT, datefmt="%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    _add(handler, logging.INFO)


class _File(logging.FileHandler):
    """Writes to a file as long as there is room: a full disk must not bury the terminal under tracebacks."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the name is logging's
        """Let the line go where the system refuses to write it; what writes the run folder tells the user."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _Terminal(logging.Handler):
    """Writes to what standard error is at the moment: a progress bar puts itself in its place while it moves."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        print(self.format(record), file=sys.stderr, flush=True)


def _add(handler: logging.Handler, level: int) -> None:
    logger = logging.getLogger("breakwater")
    handler.setLevel(level)
    logger.addHandler(handler)
    logger.setLevel(min(level, logger.level or level))
    logger.propagate = False
