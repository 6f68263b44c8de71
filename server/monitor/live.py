"""What a run is doing now, as one JSON object: the terminal, `breakwater watch` and Prometheus all show this.

``LiveRun`` is fed by the rounds as they end, which costs microseconds; rates and shares are worked out when somebody
asks. docs/watching.md lists the keys.
"""

import json
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foundation.text import one_line
from strategies.method import ATTACK_FAILED

if TYPE_CHECKING:
    from experiment.config import Config
    from strategies.method import Evaluation
    from strategies.strategy import RoundRecord

State = dict[str, Any]

OTHERS = "(others)"
"""Under this name are counted the rejections of names beyond the number of seats."""
MAX_REASONS = 32
"""So many kinds of reasons are told apart; kinds are ours, not a client's, so that there are never more."""
KEPT_REJECTIONS = 5
"""So many of the last rejections are shown."""
HISTORY = 40
"""The measures are kept at so many rounds at least, twice as many at most, evenly over the run."""

_WINDOW_S = 10.0
"""Rates are those of the last so many seconds."""
_SAMPLE_S = 0.2
"""Seconds between the points that rates are worked out from."""
_MAX_TEXT = 160
"""The longest name or reason, in characters."""

MEASURES = ("loss", "accuracy", "gap")


@dataclass(frozen=True, kw_only=True)
class Title:
    """What does not change while a run goes.

    Args:
        run: name of the run folder.
        method: kind of the method.
        rule: the robust rule, with what stands before it.
        task: kind of the task.
        attack: what the Byzantine clients of a local run do; None for nothing.
        clients: n.
        byzantine: f.
        rounds: how many rounds the run has.
    """

    run: str
    method: str
    rule: str
    task: str
    attack: str | None
    clients: int
    byzantine: int
    rounds: int

    @classmethod
    def of(cls, config: "Config", run: str) -> "Title":
        """Return the title of an experiment."""
        federation, aggregator = config.federation, config.aggregator
        return cls(
            run=run,
            method=config.strategy.kind,
            rule=" + ".join([*(step.kind for step in aggregator.pre), aggregator.kind]),
            task=config.task.kind,
            attack=None if config.attack is None or not federation.byzantine else config.attack.kind,
            clients=federation.clients,
            byzantine=federation.byzantine,
            rounds=config.strategy.rounds,
        )


