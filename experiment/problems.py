"""What is wrong with a config, in words: one line for each problem, with the place, the value and the bound."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

_ALTERNATIVE = re.compile(r"(tuple|dict)\[.*\]$|(str|float)$")
"""Where a key may have values of several types, the part of a place that names the type which was tried."""


def explain_one(item: Any, annotation: Any, section: str, noun: str = "key") -> str:
    """Return the line for one problem of a section.

    Args:
        item: the problem, as pydantic describes it; ``item["loc"]`` is the place within the section.
        annotation: type of the section.
        section: its name; "" for the whole config.
        noun: what the section consists of.
    """
    where = [str(part) for part in item["loc"] if not _ALTERNATIVE.match(str(part))]
    kinds = kinds_of(annotation)
    member = kinds[where.pop(0)] if where and where[0] in kinds else annotation
    message = item["msg"].removeprefix("Value error, ")
    key = ".".join(where)
    place = f"[{section}] {key}".strip() if section else key
    head = f"[{section}] kind" if section else "kind"
    match item["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"{place}: unknown {noun}{suggest(where[-1], keys_of(member))}"
        case "union_tag_invalid":
            tag = item["ctx"]["tag"]
            return f'{head} = "{tag}": unknown{suggest(tag, list(kinds))}'
        case "union_tag_not_found":
            return f"{head}: missing; one of {', '.join(kinds)}"
        case "missing" | "missing_argument":
            return f"{place}: missing" if key else f"{place}: section missing"
        case "value_error":
            return f"{place}: {message}" if key else f"{place} {message}".strip()
        case _:
            return f"{place} = {item['input']!r}: {message.replace('Input should be', 'must be')}"


def kinds_of(annotation: Any) -> dict[str, Any]:
    """Return the members of a union of sections by their ``kind``."""
    found, queue = {}, [annotation]
    while queue:
        item = queue.pop(0)
        if item is type(None):
            continue
        if isinstance(item, type):
            for kind in getattr(item.__annotations__.get("kind"), "__args__", ()):
                found[kind] = item
        else:
            queue = [*getattr(item, "__args__", ()), *queue]
    return found


def keys_of(member: Any) -> list[str]:
    """Return the keys that a section of this type has."""
    return [each.name for each in fields(member)] if is_dataclass(member) else list(getattr(member, "model_fields", ()))


def suggest(unknown: str, known: Sequence[str]) -> str:
    """Return the end of a sentence about an unknown word: the known one that was meant, or all of them."""
    close = difflib.get_close_matches(unknown, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"
