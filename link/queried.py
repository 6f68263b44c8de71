"""A polled Grid that asks its nodes which worker each of them is: the transport without a link of ours."""

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from foundation.origin import named, release
from foundation.text import one_line
from link.invitation import TASK, WHO
from link.polled import PolledGrid
from link.transport import Judge, Transport

log = logging.getLogger("breakwater.link")


@dataclass(frozen=True)
class _Unfit:
    """A node that answered and cannot take part.

    Args:
        reason: why, one line.
        foreign: it runs other code than this server, which no setting of the node can change.
    """

    reason: str
    foreign: bool = False


class QueriedGrid(PolledGrid, Transport):
    """Each new node is asked once which worker it is, and whether it runs the same code.

    The answer is a claim. Of several nodes that claim a seat the first one has it while it is online, and the next one
    after that, as when a node comes back under a new id. On a Flower deployment with SuperNode authentication the node
    ids are certain; which seat a node has is still its own claim.

    Args:
        grid: where the nodes are.
        clients: n, the number of seats.
        fingerprint: of this server's code.
        same_code: leave out nodes whose code has another fingerprint.
        timeout_s: seconds that a node has to answer.
        judge: called with the node's name in logs and what it has loaded; returns why it cannot take part, or None.
    """

    polled = True
    POLL_S = 1.0
    """Seconds between polls of a Grid, which cannot be waited on."""
    AGAIN_S = 60.0
    """Seconds until a node that did not answer is asked again: each attempt may take the whole timeout."""

    def __init__(
        self, grid: Grid, clients: int, fingerprint: str, timeout_s: float, judge: Judge = None, same_code: bool = True
    ) -> None:
        super().__init__(grid)
        self._clients = clients
        self._fingerprint = fingerprint
        self._timeout_s = timeout_s
        self._judge = judge
        self._same_code = same_code
        self._reports: dict[int, str] = {}  # what nodes have loaded
        self._claims: dict[int, list[int]] = {}  # worker -> the nodes that claim to be it, in the order of their claims
        self._seated: dict[int, int] = {}  # worker -> node, as last returned
        self._unfit: dict[int, _Unfit] = {}
        self._ask_at: dict[int, float] = {}  # node -> when to ask it; infinity once it has answered

    def nodes(self) -> Mapping[int, int]:
        """Return node id by worker, of the nodes that are online; new ones are asked first."""
        online = set(self.get_node_ids())
        now = time.monotonic()
        new = sorted(node for node in online if self._ask_at.get(node, 0.0) <= now)
        if new:
            self._ask(new)
        held = {worker: [node for node in nodes if node in online] for worker, nodes in self._claims.items()}
        seated = {worker: nodes[0] for worker, nodes in sorted(held.items()) if nodes}
        for worker, node in seated.items():
            before = self._seated.get(worker, node)
            if before != node:
                log.warning("worker %d is now at node %d; its former node %d has gone", worker, node, before)
        self._seated |= seated
        return seated

    def name(self, worker: int) -> str:
        """Return a name for logs."""
        return f"worker {worker} (node {self._seated.get(worker, 0)})"

    def wait(self, count: int, timeout: float) -> int:
        """Poll until ``count`` workers are known, or no more can be; return how many are."""
        end = time.monotonic() + timeout
        while (known := len(self.nodes())) < count and time.monotonic() < end and not self._hopeless():
            time.sleep(self.POLL_S)  # a foreign Grid offers nothing to wait on
        return known

    def complaints(self) -> str:
        """Return in one line why nodes that are online cannot take part; "" if all can."""
        online = set(self.get_node_ids())
        unfit = Counter(flaw.reason for node, flaw in self._unfit.items() if node in online)
        silent = len([node for node in online if self._ask_at.get(node, inf) < inf])
        complaints = [f"{n} of {len(online)} nodes: {reason}" for reason, n in unfit.most_common(3)]
        return "; ".join(complaints + [f"{silent} of {len(online)} nodes did not answer"] * (silent > 0))

    def reports(self) -> Mapping[str, str]:
        """Return what nodes report that they have loaded, by name, of those that have a seat."""
        return {f"node {node}": self._reports[node] for node in self._seated.values()}

    def _hopeless(self) -> bool:
        """Return whether every node runs other code."""
        online = set(self.get_node_ids())
        return bool(online) and all(node in self._unfit and self._unfit[node].foreign for node in online)

    def _ask(self, nodes: list[int]) -> None:
        question = RecordDict()
        messages = [Message(question, node, f"query.{WHO}", ttl=self._timeout_s) for node in nodes]
        self._ask_at |= dict.fromkeys(nodes, time.monotonic() + self.AGAIN_S)
        replies = self.send_and_receive(messages, timeout=self._timeout_s)
        node_of = {m.metadata.message_id: node for m, node in zip(messages, nodes, strict=True)}
        flaws: dict[int, _Unfit] = {}
        for reply in replies:
            if (node := node_of.get(reply.metadata.reply_to_message_id)) is None:
                continue
            self._ask_at[node] = inf
            if (flaw := self._seat(node, reply)) is not None:
                flaws[node] = flaw
        self._unfit |= flaws
        for flaw, n in Counter(flaws.values()).items():  # a hundred nodes with one flaw are one line
            who = ", ".join(str(node) for node, other in flaws.items() if other == flaw)
            log.error("%s: %s", f"node {who}" if n == 1 else f"{n} nodes ({who[:60]} ...)", flaw.reason)

    def _seat(self, node: int, reply: Message) -> _Unfit | None:
        """Seat a node as it claims, or return why not."""
        if reply.has_error():
            reason = one_line(reply.error.reason)
            if WHO in reason:  # Flower: no query function registered with that name
                return self._foreign("does not know what Breakwater asks")
            return _Unfit(f"cannot take part: {reason}")
        answer = reply.content.config_records.get(WHO, ConfigRecord())
        worker, fingerprint = answer.get("index"), answer.get("fingerprint")
        if fingerprint != self._fingerprint and (self._same_code or not isinstance(fingerprint, str)):
            theirs, ours = named(answer.get("version", ""), fingerprint), named(release(), self._fingerprint)
            return self._foreign(f"runs other code: {theirs}, this server {ours}")
        loaded = answer.get(TASK)
        if self._judge is not None and isinstance(loaded, str) and (other := self._judge(f"node {node}", loaded)):
            return _Unfit(f"cannot take part: {other}")
        if "flaw" in answer:
            return _Unfit(f"cannot take part: {one_line(answer['flaw'])}")
        if not isinstance(worker, int) or not 0 <= worker < self._clients:
            return _Unfit(f"claims seat {one_line(worker)}: must be 0 .. {self._clients - 1}")
        claims = self._claims.setdefault(worker, [])
        claims.append(node)
        self._reports[node] = str(loaded)
        if len(claims) > 1:
            return _Unfit(f"claims seat {worker}, which node {claims[0]} holds: it must wait until that node has gone")
        return None

    def _foreign(self, what: str) -> _Unfit:
        cause = "where several apps share a simulation SuperLink, it may have loaded the client package of another one"
        return _Unfit(f"{what}: left out; {cause}: restart it, or give every app its own SuperLink", foreign=True)
