"""What ``breakwater client`` shows on its own terminal: one line that is rewritten, or plain lines now and then."""

import time
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from client.observers import Standing
from foundation.text import one_line
from foundation.units import size

REFRESHES = 2
"""How often a terminal is redrawn, a second."""
EVERY_S = 10.0
"""Seconds between lines where the output is no terminal."""


def line_of(name: str, standing: Standing) -> str:
    """Return where a client is, as one line."""
    return one_line("  ".join((name, *_parts(standing))), 400)


def _parts(known: Standing) -> list[str]:
    seat = "" if known.worker is None else f" as worker {known.worker} of {known.clients}"
    away = f"not connected: {known.reason}" if known.reason else "connecting"
    parts = [f"connected{seat}" if known.connected else away]
    if known.asked:
        at = "" if known.round is None else f"round {known.round}: "
        parts.append(f"{at}asked {known.asked}, answered {known.answered}")
    if known.bytes:
        length = "" if known.norm is None else f", newest update of norm {known.norm:.4g}"
        parts.append(f"sent {size(known.bytes)}, last {known.kind} of {size(known.last_bytes)}{length}")
    if known.measured is not None:
        accuracy = known.measured.accuracy
        shown = "" if accuracy is None else f", accuracy {100 * accuracy:.1f} %"
        at = "final model" if known.measured_at is None else f"round {known.measured_at}"
        parts.append(f"own data ({at}): loss {known.measured.loss:.4g}{shown}")
    return parts


class Screen:
    """Shows the clients of a process; use it as a context manager.

    Args:
        console: where to write; beside the log, as what a command prints is its result.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: dict[str, Standing] = {}
        self._due: dict[str, float] = {}
        moves = console.is_terminal and not console.is_dumb_terminal
        self._live = Live(console=console, get_renderable=self._draw, refresh_per_second=REFRESHES) if moves else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            return
        for name, standing in self._shown.items():  # how it ended
            if standing.asked:
                self._print(name, standing)

    def show(self, name: str, standing: Standing) -> None:
        """Show a client."""
        changed = name not in self._shown or self._shown[name].connected != standing.connected
        self._shown[name] = standing
        if self._live is not None:
            return
        now = time.monotonic()
        if standing.connected and changed:
            self._due[name] = now + EVERY_S
        elif now >= self._due.get(name, now + 1):
            self._due[name] = now + EVERY_S
            self._print(name, standing)

    def _print(self, name: str, standing: Standing) -> None:
        self._console.print(Text(line_of(name, standing)), soft_wrap=True)

    def _draw(self) -> Group:
        lines = [line_of(name, each) for name, each in list(self._shown.items())]
        return Group(*(Text(line, no_wrap=False, overflow="fold") for line in lines))
