"""Whether a run may go on: waiting for clients, holding the model while too few answer, and ending a run that is dead.

``strategies.progress`` watches the rounds. Where they look like those of a dead run, ``Watch`` holds the model and asks
every connected client, again and again, until enough of them answer or the time is over.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from foundation.errors import RunEndedError
from strategies.method import Vector
from strategies.progress import Progress, Stall
from strategies.roster import Roster

log = logging.getLogger("breakwater.strategy")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 15.0
"""Seconds between two attempts to find clients that answer, while a run is held: the first and the longest pause."""
_MAX_REASONS = 100
"""How many different reasons are counted between two rounds that counted."""


class NoClientsError(RunEndedError):
    """No client could be reached within the time that the config allows."""


class NoReplyCountsError(RunEndedError):
    """More workers than may be Byzantine were refused before any reply was usable: their ClientApp is another one."""


class StalledError(RunEndedError):
    """The run is dead: too few clients answered for ``idle_timeout_s``, though all were asked again and again.

    Args:
        stall: what is known of it.
        round_: the round after which ``model`` was the model.
        model: of the last round that counted, or of one a little earlier; shape (d,).
        arrays: the same as a record.
    """

    def __init__(self, stall: Stall, round_: int, model: Vector, arrays: Any) -> None:
        super().__init__(str(stall))
        self.stall = stall
        self.round = round_
        self.model = model
        self.arrays = arrays

    def to_dict(self) -> dict[str, Any]:
        """Return it for a run's summary."""
        stall, reasons = self.stall, dict(self.stall.reasons[:10])
        counts = {"since": stall.since, "model_of": self.round, "needed": stall.needed, "answered": stall.found}
        return {**counts, "held_s": round(stall.held_s, 3), "reasons": reasons, "text": str(stall)}


@dataclass(frozen=True)
class Probe:
    """What came back when all connected clients were asked.

    Args:
        answered: how many clients can answer.
        reasons: why each of the others does not count.
        refused: those of the others that sent something.
    """

    answered: int
    reasons: Sequence[str]
    refused: Collection[int]


class Watched(Protocol):
    """What ``Watch`` reads of a strategy, whose attributes may change; ``RobustStrategy`` says what they mean."""

    roster: Roster
    clients: int
    byzantine: int
    any_app: bool
    stall_rounds: int
    idle_timeout_s: float
    on_hold: Callable[[str], None] | None


