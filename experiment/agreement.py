"""What server and clients agree on once the clients have joined, where each client has data of its own.

Some numbers follow from data that nobody has alone: m in the defaults of the methods, L in ``gamma = "c/L"``, the
scaling of a table's columns. The server works them out from what clients declare, by rules that f liars cannot move
beyond what honest clients said, fixes them before round 1, and writes them into every checkpoint. Each client is sent
them with the first instruction that it follows.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Self

from foundation.errors import ConfigError
from strategies.method import AGREEMENT
from tasks.identity import TaskIdentity

if TYPE_CHECKING:  # Flower takes half a second to import, and `breakwater check` needs none of it
    from flwr.app import ConfigRecord, RecordDict

_MOST_SAMPLES = 10**12
_MOST_TEXT = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What a run of clients with their own data has agreed on.

    Args:
        samples: m, the median of the declared counts; None where nothing needs it or nobody declares it.
        smoothness: L; None where nothing needs it or it is not known.
        scaling: of a table's columns, as text of the task's own; "" for none.
    """

    samples: int | None = None
    smoothness: float | None = None
    scaling: str = ""

    def record(self) -> "ConfigRecord":
        """Return it as a record of an instruction."""
        from flwr.app import ConfigRecord

        return ConfigRecord({key: value for key, value in asdict(self).items() if value is not None})

    @classmethod
    def read(cls, content: "RecordDict") -> Self | None:
        """Return what an instruction holds; None where it holds none.

        Raises:
            ConfigError: what it holds cannot be used; one line.
        """
        from flwr.app import ConfigRecord

        record = content.get(AGREEMENT)
        if record is None:
            return None
        if not isinstance(record, ConfigRecord):
            raise ConfigError("the server's agreement is no record of values")
        return cls.parse(dict(record))

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Return the agreement that ``asdict`` wrote.

        Raises:
            ConfigError: it cannot be used; one line.
        """
        samples, smoothness, scaling = (values.get(key) for key in ("samples", "smoothness", "scaling"))
        if samples is not None and (type(samples) is not int or not 0 < samples <= _MOST_SAMPLES):
            raise ConfigError(f"the server's agreement has samples = {str(samples)[:40]}")
        if smoothness is not None and not (type(smoothness) is float and 0 < smoothness < math.inf):
            raise ConfigError(f"the server's agreement has smoothness = {str(smoothness)[:40]}")
        if not isinstance(scaling or "", str) or len(scaling or "") > _MOST_TEXT:
            raise ConfigError("the server's agreement has a scaling that is no text")
        return cls(samples=samples, smoothness=smoothness, scaling=scaling or "")

    def to_json(self) -> str:
        """Return it as text, for checkpoints."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return what ``to_json`` wrote."""
        return cls.parse(json.loads(text))


def median_count(declared: Mapping[str, TaskIdentity], f: int) -> int:
    """Return the median of the counts of samples that clients declare: it lies within what honest clients said.

    Args:
        declared: by client.
        f: how many of them may lie.

    Raises:
        ConfigError: too few declare a count; one line.
    """
    counts = [int(each.samples) for each in declared.values() if each.samples.isdecimal() and len(each.samples) < 13]
    counts = [count for count in counts if count > 0]
    if len(counts) <= 2 * f:
        have = f"{len(counts)} clients declare how many samples they have"
        raise ConfigError(f"{have}, of which {f} may lie: at least {2 * f + 1} must, or give strategy.p in the config")
    return max(1, round(median(counts)))


def claimed_smoothness(declared: Mapping[str, TaskIdentity], f: int) -> float:
    """Return the (f+1)-th largest L_i that clients claim.

    It is at most the largest honest one, so nobody can inflate it. Liars can deflate it: it is a heuristic.

    Args:
        declared: by client.
        f: how many of them may lie.

    Raises:
        ConfigError: too few claim one; one line.
    """
    claims = []
    for each in declared.values():
        try:
            claims.append(float(each.smoothness))
        except ValueError:
            continue
    claims = sorted((claim for claim in claims if 0 < claim < math.inf), reverse=True)
    if len(claims) <= 2 * f:
        have = f"{len(claims)} clients report an L, of which {f} may lie"
        raise ConfigError(f"{have}: at least {2 * f + 1} must, or write gamma and alpha as numbers")
    return claims[f]
