"""How long a round waits for its replies, learnt from the rounds before it.

A fixed deadline is either so long that every client that hangs costs the federation half a minute, or so short that a
slow machine makes honest workers silent. What rounds really take is known after a few of them: the deadline is a large
multiple of it. Attackers gain little: what is observed is when as many replies were there as there are honest workers
in an average cohort, and the deadline follows the median of that over many rounds, within fixed bounds.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from strategies.cohorts import expected_byzantine

FIRST_S = 30.0
"""The deadline of rounds of a kind about which little is known, and the longest that is learnt."""
SHORTEST_S = 5.0
"""The shortest that is learnt: a lost packet, a full disk or a busy machine must not silence an honest worker."""
_FACTOR = 20.0
"""The deadline in units of what rounds took."""
_WINDOW = 20
"""How many rounds of a kind are kept."""
_ENOUGH = 5
"""How many of them are needed to learn a deadline."""


@dataclass
class LearntDeadline:
    """The deadline of each kind of round.

    Args:
        clients: n.
        byzantine: f.
        first_s: seconds until enough is known, and the most.
        shortest_s: seconds, the least.
    """

    clients: int
    byzantine: int
    first_s: float = FIRST_S
    shortest_s: float = SHORTEST_S
    _took: dict[str, deque[float]] = field(default_factory=dict)

    def seconds(self, kind: str) -> float:
        """Return the deadline of the next round of this kind."""
        took = self._took.get(kind, ())
        if len(took) < _ENOUGH:
            return self.first_s
        return min(max(_FACTOR * median(took), self.shortest_s), self.first_s)

    def observe(self, kind: str, asked: int, waits: Sequence[float], deadline_s: float) -> None:
        """Learn from a round.

        Args:
            kind: of the round.
            asked: how many clients were.
            waits: seconds after which each reply came, in any order.
            deadline_s: what the round's deadline was.
        """
        wanted = asked - expected_byzantine(asked, self.clients, self.byzantine)
        if wanted < 1:
            return
        # Where too few came in time all that is known is that it takes longer.
        took = sorted(waits)[wanted - 1] if len(waits) >= wanted else deadline_s
        self._took.setdefault(kind, deque(maxlen=_WINDOW)).append(took)
