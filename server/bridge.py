"""The live link on a Flower deployment: a ServerApp opens its own gRPC link and invites the SuperNodes to it.

With the run config's ``link = "HOST:PORT"`` messages go through Flower only once: every node is sent one invitation,
with a certificate made for this run, and stays on the link from then on (``client.invited``). All of it is Flower's
public API. Nodes that come later, or that lose the link for good, are invited when they are seen.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address

from flwr.app import Message, RecordDict

from experiment.opened import Experiment
from foundation.errors import ConfigError
from foundation.text import one_line
from link.address import Address
from link.grid import StreamGrid
from link.identity.authority import Authority
from link.identity.tls import server_credentials
from link.invitation import JOIN, Invitation
from link.polled import PolledGrid
from server.link import open_link

log = logging.getLogger("breakwater.server")

_LOOK_S = 1.0
"""Seconds between looks for new nodes."""
_AGAIN_S = 90.0
"""Seconds until a node that is online and not on the link is invited again; longer than it looks for the link."""
_STAY_S = 30 * 24 * 3600.0
"""For how long an invitation holds, and so the longest run."""
_FAREWELL_S = 10.0
"""Seconds to wait for the nodes to answer their invitations at the end."""


@contextmanager
def live_link(grid: PolledGrid, experiment: Experiment, run_id: int, address: str, listen: str) -> Iterator[StreamGrid]:
    """Within: the link is open, and nodes are invited to it.

    Args:
        grid: Flower's.
        experiment: of this run.
        run_id: Flower's.
        address: HOST:PORT where the nodes find the link.
        listen: HOST:PORT to bind, or "" for the port of ``address`` on all interfaces.

    Raises:
        ConfigError: the address is none, or this is a simulation, whose nodes cannot stay.
        LinkError: it cannot be bound.
    """
    found = Address.parse(address, what="run config: link =")
    bind = Address.parse(listen, listens=True, what="run config: link-listen =") if listen else None
    if grid.simulated:
        raise ConfigError(f'run config: link = "{address}": simulated nodes share processes and cannot stay on a link')
    authority = Authority.create()
    stream_grid = open_link(experiment, run_id, server_credentials(authority.issue_server([found.host])))
    bound = stream_grid.listen(str(bind or Address(_every(found), found.port)))
    log.info("the link listens on %s; nodes connect to %s", bound, found)
    host = _Host(grid, stream_grid, authority, str(found))
    thread = threading.Thread(target=host.receive, name="invitations", daemon=True)
    thread.start()
    try:
        yield stream_grid
        host.over.set()
        thread.join()
        stream_grid.close("the run is over", final=True)
        host.see_off()
    finally:
        host.over.set()
        stream_grid.close("the server stopped before the end of the run", final=True)


def _every(address: Address) -> str:
    """Return what stands for all of this machine's addresses of the kind."""
    return "::" if isinstance(address.ip, IPv6Address) else "0.0.0.0"  # noqa: S104  # nodes are elsewhere


class _Host:
    """Invites nodes, and reads their answers."""

    def __init__(self, grid: PolledGrid, link: StreamGrid, authority: Authority, address: str) -> None:
        self.over = threading.Event()
        self._grid = grid
        self._link = link
        self._authority = authority
        self._address = address
        self._invited: dict[int, float] = {}  # node -> when it was invited last, or last seen on the link
        self._waiting: dict[str, int] = {}  # message id -> node
        self._told: dict[int, str] = {}

    def receive(self) -> None:
        """Invite every node that is online and not on the link, until the run is over."""
        while not self.over.is_set():
            try:
                self._look()
            except Exception:  # Flower's connection may fail for a moment; the run goes on over the link
                log.exception("cannot invite nodes; trying again")
            self.over.wait(_LOOK_S)

    def _look(self) -> None:
        online, now = set(self._grid.get_node_ids()), time.monotonic()
        self._hear()
        present = {seat.name for seat in self._link.seats().values() if seat.connected}
        for node in online:
            if _name(node) in present:
                self._invited[node] = now
        gone = [seat.name for seat in self._link.seats().values() if not seat.connected]
        for name in set(gone).difference(map(_name, online)):
            self._link.vacate(name)  # Flower reports its node as gone; its replacement has another name
        new = [node for node in sorted(online) if now - self._invited.get(node, -_AGAIN_S) >= _AGAIN_S]
        if not new:
            return
        messages = [Message(self._write(node), node, f"query.{JOIN}", ttl=_STAY_S) for node in new]
        for node, message_id in zip(new, self._grid.push_messages(messages), strict=False):
            self._invited[node] = now
            if message_id:
                self._waiting[message_id] = node

    def _hear(self) -> None:
        """Take the answers to invitations: a node that answers has left the link, or could not join it."""
        if not self._waiting:
            return
        for reply in self._grid.pull_messages(list(self._waiting)):
            node = self._waiting.pop(reply.metadata.reply_to_message_id, None)
            if node is None or not reply.has_error():
                continue
            reason = one_line(reply.error.reason)
            if self._told.get(node) != reason:
                self._told[node] = reason
                log.error("node %d cannot take part: %s", node, reason)

    def _write(self, node: int) -> RecordDict:
        mine = self._authority.issue_client(_name(node))
        return Invitation(self._address, mine.authority, mine.certificate, mine.key).write()

    def see_off(self) -> None:
        """Wait a little until the nodes have answered their invitations, so that Flower ends the run with none open."""
        end = time.monotonic() + _FAREWELL_S
        while self._waiting and time.monotonic() < end:
            self._hear()
            time.sleep(_LOOK_S / 4)


def _name(node: int) -> str:
    return f"node-{node}"
