"""Whether a run makes progress: its rounds must use replies of more clients than may be Byzantine.

Where no client answers a method continues: it steps along its last estimate. Once or twice that does no harm; a hundred
times it leads the model astray. So the strategy watches two things, and holds the model where either happens:

- ``stall_rounds`` rounds in a row used no reply at all;
- fewer than f + 1 distinct clients had a reply used in a window of rounds. Fewer than that may all be attackers, who
  must not keep a dead run alive. The window is as long as sampling needs to draw f + 1 clients that answer even where f
  never do, up to a chance of 1 in 1,000, and at least ``stall_rounds``: with everybody sampled it is ``stall_rounds``
  rounds, with C = 4 of n = 20 and f = 5 it is 7.

Either may happen by chance in a healthy run. ``strategies.hold`` therefore asks all clients before it ends a run.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from strategies.method import Vector

STALL_ROUNDS = 3
"""Default of ``stall_rounds``."""
_RISK = 1e-3
"""Chance that a window of a run that is well sees too few clients while f are silent."""
_MODELS = 4
"""Models that are kept at most, so that the last one that counted is, or one a few rounds older."""


@dataclass(frozen=True)
class Stall:
    """Why a run could not go on.

    Args:
        since: the last round that counted: later ones used replies of at most f clients.
        needed: how many must answer: f + 1, or the quorum of the round where that is more.
        found: how many clients answered when all were asked.
        asked: how many clients were connected when they were last asked.
        held_s: seconds for which the model was held.
        reasons: why replies did not count, and how often, the most frequent first.
    """

    since: int
    needed: int
    found: int
    asked: int
    held_s: float
    reasons: Sequence[tuple[str, int]]

    def __str__(self) -> str:
        """Return one line for people."""
        since = f"nothing since round {self.since} counted" if self.since else "no round counted"
        why = "; ".join(f"{reason} ({count} times)" for reason, count in self.reasons[:3])
        found = f"{self.found} of the {self.asked} connected clients answered when all were asked"
        reasons = f"; most often: {why}" if why else ""
        return f"stalled: {since}: {found}, for {self.held_s:.1f} s, and {self.needed} must{reasons}"


class Progress:
    """What is known of the rounds so far.

    Args:
        clients: n.
        byzantine: f < n/2.
        stall_rounds: rounds in a row without a usable reply that are one too many; at least 1.
        round_: the last round before the first that is watched.
        model: the model after it, shape (d,).
        distrust: the rounds before are not known, as after a restart: the first round must use a reply.
    """

    def __init__(
        self, clients: int, byzantine: int, stall_rounds: int, round_: int, model: Vector, *, distrust: bool = False
    ) -> None:
        self.needed = byzantine + 1
        """Distinct clients whose replies a window must have used."""
        self._clients = clients
        self._stall_rounds = stall_rounds
        self._empty = stall_rounds - 1 if distrust else 0  # rounds in a row that used no reply
        # All n-f honest clients but f at most were drawn, except with a chance of binom(n-f, m) P(m given ones are not
        # drawn) at most, m = n-2f. P <= prod_r (1 - C_r/n)^m over the rounds r.
        self._m = clients - 2 * byzantine
        self._target = _log_binomial(clients - byzantine, self._m) - math.log(_RISK)
        self._window: deque[tuple[int, float]] = deque()  # (round, weight), of which the last add up to the target
        self._weight = 0.0
        self._seen: OrderedDict[int, int] = OrderedDict()  # last round by client, of the ``needed`` latest
        self._first = round_
        self._models: deque[tuple[int, Vector]] = deque([(round_, model)])

    def add(self, round_: int, sampled: int, used: Collection[int]) -> None:
        """Note a round.

        Args:
            round_: r.
            sampled: C, how many clients it asked for.
            used: the workers whose replies it used.
        """
        self._empty = 0 if used else self._empty + 1
        for worker in used:
            self._seen[worker] = round_
            self._seen.move_to_end(worker)
        while len(self._seen) > self.needed:
            self._seen.popitem(last=False)
        share = min(sampled, self._clients) / self._clients
        weight = self._target if share == 1 else min(-self._m * math.log1p(-share), self._target)
        self._window.append((round_, weight))
        self._weight += weight
        while len(self._window) > self._stall_rounds and self._weight - self._window[0][1] >= self._target:
            self._weight -= self._window.popleft()[1]

    def keep(self, round_: int, model: Vector) -> None:
        """Keep the model after a round, if that round used a reply; it may turn out to be the last that counted."""
        if self._empty:
            return
        self._models.append((round_, model))
        while len(self._models) > 1 and self._models[1][0] <= self.since:
            self._models.popleft()
        if len(self._models) > _MODELS:
            del self._models[-2]

    @property
    def stalled(self) -> bool:
        """Whether the rounds so far look like those of a run that is dead."""
        if self._empty >= self._stall_rounds:
            return True
        full = len(self._window) >= self._stall_rounds and self._weight >= self._target
        return full and self.since < self._window[0][0]

    @property
    def counted(self) -> bool:
        """Whether any round has used a reply."""
        return bool(self._seen)

    @property
    def since(self) -> int:
        """The last round up to which the run made progress: from the next on fewer than ``needed`` clients counted."""
        return next(iter(self._seen.values())) if len(self._seen) == self.needed else self._first

    @property
    def model(self) -> tuple[int, Vector]:
        """The model of ``since``, or of a round a little earlier, and that round."""
        return self._models[0]

    def trust(self) -> None:
        """Watch anew: enough clients were found to answer."""
        self._empty = 0
        self._window.clear()
        self._weight = 0.0


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
