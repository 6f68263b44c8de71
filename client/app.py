"""The ClientApp: answers the server's instructions for one worker.

The same app stays resident in a ``breakwater client`` process, and runs on a Flower SuperNode as part of an App Bundle.
There the node config says which worker it is (``partition-id``) and, for an attacker, what it does (``attack="alie"``).
"""

import logging
import shlex
import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from attacks.faults import Faulty
from client import worker as workers
from client.coalition import Coalition, CoalitionMember
from experiment.config import Config, parse_attack, suggest
from experiment.opened import (
    ATTACKERS,
    CONFIG,
    DATA,
    LAST,
    SET,
    TASK,
    Experiment,
    code_fingerprint,
    from_run_config,
    identity_of,
    load_task,
    named,
    try_out,
)
from foundation.errors import RESIDENT, BreakwaterError, Broken, ConfigError, Silent
from foundation.faults import Fault
from link import codec, flwr_compat, invitation
from link import worker_state as pages
from strategies.method import ATTACK_FAILED, STALE, Ask, Packet, StateLostError

PARTITION, PARTITIONS, ATTACK = "partition-id", "num-partitions", "attack"
"""Keys of a node config, with DATA and SET: which worker the node is; of how many (Flower's simulation says so); the
kind of the attack, if it is Byzantine; the folder of its data; ``attack.key=value`` for the attack's parameters."""

log = logging.getLogger("breakwater.client")

app = ClientApp()


class AttackFailedError(Exception):
    """An attacker of ours could not do what it was to do; the message says why."""


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer one round."""
    ask = codec.read_ask(message.content)
    try:
        worker = worker_of(context)
        content = _resident(worker, ask) if RESIDENT in context.node_config else _visiting(worker, ask, context)
    except StateLostError as lost:
        return Message(Error(flwr_compat.APP_RAISED, f"{STALE}: {lost}"), reply_to=message)
    except ConfigError as error:
        return _refusal(error, message)
    except AttackFailedError as failed:
        log.warning("round %d: %s: %s", ask.round, ATTACK_FAILED, failed)
        return Message(Error(flwr_compat.APP_RAISED, f"{ATTACK_FAILED}: {failed}"), reply_to=message)
    return Message(content, reply_to=message)


def _answer(worker: workers.Worker, ask: Ask) -> Packet | Faulty | None:
    """Return a worker's answer.

    Raises:
        AttackFailedError: it was to attack, and could not.
    """
    try:
        return worker.answer(ask)
    except (StateLostError, ConfigError):
        raise
    except Exception as error:
        if not worker.attacks:
            raise
        raise AttackFailedError(f"{type(error).__name__}: {error}") from error


def _resident(worker: workers.Worker, ask: Ask) -> RecordDict:
    """Answer where worker and link stay."""
    worker.follow(ask)
    answer = _answer(worker, ask)
    if answer is None:
        raise Silent(f"round {ask.round}: the attack says nothing")
    if not isinstance(answer, Faulty):
        return codec.write_packet(answer, ask)
    content = _faulty_content(answer, answer.fault, ask)
    if answer.fault.below_records:
        raise Broken(answer.fault, content, answer.delay_s, last=answer.last)
    return content


def _visiting(worker: workers.Worker, ask: Ask, context: Context) -> RecordDict:
    """Answer where the process may be a new one for every message, and Flower keeps what the worker knows."""
    state = context.state
    kept = pages.read_reply(state, ask.round)
    if kept is not None:
        return kept
    worker.recall(pages.read(state))
    answer = _answer(worker, ask)
    known = {} if ask.probe else worker.remember()
    if known:
        pages.write(state, known)
    if answer is None:
        raise Silent(f"round {ask.round}: the attack says nothing")
    if isinstance(answer, Faulty):
        fault = answer.fault.nearest
        content = _faulty_content(answer, fault, ask)
        if fault is Fault.LATE:
            time.sleep(answer.delay_s)
        return content
    content = codec.write_packet(answer, ask)
    if known:
        pages.write_reply(state, ask.round, content)
    return content


def _faulty_content(faulty: Faulty, fault: Fault, ask: Ask) -> RecordDict:
    """Return the records of a reply in which something is wrong.

    Raises:
        Silent: it is to be lost.
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


@app.query(invitation.WHO)
def who(message: Message, context: Context) -> Message:
    """Say which worker this is, which code it runs and on what, for servers that have no link to read it from."""
    answer = ConfigRecord({"fingerprint": code_fingerprint()})
    try:
        if CONFIG in context.run_config or workers.find(context.run_id, context.node_id) is None:
            answer[TASK] = identity_of(load_task(*named(context.run_config, context.node_config))[1]).written()
        if workers.find(context.run_id, context.node_id) is None:
            _try_task(context)
        answer["index"] = worker_of(context).index
    except ConfigError as error:
        log.error("%s", error)
        answer["flaw"] = str(error)  # beside the fingerprint: with other code, it is that which is wrong
    return Message(RecordDict({invitation.WHO: answer}), reply_to=message)


