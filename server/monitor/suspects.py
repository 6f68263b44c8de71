"""Who attacked? What the rounds of a run show about each client, and a ranking for a person to look at.

The ranking has no effect: an honest client with unusual data stands out like an attacker, and an attacker that imitates
honest clients does not. ``STATEMENT`` gives the measured accuracy of the ranking.

The score compares a client with the others over the whole run. For each kind of evidence the client's typical value (a
median over its rounds) is put in units of the spread among clients (their median absolute deviation, so that fewer than
half of them cannot hide each other), and the largest of these numbers is the score.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from foundation.text import one_line
from server.run_folder.record import EVIDENCE, NO_QUORUM, NO_REPLY, kind_of
from strategies.strategy import RoundRecord

STATEMENT = (
    "A ranking to look into, not a verdict. In our tests it put nearly every attacker first where clients' data were "
    "alike, but missed half of those that run fang or plant a backdoor, most of those that run alie or shb with "
    "jitter, and those that attack in some rounds only. Where data differed, an honest client's score was up to 20, "
    "and attackers that send nothing but zeros were missed half of the time."
)
"""The note under every table."""

HIGHEST = 99.9
"""The highest score."""
_LITTLE = 2.0
"""Lower scores get no reason, as some client is always first."""
_FEW = 5
"""Rounds after which a typical value counts for half."""
_FLOORS = {"distance": 0.05, "cosine": 0.02, "clipped": 0.1, "rejected": 0.05, "same": 0.05}
"""The minimum spread: where all clients agree more closely than this, small differences show little.

Distances are compared by their logarithm; the last three are shares of rounds.
"""

_REASONS = {
    "distance": ("far away", "very near"),
    "cosine": ("agrees much", "points away"),
    "clipped": ("often clipped", ""),
    "rejected": ("rejected", ""),
    "same": ("equal vectors", ""),
}
"""The reason shown for a client whose value is higher, or lower, than that of the others."""


_COUNTED = ("name", "sampled", "replied", "accepted", "late", "clipped", "same")
_AVERAGES: Mapping[str, Callable[[list[float]], float]]
_AVERAGES = {"kept": fmean, "distance": median, "cosine": median, "weight": fmean}
"""What is typical of a client's rounds, by kind of evidence."""


