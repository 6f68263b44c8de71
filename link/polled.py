"""A Flower Grid that must be asked for replies, made quicker: what carries a round on a SuperLink and in simulation.

Flower's own ``send_and_receive`` looks for replies every three seconds. This one pushes and pulls through the same
public methods and looks again after a tenth of the time that it has waited so far, so that it finds replies at most a
tenth too late and asks a few dozen times in a round, however long that is.
"""

import logging
import time
from collections.abc import Iterable
from contextlib import suppress

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError

from foundation.text import one_line
from link import flwr_compat
from link.flwr_compat import NodeInfo, Run
from link.transport import MessageGrid

log = logging.getLogger("breakwater.link")

_SHARE = 0.1
"""How much of the time waited so far is waited until the next look."""
_SHORTEST_S, _LONGEST_S = 0.02, 1.0
"""Bounds of that."""
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RecursionError, DecodeError)
"""What Flower raises where the bytes of a reply are none; what its connection raises is none of these."""


class PolledGrid(MessageGrid):
    """Another Grid, and a count of what goes through it.

    Args:
        grid: where everything is passed on to.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._up = self._down = 0
        self._one_by_one = False

    @property
    def simulated(self) -> bool:
        """Whether the nodes are those of Flower's simulation, which share a few processes."""
        return flwr_compat.is_simulated(self._grid)

    def traffic(self) -> tuple[int, int]:
        """Return (bytes up, bytes down) so far: the content of messages, as Flower counts it, without its envelopes."""
        return self._up, self._down

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push the instructions and wait for the replies.

        Args:
            messages: any number, to any nodes.
            timeout: seconds to wait; None waits until each is answered.

        Returns:
            The replies that came in time, error messages among them.
        """
        began = time.monotonic()
        batch = list(messages)  # Flower's grids go through them twice
        waiting = {message_id for message_id in self.push_messages(batch) if message_id}
        del batch
        replies: list[Message] = []
        while waiting:
            found = list(self.pull_messages(waiting))
            replies += found
            waiting -= {reply.metadata.reply_to_message_id for reply in found}
            waited = time.monotonic() - began
            if not waiting or (timeout is not None and waited >= timeout):
                break
            pause = min(max(_SHARE * waited, _SHORTEST_S), _LONGEST_S)
            time.sleep(pause if timeout is None else min(pause, timeout - waited))
        return replies

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send instructions; return their ids, with None for one that could not be sent."""
        batch = list(messages)
        self._down += sum(_size(message.content) for message in batch if message.has_content())
        return self._grid.push_messages(batch)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there; an error in place of one that Flower cannot read.

        A node may push anything, and Flower reads the replies of a call one after the other: what it raises for one of
        them loses those before it too. So once that has happened every reply is asked for by itself.
        """
        wanted = list(message_ids)
        if not self._one_by_one:
            try:
                return self._counted(self._grid.pull_messages(wanted))
            except _UNREADABLE as error:
                self._one_by_one = True
                log.error("a node has sent what Flower cannot read; its round may lack others too: %s", _text(error))
        replies: list[Message] = []
        for message_id in wanted:
            try:
                replies += self._counted(self._grid.pull_messages([message_id]))
            except _UNREADABLE as error:
                reason = f"undecodable: Flower cannot read it: {_text(error)}"
                replies.append(flwr_compat.unreadable(message_id, self._grid.run.run_id, reason))
        return replies

    def _counted(self, pulled: Iterable[Message]) -> list[Message]:
        replies = list(pulled)
        self._up += sum(_size(reply.content) for reply in replies if reply.has_content())
        return replies

    # --- passed on as it is ---

    def set_run(self, run: Run) -> None:
        """Tell the grid its run."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The grid's run."""
        return self._grid.run

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the nodes that are online."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return the nodes that are online."""
        return self._grid.get_nodes()


def _text(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}", 120)


def _size(content: RecordDict) -> int:
    total = 0
    for record in content.values():
        with suppress(*_UNREADABLE):  # an empty text or byte string is enough for Flower's count to raise
            total += record.count_bytes()
    return total
