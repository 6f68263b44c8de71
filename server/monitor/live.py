"""What a run is doing now, as one JSON object: the terminal, `breakwater watch` and Prometheus all show this.

``LiveRun`` is fed by the rounds as they end, which costs microseconds; rates and shares are computed on
request. docs/watching.md lists the keys.
"""

import json
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import add, itemgetter
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from foundation.text import one_line
from link.seats import Seat
from server.monitor.parties import MAX_TEXT, MOST, Parties
from server.run_folder.record import CLAIMED, MEASURES, Counts, claims_to, finite, kind_of
from strategies.claims import Claims, Measures, headline, measured_by
from strategies.method import ATTACK_FAILED

if TYPE_CHECKING:
    from experiment.config import Config
    from strategies.method import Evaluation
    from strategies.strategy import RoundRecord

State = dict[str, Any]

OTHERS = "(others)"
"""The common name of all rejected clients beyond the number of seats."""
MAX_REASONS = 32
"""At most this many kinds of reasons are counted separately; clients cannot choose them."""
KEPT_REJECTIONS = 5
"""This many of the last rejections are shown."""
HISTORY = 40
"""The measures of at least this many rounds are kept, and of at most twice as many, evenly over the run."""

_WINDOW_S = 10.0
"""Rates are averages over this many seconds."""
_SAMPLE_S = 0.2
"""Seconds between the points that rates are computed from."""
_RATES = ("rounds_s", "up_s", "down_s")


