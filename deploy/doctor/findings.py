"""What a look at one thing gives: a finding, one line for the user."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from foundation.text import one_line

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        level: ``ok``; ``warning``: runs may go on, but not as they should; ``problem``: some run cannot work.
        about: what was looked at, one word.
        says: what was found.
        mend: what to do about it; empty where there is nothing to do.
    """

    level: Level
    about: str
    says: str
    mend: str = ""

    def __str__(self) -> str:
        text = f"{self.says}: {self.mend}" if self.mend else self.says
        # What is found may quote a stranger, whose control characters are none of the terminal's business.
        return f"{self.level:<8} {self.about:<12} {one_line(text, 2000)}"

    def as_json(self) -> dict[str, str]:
        """Return the fields by name."""
        return asdict(self)


def ok(about: str, says: str) -> Finding:
    """Return a finding that needs nothing."""
    return Finding("ok", about, says)


def warning(about: str, says: str, mend: str) -> Finding:
    """Return a finding that should be mended."""
    return Finding("warning", about, says, mend)


def problem(about: str, says: str, mend: str) -> Finding:
    """Return a finding that must be mended."""
    return Finding("problem", about, says, mend)


def guarded(about: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield what a look finds; a look that breaks is a problem like any other, and the others still follow."""
    try:
        yield from look()
    except Exception as error:  # whatever a broken machine makes of it
        told = " ".join(str(error).split()) or "no reason given"
        yield problem(about, f"could not be looked at: {type(error).__name__}: {told[:300]}", "report this line")