def _try_task(context: Context) -> None:
    """Try the task once in this process, for its first worker.

    Raises:
        ConfigError: it cannot be used, or node config or run config are at fault.
    """
    check_node_config(context.node_config)
    experiment = from_run_config(context.run_config, context.node_config)
    if _tried.get("experiment") is experiment:
        return
    kind = attack_of(context, experiment.config)
    attack = None if kind is None else parse_attack(kind, settings_of(context.node_config), experiment.config)
    try_out(experiment, seat_of(context.node_config, experiment.config.federation.clients), attack)
    _tried["experiment"] = experiment


_tried: dict[str, Experiment] = {}
"""The experiment whose task this process has tried."""


@app.query(invitation.JOIN)
def join(message: Message, context: Context) -> Message:
    """Join the server over the link and stay, in the process of this one message, until the run is over."""
    from client.invited import take_part  # it calls this app, so it imports it

    try:
        reason = take_part(message.content, context)
    except BreakwaterError as error:
        return _refusal(error, message)
    return Message(RecordDict({invitation.JOIN: ConfigRecord({"reason": reason})}), reply_to=message)


def _refusal(error: Exception, message: Message) -> Message:
    """Tell both ends in one line why this node cannot answer."""
    log.error("%s", error)
    return Message(Error(flwr_compat.APP_RAISED, str(error)), reply_to=message)


def worker_of(context: Context) -> workers.Worker:
    """Return the worker of this node, made at its first message.

    Raises:
        ConfigError: see ``make_worker``; or the run config is at fault.
    """
    found = workers.find(context.run_id, context.node_id)
    if found is None:
        check_node_config(context.node_config)
        found = make_worker(from_run_config(context.run_config, context.node_config), context)
        workers.keep(context.run_id, context.node_id, found)
    return found


def make_worker(experiment: Experiment, context: Context) -> workers.Worker:
    """Make the worker that the node config describes.

    Raises:
        ConfigError: the node config names no seat of this federation, or an attack that cannot be.
    """
    federation, given = experiment.config.federation, context.node_config
    index = seat_of(given, federation.clients)
    kind = attack_of(context, experiment.config)
    if kind is None:
        return workers.HonestWorker(experiment, index)
    attack = parse_attack(kind, settings_of(given), experiment.config)
    brain = Coalition(experiment, attack, None if RESIDENT in given else federation.flower_deadline_s)
    for worker in fellows_of(experiment.config):
        brain.enlist(worker)
    return CoalitionMember(brain, index)


def fellows_of(config: Config) -> range:
    """Return whom an attacker on Flower takes for its fellows, as each has a brain of its own: as in a local run."""
    return range(config.federation.clients - config.federation.byzantine, config.federation.clients)


def check_node_config(given: Mapping[str, object]) -> None:
    """Refuse a node config with keys that mean nothing here.

    Raises:
        ConfigError: it has one.
    """
    known = (PARTITION, PARTITIONS, ATTACK, SET, DATA)
    for key in given:
        if key not in known:
            raise ConfigError(f"node config: {key}: unknown key{suggest(key, known)}")


def seat_of(given: Mapping[str, object], clients: int) -> int:
    """Return the seat that a node config names.

    Raises:
        ConfigError: it names none of this federation.
    """
    seats = f"0 .. {clients - 1}"
    if PARTITION not in given:
        raise ConfigError(f'node config: {PARTITION} is missing; give --node-config "{PARTITION}=I", I from {seats}')
    index, partitions = given[PARTITION], given.get(PARTITIONS, clients)
    if not isinstance(index, int) or not 0 <= index < clients:
        raise ConfigError(f"node config: {PARTITION} = {index!r}: must be {seats}, as federation.clients = {clients}")
    if partitions != clients:
        raise ConfigError(f"node config: {PARTITIONS} = {partitions!r}: must be federation.clients = {clients}")
    return index


def attack_of(context: Context, config: Config) -> str | None:
    """Return the kind of the attack that a node runs; None for an honest one.

    Raises:
        ConfigError: the run config says neither of what it may about it.
    """
    given, federation = context.node_config, config.federation
    attackers = context.run_config.get(ATTACKERS, "")
    if attackers not in ("", LAST):
        raise ConfigError(
            f'run config: {ATTACKERS} = {attackers!r}: must be "{LAST}", or "" for node configs to say it'
        )
    if ATTACK in given:
        return str(given[ATTACK])
    last = seat_of(given, federation.clients) >= federation.clients - federation.byzantine
    return config.attack.kind if attackers and last and config.attack is not None else None


def settings_of(given: Mapping[str, object]) -> list[str]:
    """Return the attack's parameters that a node config gives.

    Raises:
        ConfigError: they cannot be read.
    """
    text = str(given.get(SET, ""))
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f'node config: {SET} = "{text}": {error}') from None
