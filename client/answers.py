"""How a worker answers the server's instructions: where it stays in its process, and where it does not.

A worker of the link stays: ``client_app`` makes the ClientApp that is resident with it. A Flower node may run every
message in a new process: ``visit`` answers one, and keeps what the worker knows in the node's state.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from attacks.faults import Faulty
from client.worker import Worker
from foundation.errors import Broken, ConfigError, Silent
from foundation.faults import Fault
from link import batch_statistics, claims, codec, flwr_compat, worker_state
from link.replies import App
from strategies.batch_statistics import ACTION, QUESTION
from strategies.claims import NO_EVALUATION
from strategies.method import ATTACK_FAILED, STALE, Ask, Packet, StateLostError

ReadAsk = Callable[[RecordDict], Ask]
TRAIN = "train"
"""The type of the messages of a round."""

log = logging.getLogger("breakwater.client")


class AttackFailedError(Exception):
    """An attacker could not carry out its attack; the message has the reason."""


def client_app(worker: Worker, *, evaluates: bool = True, read: ReadAsk = codec.read_ask) -> ClientApp:
    """Return the ClientApp of a worker that stays in this process, for ``link.node``.

    Args:
        worker: of this client.
        evaluates: its owner allows it to measure models for the server.
        read: ``codec.read_ask``, or an ``AskReader`` that the workers of this process share.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return _reply(message, lambda ask: _written(_stay(worker, ask), ask), read)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return measure(message, lambda: worker, evaluates=evaluates)

    @app.query(ACTION)
    def statistics(message: Message, context: Context) -> Message:
        return answer_statistics(message, lambda: worker)

    return app


def local_app(worker: Worker, read: ReadAsk) -> App:
    """Return the same for a server in the same process: it hands over packets as they are.

    Args:
        worker: of this client.
        read: an ``AskReader`` that the workers of this process share.
    """

    def answer(message: Message, context: Context) -> Message:
        kind = message.metadata.message_type
        if kind == TRAIN:
            return _reply(message, lambda ask: _stay(worker, ask), read)
        if kind == QUESTION:
            return answer_statistics(message, lambda: worker)
        return measure(message, lambda: worker)

    return answer


def visit(message: Message, state: RecordDict, worker: Callable[[], Worker]) -> Message:
    """Answer one message where the process may be a new one for every message, and Flower keeps ``state``.

    Args:
        message: the instruction.
        state: of the node.
        worker: returns the node's worker; its ConfigError is the answer.
    """
    return _reply(message, lambda ask: _visit(worker(), ask, state))


def measure(message: Message, worker: Callable[[], Worker], *, evaluates: bool = True) -> Message:
    """Answer an instruction to measure a model.

    Args:
        message: the instruction.
        worker: returns the client's worker; its ConfigError is the answer.
        evaluates: the client's owner allows it; else the answer is that it does not.
    """
    if not evaluates:
        return error_reply(message, NO_EVALUATION)
    try:
        x, stats = claims.read_evaluation(message.content), claims.read_norm_stats(message.content)
        return Message(claims.write_claim(worker().measure(x, stats)), reply_to=message)
    except ConfigError as error:
        return refusal(error, message)


def answer_statistics(message: Message, worker: Callable[[], Worker]) -> Message:
    """Answer a question for batch statistics; ``worker`` as for ``measure``."""
    try:
        round_, x = batch_statistics.read_question(message.content)
        found = worker().batch_statistics(x, round_)
        return Message(batch_statistics.write_answer(found), reply_to=message)
    except ConfigError as error:
        return refusal(error, message)


def refusal(error: Exception, message: Message) -> Message:
    """Log in one line why this node cannot answer, and return the same as the answer."""
    log.error("%s", error)
    return error_reply(message, str(error))


def _reply(message: Message, answer: Callable[[Ask], RecordDict | Packet], read: ReadAsk = codec.read_ask) -> Message:
    ask = read(message.content)
    try:
        found = answer(ask)
        if isinstance(found, Packet):
            return codec.PacketReply.of(found, ask, message)
        return Message(found, reply_to=message)
    except StateLostError as lost:
        return error_reply(message, f"{STALE}: {lost}")
    except ConfigError as error:
        return refusal(error, message)
    except AttackFailedError as failed:
        log.warning("round %d: %s: %s", ask.round, ATTACK_FAILED, failed)
        return error_reply(message, f"{ATTACK_FAILED}: {failed}")


def error_reply(message: Message, reason: str) -> Message:
    """Return an error as the answer to a message."""
    return Message(Error(flwr_compat.APP_RAISED, reason), reply_to=message)


def _answer(worker: Worker, ask: Ask) -> Packet | Faulty | None:
    """Return a worker's answer.

    Raises:
        AttackFailedError: it is an attacker, and its attack failed.
    """
    try:
        return worker.answer(ask)
    except (StateLostError, ConfigError):
        raise
    except Exception as error:
        if not worker.attacks:
            raise
        raise AttackFailedError(f"{type(error).__name__}: {error}") from error


def _written(answer: RecordDict | Packet, ask: Ask) -> RecordDict:
    return codec.write_packet(answer, ask) if isinstance(answer, Packet) else answer


def _stay(worker: Worker, ask: Ask) -> RecordDict | Packet:
    """Answer where worker and link stay; with records where something is wrong with them."""
    worker.follow(ask)
    answer = _answer(worker, ask)
    if answer is None:
        raise _says_nothing(ask)
    if not isinstance(answer, Faulty):
        return answer
    content = _faulty_content(answer, answer.fault, ask)
    if answer.fault.below_records:
        raise Broken(answer.fault, content, answer.delay_s, last=answer.last)
    return content


def _visit(worker: Worker, ask: Ask, state: RecordDict) -> RecordDict:
    """Answer where neither stays."""
    if (kept := worker_state.read_reply(state, ask.round)) is not None:
        return kept
    worker.recall(worker_state.read(state))
    answer = _answer(worker, ask)
    known = {} if ask.probe else worker.remember()
    if known:
        worker_state.write(state, known)
    if answer is None:
        raise _says_nothing(ask)
    if isinstance(answer, Faulty):
        fault = answer.fault.nearest
        content = _faulty_content(answer, fault, ask)
        if fault is Fault.LATE:
            time.sleep(answer.delay_s)
        return content
    content = codec.write_packet(answer, ask)
    if known:
        worker_state.write_reply(state, ask.round, content)
    return content


def _says_nothing(ask: Ask) -> Silent:
    return Silent(f"round {ask.round}: the attack sends nothing")


def _faulty_content(faulty: Faulty, fault: Fault, ask: Ask) -> RecordDict:
    """Return the records of a reply in which something is wrong.

    Raises:
        Silent: the reply is lost.
    """
    packet = faulty.packet
    if fault is Fault.SILENCE:
        raise Silent(f"round {ask.round}: the reply is lost")
    if fault is Fault.WRONG_SHAPE:
        packet = replace(packet, values=packet.values[:-1])
    elif fault is Fault.OVERSIZE:
        too_many = codec.max_reply_bytes(packet.dim, np.dtype(np.float64)) // packet.values.itemsize + 1
        packet = replace(packet, values=np.resize(packet.values, too_many))
    return codec.write_packet(packet, replace(ask, round=faulty.round))
