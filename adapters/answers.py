"""How a ClientApp of one's own answers an instruction of ``AppStrategy``: with the worker half of the same method.

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answer(message, context, METHOD, MyLoss(partition))

``MyLoss`` is an ``Oracle`` of ``strategies.algorithm``: gradients of this node's loss at a vector. What a method
keeps at the worker is kept in the node's state, where Flower apps keep such things.
"""

import numpy as np
from flwr.app import Context, Error, Message

from link import codec, flwr_compat, pages
from link.errors import WireError
from strategies.algorithm import STALE, Method, Oracle, StateLostError


def answer(message: Message, context: Context, method: Method, oracle: Oracle) -> Message:
    """Return an honest worker's reply.

    Args:
        message: the instruction.
        context: of the node; its state is used where the method keeps something at the worker.
        method: the same as the server's.
        oracle: this worker's loss.

    Raises:
        WireError: the instruction is not one of ``AppStrategy``; one line.
    """
    ask = codec.read_ask(message.content)
    told = message.content.config_records["ask"]
    worker, draw = told.get("worker"), told.get("draw")
    if not isinstance(worker, int) or not isinstance(draw, int) or min(worker, draw) < 0:
        raise WireError("undecodable: the instruction names no seat; is the server's strategy an AppStrategy?")
    if "x" in ask.vectors and ask.vectors["x"].size != oracle.dim:
        raise WireError(f"wrong shape: a model of {ask.vectors['x'].size} numbers, and this loss has {oracle.dim}")
    kept = pages.read_reply(context.state, ask.round)
    if kept is not None:
        return Message(kept, reply_to=message)
    mine = pages.page_state(pages.read(context.state))
    try:
        state, packet = method.reply(worker, mine, ask, oracle, np.random.default_rng(draw))
    except StateLostError as lost:
        return Message(Error(flwr_compat.APP_RAISED, f"{STALE}: {lost}"), reply_to=message)
    content = codec.write_packet(packet, ask)
    if method.stateful and not ask.probe:
        pages.write(context.state, pages.state_pages(state))
        pages.write_reply(context.state, ask.round, content)
    return Message(content, reply_to=message)