class LiveRun:
    """The state of one run. Rounds are added by one thread; ``state`` may be called by any.

    Args:
        title: of the run.
        connected: returns how many clients are connected; None where nobody can tell.
        address: HOST:PORT where clients and watchers find the server; "" where there is none.
    """

    def __init__(self, title: Title, connected: Callable[[], int] | None = None, address: str = "") -> None:
        self.title = title
        self._connected = connected
        self._address = address
        self._lock = threading.Lock()
        self._status, self._line = "waiting", ""
        self._round = self._begun_after = self._added = 0
        self._began: float | None = None
        self._round_s = 0.0
        self._up = self._down = 0
        self._measured: dict[str, float | None] = {}
        self._measured_at = 0
        self._history: list[tuple[int, tuple[float | None, ...]]] = []
        self._last = (0, 0, 0, 0)
        self._all = [0, 0, 0, 0]  # sampled, answered, rejected, clipped
        self._rejections: deque[tuple[int, str, str]] = deque(maxlen=KEPT_REJECTIONS)
        self._reasons: Counter[str] = Counter()
        self._rejected_of: Counter[str] = Counter()
        self._held = ""
        self._incomplete = self._incomplete_at = self._attack_failed = 0
        self._lam: float | None = None
        self._step_norm: float | None = None
        self._points: deque[tuple[float, int, int, int]] = deque()  # time, round, bytes up, bytes down

    # --- what happens -------------------------------------------------------------------------------------------------

    def begin(self, evaluation: "Evaluation | None" = None) -> None:
        """Note that the first round follows, or the next one of a run that goes on.

        Args:
            evaluation: the model before the first round, where it is known.
        """
        with self._lock:
            self._status, self._began, self._begun_after = "running", time.monotonic(), self._round
            if not self._round and evaluation is not None:
                self._measure(0, {name: getattr(evaluation, name) for name in MEASURES})
            self._points.clear()

    def add(self, record: "RoundRecord") -> None:
        """Note a round that has ended."""
        evaluation = record.evaluation
        measured = None if evaluation is None else {name: getattr(evaluation, name) for name in MEASURES}
        counts = len(record.cohort), len(record.accepted), len(record.rejected), len(record.clipped)
        with self._lock:
            self._count(record.round, counts, record.bytes_up, record.bytes_down, record.round_s, record.rejected)
            self._lam, self._step_norm = record.lam, record.step_norm
            self._note_incomplete(record.round, record.incomplete)
            if measured is not None:
                self._measure(record.round, measured)

    def replay(self, line: Mapping[str, Any]) -> None:
        """Note a round as ``metrics.jsonl`` has it.

        Raises:
            KeyError, TypeError: it is none.
        """
        rejected = [(entry["client"], entry["reason"]) for entry in line["rejected"]]
        counts = len(line["cohort"]), len(line["accepted"]), len(rejected), len(line["clipped"])
        with self._lock:
            self._count(line["round"], counts, line["bytes_up"], line["bytes_down"], line["round_s"], rejected)
            self._lam, self._step_norm = line.get("lam"), line.get("step_norm")
            self._note_incomplete(line["round"], bool(line.get("incomplete")))
            if "loss" in line:
                self._measure(line["round"], {name: line.get(name) for name in MEASURES})

    def hold(self, line: str) -> None:
        """Note that the run is held until enough clients answer, and what it waits for; "" where it goes on."""
        with self._lock:
            self._held = line

    def end(self, status: str, line: str) -> None:
        """Note how the run has ended, and the last line that the user is told."""
        with self._lock:
            self._status, self._line, self._held = status, line, ""

    # --- what is shown ------------------------------------------------------------------------------------------------

    def state(self) -> State:
        """Return what the run is doing now; numbers that are not finite, or not known, are None."""
        connected = None if self._connected is None else self._connected()
        now = time.monotonic()
        with self._lock:
            rounds_s, up_s, down_s = self._rates(now)
            done = self._round - self._begun_after
            left = max(0, self.title.rounds - self._round)
            pace = rounds_s or (done / (now - self._began) if self._began is not None and done else 0.0)
            running = self._status == "running"
            return {
                **vars(self.title),
                "address": self._address,
                "status": self._status,
                "line": self._line,
                "held": self._held,
                "incomplete": self._incomplete,
                "incomplete_at": self._incomplete_at,
                "attack_failed": self._attack_failed,
                "round": self._round,
                **{name: finite(self._measured.get(name)) for name in MEASURES},
                "measured": self._measured_at,
                "history": {
                    name: [finite(values[i]) for _, values in self._history] for i, name in enumerate(MEASURES)
                },
                "lam": finite(self._lam),
                "step_norm": finite(self._step_norm),
                "rounds_s": rounds_s,
                "round_s": self._round_s / self._added if self._added else None,
                "left_s": left / pace if running and pace else None,
                "up": self._up,
                "down": self._down,
                "up_s": up_s,
                "down_s": down_s,
                "connected": connected,
                "last": dict(zip(_COUNTS, self._last, strict=True)),
                "all": dict(zip(_COUNTS, self._all, strict=True)),
                "reasons": dict(self._reasons),
                "rejected_of": dict(self._rejected_of),
                "rejections": [
                    {"round": round_, "client": name, "reason": reason} for round_, name, reason in self._rejections
                ],
            }

    def to_json(self) -> str:
        """Return the state as one line of JSON."""
        return json.dumps(self.state(), allow_nan=False)

    # --- with the lock ------------------------------------------------------------------------------------------------

    def _count(
        self,
        round_: int,
        counts: tuple[int, int, int, int],
        up: int,
        down: int,
        round_s: float,
        rejected: Iterable[tuple[str, str]],
    ) -> None:
        self._round = round_
        self._added += 1
        self._round_s += round_s
        self._up += up
        self._down += down
        self._last = counts
        for i, count in enumerate(counts):
            self._all[i] += count
        for name, reason in rejected:
            shown, said = one_line(name, _MAX_TEXT), one_line(reason, _MAX_TEXT)
            self._rejections.append((round_, shown, said))
            kind = said.partition(":")[0]
            self._attack_failed += kind == ATTACK_FAILED
            self._reasons[kind if kind in self._reasons or len(self._reasons) < MAX_REASONS else "other"] += 1
            known = shown in self._rejected_of or len(self._rejected_of) < self.title.clients
            self._rejected_of[shown if known else OTHERS] += 1

    def _note_incomplete(self, round_: int, incomplete: bool) -> None:
        if incomplete:
            self._incomplete, self._incomplete_at = self._incomplete + 1, round_

    def _measure(self, round_: int, measured: dict[str, float | None]) -> None:
        self._measured, self._measured_at = measured, round_
        self._history.append((round_, tuple(measured[name] for name in MEASURES)))
        if len(self._history) > 2 * HISTORY:
            del self._history[1:-1:2]

    def _rates(self, now: float) -> tuple[float | None, float | None, float | None]:
        """Return rounds, bytes up and bytes down a second."""
        points = self._points
        if self._status == "running" and (not points or now - points[-1][0] >= _SAMPLE_S):
            points.append((now, self._round, self._up, self._down))
            while now - points[0][0] > _WINDOW_S:
                points.popleft()
        if not points or points[-1][0] - points[0][0] < _SAMPLE_S:
            return None, None, None
        (then, *before), (later, *after) = points[0], points[-1]
        rounds, up, down = ((b - a) / (later - then) for a, b in zip(before, after, strict=True))
        return rounds, up, down


