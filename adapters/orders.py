"""What ``RobustFedAvg`` sends to ``robust_deltas_mod`` beside the model, in the record "ask" of an instruction.

Plain numbers and texts. The compressor is written as its kind and parameters; a mod knows those of this project by
their kind and no others, so that an instruction cannot name code to run. Cheap to import: a SuperNode starts a process
for every message.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, TypeGuard

from flwr.app import ConfigRecord

from foundation.errors import ConfigError, WireError
from strategies.compressors import QSGD, Identity, Masked, Natural, PermK, RandK, ScaledSign, TopK
from strategies.method import Ask, Compressor

ORDER = "ask"
"""Name of the record."""
RUNNING = "running_statistics"
"""Name of the record of a reply that holds the running statistics after training, as the app has them."""
_KIND = "deltas"
"""The kind of these instructions; others under the same name are not for the mod."""

_KNOWN = QSGD, Identity, Masked, Natural, PermK, RandK, ScaledSign, TopK
COMPRESSORS: dict[str, type[Any]] = {kind.kind: kind for kind in _KNOWN}
"""By kind; those of the union in ``experiment.config``."""


@dataclass(frozen=True)
class Order:
    """What the mod reads.

    Args:
        round: k.
        worker: the seat of this node.
        draw: seed of what the compressor draws.
        seed: the round's common seed; None where the compressor needs none.
        compressor: Q.
        arrays: name of the record that is the model.
        statistics: names of the arrays that are running statistics, which no difference is made of.
    """

    round: int
    worker: int
    draw: int
    seed: int | None
    compressor: Compressor
    arrays: str
    statistics: tuple[str, ...] = ()


def write_order(ask: Ask, compressor: Compressor, arrays: str, statistics: Sequence[str] = ()) -> ConfigRecord:
    """Return the record, but for worker and draw, which ``AppStrategy`` adds for each."""
    order = ConfigRecord({"round": ask.round, "kind": _KIND, "arrays": arrays, "compressor": write(compressor)})
    if ask.seed is not None:
        order["seed"] = ask.seed
    if statistics:
        order["statistics"] = list(statistics)
    return order


def is_order(record: ConfigRecord | None) -> TypeGuard[ConfigRecord]:
    """Return whether this is a record for the mod."""
    return record is not None and record.get("kind") == _KIND


def read_order(order: ConfigRecord) -> Order:
    """Return the order that a record holds.

    Raises:
        WireError: it cannot be read.
    """
    numbers = [order.get(name) for name in ("round", "worker", "draw")] + [order.get("seed", 0)]
    if not all(type(number) is int and 0 <= number < 2**64 for number in numbers):
        raise WireError("undecodable: round, worker, draw or seed of the instruction is no integer from 0 to 2^64 - 1")
    round_, worker, draw, seed = (int(number) for number in numbers)  # type: ignore[arg-type]  # checked above
    text, arrays = order.get("compressor"), order.get("arrays")
    if not isinstance(text, str) or not isinstance(arrays, str):
        raise WireError("undecodable: the instruction names no compressor, or not which record is the model")
    names = order.get("statistics", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise WireError("undecodable: the names of running statistics in the instruction are no list of texts")
    seed_ = seed if "seed" in order else None
    return Order(round_, worker, draw, seed_, read(text), arrays, tuple(map(str, names)))


def write(compressor: Compressor) -> str:
    """Return kind and parameters as JSON.

    Raises:
        ConfigError: it is not one that a mod knows.
    """
    if COMPRESSORS.get(compressor.kind) is not type(compressor) or not is_dataclass(compressor):
        must = f"must be one of breakwater.compressors: {', '.join(COMPRESSORS)}"
        raise ConfigError(f"compressor = {type(compressor).__name__}: {must}")
    return json.dumps({name: value for name, value in asdict(compressor).items() if value is not None})


def read(text: str) -> Compressor:
    """Return the compressor that ``write`` gave this text for.

    Raises:
        WireError: there is none.
    """
    try:
        parameters = json.loads(text)
        compressor: Compressor = COMPRESSORS[parameters["kind"]](**parameters)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise WireError(f"undecodable: no compressor: {type(error).__name__}: {error}") from None
    return compressor
