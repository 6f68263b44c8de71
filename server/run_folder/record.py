"""A round as one line of ``metrics.jsonl``, and back.

Whatever shows or counts rounds takes a ``RoundRecord``. Only ``to_line`` and ``from_line`` know the keys of the line.

Two words for what clients did in a round, the same everywhere:

- ``replied``: a reply arrived in time, good or bad.
- ``accepted``: the reply counted.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from strategies.claims import Claim, Claims, Figure
from strategies.evidence import Evidence
from strategies.method import Evaluation
from strategies.strategy import RoundRecord

MEASURES = ("loss", "accuracy", "gap", "trigger")
CLAIMED = ("loss", "accuracy")
"""What clients measure."""
NO_REPLY = frozenset({"silent", "not connected", "disconnected"})
"""Kinds of rejections without a reply."""
NO_QUORUM = "no quorum"
"""Kind of the rejections of good replies in a round that has too few of them."""

EVIDENCE = ("distance", "cosine", "kept", "weight")
"""Numbers of ``Evidence`` that each accepted client has."""


class Counts(NamedTuple):
    """Clients of a round: how many were sampled, how many of these replied, ..."""

    sampled: int
    replied: int
    accepted: int
    rejected: int
    clipped: int

    @classmethod
    def of(cls, record: RoundRecord) -> "Counts":
        """Count the clients of a round."""
        missing = sum(kind_of(reason) in NO_REPLY for _, reason in record.rejected)
        accepted, rejected = len(record.accepted), len(record.rejected)
        return cls(len(record.cohort), accepted + rejected - missing, accepted, rejected, len(record.clipped))


def kind_of(reason: str) -> str:
    """Return the kind of a rejection, of ``kind: detail``."""
    return reason.partition(":")[0]


def to_line(record: RoundRecord, names: dict[int, str]) -> str:
    """Return the line of a round, without its end.

    Args:
        record: the round.
        names: of the workers, as earlier lines have them; new ones go into the line and are added here.
    """
    line: dict[str, Any] = {
        "round": record.round,
        "kind": record.kind,
        "cohort": list(record.cohort),
        "accepted": list(record.accepted),
        "rejected": [{"client": name, "reason": reason} for name, reason in record.rejected],
        "clipped": list(record.clipped),
        "lam": finite(record.lam),
        "step_norm": finite(record.step_norm),
        "bytes_up": record.bytes_up,
        "bytes_down": record.bytes_down,
        "round_s": round(record.round_s, 6),
    }
    if record.deadline_s is not None:
        line["deadline_s"] = round(record.deadline_s, 3)
    new = {w: name for w, name in zip(record.cohort, record.names, strict=False) if name and names.get(w) != name}
    names.update(new)
    seen = record.evidence
    optional: dict[str, Any] = {
        "resynced": list(record.resynced),
        "late": list(record.late),
        "note": record.note,
        "incomplete": record.incomplete,
        "distance": seen and _digits(seen.distance),
        "cosine": seen and [None if v is None else round(v, 4) for v in seen.cosine],
        "kept": seen and _digits(seen.kept),
        "weight": seen and _digits(seen.weight),
        "same": seen and [list(group) for group in seen.same],
        "statistics_bytes": any(record.statistics_bytes) and list(record.statistics_bytes),
        "names": {str(worker): name for worker, name in new.items()},
    }
    line |= {key: value for key, value in optional.items() if value}
    if record.headline is not None:
        line |= measures_to(record.headline)
    if record.claims is not None:
        line |= {"measured_by": record.measured_by, "claims": claims_to(record.claims)}
    return json.dumps(line, default=plain)


def from_line(text: str | bytes, names: dict[int, str]) -> RoundRecord:
    """Return the round of a line; older lines lack keys, newer ones may have more.

    Args:
        text: the line.
        names: of the workers, as earlier lines have them; new ones are added. A worker without one has the name "".

    Raises:
        ValueError: it is no round.
    """
    try:
        line = json.loads(text)
        names.update({int(worker): str(name) for worker, name in line.get("names", {}).items()})
        accepted = list(line["accepted"])
        if not set(accepted) <= set(line["cohort"]):
            raise ValueError("accepted: holds a worker that is not in the cohort")
        seen = {key: list(line[key]) for key in EVIDENCE if key in line}
        same = [list(group) for group in line.get("same", ())]
        return RoundRecord(
            round=int(line["round"]),
            kind=str(line.get("kind", "")),
            cohort=list(line["cohort"]),
            accepted=accepted,
            rejected=[(str(entry["client"]), str(entry["reason"])) for entry in line["rejected"]],
            clipped=list(line["clipped"]),
            lam=None if line.get("lam") is None else float(line["lam"]),
            step_norm=_number(line.get("step_norm")),
            bytes_up=int(line["bytes_up"]),
            bytes_down=int(line["bytes_down"]),
            round_s=float(line["round_s"]),
            evaluation=measures_from(line) if line.get("measured_by", "server") == "server" else None,
            note=str(line.get("note", "")),
            diverged=str(line.get("note", "")).startswith("diverged: "),
            resynced=list(line.get("resynced", ())),
            deadline_s=None if line.get("deadline_s") is None else float(line["deadline_s"]),
            names=[names.get(worker, "") for worker in line["cohort"]] if names else (),
            evidence=Evidence(accepted, **{"distance": (), "cosine": ()} | seen, same=same) if seen or same else None,
            late=list(line.get("late", ())),
            incomplete=bool(line.get("incomplete")),
            claims=claims_from(line.get("claims")),
            statistics_bytes=_pair(line.get("statistics_bytes", (0, 0))),
        )
    except KeyError as error:
        raise ValueError(f"not a round: {error} is missing") from None
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"not a round: {error}") from None


def measures_to(evaluation: Evaluation) -> dict[str, float | None]:
    """Return measures as JSON has them; those that the task does not have are left out."""
    known = {name: getattr(evaluation, name) for name in MEASURES}
    return {name: finite(value) for name, value in known.items() if value is not None or name == "loss"}


def measures_from(found: object) -> Evaluation | None:
    """Return the measures in a line or a summary; null is a number that was not finite. None where there are none."""
    if not isinstance(found, Mapping) or "loss" not in found:
        return None
    loss, accuracy, gap, trigger = (_number(found[name]) if name in found else None for name in MEASURES)
    return Evaluation(math.nan if loss is None else loss, accuracy, gap, trigger)


def claims_to(claims: Claims) -> dict[str, Any]:
    """Return what clients claim as JSON has it."""
    figures = {name: getattr(claims, name) for name in CLAIMED}
    return {
        "answers": claims.answers,
        "byzantine": claims.byzantine,
        **{name: _known(vars(figure)) for name, figure in figures.items() if figure is not None},
        "clients": {name: _known(vars(claim)) for name, claim in claims.clients.items()},
        "missing": dict(claims.missing),
        "bytes": [claims.bytes_up, claims.bytes_down],
    }


def claims_from(found: Any) -> Claims | None:
    """Return what ``claims_to`` returned; None for None.

    Raises:
        KeyError, ValueError, TypeError, AttributeError: it did not return this.
    """
    if found is None:
        return None
    up, down = found.get("bytes", (0, 0))
    return Claims(
        int(found["answers"]),
        int(found["byzantine"]),
        **{name: Figure(**_floats(found[name])) for name in CLAIMED if name in found},
        clients={str(name): _claim_from(each) for name, each in found.get("clients", {}).items()},
        missing={str(name): str(reason) for name, reason in found.get("missing", {}).items()},
        bytes_up=int(up),
        bytes_down=int(down),
    )


def _claim_from(found: Mapping[str, Any]) -> Claim:
    accuracy, samples = found.get("accuracy"), found.get("samples")
    return Claim(
        float(found["loss"]), None if accuracy is None else float(accuracy), None if samples is None else int(samples)
    )


def _floats(found: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in found.items()}


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _pair(found: Any) -> tuple[int, int]:
    up, down = found
    return int(up), int(down)


def finite(value: float | None) -> float | None:
    """Return a number that JSON has, or None."""
    return float(value) if value is not None and math.isfinite(value) else None


def plain(value: object) -> Any:
    """Return a number of NumPy's as JSON has it."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _digits(values: Iterable[float | None]) -> Sequence[float | None]:
    return [None if v is None else float(f"{v:.3g}") for v in values]
