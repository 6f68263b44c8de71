"""Learning-rate schedules: how a step size changes over the rounds, as a pure function of the round.

With k = 0 .. K-1 the round, gamma the value at ``start``, e that at ``end`` and K_w the rounds of ``warmup``:

    k < K_w   gamma_k = gamma (k + 1) / K_w
    k >= K_w  j = k - K_w,  J = K - K_w
              cosine  gamma_k = e + (gamma - e) (1 + cos(pi j / J)) / 2
              linear  gamma_k = e + (gamma - e) (1 - j / J)
              sqrt    gamma_k = gamma sqrt(k0 / (j + k0))
              step    gamma_k = gamma factor^(number of milestones <= j)

Nothing of a schedule is state: a run that goes on after round r goes on with the gamma of round r + 1.

Sources: Loshchilov, Hutter, "SGDR", ICLR 2017 (cosine); Goyal et al., "Accurate, Large Minibatch SGD", 2017 (warm-up,
steps); Bolatov, Horvath, Takac, Gorbunov, 2026 (sqrt, for Byz-NSGDM).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal, Self

from foundation.errors import ConfigError
from strategies.checks import check_count
from strategies.hyperparameters import OVER_L, Constants, Entry, Key, StepSize, Written


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """What all schedules share.

    Args:
        start: the step size at which it starts to fall; a number, or "c/L" where the task knows its L.
        warmup: rounds before that in which the step size rises to it.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: str
    start: float | str | None = None
    warmup: int = 0

    def __post_init__(self) -> None:
        if self.start is not None:
            OVER_L.check("start", self.start)
        if self.warmup < 0:
            raise ValueError(f"warmup = {self.warmup}: must be at least 0")

    def at(self, k: int) -> float:
        """Return the step size of round k + 1, k from 0; every number must be filled in, see ``resolved``."""
        start = float(self.start)  # type: ignore[arg-type]  # a number, once resolved
        return start * ((k + 1) / self.warmup) if k < self.warmup else self.fallen(start, k - self.warmup)

    @abstractmethod
    def fallen(self, start: float, j: int) -> float:
        """Return the step size j rounds after the warm-up."""

    @property
    @abstractmethod
    def falls(self) -> bool:
        """Whether it gets smaller after the warm-up; to be asked of one with numbers alone."""

    @property
    def numbers(self) -> tuple[float | str, ...]:
        """The step sizes that it is written with."""
        return () if self.start is None else (self.start,)

    def within(self, rounds: int) -> Self:
        """Return the schedule for a run of so many rounds: what depends on K has it."""
        return self

    def flaw(self, rounds: int) -> str | None:
        """Say why it does not go with a run of so many rounds; None if it does."""
        if self.warmup >= rounds:
            return f"warmup = {self.warmup}: must be below rounds = {rounds}"
        return None

    def resolved(self, key: str, rounds: int, constants: Constants, start: float | None = None) -> Self:
        """Return the schedule with numbers for all that was left open.

        Args:
            key: that it is the value of.
            rounds: of the run.
            constants: of the task.
            start: the step size where it starts to fall; None for the schedule's own.

        Raises:
            ConfigError: it needs something that the task does not know; one line.
        """
        if self.start is None:
            return self.within(rounds)
        return replace(self.within(rounds), start=OVER_L.value(f"{key}.start", self.start, constants))


@dataclass(frozen=True, kw_only=True)
class _Ending(Schedule):
    """A schedule that reaches its end with the last round.

    Args:
        end: the step size that it falls to, at most ``start``; a number, or "c/L" where the task knows its L.
        rounds: K, after which it stays at ``end``; default: the rounds of the run. To continue a finished run for more
            rounds, write the number that it had.
    """

    end: float | str = 0.0
    rounds: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.end != 0:
            OVER_L.check("end", self.end)
        check_count(rounds=self.rounds)

    def share(self, j: int) -> float:
        """Return j / J, at most 1."""
        if self.rounds is None:
            raise ValueError(f'rounds: missing; a "{self.kind}" schedule needs them')
        return min(1.0, j / (self.rounds - self.warmup))

    @property
    def falls(self) -> bool:
        return float(self.end) < float(self.start)  # type: ignore[arg-type]  # a number, once resolved

    @property
    def numbers(self) -> tuple[float | str, ...]:
        return (*super().numbers, self.end)

    def within(self, rounds: int) -> Self:
        return replace(self, rounds=rounds) if self.rounds is None else self

    def flaw(self, rounds: int) -> str | None:
        if self.end == 0 and self.rounds is not None and self.rounds < rounds:
            still = f"from round {self.rounds + 1} on the step size is end = 0, and the model stays"
            return f"rounds = {self.rounds}: {still}; set end above 0, or rounds to at least {rounds}"
        return super().flaw(min(rounds, self.rounds or rounds))

    def resolved(self, key: str, rounds: int, constants: Constants, start: float | None = None) -> Self:
        found = super().resolved(key, rounds, constants)
        end = OVER_L.value(f"{key}.end", self.end, constants)
        top = found.start if start is None else start
        if top is not None and end > float(top):
            fix = "a schedule falls; warmup makes it rise first"
            raise ConfigError(f"[strategy] {key}.end = {end:g}: must be at most its start, {top:g}; {fix}")
        return replace(found, end=end)


