"""A Flower mod that makes the models which an ordinary ClientApp returns robustly aggregable.

    app = ClientApp(mods=[robust_deltas_mod])

On an instruction of ``RobustFedAvg`` it lets the app train, and sends in place of the app's model the compressed
difference Q(x - y), with the app's metrics, and running statistics of batch norm as the app returned them. Other
instructions pass through, so the same ClientApp evaluates models and serves a plain FedAvg. It comes first among
several mods: what those after it do to a model (clipping, noise) then reaches the server. Cheap to import.
"""

from collections.abc import Callable

import numpy as np
from flwr.app import ArrayRecord, Context, Error, Message, RecordDict

from adapters.named_arrays import ArrayLayout
from adapters.orders import ORDER, RUNNING, Order, is_order, read_order
from foundation.errors import ConfigError, WireError
from link import codec, flwr_compat
from strategies.method import Ask, Vector


def robust_deltas_mod(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
    """Answer with the model delta of the app's training.

    What the app does wrong (no model in the reply, other arrays, NaN) becomes an error reply that says so; the server
    logs it as the reason why this reply did not count.
    """
    record = message.content.config_records.get(ORDER)
    if not is_order(record):
        return call_next(message, context)
    try:
        order = read_order(record)
        arrays = _model(message, order.arrays, "the instruction")
        layout = ArrayLayout.of(arrays, order.statistics)
        x = layout.flat(arrays)  # before the app has the arrays: it may consume them
    except (ConfigError, WireError) as error:
        return _refusal(message, f"instruction: {error}")
    message.content = RecordDict({name: record for name, record in message.content.items() if name != ORDER})
    reply = call_next(message, context)
    if reply.has_error():
        return reply
    try:
        trained = _model(reply, order.arrays, "the ClientApp's reply")
        delta = _delta(x, layout.flat(trained))
        return _packet(delta, order, message, reply, layout.statistics(trained))
    except (ConfigError, ValueError) as error:
        return _refusal(message, f"what the ClientApp returned cannot be used: {error}")


def _model(message: Message, key: str, whose: str) -> ArrayRecord:
    """Return the model of a message: its only record of arrays, or the one that has the right name."""
    records = message.content.array_records
    if key in records:
        return records[key]
    if len(records) != 1:
        raise ConfigError(f"{whose} holds {len(records)} array records, expected one, named {key!r}")
    return next(iter(records.values()))


def _delta(x: Vector, y: Vector) -> Vector:
    with np.errstate(over="ignore"):
        delta = x - y
    if not np.isfinite(delta).all():
        raise ConfigError(f"the difference to the model that was sent is out of the range of {x.dtype}")
    return delta


def _packet(delta: Vector, order: Order, message: Message, reply: Message, running: ArrayRecord) -> Message:
    """Return the message with the packet, and the app's metrics and running statistics beside it."""
    packet = order.compressor.of_round(order.seed, order.worker).compress(delta, np.random.default_rng(order.draw))
    content = codec.write_packet(packet, Ask(order.round, "", {}))
    stats = {RUNNING: running} if running else {}
    return Message(RecordDict({**reply.content.metric_records, **content, **stats}), reply_to=message)


def _refusal(message: Message, reason: str) -> Message:
    return Message(Error(flwr_compat.APP_RAISED, f"robust_deltas_mod: {reason}"), reply_to=message)
