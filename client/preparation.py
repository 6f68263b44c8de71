"""From the server's Welcome to a client that can answer: the task is loaded and compared, the worker made."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, RecordDict

from client.answers import client_app
from client.changed_data import Reaction, compare
from client.coalition import Coalition, CoalitionMember
from client.final_model import ModelFile
from client.observers import Known, Observers
from client.party import Limits, PartyApp
from client.worker import HonestWorker, Worker
from experiment import config as configs
from experiment.agreement import Agreement
from experiment.code import Code
from experiment.compiled import prepare
from experiment.opened import CONFIG, Experiment, identity_of, load_task, open_config, resolved, try_out
from foundation.errors import ConfigError, OtherTask, Refused
from foundation.text import kind_and_line
from link.invitation import TASK
from link.node import Prepared
from link.replies import App
from link.wire import Welcome
from strategies.method import Evaluation, Method, Vector
from tasks.contract import Problem
from tasks.identity import Reading, TaskIdentity
from tasks.partition import OWN

log = logging.getLogger("breakwater.client")


@dataclass(frozen=True, kw_only=True)
class PreparationOptions:
    """What a client brings to a run.

    Args:
        attack: kind of the attack; None for an honest client.
        settings: ``attack.key=value`` on top of the server's ``[attack]`` section of the same kind.
        config: own copy of the experiment, or its file, which the server's must agree with.
        config_dir: folder that a custom task is looked up in; None refuses custom tasks.
        data: folder of data files.
        fellows: workers that an attacker takes for its fellows, beside the seats of its own process.
        reading: how the training data are read for the comparison with the server's.
        tried: a process of the same launcher has tried the task, for all workers.
        limits: what the owner of the data allows, where the client has its own.
        folders: the folder of each worker's own data, for a process with several seats; None for ``data``.
        model: where the final model is left, of a client with its own data; None where nobody wants it.
        changed_data: what to do when own data are not those that this client had in the run before; None not to look.
        observers: of what is asked and sent; None for none.
    """

    attack: str | None = None
    settings: Sequence[str] = ()
    config: Path | configs.Config | None = None
    config_dir: Path | None = None
    data: Path | None = None
    fellows: Sequence[int] = ()
    reading: Reading = "whole"
    tried: bool = False
    limits: Limits = field(default_factory=Limits)
    folders: Mapping[int, Path] | None = None
    model: ModelFile | None = None
    changed_data: Reaction | None = None
    observers: Observers | None = None


class Crew:
    """Makes the workers of a process: honest ones, or members of one coalition.

    Args:
        options: of the client.
    """

    def __init__(self, options: PreparationOptions) -> None:
        self._options = options
        self._coalition: Coalition | None = None

    def worker(self, experiment: Experiment, index: int) -> Worker:
        """Return the worker of a seat.

        Raises:
            ConfigError: the task, or the attack, cannot be used.
        """
        options = self._options
        tried = options.tried or experiment.config.own_data  # the latter before it joined
        if options.attack is None:
            if not tried:
                try_out(experiment, index)
            return HonestWorker(experiment, index)
        if self._coalition is None or self._coalition.experiment is not experiment:
            attack = configs.parse_attack(options.attack, options.settings, experiment.config)
            if not tried:
                try_out(experiment, index, attack)
            self._coalition = Coalition(experiment, attack)
            for fellow in options.fellows:
                self._coalition.enlist(fellow)
        return CoalitionMember(self._coalition, index)


class Preparation:
    """Turns a Welcome into a ClientApp that is resident with its worker; one for all seats of a process.

    A client with its own data loads them here, before it connects to anybody.

    Raises:
        ConfigError: the client's own config, or its data, cannot be used.
    """

    def __init__(self, options: PreparationOptions) -> None:
        self._options = options
        given = options.config
        self._own = configs.load(given) if isinstance(given, Path) else given
        party = self._own is not None and self._own.own_data
        self._party = PartyPreparation(self._own, options) if self._own is not None and party else None
        self._crew = Crew(options)
        self._read: tuple[str, configs.Config, Problem, TaskIdentity] | None = None  # of the last Welcome
        self._experiment: Experiment | None = None  # the same, resolved

    def __call__(self, welcome: Welcome) -> Prepared:
        """Load the task and make the worker.

        Raises:
            OtherTask: the task that was loaded is not the server's.
            BreakwaterError: the server's experiment is not ours, or cannot be run here.
        """
        if self._party is not None:
            return self._party(welcome)
        options, text = self._options, welcome.settings[CONFIG]
        if self._read is None or self._read[0] != text:
            self._read = None  # the memory of the last one first
            self._experiment = None
            config = configs.parse(text, name="the server's config")
            if self._own is not None:
                agree_on(self._own, config)
            if config.own_data:
                says = f'[task] partition = "{OWN}": the clients of this server bring their own data'
                raise ConfigError(f"{says}, each under a config of its own; give --config FILE and --data FOLDER")
            problem = load_task(config, config.setting(options.data, options.config_dir))
            self._read = text, config, problem, identity_of(problem, options.reading)
        _, config, problem, identity = self._read
        _check_task(welcome, identity, config)
        if self._experiment is None:
            self._experiment = resolved(config, problem, config.setting(options.data, options.config_dir))
        prepare(self._experiment, aggregates=options.attack is not None)
        log.info("%s: takes part in run %d", welcome.name, welcome.run_id, extra={"run_id": welcome.run_id})
        worker = self._crew.worker(self._experiment, welcome.worker)
        app: App = client_app(worker, evaluates=options.limits.evaluation)
        if options.observers is not None:
            app = options.observers.around(app, welcome.name, _known(lambda: self._experiment, welcome.worker))
        return Prepared(app, _context(welcome), Code.here(config).added_to(identity.written()))


class PartyPreparation:
    """The same for a client with its own data, which joins under its own config alone.

    Args:
        config: the client's own.
        options: of the client.

    Raises:
        ConfigError: data, config and the limits of the owner do not fit each other; one line.
    """

    def __init__(self, config: configs.Config, options: PreparationOptions) -> None:
        self._config, self._options, self._crew = config, options, Crew(options)
        self._settled: Experiment | None = None
        folders = options.folders or {}
        self.experiment = open_config(config, options.data, options.config_dir, party="client", folders=folders)
        attack = None if options.attack is None else configs.parse_attack(options.attack, options.settings, config)
        for worker in folders or [0]:
            if not options.tried:
                try_out(self.experiment, worker, attack)
            if attack is None:
                options.limits.check(config, count_of(self.experiment.problem, worker))

    def __call__(self, welcome: Welcome) -> Prepared:
        """Hold the server's config and task against the client's own; the worker is made once there is an agreement.

        Raises:
            OtherTask, Refused: they differ.
        """
        party = self.experiment
        agree_on(self._config, configs.parse(welcome.settings[CONFIG], name="the server's config"))
        _check_task(welcome, party.identity, party.config)
        prepare(party, aggregates=self._options.attack is not None)
        log.info("%s: takes part in run %d", welcome.name, welcome.run_id, extra={"run_id": welcome.run_id})

        options, worker = self._options, welcome.worker
        if options.changed_data is not None:
            name, run_id = welcome.name, welcome.run_id
            compare(party.problem, worker, name=name, run_id=run_id, reaction=options.changed_data)
        mine: App = self.app(worker, client_app, welcome.name)
        if options.observers is not None:
            mine = options.observers.around(mine, welcome.name, _known(lambda: self._settled, worker))
        return Prepared(mine, _context(welcome), self.report(worker))

    def report(self, worker: int) -> str:
        """Return what a party declares when it joins: model, its own count where it is declared, and code; no data."""
        declared = self.experiment.identity
        if declared.samples:
            declared = replace(declared, samples=str(count_of(self.experiment.problem, worker)))
        return Code.here(self.experiment.config).added_to(declared.written())

    def app(self, index: int, answer: Callable[[Worker], App], name: str = "") -> PartyApp:
        """Return what answers for a seat.

        Args:
            index: of the seat.
            answer: returns what answers for its worker, once that can be made.
            name: of the client, for its observers.
        """

        def prepare(agreement: Agreement) -> App:
            if self._settled is None or self._settled.agreement != agreement:
                self._settled = self.experiment.settled(agreement)
            return answer(self._crew.worker(self._settled, index))

        limits = self._options.limits
        if not self._config.clients_evaluate:  # the owner's config is what the owner agreed to
            limits = replace(limits, evaluation=False)

        def keep(x: Vector) -> None:
            options, problem = self._options, self.experiment.problem
            if options.model is not None:
                options.model.write(problem, x)
            if options.observers is not None:
                options.observers.finished(name, partial(own_measure, problem, index, x))

        return PartyApp(prepare, self.experiment.problem, index, limits, keep)


def count_of(problem: Problem, worker: int) -> int:
    """Return how many samples a party trains on."""
    count: Any = getattr(problem, "count", None)
    return int(problem.samples if count is None else count(worker))


def own_measure(problem: Problem, worker: int, x: Vector) -> Evaluation | None:
    """Return the final model measured on a party's own data; None where the task cannot."""
    measure: Any = getattr(problem, "measure", None)
    try:
        return None if measure is None else measure(worker, x)
    except Exception as error:  # the owner's code; the model has come all the same
        log.warning("the final model cannot be measured on the data here: %s", kind_and_line(error))
        return None