@dataclass(frozen=True, kw_only=True)
class CosineSchedule(_Ending):
    """Half a cosine wave from ``start`` down to ``end``."""

    kind: Literal["cosine"] = "cosine"

    def fallen(self, start: float, j: int) -> float:
        end = float(self.end)
        return end + (start - end) * ((1.0 + math.cos(math.pi * self.share(j))) / 2.0)


@dataclass(frozen=True, kw_only=True)
class LinearSchedule(_Ending):
    """A straight line from ``start`` down to ``end``."""

    kind: Literal["linear"] = "linear"

    def fallen(self, start: float, j: int) -> float:
        end = float(self.end)
        return end + (start - end) * (1.0 - self.share(j))


@dataclass(frozen=True, kw_only=True)
class SqrtSchedule(Schedule):
    """``start`` sqrt(k0 / (k + k0)), k from 0.

    Args:
        k0: how flat it starts: after 3 k0 rounds it has fallen to half.
    """

    kind: Literal["sqrt"] = "sqrt"
    k0: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.k0 < math.inf:
            raise ValueError(f"k0 = {self.k0}: must be above 0 and finite")

    def fallen(self, start: float, j: int) -> float:
        return start * math.sqrt(self.k0 / (j + self.k0))

    @property
    def falls(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class StepSchedule(Schedule):
    """``start``, multiplied by ``factor`` at each milestone.

    Args:
        milestones: Rounds, counted from the end of the warm-up, after which the step size is multiplied; ascending.
            Common are 50 % and 75 % of all.
        factor: what it is multiplied by, above 0 and below 1.
    """

    kind: Literal["step"] = "step"
    milestones: tuple[int, ...]
    factor: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        marks = self.milestones
        if not marks or marks[0] < 1 or any(a >= b for a, b in pairwise(marks)):
            raise ValueError(f"milestones = {list(marks)}: must be rounds from 1 in ascending order, at least one")
        if not 0 < self.factor < 1:
            raise ValueError(f"factor = {self.factor}: must be above 0 and below 1")

    def fallen(self, start: float, j: int) -> float:
        return start * self.factor ** sum(mark <= j for mark in self.milestones)

    @property
    def falls(self) -> bool:
        return True


SCHEDULES = (CosineSchedule, LinearSchedule, SqrtSchedule, StepSchedule)


@dataclass(frozen=True, kw_only=True)
class ScheduledStep(StepSize):
    """A positive number, "c/L" where the task knows its L, or a schedule of these."""

    def entries(self, name: str, type_: Any, default: Any) -> dict[str, Entry]:
        return {name: Entry(type=float | str, default=default, kinds=SCHEDULES)}

    def check(self, name: str, written: Written) -> None:
        given = written[name]
        if not isinstance(given, Schedule):
            super().check(name, written)
        elif given.start is None:
            raise ValueError(f"{name}.start: missing; the step size at which the schedule starts to fall")
        elif (flaw := given.flaw(written["rounds"])) is not None:
            raise ValueError(f"{name}.{flaw}")

    def value(self, name: str, written: Written, constants: Constants) -> Any:
        given = written[name]
        if isinstance(given, Schedule):
            return given.resolved(name, written["rounds"], constants)
        return super().value(name, written, constants)


@dataclass(frozen=True, kw_only=True)
class ScheduleOf(Key):
    """A schedule that starts at another key's step size; None for a constant one.

    Args:
        of: that key.
    """

    of: str

    def entries(self, name: str, type_: Any, default: Any) -> dict[str, Entry]:
        return {name: Entry(type=None, default=None, kinds=SCHEDULES)}

    def check(self, name: str, written: Written) -> None:
        given = written[name]
        if given is None:
            return
        if given.start is not None:
            raise ValueError(f"{name}.start = {given.start}: it starts at {self.of}; leave start out")
        if written[self.of] is None:
            raise ValueError(f"{name}: needs {self.of}, the step size that it starts at")
        if (flaw := given.flaw(written["rounds"])) is not None:
            raise ValueError(f"{name}.{flaw}")

    def value(self, name: str, written: Written, constants: Constants) -> Any:
        given = written[name]
        if given is None:
            return None
        start = OVER_L.value(self.of, written[self.of], constants)
        return given.resolved(name, written["rounds"], constants, start)
