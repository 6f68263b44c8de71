"""What the server needs of whatever carries its messages: the live link, a SuperLink, or clients in this process."""

from collections.abc import Callable, Collection, Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from link.seats import Seat
from strategies.roster import Roster

Judge = Callable[[str, str], str | None] | None
"""Called with a client's name and what it has loaded; returns why it cannot take part, or None."""


class MessageGrid(Grid):
    """A Flower Grid that builds messages as Flower's does."""

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return an instruction for a node; the same as building the Message directly."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)


class Transport(MessageGrid, Roster):
    """A Flower Grid that knows who its clients are. What a transport does not offer keeps its default here."""

    clients_change = True
    """Whether clients may come, go and recover, so that asking them again can give another answer."""
    polled = False
    """Whether replies must be looked for: then ``nodes`` may cost messages, and waits are too coarse to learn from."""
    address = ""
    """HOST:PORT where clients and watchers connect; "" for none."""

    def complaints(self) -> str:
        """Return in one line why clients that came cannot take part; "" if all can."""
        return ""

    def seats(self) -> Mapping[int, Seat]:
        """Return the seats that are kept for their clients, by worker; none where clients bring their own seat."""
        return {}

    def expected(self) -> Collection[str]:
        """Return the names of all clients that may take part, where the server has a list of them; else none."""
        return ()

    def reports(self) -> Mapping[str, str]:
        """Return what clients report that they have loaded, by name, of those that take part."""
        return {}

    def show(self, state: Callable[[], str]) -> None:
        """Show watchers this state from now on, where the transport can be watched.

        Args:
            state: returns a JSON object; called on a thread of the transport, so it must be quick and must not raise.
        """