@dataclass(frozen=True)
class Suspect:
    """One client over a run.

    Args:
        worker: its seat, 0 .. n-1.
        name: the last that it had.
        sampled: rounds in which it was asked.
        replied: of these, rounds in which its reply arrived in time, good or bad.
        accepted: of these, rounds in which its reply counted.
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
    replied: int
    accepted: int
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
class _Statistics:
    """The statistics of one client."""

    name: str
    sampled: int = 0
    accepted: int = 0
    late: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    clipped: int = 0
    same: int = 0
    seen: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in EVIDENCE})

    @property
    def replied(self) -> int:
        """Rounds with a reply, whether it counted or not."""
        return self.accepted + sum(count for kind, count in self.rejected.items() if kind not in NO_REPLY)

    @property
    def judged(self) -> int:
        """Rounds with a reply that was rejected for what it is, or accepted."""
        return self.replied - self.rejected[NO_QUORUM]


def tally(rounds: Iterable[RoundRecord], byzantine: int | None = None) -> list[Suspect]:
    """Return what a run shows about its clients, the most suspicious first.

    Args:
        rounds: in their order.
        byzantine: f: a larger group of clients with the same vector has an honest one in it, so it shows nothing. None
            for fewer than half of the round's.
    """
    clients = _gather(rounds, byzantine)
    scores = _scores(clients)

    suspects = []
    for worker, client in clients.items():
        score, because = scores[worker]
        found: dict[str, Any] = {name: getattr(client, name) for name in _COUNTED}
        found |= {kind: _AVERAGES[kind](values) if values else None for kind, values in client.seen.items()}
        suspects.append(Suspect(worker, rejected=dict(client.rejected), score=score, because=because, **found))
    return sorted(suspects, key=lambda suspect: (-(suspect.score or 0.0), suspect.worker))


def _gather(rounds: Iterable[RoundRecord], byzantine: int | None) -> dict[int, _Statistics]:
    clients: dict[int, _Statistics] = {}
    late: Counter[str] = Counter()
    for record in rounds:
        for worker, name in zip(record.cohort, record.names or [""] * len(record.cohort), strict=False):
            if worker not in clients:
                clients[worker] = _Statistics(f"worker {worker}")
            clients[worker].name = name or clients[worker].name
            clients[worker].sampled += 1
        worker_of = {clients[worker].name: worker for worker in record.cohort}
        for name, reason in record.rejected:
            if name in worker_of:
                clients[worker_of[name]].rejected[kind_of(reason)] += 1
        for worker in clients.keys() & record.clipped:
            clients[worker].clipped += 1
        for worker in record.accepted:
            clients[worker].accepted += 1
        late.update(record.late)
        seen = record.evidence
        if seen is None:
            continue
        for kind in EVIDENCE:
            for worker, value in zip(seen.workers, getattr(seen, kind), strict=False):
                if value is not None:
                    clients[worker].seen[kind].append(value)
        few = byzantine if byzantine is not None else (len(record.accepted) - 1) // 2
        for group in seen.same:
            for worker in clients.keys() & group if len(group) <= few else ():
                clients[worker].same += 1
    for client in clients.values():
        client.late = late[client.name]
    return dict(sorted(clients.items()))


def _scores(clients: Mapping[int, _Statistics]) -> dict[int, tuple[float | None, str]]:
    """Return score and reason by worker."""
    typical: dict[str, dict[int, float]] = {kind: {} for kind in _FLOORS}
    for worker, client in clients.items():
        if client.seen["distance"]:
            typical["distance"][worker] = math.log(median(client.seen["distance"]))
        if client.seen["cosine"]:
            typical["cosine"][worker] = median(client.seen["cosine"])
        if client.accepted:
            typical["clipped"][worker] = client.clipped / client.accepted
            typical["same"][worker] = client.same / client.accepted
        if client.judged:
            typical["rejected"][worker] = (client.judged - client.accepted) / client.judged
    found: dict[int, list[tuple[float, str]]] = {worker: [] for worker in clients}
    for kind, values in typical.items():
        if len(values) < 3:
            continue  # nobody to compare with
        middle = median(values.values())
        spread = max(1.4826 * median(abs(value - middle) for value in values.values()), _FLOORS[kind])
        for worker, value in values.items():
            away, rounds = (value - middle) / spread, clients[worker].judged
            score = min(HIGHEST, abs(away) * rounds / (rounds + _FEW))
            high, low = _REASONS[kind]
            if away > 0 or low:  # fewer rejections than others are no evidence
                found[worker].append((score, high if away > 0 else low))
    best = {worker: max(scores, default=(None, "")) for worker, scores in found.items()}
    return {worker: (score, because if (score or 0.0) >= _LITTLE else "") for worker, (score, because) in best.items()}


_DIGITS = {"score": 1, "kept": 2, "distance": 2, "cosine": 2, "weight": 3}
_COLUMNS = ("score", "sampled", "replied", "late", "clipped", *_AVERAGES, "because", "rejected")


def table(suspects: Sequence[Suspect]) -> Table:
    """Return the suspects as a table for a terminal; names and reasons come from the clients.

    Empty columns are left out.
    """
    columns = {heading: [_cell(suspect, heading) for suspect in suspects] for heading in _COLUMNS}
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


def _cell(suspect: Suspect, heading: str) -> str:
    value = getattr(suspect, heading)
    if heading == "rejected":
        return ", ".join(f"{count} {reason}" for reason, count in value.items())
    if heading in _DIGITS:
        return "" if value is None else f"{value:.{_DIGITS[heading]}f}"
    if heading == "replied":
        return "" if value == suspect.sampled else str(value)
    return str(value) if heading == "sampled" else str(value or "")
