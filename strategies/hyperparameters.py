"""How a config writes the hyper-parameters of a method, and which numbers they give.

A method is a frozen dataclass that declares its hyper-parameters once. A field is a key of ``[strategy]`` with the same
name, type and default. ``Annotated[type, Key(...)]`` adds what a type cannot say: bounds, a value in units of the
task's L, a default that depends on the task. ``experiment.sections`` derives the section of the config from it.
"""

import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from foundation.errors import ConfigError
from strategies.operators import Aggregator, Compressor

AUTO: Literal["auto"] = "auto"
LEAST: Literal["least"] = "least"
BOUNDED = "D_Q L"
"""The multiplier with which no honest difference is ever clipped."""
REQUIRED: Any = ...
"""The default of a key that must be given."""

Written = Mapping[str, Any]
"""The keys of a ``[strategy]`` section with their values as in the file; None for an optional key that is left out."""


@dataclass(frozen=True, kw_only=True)
class Constants:
    """The letters in the formulas of the papers, known once the task is loaded.

    Args:
        n: clients.
        f: Byzantine clients to defend against.
        aggregator: ARAgg.
        compressor: Q, with its own defaults filled in.
        weights: of the clients by seat, whole numbers; () where all count the same.
        dim: d.
        samples: m, the samples of a worker; 0 where it is not known, see ``m``.
        smoothness: returns L, None where the task does not know it. It may take a while, so call it only if needed.
    """

    n: int
    f: int
    aggregator: Aggregator
    compressor: Compressor
    dim: int
    samples: int
    smoothness: Callable[[], float | None]
    weights: tuple[int, ...] = ()

    def m(self, key: str) -> int:
        """Return m.

        Args:
            key: whose default needs it.

        Raises:
            ConfigError: it is not known; one line.
        """
        if not self.samples:
            needs = "its default needs the number of samples of a client, which is not known"
            raise ConfigError(f"[strategy] {key} is missing: {needs}; give a number")
        return self.samples


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One key of a ``[strategy]`` section.

    Args:
        kinds: dataclasses, one of which the value may be instead, written as a table with its ``kind``.
        type: of other values in the file; None for none.
        default: REQUIRED where the key must be given.
        bounds: those of ``Key`` that there are.
        vet: returns a value before its type is checked, or raises ValueError with one line if it is wrong.
        meaning: for the reference of the config; "" where the ``Args`` of the method have it.
    """

    kinds: tuple[type, ...] = ()
    type: Any
    default: Any = REQUIRED
    bounds: Mapping[str, Any] = field(default_factory=dict)
    vet: Callable[[Any], Any] | None = None
    meaning: str = ""


_BOUNDS = ("ge", "gt", "le", "lt", "allow_inf_nan")


@dataclass(frozen=True, kw_only=True)
class Key:
    """A hyper-parameter that is written as it is.

    Args:
        ge: lower bound.
        gt: lower bound that is not allowed itself.
        le: upper bound.
        lt: upper bound that is not allowed itself.
        allow_inf_nan: False for finite numbers only.
        fill: returns the value where the config leaves the key out.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    allow_inf_nan: bool | None = None
    fill: Callable[[Written, Constants], Any] | None = None

    def entries(self, name: str, type_: Any, default: Any) -> dict[str, Entry]:
        """Return the keys of the section for a field of this name, type and default."""
        bounds = {bound: at for bound in _BOUNDS if (at := getattr(self, bound)) is not None}
        if self.fill is not None:
            type_, default = type_ | None, None
        return {name: Entry(type=type_, default=default, bounds=bounds)}

    def check(self, name: str, written: Written) -> None:
        """Raise ValueError with one line for a value that its type and bounds allow, and that is wrong all the same."""

    def value(self, name: str, written: Written, constants: Constants) -> Any:
        """Return the value of the field.

        Raises:
            ConfigError: it needs something that the task or the compressor does not have; one line.
        """
        if written[name] is None and self.fill is not None:
            return self.fill(written, constants)
        return written[name]

    def back(self, name: str, value: Any) -> dict[str, Any]:
        """Return the keys of the section that give this value."""
        return {name: value}


@dataclass(frozen=True)
class Unit:
    """A way to write a number in terms of L.

    Args:
        form: as it is written, with c for the number.
        pattern: of such a text.
        apply: returns the value, given c and L.
    """

    form: str
    pattern: re.Pattern[str]
    apply: Callable[[float, float], float]

    def number(self, key: str, text: str) -> float:
        """Return c.

        Raises:
            ValueError: the text is not of this form, or c is not positive.
        """
        match = self.pattern.fullmatch(text)
        value = math.nan
        with suppress(ValueError):
            value = float(match["c"] or 1) if match else math.nan
        if not (0 < value < math.inf):
            example = self.form.replace("c", "0.5")
            raise ValueError(f'{key} = "{text}": must be a positive number or "{self.form}", for example "{example}"')
        return value

    def check(self, key: str, value: float | str, remark: str = "") -> None:
        """Raise ValueError unless this is a positive number or a text of this form."""
        if isinstance(value, str):
            self.number(key, value)
        elif not 0 < value < math.inf:
            raise ValueError(f"{key} = {value}: must be a positive number{remark}")

    def value(self, key: str, value: float | str, constants: Constants) -> float:
        """Return the number.

        Raises:
            ConfigError: it is in terms of L, which the task does not know.
        """
        if not isinstance(value, str):
            return float(value)
        c = self.number(key, value)
        smoothness = constants.smoothness()
        if smoothness is None:
            raise ConfigError(f'[strategy] {key} = "{value}": this task does not know its L; give a number')
        return self.apply(c, smoothness)


