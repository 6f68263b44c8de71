"""Where our code lies, and whether it is as it was released: a checkout, a Flower App Bundle, or a wheel.

A wheel holds our folders below one package, with imports rewritten (``deploy/wheel.py``). So its files differ from
those of the checkout that it was built from, and a manifest says which are which.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from foundation.text import one_line

ROOT = Path(__file__).resolve().parent.parent
"""The folder of our folders: the checkout, what a bundle was unpacked to, or the package that a wheel installs."""
MANIFEST = "wheel.json"
"""In ``ROOT``, of a wheel alone: its version, and for each Python file two digests, of its source and as installed."""


class Manifest(NamedTuple):
    """What a wheel was built from.

    Args:
        version: of the release.
        source: digest of each Python file in the checkout, by its path.
        installed: the same as the wheel has it.
    """

    version: str
    source: Mapping[str, str]
    installed: Mapping[str, str]


class Sources(NamedTuple):
    """Digests of Python files by their path.

    Args:
        digests: of the checkout's files, also in a wheel, unless that was modified.
        modified: the files of a wheel are not those that were built; the digests are then those of what is there.
    """

    digests: Mapping[str, str]
    modified: bool


@lru_cache(maxsize=1)
def manifest() -> Manifest | None:
    """Return the manifest of the wheel that this code was installed from; None in a checkout or bundle."""
    try:
        found = json.loads((ROOT / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    pairs = found["files"]
    source, installed = ({path: pair[at] for path, pair in pairs.items()} for at in (0, 1))
    return Manifest(found["version"], source, installed)


def release() -> str:
    """Return the version of this code; "" where it is unknown, as in a bundle on a SuperNode."""
    if (built := manifest()) is not None:
        return built.version
    try:
        return version("breakwater")
    except PackageNotFoundError:
        return ""


def examples() -> str:
    """Return the folder of the example configs, as a message names it."""
    return "deploy/configs/" if manifest() is None else f"{ROOT / 'deploy' / 'configs'}/"


def named(version: object, fingerprint: object) -> str:
    """Return what code a peer says that it runs, as people read it: ``0.1.0 (0123456789ab)``."""
    shown, digits = (one_line(value, 64) if isinstance(value, str) else "" for value in (version, fingerprint))
    return f"{shown or 'unknown version'} ({digits or 'unknown code'})"


def sources(folders: Iterable[str]) -> Sources:
    """Return the digests of all Python files in these folders.

    Args:
        folders: below ``ROOT``; "" for all.
    """
    found = {path.relative_to(ROOT).as_posix(): path for name in folders for path in (ROOT / name).rglob("*.py")}
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(found.items())}
    if (built := manifest()) is None:
        return Sources(digests, modified=False)
    belong = tuple(f"{name}/" if name else "" for name in folders)
    if digests != {name: digest for name, digest in built.installed.items() if name.startswith(belong)}:
        return Sources(digests, modified=True)
    return Sources({name: built.source[name] for name in digests if name in built.source}, modified=False)
