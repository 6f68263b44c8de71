"""How a ClientApp of one's own answers an instruction of ``AppStrategy``: with the worker half of the same method.

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answer(message, context, METHOD, MyLoss(partition))

``MyLoss`` is an ``Oracle`` of ``strategies.method``: gradients of this node's loss at a vector. What a method
keeps at the worker is kept in the node's state, where Flower apps keep such things.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from flwr.app import Context, Error, Message

from foundation.errors import WireError
from foundation.text import kind_and_line
from link import codec, flwr_compat, worker_state
from strategies.method import STALE, Method, Oracle, StateLostError, Vector, begin, full_gradients
from strategies.randomness import Role


def answer(message: Message, context: Context, method: Method, oracle: Oracle) -> Message:
    """Return an honest worker's reply.

    A gradient of another floating type than the model's, in a list or as a row is converted. What cannot be, or not
    without losing more than precision, becomes an error reply that says so.

    Args:
        message: the instruction.
        context: of the node; its state is used where the method keeps something at the worker.
        method: the same as the server's.
        oracle: this worker's loss.

    Raises:
        WireError: the instruction is not one of ``AppStrategy``; one line.
    """
    ask = codec.read_ask(message.content)
    order = message.content.config_records["ask"]
    worker, draw = order.get("worker"), order.get("draw")
    if not isinstance(worker, int) or not isinstance(draw, int) or min(worker, draw) < 0:
        raise WireError("undecodable: the instruction names no seat; is the server's strategy an AppStrategy?")
    if "x" in ask.vectors and ask.vectors["x"].size != oracle.dim:
        raise WireError(f"wrong shape: a model of {ask.vectors['x'].size} numbers, and this loss has {oracle.dim}")
    if (kept := worker_state.read_reply(context.state, ask.round)) is not None:
        return Message(kept, reply_to=message)
    mine = worker_state.state_from_dict(worker_state.read(context.state))
    begin(oracle, partial(np.random.default_rng, [draw, Role.MODEL]))
    try:
        state, packet = method.reply(worker, mine, ask, _Converted(oracle), np.random.default_rng(draw))
    except StateLostError as lost:
        return Message(Error(flwr_compat.APP_RAISED, f"{STALE}: {lost}"), reply_to=message)
    except _NoGradient as flaw:
        return Message(Error(flwr_compat.APP_RAISED, f"the loss cannot be used: {flaw}"), reply_to=message)
    content = codec.write_packet(packet, ask)
    if method.stateful and not ask.probe:
        worker_state.write(context.state, worker_state.state_to_dict(state))
        worker_state.write_reply(context.state, ask.round, content)
    return Message(content, reply_to=message)


class _NoGradient(Exception):  # noqa: N818  # the name says what happened
    """What a loss returned is no gradient; one line."""


class _Converted:
    """A loss whose gradients have the shape and type of the point that they were asked at."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self.dim = oracle.dim

    def full_gradient(self, x: Vector) -> Vector:
        """Return the gradient at x."""
        return _gradient(self._oracle.full_gradient(x), x, "full_gradient()")

    def full_gradients(self, points: Sequence[Vector]) -> list[Vector]:
        """Return the gradients of one random function, where the loss draws at random."""
        return self._all(full_gradients(self._oracle, points), points, "full_gradients()")

    def minibatch_gradients(self, points: Sequence[Vector], batch: int, rng: np.random.Generator) -> list[Vector]:
        """Return the gradients of one minibatch."""
        return self._all(self._oracle.minibatch_gradients(points, batch, rng), points, "minibatch_gradients()")

    def _all(self, returned: Any, points: Sequence[Vector], what: str) -> list[Vector]:
        try:
            gradients = list(returned)
        except TypeError:
            raise _NoGradient(f"{what} returned {type(returned).__name__}, expected a list of gradients") from None
        if len(gradients) != len(points):
            raise _NoGradient(f"{what} returned {len(gradients)} gradients for {len(points)} points")
        return [_gradient(gradient, x, what) for gradient, x in zip(gradients, points, strict=True)]


def _gradient(returned: Any, x: Vector, what: str) -> Vector:
    """Return a gradient at x with its shape and type.

    Raises:
        _NoGradient: it is none.
    """
    try:
        gradient = np.asarray(returned)
    except Exception as error:  # what an array of another library raises is its own affair
        kind = type(returned).__name__
        raise _NoGradient(f"{what} returned {kind}, which is no array: {kind_and_line(error)}") from None
    if gradient.dtype == x.dtype and gradient.shape == x.shape:
        return gradient
    if gradient.dtype.kind != "f":  # also integers: such a loss has cut off fractions
        kind = type(returned).__name__ if gradient.dtype.kind == "O" else str(gradient.dtype)
        raise _NoGradient(f"wrong type: {what} returned {kind}, expected {x.dtype}")
    if tuple(length for length in gradient.shape if length != 1) != tuple(n for n in x.shape if n != 1):
        raise _NoGradient(f"wrong shape: {what} returned {gradient.shape}, expected {x.shape}")
    with np.errstate(over="ignore"):
        converted: Vector = gradient.reshape(x.shape).astype(x.dtype)
    if not np.isfinite(converted).all():
        beyond = bool(np.isfinite(gradient).all())
        raise _NoGradient(f"{what} returned " + (f"numbers beyond {x.dtype}" if beyond else "NaN or infinity"))
    return converted
