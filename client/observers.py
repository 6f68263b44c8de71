"""What a party sees of its own client: who asks, what leaves, and how good the model is on its own data.

The link reports messages (``link.witness``); what stands for the ClientApp reports what is in them: the norm of an
update, and the measures of a model that it computed anyway.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from flwr.app import Context, Message

from client.ledger import SentLedger, bytes_of
from link import codec
from link.claims import read_claim
from link.replies import App
from link.witness import ERROR, HELLO, PASS, READY, round_of
from strategies.claims import Claim
from strategies.method import Evaluation, Method, Packet, Vector
from strategies.vectors import norm

log = logging.getLogger("breakwater.client")

Known = Callable[[], tuple[Method, int, Vector] | None]
"""Returns the method, the worker, and a vector of the model's shape and dtype; None as long as they are not known."""

_NORM_S = 0.5
"""Seconds between norms for people: they cost a pass over the vector."""
_NO_ANSWERS = (HELLO, READY, ERROR, PASS)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a client is, for people.

    Args:
        connected: to a server now.
        worker: its seat; None before it has any.
        clients: n, the number of seats.
        reason: why it is not connected.
        asked: how many instructions have come.
        answered: how many were answered by more than an error.
        bytes: that left.
        round: of the newest instruction; None where it belongs to none.
        kind: of the newest message that left.
        last_bytes: of it.
        norm: of the newest update whose norm was computed.
        measured: the newest model measured on the client's own data.
        measured_at: the round of that; None for the final model.
    """

    connected: bool = False
    worker: int | None = None
    clients: int = 0
    reason: str = ""
    asked: int = 0
    answered: int = 0
    bytes: int = 0
    round: int | None = None
    kind: str = ""
    last_bytes: int = 0
    norm: float | None = None
    measured: Evaluation | None = None
    measured_at: int | None = None


class View(Protocol):
    """Shows where the clients of a process are."""

    def show(self, name: str, standing: Standing) -> None:
        """Show a client, or note it for later; must be quick."""


@dataclass
class Observers:
    """Notes what happens to the clients of this process; a ``link.witness.Witness``.

    Args:
        ledger: of what leaves; None for none.
        view: for people; None for none.
    """

    ledger: SentLedger | None = None
    view: View | None = None
    standings: dict[str, Standing] = field(default_factory=dict)
    _norms: dict[str, float] = field(default_factory=dict)
    _norm_due: float = 0.0

    # --- what the link reports ---

    def connected(self, name: str, worker: int, clients: int) -> None:
        self._change(name, replace(self._of(name), connected=True, worker=worker, clients=clients, reason=""))

    def lost(self, name: str, reason: str) -> None:
        self._change(name, replace(self._of(name), connected=False, reason=reason))

    def asked(self, name: str, kind: str, round_: int | None) -> None:
        known = self._of(name)
        self._change(name, replace(known, asked=known.asked + 1, round=known.round if round_ is None else round_))

    def leaving(self, name: str, kind: str, round_: int | None, frames: Sequence[bytes]) -> None:
        length = self._norms.pop(name, None)
        book = self.ledger
        nbytes = bytes_of(frames) if book is None else book.add(name, kind, round_, frames, length)
        known = self._of(name)
        known = replace(known, bytes=known.bytes + nbytes, kind=kind, last_bytes=nbytes)
        if kind not in _NO_ANSWERS:
            known = replace(known, answered=known.answered + 1, norm=known.norm if length is None else length)
        self._change(name, known)

    # --- what the app reports ---

    def wants_norm(self) -> bool:
        """Return whether the norm of the update in hand is to be computed."""
        if self.ledger is not None:
            return True
        if self.view is None or time.monotonic() < self._norm_due:
            return False
        self._norm_due = time.monotonic() + _NORM_S
        return True

    def updated(self, name: str, length: float) -> None:
        """Note the norm of the update that a client is about to send."""
        self._norms[name] = length

    def measured(self, name: str, round_: int | None, found: Evaluation) -> None:
        """Note how good a model is on a client's own data; ``round_`` is None for the final one."""
        self._change(name, replace(self._of(name), measured=found, measured_at=round_))

    def finished(self, name: str, measure: Callable[[], Evaluation | None]) -> None:
        """Measure the final model on a client's own data, if anybody looks; ``measure`` returns None if it cannot."""
        if self.view is not None and (found := measure()) is not None:
            self.measured(name, None, found)

    def around(self, app: App, name: str, known: Known) -> App:
        """Return an app that answers as another one does, and notes what is in its answers.

        Args:
            app: the other one.
            name: of the client.
            known: see there.
        """

        def observed(message: Message, context: Context) -> Message:
            reply = app(message, context)
            try:
                self._look(name, message, reply, known)
            except Exception:  # the answer leaves as it is
                log.exception("%s: what is in an answer cannot be shown", name)
            return reply

        return observed

    def _look(self, name: str, message: Message, reply: Message, known: Known) -> None:
        kind = message.metadata.message_type
        if reply.has_error():
            return
        if kind == "train" and self.wants_norm() and (found := known()) is not None:
            method, worker, like = found
            ask = codec.read_ask(message.content)
            form = method.compressor_for(ask, worker)
            packet = codec.read_reply(reply, ask, form, like)
            if isinstance(packet, Packet):
                with np.errstate(all="ignore"):  # an attacker may send anything
                    self.updated(name, float(norm(form.decompress(packet, like.dtype))))
        elif kind == "evaluate" and isinstance(claim := read_claim(reply, declared=True), Claim):
            measures = Evaluation(claim.loss, claim.accuracy)
            self.measured(name, round_of(message.metadata.group_id), measures)

    def _of(self, name: str) -> Standing:
        return self.standings.get(name, Standing())

    def _change(self, name: str, standing: Standing) -> None:
        self.standings[name] = standing
        if self.view is not None:
            self.view.show(name, standing)
