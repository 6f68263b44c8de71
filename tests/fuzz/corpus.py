"""The kept inputs: one text file per target, ``tests/corpus/TARGET.txt``.

A line is one input: its name, a space, its bytes in hexadecimal. The name is the beginning of the SHA-1 of the bytes,
with ``found-`` in front where a target once failed on the input. Lines are sorted by name: the same inputs always give
the same file, and a new input is one line of a diff.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

CORPUS = Path(__file__).parents[1] / "corpus"
FOUND = "found-"


def load(path: Path) -> dict[str, bytes]:
    """Return the inputs of a file by name."""
    if not path.exists():
        return {}
    lines = (line.partition(" ") for line in path.read_text(encoding="ascii").splitlines())
    return {name: bytes.fromhex(data) for name, _, data in lines}


def save(path: Path, inputs: Mapping[str, bytes]) -> None:
    """Write the inputs to a file."""
    text = "".join(f"{name} {data.hex()}\n" for name, data in sorted(inputs.items()))
    path.write_text(text, encoding="ascii")


def name_of(data: bytes, *, found: bool = False) -> str:
    """Return the name of an input; ``found`` for one on which the target failed."""
    return (FOUND if found else "") + hashlib.sha1(data, usedforsecurity=False).hexdigest()[:12]


def path_of(target: str) -> Path:
    """Return the file of a target."""
    return CORPUS / f"{target}.txt"
