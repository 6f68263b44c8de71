"""``breakwater client --changed-data warn|refuse``: notice that a party comes back to a run with other data.

The client compares a digest of its data with the one that it kept when it first took part in the run. The digest is
keyed with a secret that is drawn for the run and this client, and neither ever leaves the machine: whoever guesses a
table could confirm a plain digest.
"""

import hashlib
import hmac
import json
import logging
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from foundation.errors import ConfigError
from foundation.files import replacing
from tasks.contract import Problem

log = logging.getLogger("breakwater.client")

Reaction = Literal["warn", "refuse"]
"""What a client does about changed data."""

_failed: set[Path] = set()
"""Folders that could not be written; each is reported once."""


def state_folder() -> Path:
    """Return where this user's programs keep what outlives a process; see the XDG base directory specification."""
    given = os.environ.get("XDG_STATE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path.home() / ".local" / "state") / "breakwater"


def compare(problem: Problem, worker: int, *, name: str, run_id: int, reaction: Reaction) -> None:
    """Compare a party's data with those that it had in this run before; the first time, keep their digest.

    Args:
        problem: the loaded task.
        worker: which worker of it the party is.
        name: of the client.
        run_id: of the run.
        reaction: to other data.

    Raises:
        ConfigError: they differ, and the reaction is "refuse"; one line.
    """
    arrays = data_of(problem, worker)
    if not arrays:
        log.warning("%s: --changed-data: this task does not give its data, so they are not compared", name)
        return
    path = state_folder() / f"{name}-{run_id}.json"
    try:
        known = _read(path)
        if known is None:
            secret = secrets.token_bytes(32)
            _write(path, secret, digest(arrays, secret))
            return
    except (OSError, RuntimeError) as error:  # the latter where the user has no home
        if path.parent not in _failed:
            _failed.add(path.parent)
            reason = getattr(error, "strerror", None) or error
            log.warning("%s: changed data would go unnoticed: %s: %s", name, path.parent, reason)
        return
    secret, before = known
    if not hmac.compare_digest(before, digest(arrays, secret)):
        what = f"{name}: the data are not those that this client had in run {run_id} before"
        if reaction == "refuse":
            raise ConfigError(f"{what}; restore them, or allow it with --changed-data warn")
        log.warning("%s; the run goes on with them", what)


def data_of(problem: Problem, worker: int) -> Sequence[NDArray[Any]]:
    """Return the data of a party: what its task's ``own_data(worker)`` or ``training_data()`` gives; else nothing."""
    own: Any = getattr(problem, "own_data", None)
    shared: Any = getattr(problem, "training_data", None)
    parts = own(worker) if own is not None else [shared()] if shared is not None else ()
    return [np.asarray(array) for part in parts for array in part]


def digest(arrays: Sequence[NDArray[Any]], secret: bytes) -> str:
    """Return HMAC-SHA-256 of arrays: dtypes, shapes and values."""
    keyed = hmac.new(secret, digestmod=hashlib.sha256)
    for array in arrays:
        keyed.update(f"{array.dtype.str}{array.shape}".encode())
        plain = array.dtype.kind in "fbiucSUmM"
        keyed.update(np.ascontiguousarray(array).tobytes() if plain else repr(array.tolist()).encode())
    return keyed.hexdigest()


def _read(path: Path) -> tuple[bytes, str] | None:
    """Return secret and digest of a run; None where there are none, or none that can be read."""
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_text(encoding="utf-8"))
        return bytes.fromhex(kept["secret"]), str(kept["digest"])
    return None


def _write(path: Path, secret: bytes, found: str) -> None:
    """Keep secret and digest where nobody but their owner reads them."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with replacing(path) as draft:
        draft.unlink(missing_ok=True)
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(file, "w", encoding="utf-8") as opened:
            json.dump({"secret": secret.hex(), "digest": found}, opened)
