"""Who attacked? What the rounds of a run show about each client, and a ranking for a person to look at.

Nothing is decided here and nobody is banned: an honest client with unusual data stands out as an attacker does, and an
attacker that imitates honest clients does not. ``STATEMENT`` says how often the ranking was right where that is known.

The score compares a client with the others over the whole run. For each kind of evidence the client's typical value (a
median over its rounds) is put in units of the spread among clients (their median absolute deviation, so that fewer than
half of them cannot hide each other), and the largest of these numbers is the score.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from foundation.text import one_line

STATEMENT = (
    "A ranking to look into, not a verdict. In our tests it put nearly every attacker first where clients' data were "
    "alike. Where they differed, an honest client's score was up to 20, and attackers that send nothing but zeros were "
    "missed half of the time."
)
"""To be printed under every table."""

HIGHEST = 99.9
"""Scores are cut off there."""
_LITTLE = 2.0
"""Below this a score needs no explanation: somebody must be first."""
_FEW = 5
"""Rounds after which a typical value counts for half."""
_FLOORS = {"distance": 0.05, "cosine": 0.02, "clipped": 0.1, "rejected": 0.05, "same": 0.05}
"""The least spread that is believed: where all clients agree to more digits than that, small differences say little.

Distances are compared by their logarithm; the last three are shares of rounds.
"""
_NOT_ITS_DOING = ("silent", "not connected", "disconnected", "no quorum")
"""Reasons of rejection that a bad connection explains."""


@dataclass(frozen=True)
class Suspect:
    """One client over a run.

    Args:
        worker: its seat, 0 .. n-1.
        name: the last that it had.
        sampled: rounds in which it was asked.
        answered: of these, rounds in which a reply of it arrived in time, good or bad.
        late: replies that came after their round.
        rejected: rounds in which its reply did not count, by reason.
        clipped: rounds in which its vector was clipped.
        kept: mean share of its vector's length that clipping left, over rounds that clip; None where none did.
        distance: median distance to the aggregate, in units of the round's median; None without evidence.
        cosine: median cosine with the aggregate.
        weight: mean weight that the rule gave it; None for rules without weights.
        same: rounds in which it sent exactly what some others sent, they being few enough to be all Byzantine.
        score: how far it stands out, in units of the spread among clients, 0 .. HIGHEST; None without evidence.
        because: the evidence that gives the score, if it stands out at all: it is far away from the aggregate or very
            near to it, points away from it or agrees with it much, more than others do; it is often clipped or
            rejected; it sends equal vectors, see ``same``.
    """

    worker: int
    name: str
    sampled: int
    answered: int
    late: int
    rejected: Mapping[str, int]
    clipped: int
    kept: float | None
    distance: float | None
    cosine: float | None
    weight: float | None
    same: int
    score: float | None
    because: str


@dataclass
class _Books:
    """What is gathered about one client."""

    name: str
    sampled: int = 0
    accepted: int = 0
    late: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    clipped: int = 0
    same: int = 0
    kept: list[float] = field(default_factory=list)
    distance: list[float] = field(default_factory=list)
    cosine: list[float] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)

    @property
    def answered(self) -> int:
        """Rounds with a reply, whether it counted or not."""
        return self.accepted + sum(count for reason, count in self.rejected.items() if reason not in _NOT_ITS_DOING)


def tally(rounds: Iterable[Mapping[str, Any]], byzantine: int | None = None) -> list[Suspect]:
    """Return what a run shows about its clients, the most suspicious first.

    Args:
        rounds: as ``metrics.jsonl`` has them.
        byzantine: f: a larger group of clients with the same vector has an honest one in it, so it shows nothing. None
            for fewer than half of the round's.
    """
    books = _gather(rounds, byzantine)
    scores = _scores(books)
    suspects = [
        Suspect(
            worker=worker,
            name=book.name,
            sampled=book.sampled,
            answered=book.answered,
            late=book.late,
            rejected=dict(book.rejected),
            clipped=book.clipped,
            kept=fmean(book.kept) if book.kept else None,
            distance=median(book.distance) if book.distance else None,
            cosine=median(book.cosine) if book.cosine else None,
            weight=fmean(book.weight) if book.weight else None,
            same=book.same,
            score=scores[worker][0],
            because=scores[worker][1],
        )
        for worker, book in books.items()
    ]
    return sorted(suspects, key=lambda suspect: (-(suspect.score or 0.0), suspect.worker))


def _gather(rounds: Iterable[Mapping[str, Any]], byzantine: int | None) -> dict[int, _Books]:
    names: dict[int, str] = {}
    books: dict[int, _Books] = {}
    late: Counter[str] = Counter()
    for told in rounds:
        names |= {int(worker): name for worker, name in told.get("names", {}).items()}
        worker_of = {names.get(worker, f"worker {worker}"): worker for worker in told["cohort"]}
        for worker in told["cohort"]:
            book = books.setdefault(worker, _Books(f"worker {worker}"))
            book.name = names.get(worker, book.name)
            book.sampled += 1
        for entry in told["rejected"]:
            worker = worker_of.get(entry["client"])
            if worker is not None:
                books[worker].rejected[entry["reason"].partition(":")[0]] += 1
        for worker in told["clipped"]:
            if worker in books:
                books[worker].clipped += 1
        late.update(told.get("late", ()))
        accepted = told["accepted"]
        for position, worker in enumerate(accepted):
            book = books[worker]
            book.accepted += 1
            for kind in ("distance", "cosine", "kept", "weight"):
                values: Sequence[float | None] = told.get(kind, ())
                if position < len(values) and (value := values[position]) is not None:
                    getattr(book, kind).append(value)
        few = byzantine if byzantine is not None else (len(accepted) - 1) // 2
        for group in told.get("same", ()):
            for worker in group if len(group) <= few else ():
                books[worker].same += 1
    for book in books.values():
        book.late = late[book.name]
    return dict(sorted(books.items()))


def _scores(books: Mapping[int, _Books]) -> dict[int, tuple[float | None, str]]:
    """Return score and reason by worker."""
    found: dict[int, list[tuple[float, str]]] = defaultdict(list)
    typical: dict[str, dict[int, float]] = {kind: {} for kind in _FLOORS}
    for worker, book in books.items():
        if book.distance:
            typical["distance"][worker] = math.log(median(book.distance))
        if book.cosine:
            typical["cosine"][worker] = median(book.cosine)
        if book.accepted:
            typical["clipped"][worker] = book.clipped / book.accepted
            typical["same"][worker] = book.same / book.accepted
        if book.answered:
            typical["rejected"][worker] = (book.answered - book.accepted) / book.answered
    for kind, values in typical.items():
        if len(values) < 3:
            continue  # nobody to compare with
        middle = median(values.values())
        spread = max(1.4826 * median(abs(value - middle) for value in values.values()), _FLOORS[kind])
        for worker, value in values.items():
            away = (value - middle) / spread
            rounds = books[worker].answered
            sized = min(HIGHEST, abs(away) * rounds / (rounds + _FEW))
            if kind in ("distance", "cosine") or away > 0:  # fewer rejections than others are no evidence
                found[worker].append((sized, _words(kind, away)))
    best = {worker: max(found[worker], default=(None, "")) for worker in books}
    return {worker: (score, because if (score or 0.0) >= _LITTLE else "") for worker, (score, because) in best.items()}


def _words(kind: str, away: float) -> str:
    """Return a kind of evidence in words."""
    return {
        "distance": "far away" if away > 0 else "very near",
        "cosine": "agrees much" if away > 0 else "points away",
        "clipped": "often clipped",
        "rejected": "rejected",
        "same": "equal vectors",
    }[kind]


def table(suspects: Sequence[Suspect]) -> Table:
    """Return the suspects as a table for a terminal; names and reasons are whatever the clients chose.

    Columns in which nothing stands are left out.
    """
    columns: dict[str, list[str]] = {
        "score": [_figure(suspect.score, 1) for suspect in suspects],
        "asked": [str(suspect.sampled) for suspect in suspects],
        "answered": ["" if s.answered == s.sampled else str(s.answered) for s in suspects],
        "late": [str(suspect.late or "") for suspect in suspects],
        "clipped": [str(suspect.clipped or "") for suspect in suspects],
        "kept": [_figure(suspect.kept, 2) for suspect in suspects],
        "distance": [_figure(suspect.distance, 2) for suspect in suspects],
        "cosine": [_figure(suspect.cosine, 2) for suspect in suspects],
        "weight": [_figure(suspect.weight, 3) for suspect in suspects],
        "because": [suspect.because for suspect in suspects],
        "rejected": [", ".join(f"{count} {reason}" for reason, count in s.rejected.items()) for s in suspects],
    }
    columns = {heading: cells for heading, cells in columns.items() if any(cells)}
    shown = Table(title="Who attacked?", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.add_column("client", no_wrap=True)
    for heading in columns:
        words = heading in ("because", "rejected")
        shown.add_column(heading, justify="left" if words else "right", no_wrap=not words)
    for row, suspect in enumerate(suspects):
        cells = (Text(one_line(cells[row], 80)) for cells in columns.values())
        shown.add_row(Text(one_line(suspect.name, 30)), *cells)
    return shown


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