@dataclass(frozen=True, kw_only=True)
class Title:
    """What does not change while a run goes.

    Args:
        run: name of the run folder.
        method: kind of the method.
        rule: the robust rule, with its pre-aggregators.
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
            attack=None if config.attack is None or not federation.byzantine else config.attack.label,
            clients=federation.clients,
            byzantine=federation.byzantine,
            rounds=config.strategy.rounds,
        )


class LiveRun:
    """The state of one run. Rounds are added by one thread; ``state`` may be called by any.

    Args:
        title: of the run.
        connected: returns how many clients are connected; None where that is not known.
        address: HOST:PORT where clients and watchers find the server; "" where there is none.
        seats: see ``server.monitor.parties``.
        expected: the same.
    """

    def __init__(
        self,
        title: Title,
        connected: Callable[[], int] | None = None,
        address: str = "",
        seats: Callable[[], Mapping[int, Seat]] | None = None,
        expected: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self.title = title
        self._connected = connected
        self._parties = Parties(title.clients, title.byzantine, seats, expected)

        self._lock = threading.Lock()
        self._now: State = {"address": address, "status": "waiting", "line": "", "held": ""}
        self._now |= dict.fromkeys(("round", "measured", "up", "down"), 0)
        self._now |= dict.fromkeys(("incomplete", "incomplete_at", "attack_failed"), 0)
        self._now |= dict.fromkeys(("lam", "step_norm", "round_at"))
        self._begun_after = self._added = 0
        self._began: float | None = None
        self._round_s = 0.0
        self._measured: Measures = (None, None)
        self._claims: State | None = None  # the last ones
        self._history: list[tuple[int, Evaluation]] = []  # with the round
        self._last = self._all = Counts(0, 0, 0, 0, 0)
        self._rejections: deque[dict[str, Any]] = deque(maxlen=KEPT_REJECTIONS)
        self._reasons: Counter[str] = Counter()
        self._rejected_of: Counter[str] = Counter()

        self._points: deque[tuple[float, int, int, int]] = deque()  # time, round, bytes up, bytes down

    # --- what happens -------------------------------------------------------------------------------------------------

    def begin(self, evaluation: "Evaluation | None" = None, claims: Claims | None = None) -> None:
        """Note that the first round follows, or the next one of a resumed run.

        Args:
            evaluation: the model before that round as the server measured it, where it did.
            claims: what clients claim about it, where they were asked.
        """
        with self._lock:
            self._now["status"], self._began, self._begun_after = "running", time.monotonic(), self._now["round"]
            if not self._now["round"]:
                self._measure(0, evaluation, claims)
            self._points.clear()

    def add(self, record: "RoundRecord") -> None:
        """Note a round that has ended; before ``begin`` one of an earlier server."""
        ended = None if self._began is None else time.time()
        self._parties.add(record, ended)
        with self._lock:
            now = self._now
            now["round_at"] = ended
            now.update(round=record.round, lam=finite(record.lam), step_norm=finite(record.step_norm))
            now.update(up=now["up"] + record.bytes_up, down=now["down"] + record.bytes_down)
            self._added += 1
            self._round_s += record.round_s
            self._last = Counts.of(record)
            self._all = Counts(*map(add, self._all, self._last))
            for name, reason in record.rejected:
                self._reject(record.round, one_line(name, MAX_TEXT), one_line(reason, MAX_TEXT))
            if record.incomplete:
                now.update(incomplete=now["incomplete"] + 1, incomplete_at=record.round)
            self._measure(record.round, record.evaluation, record.claims)

    def hold(self, line: str) -> None:
        """Note that the run is held until enough clients answer, and what it waits for; "" when it continues."""
        with self._lock:
            self._now["held"] = line

    def end(self, status: str, line: str) -> None:
        """Note how the run has ended, and its last line."""
        with self._lock:
            self._now.update(status=status, line=line, held="")

    # --- what is shown ------------------------------------------------------------------------------------------------

    def _courses(self) -> dict[str, list[float | None]]:
        """Return the measures so far by name; the success of a trigger only where there is one."""
        courses = {name: [finite(getattr(each, name)) for _, each in self._history] for name in MEASURES}
        return {name: course for name, course in courses.items() if name != "trigger" or any(course)}

    def state(self, *, parties: bool = False) -> State:
        """Return what the run is doing now; numbers that are not finite, or not known, are None.

        Args:
            parties: with a row for each client, which takes longer.
        """
        rows = {"parties": self._parties.rows()} if parties else {}
        connected = None if self._connected is None else self._connected()
        now = time.monotonic()
        with self._lock:
            rates = self._rates(now)
            done = self._now["round"] - self._begun_after
            left = max(0, self.title.rounds - self._now["round"])
            pace = rates["rounds_s"] or (done / (now - self._began) if self._began is not None and done else 0.0)
            running = self._now["status"] == "running"
            return {
                **vars(self.title),
                **self._now,
                **{name: finite(getattr(headline(*self._measured), name, None)) for name in MEASURES},
                "measured_by": measured_by(*self._measured),
                "claims": self._claims,
                **rates,
                "connected": connected,
                "history": self._courses(),
                "history_rounds": [round_ for round_, _ in self._history],
                "round_s": self._round_s / self._added if self._added else None,
                "left_s": left / pace if running and pace else None,
                "last": _named(self._last),
                "all": _named(self._all),
                "reasons": dict(self._reasons),
                "rejected_of": dict(self._rejected_of),
                "rejections": list(self._rejections),
                "now": time.time(),
                **rows,
            }

    def to_json(self) -> str:
        """Return the state as one line of JSON."""
        return json.dumps(self.state(parties=True), allow_nan=False)

    # --- with the lock ------------------------------------------------------------------------------------------------

    def _reject(self, round_: int, name: str, reason: str) -> None:
        self._rejections.append({"round": round_, "client": name, "reason": reason})
        kind = kind_of(reason)
        self._now["attack_failed"] += kind == ATTACK_FAILED
        self._reasons[kind if kind in self._reasons or len(self._reasons) < MAX_REASONS else "other"] += 1
        known = name in self._rejected_of or len(self._rejected_of) < self.title.clients
        self._rejected_of[name if known else OTHERS] += 1

    def _measure(self, round_: int, evaluation: "Evaluation | None", claims: Claims | None) -> None:
        if claims is not None:
            self._claims = {"round": round_, **_shown(claims)}
        if (found := headline(evaluation, claims)) is None:
            return
        self._measured, self._now["measured"] = (evaluation, claims), round_
        self._history.append((round_, found))
        if len(self._history) > 2 * HISTORY:
            del self._history[1:-1:2]

    def _rates(self, now: float) -> dict[str, float | None]:
        """Return rounds, bytes up and bytes down a second."""
        points = self._points
        if self._now["status"] == "running" and (not points or now - points[-1][0] >= _SAMPLE_S):
            points.append((now, *itemgetter("round", "up", "down")(self._now)))
            while now - points[0][0] > _WINDOW_S:
                points.popleft()
        if not points or points[-1][0] - points[0][0] < _SAMPLE_S:
            return dict.fromkeys(_RATES)
        (then, *before), (later, *after) = points[0], points[-1]
        return {name: (b - a) / (later - then) for name, a, b in zip(_RATES, before, after, strict=True)}


def _named(counts: Counts) -> dict[str, int]:
    """Return counts as JSON has them; ``answered`` is the former name of ``accepted``, for one release."""
    return {**counts._asdict(), "answered": counts.accepted}


def _shown(claims: Claims) -> State:
    """Return claims as a state has them: names and reasons are cut."""
    found = claims_to(claims)
    for key in ("clients", "missing"):
        found[key] = {one_line(name, MAX_TEXT): value for name, value in found[key].items()}
    found["missing"] = {name: one_line(reason, MAX_TEXT) for name, reason in found["missing"].items()}
    return {name: found.get(name) for name in CLAIMED} | {key: found[key] for key in _CLAIM_KEYS}


_CLAIM_KEYS = ("answers", "byzantine", "clients", "missing")


# --- states from the network ------------------------------------------------------------------------------------------

_Whole = Annotated[int, Field(ge=0, lt=2**63)]
_Number = Annotated[float, Field(gt=-math.inf, lt=math.inf)]
_Real = _Number | None
_Course = Annotated[list[_Real], Field(max_length=2 * HISTORY)]


class _Exact(BaseModel):
    """An object with these keys and no others."""

    model_config = ConfigDict(strict=True, extra="forbid")


class _Rejection(_Exact):
    round: _Whole
    client: str
    reason: str


class _Party(_Exact):
    name: Annotated[str, Field(max_length=MAX_TEXT)]
    worker: _Whole | None
    connected: bool | None
    since: _Real
    asked: _Whole
    accepted: _Whole
    rejected: _Whole
    clipped: _Whole
    answered: _Whole | None
    answered_at: _Real
    reason: Annotated[str, Field(max_length=MAX_TEXT)]
    reason_round: _Whole | None
    score: _Real
    because: str


def _required(names: Iterable[str], type_: object) -> dict[str, Any]:
    """Return keys of one type as pydantic declares them."""
    return dict.fromkeys(names, (type_, ...))


class _Figure(_Exact):
    median: _Number
    low: _Real = None
    high: _Real = None


class _Claim(_Exact):
    loss: _Number
    accuracy: _Real = None
    samples: _Whole | None = None


class _Claims(_Exact):
    round: _Whole
    answers: _Whole
    byzantine: _Whole
    loss: _Figure | None
    accuracy: _Figure | None
    clients: dict[str, _Claim]
    missing: dict[str, str]


_ALWAYS = tuple(name for name in MEASURES if name != "trigger")  # which servers of before do not have
_Counts = create_model("_Counts", __base__=_Exact, **_required(_named(Counts(0, 0, 0, 0, 0)), _Whole))
_History = create_model("_History", __base__=_Exact, **_required(_ALWAYS, _Course), trigger=(_Course, []))
_TEXTS = ("run", "method", "rule", "task", "address", "status", "line", "held")
_WHOLES = ("clients", "byzantine", "rounds", "incomplete", "incomplete_at", "attack_failed", "round", "measured")
_REALS = (*_ALWAYS, "lam", "step_norm", "round_s", "left_s", *_RATES)
_State = create_model(
    "_State",
    __config__=ConfigDict(strict=True, extra="ignore"),
    **_required(_TEXTS, str),
    **_required((*_WHOLES, "up", "down"), _Whole),
    **_required(_REALS, _Real),
    **_required(("last", "all"), _Counts),
    attack=(str | None, ...),
    connected=(_Whole | None, ...),
    history=(_History, ...),
    reasons=(Annotated[dict[str, _Whole], Field(max_length=MAX_REASONS + 1)], ...),
    rejected_of=(dict[str, _Whole], ...),
    rejections=(Annotated[list[_Rejection], Field(max_length=KEPT_REJECTIONS)], ...),
    now=(_Real, None),
    round_at=(_Real, None),
    history_rounds=(Annotated[list[_Whole], Field(max_length=2 * HISTORY)], []),
    parties=(Annotated[list[_Party], Field(max_length=MOST)], []),
    measured_by=(str, "server"),  # servers of before have not these two
    claims=(_Claims | None, None),
    trigger=(_Real, None),
    away=(str, ""),
    goodbye=(str, ""),
)
"""The form of a state: what ``LiveRun.state`` returns, and what a watcher adds."""


def checked(received: Mapping[str, Any]) -> State:
    """Return a state that came over the network, without keys that are not of a state.

    Texts may hold any characters; everything else that is shown has a bounded size.

    Args:
        received: the state, with ``away`` or ``goodbye`` if a watcher has added that.

    Raises:
        ValueError: a key is missing, or its value has another type or is out of bounds; the message is the key.
    """
    try:
        return dict(_State.model_validate(received).model_dump(exclude_unset=True))
    except ValidationError as error:
        raise ValueError(error.errors()[0]["loc"][0]) from None


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
    low, high = min(known, default=0.0), max(known, default=0.0)
    if width <= 0 or low == high or not math.isfinite(high - low):
        return ""
    steps = len(blocks) - 1
    return "".join(" " if value is None else blocks[round(steps * (value - low) / (high - low))] for value in values)
