"""What a run shows while it goes: a moving line on a terminal, plain lines elsewhere."""

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from strategies.algorithm import Evaluation
from strategies.strategy import RoundRecord

LINES = 12
"""About so many lines a run where the output is no terminal: a log is not a screen."""


class RunProgress:
    """Shows rounds, the last evaluation, seconds a round and bytes; use it as a context manager.

    Args:
        console: where to write.
        rounds: how many rounds the run has.
        label: what stands before the bar.
    """

    def __init__(self, console: Console, rounds: int, label: str) -> None:
        self._console = console
        self._rounds = rounds
        self._label = label
        self._measured = ""
        self._up = self._down = 0
        self._next_line = 0
        self._seconds = 0.0
        self._added = 0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[shown]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(label, total=rounds, shown="")

    def __enter__(self) -> Self:
        """Start showing."""
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop showing, and leave the terminal as it was."""
        self._bar.stop()

    def start(self, evaluation: Evaluation, after: int = 0) -> None:
        """Show the starting point, the model after this round."""
        self._measured = measures(evaluation)
        self._bar.update(self._task, completed=after)
        if not self._console.is_terminal:
            self._console.print(f"{self._label}  round {after}/{self._rounds}  {self._measured}", highlight=False)

    def add(self, record: RoundRecord) -> None:
        """Show one finished round."""
        self._up += record.bytes_up
        self._down += record.bytes_down
        self._seconds += record.round_s
        self._added += 1
        if record.evaluation is not None:
            self._measured = measures(record.evaluation)
        shown = (
            f"{self._measured}  {1000 * self._seconds / self._added:.1f} ms/round  "
            f"{size(self._up)} up  {size(self._down)} down"
        )
        self._bar.update(self._task, completed=record.round, shown=shown)
        due = record.round >= self._next_line or record.round == self._rounds
        if record.evaluation is not None and due and not self._console.is_terminal:
            self._next_line = record.round + self._rounds // LINES
            self._console.print(f"{self._label}  round {record.round}/{self._rounds}  {shown}", highlight=False)


def measures(evaluation: Evaluation) -> str:
    """Return an evaluation in words."""
    gap = "" if evaluation.gap is None else f"  f-f* {evaluation.gap:.1e}"
    return f"loss {evaluation.loss:.4g}{gap}  accuracy {100 * evaluation.accuracy:.1f} %"


def size(count: int) -> str:
    """Return a number of bytes for people: 12.3 MB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
