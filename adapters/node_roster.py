"""Seats for the nodes of any Flower Grid: the first node that appears is worker 0, the next worker 1, ...

A node keeps its seat while it is away, unless another node needs it: a node that comes back under a new id, as a
SuperNode without keys of its own does, then takes the seat of one that is offline. Who may claim a seat is decided by
who may connect: SuperNode authentication makes the number of node ids that a party can hold a certainty.
"""

import logging
import time
from collections.abc import Mapping

from flwr.serverapp import Grid

from link.polled import PolledGrid
from strategies.roster import Roster

log = logging.getLogger("flwr.breakwater")


class NodeRoster(Roster):
    """Which worker sits at which node.

    Args:
        clients: n, how many seats there are; ``open`` and ``close`` make it the number of nodes that are there.
        grid: where the nodes are; None until ``watch``.
    """

    POLL_S = 0.25
    """Seconds between polls of a Grid, which cannot be waited on."""

    def __init__(self, clients: int, grid: Grid | None = None) -> None:
        self._clients: int | None = clients  # None while it is open
        self._why = "`clients` is too small"
        self.online = 0
        """How many nodes with a seat were online at the last look."""
        self._grid = None if grid is None else PolledGrid(grid)
        self._node_of: dict[int, int] = {}  # seat -> the node that holds it, online or not
        self._left_out: set[int] = set()

    def watch(self, grid: Grid) -> PolledGrid:
        """Look at this grid from now on, through the one that is returned."""
        self._grid = PolledGrid(grid)
        return self._grid

    def traffic(self) -> tuple[int, int]:
        """Return (bytes up, bytes down) that went through the grid that ``watch`` returned."""
        return (0, 0) if self._grid is None else self._grid.traffic()

    def nodes(self) -> Mapping[int, int]:
        """Return node id by worker, of the nodes that are online and have a seat."""
        online = set() if self._grid is None else set(self._grid.get_node_ids())
        for node in sorted(online.difference(self._node_of.values())):
            self._seat(node, online)
        seated = {worker: node for worker, node in sorted(self._node_of.items()) if node in online}
        self.online = len(seated)
        return seated

    def open(self) -> None:
        """Forget all nodes, and give a seat to each one that appears until ``close``."""
        self._clients, self._node_of, self._left_out = None, {}, set()

    def close(self) -> int:
        """Give the nodes that are online the seats 0, 1, ... by their ids, and no seat to more; return how many."""
        self._node_of = dict(enumerate(sorted(self.nodes().values())))
        self._clients, self._why = len(self._node_of), "nodes that come after the start do not take part"
        for worker, node in self._node_of.items():
            log.info("node %d is worker %d", node, worker)
        return self._clients

    def name(self, worker: int) -> str:
        """Return a name for logs."""
        return f"worker {worker} (node {self._node_of.get(worker, 0)})"

    def wait(self, count: int, timeout: float) -> int:
        """Look until ``count`` workers are online, at most ``timeout`` seconds; return how many are."""
        end = time.monotonic() + timeout
        while (ready := len(self.nodes())) < count and (left := end - time.monotonic()) > 0:
            time.sleep(min(self.POLL_S, left))
        return ready

    def _seat(self, node: int, online: set[int]) -> None:
        if self._clients is None:
            self._node_of[len(self._node_of)] = node
            return
        free = [seat for seat in range(self._clients) if seat not in self._node_of]
        gone = [seat for seat, holder in sorted(self._node_of.items()) if holder not in online]
        if free or gone:
            seat = (free or gone)[0]
            self._node_of[seat] = node
            log.info("node %d is worker %d", node, seat)
        elif node not in self._left_out:
            self._left_out.add(node)
            why = f"all %d seats are held by nodes that are online; {self._why}"
            log.warning(f"node %d is left out: {why}", node, self._clients)
