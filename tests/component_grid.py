"""A Grid of this process as Flower's are: instructions are pushed, replies pulled, ClientApps behind it.

What is pushed passes through bytes, so that nothing is shared between the two ends by accident.
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from link import flwr_compat
from link import link_pb2 as pb
from link.records import Body, pack, unpack

_run_ids = itertools.count(1_000_000)
LOST = "lost"
"""In place of a ClientApp: the SuperLink reports the node as lost."""


def copied(content: RecordDict) -> RecordDict:
    head, parts = pack(content)
    return unpack(pb.Content.FromString(head), Body([b"".join(parts)]))


@dataclass
class Node:
    app: ClientApp | str
    context: Context


@dataclass
class AppGrid(Grid):
    """Give it an app for each node id; ``partition-id`` counts them."""

    apps: Mapping[int, ClientApp | str]
    offline: set[int] = field(default_factory=set)
    pushed: list[list[Message]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.run_id = next(_run_ids)
        self.nodes = {
            node: Node(app, Context(self.run_id, node, {"partition-id": i}, RecordDict(), {}))
            for i, (node, app) in enumerate(self.apps.items())
        }
        self._replies: dict[str, Message] = {}
        flwr_compat.set_identity(self.run_id)

    def get_node_ids(self) -> list[int]:
        return [node for node in self.nodes if node not in self.offline]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        batch = list(messages)
        self.pushed.append(batch)
        ids = []
        for number, message in enumerate(batch):
            ids.append(f"{len(self.pushed)}-{number}")
            flwr_compat.stamp(message, message_id=ids[-1], run_id=self.run_id)
            self._replies[ids[-1]] = self._answer(message, self.nodes[message.metadata.dst_node_id])
        return ids

    def _answer(self, message: Message, node: Node) -> Message:
        told = flwr_compat.instruction(
            copied(message.content),
            run_id=self.run_id,
            node_id=message.metadata.dst_node_id,
            message_id=message.metadata.message_id,
            message_type=message.metadata.message_type,
            group_id=message.metadata.group_id,
            ttl_s=60,
        )
        if not isinstance(node.app, ClientApp):
            lost = Message(Error(flwr_compat.NODE_UNAVAILABLE, "Node Unavailable"), reply_to=told)
            lost.metadata.__dict__["_src_node_id"] = flwr_compat.SERVER_NODE_ID
            return lost
        try:
            reply = node.app(told, node.context)
        except Exception as error:  # as Flower reports it
            return Message(Error(flwr_compat.APP_RAISED, f"{type(error)}:<{error!r}>"), reply_to=told)
        if reply.has_content():
            reply.content = copied(reply.content)
        return reply

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._replies.pop(i) for i in list(message_ids) if i in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        raise AssertionError("an AppStrategy polls")

    @property
    def run(self) -> flwr_compat.Run:
        return flwr_compat.empty_run(self.run_id)

    def set_run(self, run: flwr_compat.Run) -> None:
        raise AssertionError("a strategy sets no run")

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        raise AssertionError("a strategy builds its messages itself")
