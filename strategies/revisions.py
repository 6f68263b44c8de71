"""Revisions: numbers that change when the code that they name changes what a worker computes or sends.

Server and clients of one run normally have the same code, to the last byte. Where they may not
(``federation.same_code = "warn"``), the revisions of what the run uses must agree: its method, its compressor, the
uncompressed form that most methods need too, and the random streams. A test keeps a digest of the code behind each
number and fails where the code changes and the number does not.
"""

from collections.abc import Mapping

STREAMS = "streams"
"""The random streams, see ``randomness``."""

REVISIONS: Mapping[str, int] = {}
"""Revisions above 1, by the ``kind`` of a method or compressor, or ``STREAMS``."""


def revision(name: str) -> int:
    """Return the revision of a method, of a compressor, or of the random streams."""
    return REVISIONS.get(name, 1)


def revisions(method: str, compressor: str) -> dict[str, int]:
    """Return the revisions that server and clients of a run must share, by name.

    Args:
        method: the method's kind.
        compressor: the compressor's kind.
    """
    return {name: revision(name) for name in (method, compressor, "identity", STREAMS)}
