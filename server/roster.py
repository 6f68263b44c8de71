"""Which worker sits at which Flower node: read off the link, or asked of the nodes where there is no link."""

import logging
import time
from collections.abc import Mapping
from math import inf

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from link.grid import StreamGrid

log = logging.getLogger("breakwater.server")


class LinkRoster:
    """The link assigns the seats itself, so nobody can claim another's."""

    def __init__(self, grid: StreamGrid) -> None:
        self._grid = grid

    def nodes(self) -> Mapping[int, int]:
        """Return node id by worker, of those connected and ready."""
        return self._grid.nodes()

    def name(self, worker: int) -> str:
        """Return the name that the worker joined with."""
        seat = self._grid.seats().get(worker)
        return seat.name if seat else f"worker {worker}"

    def wait(self, count: int, timeout: float) -> int:
        """Wait until ``count`` workers are ready; return how many are."""
        return self._grid.wait_for(count, timeout)


class QueriedRoster:
    """On any other Grid each new node is asked once which worker it is, and whether it runs the same code.

    The answer is a claim: the first node that claims a seat keeps it, and a second claim is logged and ignored. On a
    Flower deployment with SuperNode authentication the node ids are certain, their seats are still their own word.
    """

    POLL_S = 1.0
    """Seconds between looks at a Grid that offers nothing to wait on."""
    AGAIN_S = 60.0
    """Seconds until a node that did not answer is asked again: each time may cost the whole timeout."""

    def __init__(self, grid: Grid, clients: int, fingerprint: str, timeout_s: float) -> None:
        self._grid = grid
        self._clients = clients
        self._fingerprint = fingerprint
        self._timeout_s = timeout_s
        self._node_of: dict[int, int] = {}
        self._ask_at: dict[int, float] = {}  # node -> when to ask it; infinity once it has answered

    def nodes(self) -> Mapping[int, int]:
        """Return node id by worker, of the nodes that are online; new ones are asked first."""
        online = set(self._grid.get_node_ids())
        now = time.monotonic()
        new = sorted(node for node in online if self._ask_at.get(node, 0.0) <= now)
        if new:
            self._ask(new)
        return {worker: node for worker, node in self._node_of.items() if node in online}

    def name(self, worker: int) -> str:
        """Return a name for logs."""
        return f"worker {worker} (node {self._node_of.get(worker, 0)})"

    def wait(self, count: int, timeout: float) -> int:
        """Poll until ``count`` workers are known; return how many are."""
        end = time.monotonic() + timeout
        while (known := len(self.nodes())) < count and time.monotonic() < end:
            time.sleep(self.POLL_S)  # a foreign Grid offers nothing to wait on
        return known

    def _ask(self, nodes: list[int]) -> None:
        question = RecordDict()
        messages = [Message(question, node, "query", ttl=self._timeout_s) for node in nodes]
        self._ask_at |= dict.fromkeys(nodes, time.monotonic() + self.AGAIN_S)
        replies = list(self._grid.send_and_receive(messages, timeout=self._timeout_s))
        node_of = {m.metadata.message_id: node for m, node in zip(messages, nodes, strict=True)}
        for reply in replies:
            node = node_of.get(reply.metadata.reply_to_message_id)
            if node is None:
                continue
            self._ask_at[node] = inf
            self._seat(node, reply)

    def _seat(self, node: int, reply: Message) -> None:
        if reply.has_error():
            log.warning("node %d cannot take part: %s", node, reply.error.reason)
            return
        answer = reply.content.config_records.get("worker", ConfigRecord())
        worker, fingerprint = answer.get("index"), answer.get("fingerprint")
        if fingerprint != self._fingerprint:
            log.error(
                "node %d runs other code (fingerprint %s, this server %s): it is left out; give both the same bundle",
                node,
                str(fingerprint)[:20],
                self._fingerprint,
            )
        elif not isinstance(worker, int) or not 0 <= worker < self._clients:
            log.error("node %d claims seat %s: must be 0 .. %d", node, str(worker)[:20], self._clients - 1)
        elif worker in self._node_of and self._node_of[worker] in set(self._grid.get_node_ids()):
            log.error("node %d claims seat %d, which node %d holds: ignored", node, worker, self._node_of[worker])
        else:
            self._node_of[worker] = node