class Watch:
    """Watches the rounds of one strategy, and holds or ends a run whose clients do not answer."""

    def __init__(self, strategy: Watched) -> None:
        self._strategy = strategy
        self.reply_was_usable = False
        self._refused: set[int] = set()  # workers that were refused while no reply was usable
        self._reasons: Counter[str] = Counter()  # why replies did not count, since the last round that did

    def begin(self, round_: int, model: Vector, to_arrays: Callable[[Vector], Any], *, distrust: bool) -> None:
        """Watch the rounds after ``round_``; see ``strategies.progress.Progress``."""
        self._to_arrays = to_arrays
        watched = self._strategy
        self._progress = Progress(
            watched.clients, watched.byzantine, watched.stall_rounds, round_, model, distrust=distrust
        )

    def check_app(self, round_: int, refusals: Mapping[int, str], usable: bool) -> None:
        """End the run where the nodes run another ClientApp. No attack looks like one: attackers are at most f workers.

        Args:
            round_: of the replies.
            refusals: why workers that sent something were refused.
            usable: whether a reply of the round was usable.

        Raises:
            NoReplyCountsError: more workers than f were refused, and no reply has been usable yet.
        """
        self.reply_was_usable = self.reply_was_usable or usable
        if self.reply_was_usable or not self._strategy.any_app:
            return
        self._refused |= refusals.keys()
        if self._too_many(self._refused):
            worker, reason = next(iter(refusals.items()))
            name = self._strategy.roster.name(worker)
            replied = f"{len(self._refused)} clients replied, of which {self._strategy.byzantine} may be Byzantine"
            why = f"no reply has counted yet, and {replied}: it is their ClientApp"
            raise NoReplyCountsError(f"round {round_}: {why}. {name}: {reason}")

    def add(self, round_: int, sampled: int, used: Collection[int], reasons: Sequence[str]) -> None:
        """Note a round: how many workers it asked, whose replies it used, and why other replies did not count."""
        self._progress.add(round_, sampled, used)
        if len(used) > self._strategy.byzantine:  # more than the attackers alone
            self._reasons.clear()
        self._count(reasons)

    def keep(self, round_: int, model: Vector) -> None:
        """Keep the model after a round; it may turn out to be the last that counted."""
        self._progress.keep(round_, model)

    def in_doubt(self, *, last: bool) -> bool:
        """Return whether the run may be dead; a last round ends the run only after a round that counted."""
        return self._progress.stalled or (last and not self._progress.counted)

    def wait_for_anybody(self) -> None:
        """Wait until a client is connected.

        Raises:
            NoClientsError: none connected in time, and no reply has been usable yet.
            StalledError: none connected in time, later on.
        """
        roster, limit_s = self._strategy.roster, self._strategy.idle_timeout_s
        if roster.nodes():
            return
        log.warning("no client is connected; waiting for up to %g s", limit_s)
        self._say("no client is connected")
        began = time.monotonic()
        if roster.wait(1, limit_s) < 1:
            if self.reply_was_usable:
                raise self._stalled(1, found=0, asked=0, held_s=time.monotonic() - began)
            fix = "start clients, or check that they can reach this address"
            raise NoClientsError(f"no client connected for {limit_s:g} s (federation.join_timeout_s): {fix}")
        self._say("")

    def hold(self, round_: int, answered: int, wanted: int, ask_all: Callable[[Mapping[int, int]], Probe]) -> str:
        """Hold the model and ask all connected clients, again and again, until enough answer.

        Args:
            round_: the round that is held.
            answered: how many clients answered it.
            wanted: how many replies it needed.
            ask_all: asks the clients at these nodes, without any effect on the method or on what workers keep.

        Returns:
            A note for the round, which then counts.

        Raises:
            StalledError: too few answered for ``idle_timeout_s``.
        """
        progress, wanted = self._progress, max(self._progress.needed, wanted)
        refused = set[int]()
        began, pause = time.monotonic(), _FIRST_PAUSE_S
        since = f"round {progress.since}" if progress.since else "the start"
        few = f"at most {self._strategy.byzantine} clients" if self._strategy.byzantine else "no client"
        doubt = f"since {since} {few} had a reply that counted"
        log.warning("round %d: %s; holding the model and asking all clients", round_, doubt)
        while True:
            nodes = dict(sorted(self._strategy.roster.nodes().items()))
            self._say(f"{answered} clients answer, {wanted} must; asking all {len(nodes)}")
            probe = ask_all(nodes)
            answered = probe.answered
            refused.update(probe.refused)
            self._count(probe.reasons)
            held_s = time.monotonic() - began
            if answered >= wanted:
                break
            hopeless = not self.reply_was_usable and self._too_many(refused)
            if hopeless or held_s >= self._strategy.idle_timeout_s:
                raise self._stalled(wanted, found=answered, asked=len(nodes), held_s=held_s)
            self._pause(len(nodes), min(pause, self._strategy.idle_timeout_s - held_s))
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        progress.trust()
        self._say("")
        held = f"held for {held_s:.1f} s until {answered} clients answered"
        log.warning("round %d: %s; continuing", round_, held)
        return held

    def _too_many(self, refused: Collection[int]) -> bool:
        """Return whether these are more workers than can be Byzantine, and more than one."""
        return len(refused) >= min(self._strategy.clients, max(self._strategy.byzantine, 1) + 1)

    def _pause(self, connected: int, seconds: float) -> None:
        """Wait, but not after another client has connected."""
        end = time.monotonic() + seconds
        if self._strategy.roster.wait(connected + 1, seconds) <= connected:
            time.sleep(max(0.0, end - time.monotonic()))

    def _stalled(self, needed: int, *, found: int, asked: int, held_s: float) -> StalledError:
        round_, model = self._progress.model
        stall = Stall(self._progress.since, needed, found, asked, held_s, self._reasons.most_common())
        return StalledError(stall, round_, model, self._to_arrays(model))

    def _count(self, reasons: Sequence[str]) -> None:
        for reason in reasons:
            known = reason in self._reasons or len(self._reasons) < _MAX_REASONS
            self._reasons[reason if known else reason.partition(":")[0]] += 1

    def _say(self, line: str) -> None:
        if self._strategy.on_hold:
            self._strategy.on_hold(line)
