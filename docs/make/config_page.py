"""Writes the reference of the config out of its types: every section and key with type, default, bounds and meaning.

Bounds and meanings of pydantic sections are their fields'; the meanings in dataclasses (methods, rules, attacks,
compressors, tasks) are those in the ``Args`` of their docstrings. A key without a meaning is an error: the page is
complete or is not built.
"""

import inspect
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from experiment.config import (
    AggregatorUnion,
    AttackUnion,
    CheckpointSection,
    CompressorUnion,
    EvaluationSection,
    PreAggregatorUnion,
    SafeguardSection,
    StopTable,
    StrategyUnion,
    TaskUnion,
)
from experiment.problems import kinds_of
from experiment.sections import Federation, MethodSection
from strategies.aggregators.preaggregators import PreAggregator
from strategies.schedules import SCHEDULES
from strategies.server_step import SERVER_STEPS, ServerStep

HEAD = """---
search:
  boost: 2
---

# The config, key by key

Written out of the code that reads configs, when this site was built. [The catalogue](../catalogue.md) says what the
methods, rules, compressors and attacks are; [Tasks](../tasks.md) what the tasks are. A key without a default must be
given.
"""
SECTIONS: tuple[tuple[str, str, Any], ...] = (
    ("[federation]", "Who takes part, and how long the server waits for them.", Federation),
    ("[task]", "Model, loss, data, and who holds which of them.", TaskUnion),
    ("[strategy]", "The method and its hyper-parameters.", StrategyUnion),
    (
        "Schedules",
        "What `gamma` of `[strategy]` may be: `{ kind = ..., start = ..., KEY = ... }`; `local_schedule` has no "
        "`start`. k is the round, counted from 0.",
        reduce(or_, SCHEDULES),
    ),
    ("Server steps", "What `server` of `[strategy]` may be: `server = { kind = ..., KEY = ... }`.", ServerStep),
    ("[aggregator]", 'The robust rule. Without this section: `kind = "cm"`.', AggregatorUnion),
    (
        "Pre-aggregators",
        "What `pre` of `[aggregator]` may hold, by name or as `{ kind = ..., KEY = ... }`.",
        PreAggregatorUnion,
    ),
    ("[compressor]", 'How replies are compressed. Without this section: `kind = "identity"`.', CompressorUnion),
    ("[attack]", "What Byzantine clients of a local run do, and what they know. Optional.", AttackUnion),
    ("[evaluation]", "When the model is measured, by whom, and when that ends the run.", EvaluationSection),
    ("stop", "What `stop` of `[evaluation]` may hold.", StopTable),
    ("[safeguard]", "Going back to an earlier model where a run diverges. Optional.", SafeguardSection),
    ("[checkpoint]", "How often the server writes down all that it needs to go on after a crash.", CheckpointSection),
)
BOUNDS = {"ge": "from {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}
WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text", type(None): ""}
CLASSES = {member.__name__: member for _, _, union in SECTIONS for member in kinds_of(union).values()}
INTERNAL = {"parts": "filled in by Breakwater: the number of clients"}
"""Keys that a resolved config holds and nobody writes."""


@dataclass(frozen=True)
class Key:
    """One key of a section, in words."""

    name: str
    form: str
    default: str
    bounds: str
    meaning: str

    def row(self) -> str:
        """Return it as a row of a table."""
        form = f"{self.form}, {self.bounds}" if self.bounds else self.form
        cells = (f"`{self.name}`", form, self.default, self.meaning)
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def text() -> str:
    """Return the page."""
    parts = [HEAD]
    for title, says, section in SECTIONS:
        parts.append(f"## {title}\n\n{says}\n")
        if isinstance(section, type):
            parts.append(table(section))
            continue
        for kind, member in kinds_of(section).items():
            parts.append(f'### kind = "{kind}"\n\n{told(summary(member))}\n')
            parts.append(table(member))
    return "\n".join(parts)


def table(section: type) -> str:
    """Return the keys of a section as a table, or the remark that there is none but ``kind``."""
    keys = [key for key in keys_of(section) if key.name != "kind"]
    if not keys:
        return "No keys.\n"
    head = "| key | value | default | meaning |\n|---|---|---|---|\n"
    return head + "".join(key.row() + "\n" for key in keys)


def keys_of(section: type) -> list[Key]:
    """Return the keys of a section.

    Raises:
        ValueError: there is one of which nothing says what it means.
    """
    found = list(_of_model(section) if issubclass(section, BaseModel) else _of_dataclass(section))
    silent = [key.name for key in found if not key.meaning and key.name != "kind"]
    if silent:
        raise ValueError(f"{section.__module__}.{section.__name__}: nothing says what {', '.join(silent)} means")
    return found


def _of_model(section: type[BaseModel]) -> Iterator[Key]:
    meanings = arguments(section.method) if issubclass(section, MethodSection) else {}
    for name, field in section.model_fields.items():
        default = "" if field.default is PydanticUndefined else value(field.default)
        meaning = field.description or meanings.get(name, "")
        yield Key(name, form(field.annotation), default, bounds(field.metadata), told(meaning))


def _of_dataclass(section: type) -> Iterator[Key]:
    if not is_dataclass(section):
        raise ValueError(f"{section}: neither a pydantic model nor a dataclass")
    meanings = arguments(section)
    for field in fields(section):
        default = "" if field.default is MISSING else value(field.default)
        if field.default_factory is not MISSING:
            default = value(field.default_factory())
        meaning = INTERNAL.get(field.name) or meanings.get(field.name, "")
        if least := getattr(section, "least", ""):  # of an attack's view
            meaning = meaning.replace("``least``", f"`{least}`")
        yield Key(field.name, form(field.type), default, "", told(meaning))


def arguments(section: type) -> Mapping[str, str]:
    """Return what the docstrings of a class and its bases say of its arguments; ``as for `X``` is looked up there."""
    found: dict[str, str] = {}
    for base in reversed(section.__mro__):
        block = re.search(r"^Args:\n((?:(?: {4}.*)?\n)+)", inspect.cleandoc(base.__doc__ or "") + "\n", re.MULTILINE)
        for names, meaning in re.findall(r"^ {4}([\w, ]+): (.*(?:\n {8}.*)*)", block[1] if block else "", re.MULTILINE):
            other = re.match(r"as for ``(\w+)``", meaning)
            same = arguments(CLASSES[other[1]]) if other else {}
            found |= {name: same.get(name, meaning) for name in re.split(r",\s*", names)}
    return found


def summary(section: type) -> str:
    """Return the first paragraph of a docstring."""
    return inspect.cleandoc(section.__doc__ or "").partition("\n\n")[0]


def form(annotation: Any) -> str:
    """Return the values that a type allows, in words."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return form(get_args(annotation)[0])
    if origin is Literal:
        return " or ".join(f"`{value(choice).strip('`')}`" for choice in get_args(annotation))
    if origin in (Union, types.UnionType) and annotation in (PreAggregator, PreAggregatorUnion):
        return "pre-aggregators"
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(word for word in map(form, get_args(annotation)) if word))
    if annotation in SCHEDULES or annotation in SERVER_STEPS:
        return "schedule" if annotation in SCHEDULES else "server step"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(f'`"{choice.value}"`' for choice in annotation)
    if origin in (tuple, list):
        return "list of " + form(get_args(annotation)[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    if annotation in WORDS:
        return WORDS[annotation]
    if origin is not None and issubclass(origin, Mapping):
        return "table"
    raise ValueError(f"no words for the type {annotation}")


def value(given: Any) -> str:
    """Return a default as it would be written in TOML."""
    if given is None:
        return "unset"
    if isinstance(given, bool):
        return f"`{str(given).lower()}`"
    if isinstance(given, str):
        return f'`"{given}"`'
    if given == ():
        return "`[]`"
    return f"`{given}`"


def bounds(metadata: list[Any]) -> str:
    """Return the bounds of a number."""
    told = []
    for name, words in BOUNDS.items():
        for item in metadata:
            if (bound := getattr(item, name, None)) is not None:
                told.append(words.format("2^63" if bound == 2**63 else f"{bound:,}"))
    return ", ".join(told)


def told(docstring: str) -> str:
    """Return the text of a docstring as Markdown in one line."""
    line = re.sub(r"``(.+?)``", r"`\1`", " ".join(docstring.split()))
    line = re.sub(r"\bNone\b", "unset", line)
    return line[:1].upper() + line[1:] if re.match(r"[a-z]{2,} ", line) else line
