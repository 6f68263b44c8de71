"""Which code a process runs: what server and clients of one run must share, and what each reports of itself.

Normally both ends have the same code to the last byte, and a fingerprint proves it. With ``federation.same_code =
"warn"`` they may not: then the revisions of what the run uses must agree (``strategies.revisions``), and log and report
say who runs what.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self

from experiment.config import Config, ResolvedConfig
from foundation import origin
from foundation.text import one_line
from strategies.compressors import QSGD, Identity, Natural, RandK, ScaledSign
from strategies.randomness import Role, stream
from strategies.revisions import revisions

FINGERPRINTED = ("foundation", "strategies", "tasks", "experiment", "link", "client")
"""The folders whose source ``code_fingerprint`` covers: what both ends run."""

_MOST_TEXT, _MOST_FIELD, _MOST_REVISIONS = 4096, 64, 8
"""Characters of a report, and of one of its values, and revisions in it, that are read."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """What a process reports of its code. It is a claim: a guard against mistakes, and no proof.

    Args:
        version: of the release, one line; "" where it is unknown.
        fingerprint: see ``code_fingerprint``; "" where it is unknown.
        revisions: of what its run uses, see ``strategies.revisions``.
    """

    version: str = ""
    fingerprint: str = ""
    revisions: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def here(cls, config: Config | ResolvedConfig) -> Self:
        """Return that of this process in the run of a config."""
        used = revisions(config.strategy.kind, config.compressor.kind)
        return cls(version=origin.release(), fingerprint=code_fingerprint(), revisions=used)

    def added_to(self, loaded: str) -> str:
        """Return what a process reports: what it has loaded, as ``tasks.identity`` writes it, and its code."""
        mine = {"version": self.version, "fingerprint": self.fingerprint, "revisions": dict(self.revisions)}
        return json.dumps({**json.loads(loaded or "{}"), "code": mine})

    @classmethod
    def read(cls, report: object) -> Self:
        """Return the code of a peer's report; what makes no sense in it is unknown. Never raises."""
        try:
            parsed = json.loads(report) if isinstance(report, str) and len(report) <= _MOST_TEXT else {}
            found = parsed["code"]
            pairs = list(found["revisions"].items())[:_MOST_REVISIONS]
            valid = [(name, number) for name, number in pairs if type(number) is int and 0 < number < 1_000_000]
            used = {one_line(name, _MOST_FIELD): number for name, number in valid}
            texts = (found["version"], found["fingerprint"])
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            return cls()
        release, fingerprint = (one_line(text, _MOST_FIELD) if isinstance(text, str) else "" for text in texts)
        return cls(version=release, fingerprint=fingerprint, revisions=used)

    def differences(self, other: Self) -> list[str]:
        """Return which revisions a client (this) and its server (the other) do not share, in words.

        Raises nothing; a revision that the client does not report is one that it does not share.
        """
        mine = {name: self.revisions.get(name, "unknown") for name in other.revisions}
        pairs = [(name, mine[name], number) for name, number in other.revisions.items() if mine[name] != number]
        return [f"revision of {name} {own} at the client, {number} at the server" for name, own, number in pairs]

    def __str__(self) -> str:
        """Return it as people read it: ``0.1.0 (0123456789ab)``."""
        return origin.named(self.version, self.fingerprint)


@lru_cache(maxsize=1)
def code_fingerprint() -> str:
    """Return 12 hex digits that agree exactly where two ends would compute the same round.

    They cover the source of everything that both ends run, and what the random streams of this NumPy draw. A wheel has
    those of the checkout that it was built from, while its files are as they were built; else ``modified-`` and digits
    of its own.
    """
    digest, found = hashlib.sha256(), origin.sources(FINGERPRINTED)
    for name, source in found.digests.items():
        digest.update(f"{name} {source}\n".encode())
    rng = stream(1, Role.WORKER, 2, 3)
    for drawn in (rng.choice(1000, 32, replace=False), rng.random(4), rng.permutation(9)):
        digest.update(drawn.tobytes())
    rounders = (RandK(k=4), RandK(k=4, levels=3), Identity(values="float16"), Identity(values="bfloat16"), Natural())
    for compressor in (*rounders, QSGD(levels=3), ScaledSign()):
        v = rng.random(64) - 0.5
        digest.update(compressor.decompress(compressor.compress(v, rng), v.dtype).tobytes())
    return ("modified-" if found.modified else "") + digest.hexdigest()[:12]
