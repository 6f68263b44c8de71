"""A method's server state as plain data and arrays, and back: what a checkpoint holds of it.

Every method has its own state, a frozen dataclass of numbers, vectors, and both by worker. It is taken apart by its
values, so that a new method needs nothing here, and put together field by field on the state that the method starts
with: what is of another type than that is refused. Nothing is ever executed or looked up by a name from the file.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.batch_statistics import NormStats
from strategies.method import Evaluation, Report
from strategies.safeguard import Course, Losses

Arrays = dict[str, NDArray[Any]]
"""The arrays of a state by their number, as text."""


class StateError(ValueError):
    """What should be a state is none of this method."""


def take_apart(state: Any) -> tuple[dict[str, Any], Arrays]:
    """Return a state as JSON data, in which arrays are named, and the arrays.

    Args:
        state: a frozen dataclass; its fields hold None, bool, int, float, str, arrays, and dictionaries by int, tuples
            and frozen sets of these, and the report.

    Raises:
        StateError: a field holds something else.
    """
    arrays: Arrays = {}
    return {each.name: _apart(getattr(state, each.name), arrays) for each in fields(state)}, arrays


def put_together(start: Any, data: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Any:
    """Return the state that was taken apart.

    Args:
        start: the state that the method starts with; the model's length and type are those of its ``x``.
        data: what ``take_apart`` gave.
        arrays: the same.

    Raises:
        StateError: it is not a state of this method, or not of this model.
    """
    names = {each.name for each in fields(start)}
    if set(data) != names:
        raise StateError(f"holds {sorted(data)}, but a {type(start).__name__} has {sorted(names)}")
    try:
        values = {name: _together(value, arrays) for name, value in data.items()}
    except (ValueError, TypeError, KeyError) as error:
        raise StateError(f"is not as it was written: {error}") from error
    for name, array in arrays.items():
        if array.shape != start.x.shape or array.dtype != start.x.dtype:
            model = f"{start.x.shape} {start.x.dtype}"
            raise StateError(f"array {name} has {array.shape} {array.dtype}, but a model {model}")
    if not isinstance(values["x"], np.ndarray) or type(values["round"]) is not int:
        raise StateError("lacks the model or the round")
    return replace(start, **values)


def course_of(data: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Course:
    """Return the course that was taken apart, without the state that it goes back to.

    Raises:
        StateError: it is no course.
    """
    try:
        return Course(**{name: _together(value, arrays) for name, value in data.items()})
    except (ValueError, TypeError, KeyError) as error:
        raise StateError(f"has a course that is not as it was written: {error}") from error


def _apart(value: Any, arrays: Arrays) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray):
        name = str(len(arrays))
        arrays[name] = value
        return {"array": name}
    if isinstance(value, Mapping):
        named = {key if isinstance(key, str) else int(key): item for key, item in value.items()}
        return {"map": [[key, _apart(item, arrays)] for key, item in named.items()]}
    if isinstance(value, NormStats):
        return {"norm_stats": [_apart(value.values, arrays), value.round]}
    if isinstance(value, Losses):
        return {"losses": [float(each) for each in value]}
    if isinstance(value, Evaluation):
        known = (getattr(value, each.name) for each in fields(value))
        return {"evaluation": [None if each is None else float(each) for each in known]}
    if isinstance(value, frozenset):
        return {"set": sorted(value)}
    if isinstance(value, tuple | list):
        return {"list": [_apart(item, arrays) for item in value]}
    if isinstance(value, np.number):
        return value.item()
    if is_dataclass(value) and isinstance(value, Report):
        kept = [each.name for each in fields(value) if each.name != "evidence"]  # that is in the metrics
        return {"report": {name: _apart(getattr(value, name), arrays) for name in kept}}
    raise StateError(f"a {type(value).__name__} cannot be written down")


def _together(value: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    match kind:
        case "array":
            return arrays[inner]
        case "map":
            return {key: _together(item, arrays) for key, item in inner}
        case "set":
            return frozenset(inner)
        case "list":
            return tuple(_together(item, arrays) for item in inner)
        case "norm_stats":
            return NormStats(_together(inner[0], arrays), int(inner[1]))
        case "losses":
            return Losses(*inner)
        case "evaluation":
            return Evaluation(*inner)
        case "report":
            return Report(**{name: _together(item, arrays) for name, item in inner.items()})
    raise StateError(f"holds a {kind!r}, which no state has")
