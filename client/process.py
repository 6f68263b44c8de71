"""The ``breakwater client`` process: joins a federation and stays until it is over.

An honest client is one seat. An attacker may hold several: one process, N names, one brain.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, RecordDict

from client import worker as workers
from client.app import app
from client.coalition import Coalition, CoalitionMember
from experiment import config as configs
from experiment.compiled import prepare
from experiment.opened import (
    CONFIG,
    CONFIG_DIR,
    DATA,
    TASK,
    Experiment,
    code_fingerprint,
    identity_of,
    load_task,
    open_experiment,
    try_out,
)
from foundation.errors import ConfigError, OtherTask, Refused
from link.identity.tls import Identity
from link.node import Prepared, join_as_many
from link.wire import Welcome
from tasks.contract import Problem
from tasks.identity import Reading, TaskIdentity

log = logging.getLogger("breakwater.client")


@dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """What ``breakwater client`` was told.

    Args:
        connect: HOST:PORT of the server.
        name: the client's name; a coalition of N seats joins as NAME-0 .. NAME-(N-1).
        worker: which worker (part of the data) it wants to be, the first one of a coalition; None to be assigned.
        seats: how many seats to hold; more than one only for attackers.
        attack: kind of the attack; None for an honest client.
        settings: ``attack.key=value`` on top of the server's ``[attack]`` section of the same kind.
        config: own copy of the experiment, which the server's must agree with.
        config_dir: folder that a custom task is looked up in; None refuses custom tasks.
        data: folder of data files.
        patience_s: seconds to keep trying to reach a server; None for ever.
        fellows: workers that an attacker takes for its fellows, beside the seats of its own process.
        reading: how the training data are read for the comparison with the server's.
        tls: folder of the certificate of this name, see ``link.identity.tls.Identity``; a coalition's holds a folder
            for each of its names. None for an open port.
        tried: a process of the same launcher has tried the task, for all workers.
    """

    connect: str
    name: str
    worker: int | None = None
    seats: int = 1
    attack: str | None = None
    settings: Sequence[str] = ()
    config: Path | None = None
    config_dir: Path | None = None
    data: Path | None = None
    patience_s: float | None = None
    tls: Path | None = None
    fellows: Sequence[int] = ()
    reading: Reading = "whole"
    tried: bool = False


class Preparation:
    """Turns the server's welcome into a worker and its Flower context; one for all seats of a process."""

    def __init__(self, options: ClientOptions) -> None:
        self._options = options
        self._own = None if options.config is None else configs.load(options.config)
        self._coalition: Coalition | None = None
        self._known: tuple[Problem, TaskIdentity] | None = None

    def __call__(self, welcome: Welcome) -> Prepared:
        """Load the task, make the worker, keep it for the ClientApp.

        Raises:
            OtherTask: what was loaded is not what the server has.
            BreakwaterError: the server's experiment is not ours, or cannot be run here.
        """
        options = self._options
        config_dir = options.config_dir
        if self._own is not None:
            _agree(self._own, configs.parse(welcome.settings[CONFIG], name="the server's config"))
        identity = self._identity(load_task(welcome.settings[CONFIG], options.data, config_dir)[1])
        found = identity.differences(TaskIdentity.parse(welcome.settings.get(TASK)))
        if found:  # before the config is resolved, which may fail for what follows from it
            reason = f"{welcome.name}: not the server's task: {'; '.join(found)}: give both ends the same"
            raise OtherTask(reason, identity.written())
        experiment = open_experiment(welcome.settings[CONFIG], options.data, config_dir)
        prepare(experiment, aggregates=options.attack is not None)
        log.info("%s: takes part in run %d", welcome.name, welcome.run_id, extra={"run_id": welcome.run_id})
        worker = self._worker(experiment, welcome.worker)
        workers.keep(welcome.run_id, welcome.node_id, worker)
        context = Context(
            run_id=welcome.run_id,
            node_id=welcome.node_id,
            node_config={"partition-id": welcome.worker, "num-partitions": welcome.clients},
            state=RecordDict(),
            run_config={
                CONFIG: welcome.settings[CONFIG],
                DATA: str(options.data or ""),
                CONFIG_DIR: str(config_dir or ""),
            },
        )
        return Prepared(context, identity.written())

    def _identity(self, problem: Problem) -> TaskIdentity:
        """Return what was loaded; one reading of the data serves all seats."""
        if self._known is None or self._known[0] is not problem:
            self._known = problem, identity_of(problem, self._options.reading)
        return self._known[1]

    def _worker(self, experiment: Experiment, index: int) -> workers.Worker:
        if self._options.attack is None:
            if not self._options.tried:
                try_out(experiment, index)
            return workers.HonestWorker(experiment, index)
        if self._coalition is None or self._coalition.experiment is not experiment:
            attack = configs.parse_attack(self._options.attack, self._options.settings, experiment.config)
            if not self._options.tried:
                try_out(experiment, index, attack)
            self._coalition = Coalition(experiment, attack)
            for fellow in self._options.fellows:
                self._coalition.enlist(fellow)
        return CoalitionMember(self._coalition, index)


def run_client(options: ClientOptions) -> str:
    """Take part until the server says goodbye; return the reason it gave.

    Raises:
        BreakwaterError: the server refuses this client, its experiment cannot be run here, or the certificate cannot be
            used.
    """
    n, first = options.seats, options.worker
    if n < 1 or (n > 1 and options.attack is None):
        raise ConfigError(f"--seats {n}: only a coalition (--attack KIND) holds more than one seat")
    names = [options.name] if n == 1 else [f"{options.name}-{i}" for i in range(n)]
    return join_as_many(
        options.connect,
        {name: None if first is None else first + i for i, name in enumerate(names)},
        app,
        Preparation(options),
        fingerprint=code_fingerprint(),
        identities=None if options.tls is None else {name: _identity(options.tls, name, n) for name in names},
        patience_s=options.patience_s,
    )


def _identity(folder: Path, name: str, seats: int) -> Identity:
    """Return the certificate of a name: the folder that was given, or one in it for each seat of a coalition."""
    identity = Identity.load(folder if seats == 1 else folder / name)
    if identity.name != name:
        raise ConfigError(f"--tls {identity.origin}: is the certificate of {identity.name!r}, and not of {name!r}")
    if identity.watches:
        raise ConfigError(f"--tls {identity.origin}: is a watcher's certificate, which takes no part; breakwater watch")
    return identity


def _agree(own: configs.Config, servers: configs.Config) -> None:
    """Refuse a server whose experiment differs from the client's own file in what a worker computes."""
    mine, theirs = own.worker_terms(), servers.worker_terms()
    for section in mine:
        for key in sorted({*mine[section], *theirs[section]}):
            ours, other = mine[section].get(key), theirs[section].get(key)
            if _text(ours) != _text(other):
                raise Refused(
                    f"[{section}] {key}: the server has {other!r}, the file given has {ours!r}; make them agree"
                )


def _text(value: object) -> str:
    """Return a value for comparison: tables have no order, and nan is what it is."""
    return json.dumps(value, sort_keys=True)
