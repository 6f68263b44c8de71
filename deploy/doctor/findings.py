"""A finding: the result of one check, one line for the user."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from foundation.text import one_line

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        level: ``ok``; ``warning``: runs work, but not as they should; ``problem``: some run cannot work.
        about: what was checked, one word.
        says: the result.
        fix: the suggested fix; empty if there is nothing to do.
    """

    level: Level
    about: str
    says: str
    fix: str = ""

    def __str__(self) -> str:
        text = f"{self.says}: {self.fix}" if self.fix else self.says
        # A finding may quote a peer, whose control characters must not reach the terminal.
        return f"{self.level:<8} {self.about:<12} {one_line(text, 2000)}"

    def as_json(self) -> dict[str, str]:
        """Return the fields by name."""
        return asdict(self)


@dataclass
class Demand:
    """What a config needs of the machine, once it has been opened.

    Args:
        clients: n; None if unknown.
        disk: about the most bytes that its run writes.
    """

    clients: int | None = None
    disk: int = 0


def ok(about: str, says: str) -> Finding:
    """Return a finding that needs no fix."""
    return Finding("ok", about, says)


def warning(about: str, says: str, fix: str) -> Finding:
    """Return a finding that should be fixed."""
    return Finding("warning", about, says, fix)


def problem(about: str, says: str, fix: str) -> Finding:
    """Return a finding that must be fixed."""
    return Finding("problem", about, says, fix)


def guarded(about: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield the findings of a check; one that raises is itself a problem, and the next checks still run."""
    try:
        yield from look()
    except Exception as error:  # anything can fail on a broken machine
        reason = " ".join(str(error).split()) or "no reason given"
        yield problem(about, f"check failed: {type(error).__name__}: {reason[:300]}", "report this line")
