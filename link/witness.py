"""Who is told what a client is asked and what it sends: before a message leaves, and whatever carries it.

A witness sees whole messages: the frames of a reply are made before the first of them leaves. What it raises ends the
client, and the message does not leave.
"""

from collections.abc import Sequence
from typing import Protocol

from foundation.text import one_line

HELLO, READY = "hello", "ready"
"""Kinds of the messages of the handshake."""
ERROR, PASS, BROKEN, UNKNOWN = "error", "pass", "broken", "unknown"
"""Kinds of replies that are none: an error in place of one, a seat that stays silent, a Byzantine fault; and one
that answers an instruction without a type."""

_QUERY, _OURS = "query.", "breakwater_"
_MOST = 40
"""Characters of a kind that are kept."""


class Witness(Protocol):
    """Is told what happens on the connections of a client's process, one call at a time; each must be quick."""

    def connected(self, name: str, worker: int, clients: int) -> None:
        """A server has taken the client ``name`` as worker ``worker`` of ``clients``."""

    def lost(self, name: str, reason: str) -> None:
        """There is no stream to a server: why, in words."""

    def asked(self, name: str, kind: str, round_: int | None) -> None:
        """An instruction has come; see ``kind_of`` and ``round_of``."""

    def leaving(self, name: str, kind: str, round_: int | None, frames: Sequence[bytes]) -> None:
        """A message leaves for the server once this returns; a ``HELLO`` has just left.

        Args:
            name: of the client that sends it.
            kind: ``HELLO`` or ``READY``; else that of the instruction that it answers, or ``ERROR``,
                ``PASS``, ``BROKEN`` or ``UNKNOWN``.
            round_: of the instruction; None where it belongs to none.
            frames: all of it.
        """


def kind_of(message_type: str) -> str:
    """Return the kind of an instruction in one word: "train", "evaluate", "statistics", ..."""
    return one_line(message_type.removeprefix(_QUERY).removeprefix(_OURS), _MOST) or UNKNOWN


def round_of(group_id: str) -> int | None:
    """Return the round that an instruction belongs to; None for none."""
    return int(group_id) if group_id.isdecimal() and len(group_id) < 19 and group_id.isascii() else None