_COUNTS = ("sampled", "answered", "rejected", "clipped")


def checked(told: Mapping[str, Any]) -> State:
    """Return a state that somebody else has sent: what ``LiveRun.state`` puts there, and nothing more.

    Texts may have any characters still. What is shown of a state, and how long that is, is bounded by this.

    Args:
        told: the state, with ``away`` or ``goodbye`` if a watcher has added that.

    Raises:
        ValueError: a key is missing, or its value is not what it should be; says which.
    """
    state = {key: told[key] for key in (*_FORMS, *_ADDED) if key in told}
    for key, fits in _FORMS.items():
        if key not in state or not fits(state[key]):
            raise ValueError(key)
    for key in _ADDED & state.keys():
        if not _is_text(state[key]):
            raise ValueError(key)
    return state


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_whole(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_real(value: object) -> bool:
    return (
        value is None or (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < 2**63)
    )


def _is_course(value: object) -> bool:
    return isinstance(value, list) and len(value) <= 2 * HISTORY and all(map(_is_real, value))


def _is_tally(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_whole, value.values()))


def _is_counts(value: object) -> bool:
    return isinstance(value, dict) and value.keys() == set(_COUNTS) and _is_tally(value)


def _is_history(value: object) -> bool:
    return isinstance(value, dict) and value.keys() == set(MEASURES) and all(map(_is_course, value.values()))


def _is_rejection(value: object) -> bool:
    if not isinstance(value, dict) or value.keys() != {"round", "client", "reason"}:
        return False
    return _is_whole(value["round"]) and _is_text(value["client"]) and _is_text(value["reason"])


_FORMS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("run", "method", "rule", "task", "address", "status", "line", "held"), _is_text),
    **dict.fromkeys(("clients", "byzantine", "rounds", "round", "measured", "up", "down"), _is_whole),
    **dict.fromkeys(("incomplete", "incomplete_at", "attack_failed"), _is_whole),
    **dict.fromkeys((*MEASURES, "lam", "step_norm", "rounds_s", "round_s", "left_s", "up_s", "down_s"), _is_real),
    "attack": lambda value: value is None or _is_text(value),
    "connected": lambda value: value is None or _is_whole(value),
    "history": _is_history,
    **dict.fromkeys(("last", "all"), _is_counts),
    **dict.fromkeys(("reasons", "rejected_of"), _is_tally),
    "rejections": lambda value: (
        isinstance(value, list) and len(value) <= KEPT_REJECTIONS and all(map(_is_rejection, value))
    ),
}
"""The keys of a state, and what says whether a value may stand there."""
_ADDED = {"away", "goodbye"}
"""Keys that a watcher adds."""


def finite(value: float | None) -> float | None:
    """Return a number that JSON has, or None."""
    return float(value) if value is not None and math.isfinite(value) else None


def sparkline(values: Sequence[float | None], width: int, *, log: bool = False) -> str:
    """Return values as a line of blocks, one a character; a blank for each that is not known.

    Args:
        values: from the first to the last.
        width: how many characters at most; of more values as many are taken, evenly.
        log: the height is that of the logarithm, where all values are positive.
    """
    blocks = "▁▂▃▄▅▆▇█"
    if len(values) > width > 0:
        values = [values[round(i * (len(values) - 1) / max(1, width - 1))] for i in range(width)]
    if log and all(value is None or value > 0 for value in values):
        values = [None if value is None else math.log10(value) for value in values]
    known = [value for value in values if value is not None]
    if width <= 0 or not known:
        return ""
    low, high = min(known), max(known)
    if low == high or not math.isfinite(high - low):
        return ""
    steps = len(blocks) - 1
    return "".join(" " if value is None else blocks[round(steps * (value - low) / (high - low))] for value in values)
