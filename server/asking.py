"""Asks all connected clients something beside the rounds, where clients have their own data."""

from flwr.app import Message, RecordDict

from experiment.sections import Federation
from link.transport import Transport


def ask_all(transport: Transport, federation: Federation, action: str, content: RecordDict) -> dict[int, list[Message]]:
    """Send a Flower query to every connected client, and wait for the answers until the deadline of a round.

    Args:
        transport: where the clients are.
        federation: whose deadline holds.
        action: of the query.
        content: of the message, the same for all.

    Returns:
        What each client that was asked has answered by then, by worker; nothing, errors, or whatever it likes.
    """
    deadline_s = federation.flower_deadline_s if transport.polled else federation.longest_deadline_s
    nodes = transport.nodes()
    messages = [Message(content, node, f"query.{action}", ttl=deadline_s) for node in nodes.values()]
    replies = list(transport.send_and_receive(messages, timeout=deadline_s)) if messages else []
    asked = {message.metadata.message_id: worker for message, worker in zip(messages, nodes, strict=True)}
    answers: dict[int, list[Message]] = {worker: [] for worker in nodes}
    for reply in replies:
        if (worker := asked.get(reply.metadata.reply_to_message_id)) is not None:
            answers[worker].append(reply)
    return answers