OVER_L = Unit("c/L", re.compile(r"\s*(?P<c>[0-9.eE+-]+)\s*/\s*L\s*"), lambda c, smoothness: c / smoothness)
TIMES_L = Unit("cL", re.compile(r"\s*(?P<c>[0-9.eE+-]+)?\s*\*?\s*L\s*"), lambda c, smoothness: c * smoothness)


@dataclass(frozen=True, kw_only=True)
class StepSize(Key):
    """A positive number, or "c/L" where the task knows its L."""

    def entries(self, name: str, type_: Any, default: Any) -> dict[str, Entry]:
        return {name: Entry(type=float | str, default=default)}

    def check(self, name: str, written: Written) -> None:
        OVER_L.check(name, written[name])

    def value(self, name: str, written: Written, constants: Constants) -> float:
        return OVER_L.value(name, written[name], constants)


@dataclass(frozen=True, kw_only=True)
class Cohort(Key):
    """How many clients a round samples.

    Args:
        optional: all of them where the config leaves it out.
        least: the config may also write "least", the fewest with which the rule withstands all f Byzantine clients.
    """

    optional: bool = True
    least: bool = False

    def entries(self, name: str, type_: Any, default: Any) -> dict[str, Entry]:
        if self.least:
            return {name: Entry(type=int | Literal["least"] | None, default=None, vet=_vet_cohort)}
        whole = Entry(type=int, bounds={"ge": 1})
        return {name: Entry(type=int | None, default=None, bounds={"ge": 1}) if self.optional else whole}

    def value(self, name: str, written: Written, constants: Constants) -> int:
        return self.size(written[name], constants.n, constants.f, constants.aggregator)

    def size(self, written: int | str | None, n: int, f: int, aggregator: Aggregator) -> int:
        """Return the size, which needs no task: C_hat >= f / delta for "least", else n."""
        if written == LEAST:
            return next((size for size in range(max(1, f), n) if aggregator.tolerates(size) >= f), n)
        return n if written is None else int(written)


def _vet_cohort(value: Any) -> Any:
    if value not in (None, LEAST) and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f'must be a whole number of at least 1, or "{LEAST}", not {value!r}')
    return value


@dataclass(frozen=True, kw_only=True)
class Multiplier(Key):
    """The clipping multiplier alpha, which a config writes with two keys, ``clip`` and ``alpha``.

    The field is a number, "auto" to learn it, or None for no clipping.

    Args:
        clip: the default of ``clip``.
        meaning: what ``clip`` does.
    """

    MEANING: ClassVar[str] = (
        'Clipping multiplier: a number, or "cL" or "D_Q L" where the task knows its L. Used with clip = true; default '
        '"2L" (Theorem 4.1 of Malinovsky et al.).'
    )

    clip: bool
    meaning: str

    def entries(self, name: str, type_: Any, default: Any) -> dict[str, Entry]:
        """Return ``clip`` and ``alpha``."""
        clip = Entry(type=bool | Literal["auto"], default=self.clip, vet=_vet_clip, meaning=self.meaning)
        return {"clip": clip, name: Entry(type=float | str | None, default=None, meaning=self.MEANING)}

    def check(self, name: str, written: Written) -> None:
        """Refuse what is no multiplier."""
        if written[name] not in (None, BOUNDED):
            TIMES_L.check(name, written[name], "; clip = false switches clipping off")

    def value(self, name: str, written: Written, constants: Constants) -> float | str | None:
        if written["clip"] is not True:
            return AUTO if written["clip"] == AUTO else None
        given = written[name]
        alpha = "2L" if given is None else given
        if not isinstance(alpha, str):
            return float(alpha)
        smoothness = constants.smoothness()
        if smoothness is None:
            what = "is missing" if given is None else f'= "{alpha}"'
            fix = f'give a number, or learn it: clip = "{AUTO}"'
            raise ConfigError(f"[strategy] alpha {what}: this task does not know its L; {fix}")
        if alpha == BOUNDED:
            return constants.compressor.norm_bound(constants.dim) * smoothness
        return TIMES_L.value(name, alpha, constants)

    def back(self, name: str, value: Any) -> dict[str, Any]:
        """Return ``clip``, and ``alpha`` where it is a number."""
        if value is None or value == AUTO:
            return {"clip": value or False}
        return {"clip": True, name: value}


def _vet_clip(value: Any) -> Any:
    if not isinstance(value, bool) and value != AUTO:
        raise ValueError(f'must be true, false or "{AUTO}", not {value!r}')
    return value
