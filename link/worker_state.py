"""What a worker carries from message to message, as Flower keeps it: records in the state of the node's context.

A client of the link stays in one process and needs none of this. A SuperNode runs every message in a process of its
own, and Flower's simulation lets any process answer for any node: there a worker ``recall``s what it knew before it
answers, and ``remember``s what it knows afterwards. Flower keeps what a ClientApp put into the state also where the
reply is then lost, too late or refused. That is harmless: what is remembered names its round
(``WorkerState``), so that the server learns what a reply builds on, and an instruction that comes a second time gets
its first answer again.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from link import codec
from strategies.method import STATELESS, WorkerState

Page = int | float | str | NDArray[Any]
"""One thing worth remembering; an array has one dimension."""
StateDict = Mapping[str, Page]
"""What a worker remembers, by name."""

_VALUES, _ARRAYS, _REPLY = "memory values", "memory arrays", "reply"


def write(state: RecordDict, pages: StateDict) -> None:
    """Put what a worker remembers into a state, in place of what was there."""
    arrays = {name: page for name, page in pages.items() if isinstance(page, np.ndarray)}
    values = {name: page for name, page in pages.items() if not isinstance(page, np.ndarray)}
    state[_VALUES] = ConfigRecord(values)  # type: ignore[arg-type]  # a record's values may be more than these
    state[_ARRAYS] = ArrayRecord({name: codec.to_array(array) for name, array in arrays.items()})


def read(state: RecordDict) -> dict[str, Page]:
    """Return what was written; nothing where nothing was."""
    if _VALUES not in state:
        return {}
    pages: dict[str, Any] = dict(state.config_records[_VALUES])
    return pages | {name: codec.any_array(array) for name, array in state.array_records[_ARRAYS].items()}


def under(pages: StateDict, heading: str) -> dict[str, dict[str, Page]]:
    """Return the pages named ``heading/key/rest``, by key and rest; pages ``heading/key`` have the rest ``""``."""
    found: dict[str, dict[str, Page]] = {}
    for name, page in pages.items():
        first, _, key = name.partition("/")
        if first == heading:
            key, _, rest = key.partition("/")
            found.setdefault(key, {})[rest] = page
    return found


def state_to_dict(state: WorkerState) -> dict[str, Page]:
    """Return a worker's state as pages."""
    return {"version": state.version, **{f"vectors/{name}": v for name, v in state.vectors.items()}}


def state_from_dict(pages: StateDict) -> WorkerState:
    """Return the state that the pages hold; that of a worker that keeps nothing where they hold none."""
    version: Any = pages.get("version", 0)
    vectors: Any = {name: page[""] for name, page in under(pages, "vectors").items()}
    return WorkerState(version, vectors) if version else STATELESS


def write_reply(state: RecordDict, round_: int, content: RecordDict) -> None:
    """Keep the reply to this round, in place of an earlier one."""
    for name in [name for name in state if name.startswith(_REPLY)]:
        del state[name]
    state[_REPLY] = ConfigRecord({"round": round_})
    for name, record in content.items():
        state[f"{_REPLY} {name}"] = record


def read_reply(state: RecordDict, round_: int) -> RecordDict | None:
    """Return the reply that was kept, if it was to this round."""
    if _REPLY not in state or state.config_records[_REPLY]["round"] != round_:
        return None
    prefix = f"{_REPLY} "
    return RecordDict({name.removeprefix(prefix): record for name, record in state.items() if name.startswith(prefix)})
