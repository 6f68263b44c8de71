"""When a run ends early, which of its models was best, and when it goes back to an earlier one.

``Supervisor`` has the rules; ``Course`` is what evaluations have shown so far, a value that each checkpoint holds. The
rounds that are undone keep their numbers, and count: the next round takes the number after the last one. Random streams
are numbered by round, so no draw is ever repeated, and no late reply fits a later attempt. Workers keep nothing of the
rounds that are undone: every instruction names the round since which what they keep counts.

Where clients measure, a claim may be a lie. Each client is compared with its own lowest loss, so that no claim is
compared with that of another. Of m answers, m >= 3f + 1, the run goes back if f + ceil((m - f)/2) are worse. Then at
least half of the honest answers are worse, whatever f liars say; and where all m - f honest ones are, that is enough,
as m - f >= f + ceil((m - f)/2) for m >= 3f.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Self

from strategies.batch_statistics import NormStats
from strategies.claims import Claims, headline
from strategies.method import Evaluation, Method, Vector

FLOOR = 0.01
"""A loss counts as at least this share of the first one: below it, noise is a large factor of next to nothing."""
HALF = 0.5
"""What step size and learnt clipping multiplier are multiplied by each time that a run goes back."""

NOT_A_NUMBER = "not finite"
"""The slug of the reason why a claim is refused that is no finite number."""

Measure = Literal["loss", "accuracy"]


class Losses(NamedTuple):
    """The losses that one party has measured so far."""

    first: float
    lowest: float

    @classmethod
    def of(cls, loss: float) -> Self:
        """Begin with a loss."""
        return cls(loss, loss)

    def exceeded(self, loss: float, factor: float) -> bool:
        """Return whether a loss exceeds ``factor`` times the lowest, or is not finite."""
        return not loss <= factor * max(self.lowest, FLOOR * abs(self.first)) or not math.isfinite(loss)

    def seen(self, loss: float) -> "Losses":
        """Return these with one more, which is finite."""
        return Losses(self.first, min(self.lowest, loss))


def votes_needed(answers: int, byzantine: int) -> int | None:
    """Return how many of m answers must be worse for a run to go back; None where m < 3f + 1, which cannot tell.

    Args:
        answers: m, of an evaluation that asked all connected clients.
        byzantine: f, how many of them may be lies.
    """
    if answers < 3 * byzantine + 1:
        return None
    return byzantine + -(-(answers - byzantine) // 2)


@dataclass(frozen=True, eq=False)
class Course:
    """What the evaluations of a run have shown so far.

    Args:
        measure: what makes a model the best one.
        best_round: the round whose model is the best measured one.
        best: its measures; None where nothing was measured yet.
        best_x: that model, shape (d,); None the same.
        best_stats: the running statistics that it was measured with, where clients answer them.
        stale: evaluations since then.
        losses: the losses that the server has measured, or the medians of claims; None before the first.
        own: the losses that each client has claimed, by name.
        good: the state that the run goes back to, see ``Method.restart``; None without a safeguard.
        good_round: the round whose model that is.
        good_measures: of that model; None where it was not measured.
        good_stats: as ``best_stats``, of that model.
        rollbacks: how often the run has gone back.
        gave_up: it has gone back as often as it may, and diverged again.
        ended: why it ended early; "" while it goes on.
    """

    measure: Measure = "loss"
    best_round: int = 0
    best: Evaluation | None = None
    best_x: Vector | None = None
    best_stats: NormStats | None = None
    stale: int = 0
    losses: Losses | None = None
    own: Mapping[str, Losses] = field(default_factory=dict)
    good: Any = None
    good_round: int = 0
    good_measures: Evaluation | None = None
    good_stats: NormStats | None = None
    rollbacks: int = 0
    gave_up: bool = False
    ended: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return what a run's summary says about it; what is not known is None."""
        best, rollbacks = None, None if self.good is None else self.rollbacks
        if self.best is not None:
            known = {"round": self.best_round, "loss": self.best.loss, "accuracy": self.best.accuracy}
            best = {name: value for name, value in known.items() if value is not None}
        return {"best": best, "rollbacks": rollbacks} | ({"ended": self.ended} if self.ended else {})


