"""The private names of flwr that a Grid outside a SuperLink needs. Nothing else in the repository touches any.

tests/unit/link/test_flwr_compat.py is the contract: what each of these does for us, on the flwr that is installed.
"""

import time
from typing import Any, TypeVar

from flwr.app import DEFAULT_TTL, Error, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.proto.node_pb2 import NodeInfo as NodeInfo
from flwr.supercore.run import Run as Run
from flwr.supercore.task_identity import TaskIdentity

MessageT = TypeVar("MessageT", bound=Message)

SERVER_NODE_ID: int = SUPERLINK_NODE_ID
"""The node id of the server's end, 1 in Flower."""
APP_RAISED: int = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
"""Code of an error reply: the ClientApp raised an exception."""
NODE_UNAVAILABLE: int = ErrorCode.NODE_UNAVAILABLE
"""Code of an error reply: the node is not connected, or was lost before it answered."""
BAD_REPLY: int = ErrorCode.REPLY_MESSAGE_UNAVAILABLE
"""Code of an error reply: what the node answered cannot be used."""


def set_identity(run_id: int) -> None:
    """Let this process build Flower instructions: ``Message(content, node, type)`` raises without an identity.

    An identity that is already set, by Flower or for an earlier grid of this process, stays: ``stamp`` gives every
    message the run id of its own grid.
    """
    if TaskIdentity._task_id is None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, SERVER_NODE_ID, 1


def stamp(message: Message, *, message_id: str, run_id: int) -> None:
    """Give an instruction what Flower leaves to the Grid: its id, its run, the server as its source."""
    fields = message.metadata.__dict__
    fields["_message_id"] = message_id
    fields["_run_id"] = run_id
    fields["_src_node_id"] = SERVER_NODE_ID


def addressed(message: Message, node_id: int) -> Message:
    """Return the same instruction, with the same content, to another node: a copy that Flower need not check again."""
    metadata, copied = Metadata.__new__(Metadata), Message.__new__(Message)
    metadata.__dict__.update(message.metadata.__dict__, _dst_node_id=node_id)
    copied.__dict__.update(message.__dict__, _metadata=metadata)
    return copied


def replied(instruction: Message, kind: type[MessageT]) -> MessageT:
    """Return a reply to an instruction as ``Message(content, reply_to=instruction)`` does, but without its content.

    Args:
        instruction: what is answered.
        kind: the class of the reply, which makes the content when it is read.
    """
    asked, given = instruction.metadata.__dict__, Metadata.__new__(Metadata)
    given.__dict__.update(
        asked,
        _message_id="",
        _src_node_id=asked["_dst_node_id"],
        _dst_node_id=asked["_src_node_id"],
        _src_task_id=asked["_dst_task_id"],
        _dst_task_id=asked["_src_task_id"],
        _reply_to_message_id=asked["_message_id"],
        _created_at=(now := time.time()),
        _ttl=asked["_ttl"] - (now - asked["_created_at"]),
    )
    reply = kind.__new__(kind)
    reply.__dict__.update(_metadata=given, _content=None, _error=None)
    return reply


def name_reply(message: Message, message_id: str) -> None:
    """Give a reply its id."""
    message.metadata.__dict__["_message_id"] = message_id


def unreadable(message_id: str, run_id: int, reason: str) -> Message:
    """Return the error reply to an instruction whose reply cannot be read, in the server's own name."""
    metadata = _metadata(message_id=f"{message_id}-reply", run_id=run_id, reply_to_message_id=message_id)
    return make_message(metadata, error=Error(BAD_REPLY, reason))


def instruction(
    content: RecordDict, *, run_id: int, node_id: int, message_id: str, message_type: str, group_id: str, ttl_s: float
) -> Message:
    """Return an instruction as the client sees it; its clock starts now, so clocks need not agree.

    Raises:
        ValueError: Flower knows no such message type.
    """
    given = {"message_type": message_type, "group_id": group_id, "ttl": ttl_s or DEFAULT_TTL}
    metadata = _metadata(message_id=message_id, run_id=run_id, dst_node_id=node_id, **given)
    return make_message(metadata, content=content)


def _metadata(**given: Any) -> Metadata:
    """Return a message's metadata, from the server to itself where nothing else is given."""
    given = {"src_node_id": SERVER_NODE_ID, "dst_node_id": SERVER_NODE_ID, "reply_to_message_id": "", **given}
    given = {"group_id": "", "ttl": DEFAULT_TTL, "message_type": "train", **given}
    return Metadata(created_at=time.time(), **given)


def empty_run(run_id: int) -> Run:
    """Return Flower's description of a run, with nothing in it but the run's id."""
    return Run.create_empty(run_id)


def is_simulated(grid: object) -> bool:
    """Return whether this is the Grid of Flower's simulation, whose nodes share a few processes."""
    return type(grid).__name__ == "InMemoryGrid"
