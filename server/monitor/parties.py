"""The clients of a run as rows: who is connected, who answers, who was rejected and why, and who never came.

Counting costs a round some microseconds. The score of ``server.monitor.suspects`` costs milliseconds, so it looks at
the last rounds only, and is computed when somebody asks and at most a hundredth of the time.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from typing import Any

from foundation.text import one_line
from link.seats import Seat
from server.monitor.suspects import tally
from server.run_folder.record import NO_REPLY, kind_of
from strategies.strategy import RoundRecord

MOST = 500
"""At most this many rows: a state must fit into a frame of the link."""
MAX_TEXT = 160
"""The longest name or reason, in characters."""

_ENTRIES, _FEWEST, _WINDOW = 5000, 16, 256
"""The score looks at about this many replies: those of the last 16 to 256 rounds."""
_SHARE = 0.01
"""How much of the time computing scores may take."""

Row = dict[str, Any]


class Parties:
    """What is known of each client. Rounds are added by one thread; ``rows`` may be called by any.

    Args:
        clients: n.
        byzantine: f.
        seats: returns the seats that were ever taken, by worker; None where the transport does not know.
        expected: returns the names of those that may take part, where there is a list.
    """

    def __init__(
        self,
        clients: int,
        byzantine: int,
        seats: Callable[[], Mapping[int, Seat]] | None = None,
        expected: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._clients = clients
        self._byzantine = byzantine
        self._seats = seats
        self._expected = expected
        self._lock = threading.Lock()
        self._names: dict[int, str] = {}
        self._asked: Counter[int] = Counter()
        self._accepted: Counter[int] = Counter()
        self._clipped: Counter[int] = Counter()
        self._rejected: Counter[str] = Counter()
        self._reasons: dict[str, tuple[int, str]] = {}
        self._answered: dict[int, tuple[int, float | None]] = {}
        self._recent: deque[RoundRecord] = deque(maxlen=min(_WINDOW, max(_FEWEST, _ENTRIES // clients)))
        self._scores: dict[int, tuple[float | None, str]] = {}
        self._scored: tuple[float, float, int] = (0.0, 0.0, -1)  # when, how long it took, after which round

    def add(self, record: RoundRecord, now: float | None) -> None:
        """Note a round.

        Args:
            record: the round.
            now: when it ended, in seconds since 1970; None where that is not known.
        """
        with self._lock:
            cohort, heard = record.cohort, (record.round, now)
            self._recent.append(record)
            self._asked.update(cohort)
            self._accepted.update(record.accepted)
            self._clipped.update(record.clipped)
            self._answered.update(dict.fromkeys(record.accepted, heard))
            self._names.update(zip(cohort, record.names, strict=False))
            if record.rejected:
                worker_of = {self._names.get(worker): worker for worker in cohort}
                for name, reason in record.rejected:
                    if name in self._reasons or len(self._reasons) < self._clients:
                        self._rejected[name] += 1
                        self._reasons[name] = record.round, one_line(reason, MAX_TEXT)
                    if kind_of(reason) not in NO_REPLY and (worker := worker_of.get(name)) is not None:
                        self._answered[worker] = heard

    def rows(self) -> list[Row]:
        """Return a row for each client that is known: by its seat, then those on the list that never came.

        Docs/watching.md lists the keys.
        """
        seats = {} if self._seats is None else self._seats()
        scores = self._current_scores()
        with self._lock:
            workers = sorted({*seats, *self._asked})
            rows = [self._row(worker, seats.get(worker), scores.get(worker, (None, ""))) for worker in workers[:MOST]]
        here = {row["name"] for row in rows}
        absent = sorted(name for name in self._expected() if name not in here)
        return rows + [_absent(name) for name in absent[: max(0, MOST - len(rows))]]

    def _row(self, worker: int, seat: Seat | None, score: tuple[float | None, str]) -> Row:
        name = seat.name if seat is not None else self._names.get(worker) or f"worker {worker}"
        round_, at = self._answered.get(worker, (None, None))
        reason_round, reason = self._reasons.get(name, (None, ""))
        return {
            "name": one_line(name, MAX_TEXT),
            "worker": worker,
            "connected": None if seat is None else seat.connected,
            "since": None if seat is None else seat.since,
            "asked": self._asked[worker],
            "accepted": self._accepted[worker],
            "rejected": self._rejected[name],
            "clipped": self._clipped[worker],
            "answered": round_,
            "answered_at": at,
            "reason": reason,
            "reason_round": reason_round,
            "score": score[0],
            "because": score[1],
        }

    def _current_scores(self) -> Mapping[int, tuple[float | None, str]]:
        """Return score and reason by worker, computed anew unless that was done a moment ago."""
        with self._lock:
            when, took_s, after = self._scored
            began = time.monotonic()
            newest = self._recent[-1].round if self._recent else -1
            if newest == after or began - when < took_s / _SHARE:
                return self._scores
            recent = list(self._recent)
        found = {each.worker: (each.score, each.because) for each in tally(recent, self._byzantine)}
        with self._lock:
            self._scores = found
            self._scored = time.monotonic(), time.monotonic() - began, newest
        return found


def _absent(name: str) -> Row:
    """Return the row of a client that may take part and never came."""
    counts = dict.fromkeys(("asked", "accepted", "rejected", "clipped"), 0)
    unknown = dict.fromkeys(("worker", "since", "answered", "answered_at", "reason_round", "score"))
    return {"name": one_line(name, MAX_TEXT), "connected": False, **counts, **unknown, "reason": "", "because": ""}