def _known(experiment: Callable[[], Experiment | None], worker: int) -> Known:
    """Return what observers need to read a reply."""

    def known() -> tuple[Method, int, Vector] | None:
        found = experiment()
        return None if found is None else (found.method, worker, np.empty(found.problem.dim, found.problem.dtype))

    return known


def _check_task(welcome: Welcome, identity: TaskIdentity, config: configs.Config) -> None:
    """Refuse a server whose task is another one, before the config is resolved, which may fail because of it."""
    if found := identity.differences(TaskIdentity.parse(welcome.settings.get(TASK))):
        reason = f"{welcome.name}: not the server's task: {'; '.join(found)}: give both ends the same"
        raise OtherTask(reason, Code.here(config).added_to(identity.written()))


def _context(welcome: Welcome) -> Context:
    run_id, node_id = welcome.run_id, welcome.node_id
    return Context(run_id=run_id, node_id=node_id, node_config={}, state=RecordDict(), run_config={})


def agree_on(own: configs.Config, servers: configs.Config) -> None:
    """Refuse a server whose experiment differs from the client's own file in what a worker computes."""
    mine, theirs = own.worker_terms(), servers.worker_terms()
    sources = [terms["task"].get("norm_stats") for terms in (mine, theirs)]
    if None in sources and "local" not in sources:  # left to the server, which knows whether it has training data
        for terms in (mine, theirs):
            terms["task"].pop("norm_stats", None)
    for section in mine:
        for key in sorted({*mine[section], *theirs[section]}):
            ours, other = mine[section].get(key), theirs[section].get(key)
            if _text(ours) != _text(other):
                values = f"the server has {other!r}, the file given has {ours!r}"
                raise Refused(f"[{section}] {key}: {values}; make them agree")


def _text(value: object) -> str:
    """Return a value for comparison: tables have no order, and nan is what it is."""
    return json.dumps(value, sort_keys=True)