@dataclass(frozen=True, kw_only=True)
class Supervisor:
    """The rules of one run.

    Args:
        measure: which model is the best one: that with the lowest loss, or with the highest accuracy.
        patience: evaluations in a row without a better model that end the run; None for no such end.
        target: the run ends once a model is as good as this; None for no such end.
        factor: the run goes back once a loss exceeds this times the lowest, above 1; None for never.
        times: how often it does at most; then it ends.
        byzantine: f, how many claims of an evaluation may be lies.
    """

    measure: Measure = "loss"
    patience: int | None = None
    target: float | None = None
    factor: float | None = None
    times: int = 3
    byzantine: int = 0

    def begin(
        self,
        method: Method,
        state: Any,
        round_: int,
        evaluation: Evaluation | None,
        claims: Claims | None,
        norm_stats: NormStats | None = None,
    ) -> Course:
        """Return the course of a run of which only its present model was measured.

        Args:
            method: of the run.
            state: of it.
            round_: the last round; 0 before the first.
            evaluation: of the model, by the server; None where it measures nothing.
            claims: of clients about it; None where they are not asked.
            norm_stats: that it was measured with, where clients answer them.
        """
        good = None if self.factor is None else method.restart(state, state.round)
        begun = Course(measure=self.measure, best_round=round_, best_x=state.x, good=good, good_round=round_)
        begun = replace(begun, best_stats=norm_stats, good_stats=norm_stats)
        return self._measured(begun, method, state, round_, evaluation, claims, norm_stats)

    def resumed(self, course: Course, round_: int) -> Course:
        """Return the course to go on with after a restart of the server, whose config may end the run otherwise.

        Args:
            course: of the checkpoint.
            round_: of the checkpoint.
        """
        if course.measure != self.measure:
            course = replace(course, measure=self.measure, best=None, best_round=round_, stale=0)
        if course.gave_up:
            return course
        ended = "" if course.best is None else self._over(course, getattr(course.best, self.measure))
        return replace(course, ended=ended)

    def after(
        self,
        course: Course,
        method: Method,
        state: Any,
        round_: int,
        evaluation: Evaluation | None,
        claims: Claims | None,
        norm_stats: NormStats | None = None,
        *,
        flaw: str = "",
        last: bool = False,
    ) -> tuple[Course, str]:
        """Return the course after a round, and why the run goes back to ``course.good``; "" where it does not.

        Args:
            course: before the round.
            method: of the run.
            state: after the round.
            round_: r.
            evaluation: of the model x^r, by the server; None where it was not measured.
            claims: of clients about it; None where they were not asked.
            norm_stats: that it was measured with, where clients answer them.
            flaw: why no round can follow the model; "" if one can.
            last: no round follows anyway: the run then ends with the model that it goes back to.
        """
        if self.factor is not None and (why := flaw or self._worse(course, self.factor, evaluation, claims)):
            back = f"{why}; back to the model of round {course.good_round}"
            if course.rollbacks >= self.times:
                ended = f"{back}, which is kept: the run has gone back {course.rollbacks} times already"
                return replace(course, gave_up=True, ended=ended), ended
            if last:
                return replace(course, rollbacks=course.rollbacks + 1, ended=f"{back}, which is kept"), back
            return replace(course, rollbacks=course.rollbacks + 1), back
        return self._measured(course, method, state, round_, evaluation, claims, norm_stats), ""

    def _worse(self, course: Course, factor: float, evaluation: Evaluation | None, claims: Claims | None) -> str:
        """Say why a model is so much worse than an earlier one that the run goes back; "" if it is not."""
        if evaluation is not None:
            known = course.losses or Losses.of(evaluation.loss)
            if not known.exceeded(evaluation.loss, factor):
                return ""
            if not math.isfinite(evaluation.loss):
                return "the loss is not finite"
            return f"loss {evaluation.loss:.4g} exceeds {factor:g} times the lowest, {known.lowest:.4g}"
        if claims is None:
            return ""
        worse = sum(reason.partition(":")[0] == NOT_A_NUMBER for reason in claims.missing.values())
        answers = len(claims.clients) + worse
        for name, claim in claims.clients.items():
            worse += name in course.own and course.own[name].exceeded(claim.loss, factor)
        needed = votes_needed(answers, self.byzantine)
        if needed is None or worse < needed:
            return ""
        return f"{worse} of {answers} clients claim a loss above {factor:g} times their own lowest ({needed} must)"

    def _measured(
        self,
        course: Course,
        method: Method,
        state: Any,
        round_: int,
        evaluation: Evaluation | None,
        claims: Claims | None,
        norm_stats: NormStats | None,
    ) -> Course:
        """Take in the measures of a model that is kept."""
        found = headline(evaluation, claims)
        if claims is not None:
            own = {name: course.own.get(name, Losses.of(claim.loss)) for name, claim in claims.clients.items()}
            course = replace(course, own={**course.own, **{n: own[n].seen(c.loss) for n, c in claims.clients.items()}})
        if found is None or not math.isfinite(found.loss):
            return course
        if course.losses is None or found.loss < course.losses.lowest:
            good = None if self.factor is None else method.restart(state, state.round)
            course = replace(course, good=good, good_round=round_, good_measures=found, good_stats=norm_stats)
        course = replace(course, losses=(course.losses or Losses.of(found.loss)).seen(found.loss))
        value = getattr(found, self.measure)
        if value is None:
            return course
        best = None if course.best is None else getattr(course.best, self.measure)
        if best is None or (value < best if self.measure == "loss" else value > best):
            course = replace(course, best_round=round_, best=found, best_x=state.x, best_stats=norm_stats, stale=0)
        else:
            course = replace(course, stale=course.stale + 1)
        return replace(course, ended=self._over(course, value))

    def _over(self, course: Course, value: float) -> str:
        """Say why the run ends after an evaluation; "" if it goes on."""
        if self.target is not None and (value <= self.target if self.measure == "loss" else value >= self.target):
            return f"{self.measure} {value:.4g} reached the target, {self.target:g}"
        if self.patience is not None and course.stale >= self.patience:
            since = f"since round {course.best_round}"
            return f"no better {self.measure} in {course.stale} evaluations, {since}"
        return ""
