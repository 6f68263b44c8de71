"""From the server's Welcome to a client that can answer: the task is loaded and compared, the worker made."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, RecordDict

from client.answers import client_app
from client.coalition import Coalition, CoalitionMember
from client.worker import HonestWorker, Worker
from experiment import config as configs
from experiment.code import Code
from experiment.compiled import prepare
from experiment.opened import CONFIG, Experiment, identity_of, load_task, resolved, try_out
from foundation.errors import OtherTask, Refused
from link.invitation import TASK
from link.node import Prepared
from link.wire import Welcome
from tasks.contract import Problem
from tasks.identity import Reading, TaskIdentity

log = logging.getLogger("breakwater.client")


@dataclass(frozen=True, kw_only=True)
class PreparationOptions:
    """What a client brings to a run.

    Args:
        attack: kind of the attack; None for an honest client.
        settings: ``attack.key=value`` on top of the server's ``[attack]`` section of the same kind.
        config: own copy of the experiment, which the server's must agree with.
        config_dir: folder that a custom task is looked up in; None refuses custom tasks.
        data: folder of data files.
        fellows: workers that an attacker takes for its fellows, beside the seats of its own process.
        reading: how the training data are read for the comparison with the server's.
        tried: a process of the same launcher has tried the task, for all workers.
        evaluates: models may be measured on this client's data, and the server may be told the result.
    """

    attack: str | None = None
    settings: Sequence[str] = ()
    config: Path | None = None
    config_dir: Path | None = None
    data: Path | None = None
    fellows: Sequence[int] = ()
    reading: Reading = "whole"
    tried: bool = False
    evaluates: bool = True


class Preparation:
    """Turns a Welcome into a ClientApp that is resident with its worker; one for all seats of a process."""

    def __init__(self, options: PreparationOptions) -> None:
        self._options = options
        self._own = None if options.config is None else configs.load(options.config)
        self._read: tuple[str, configs.Config, Problem, TaskIdentity] | None = None  # of the last Welcome
        self._experiment: Experiment | None = None  # the same, resolved
        self._coalition: Coalition | None = None

    def __call__(self, welcome: Welcome) -> Prepared:
        """Load the task and make the worker.

        Raises:
            OtherTask: the task that was loaded is not the server's.
            BreakwaterError: the server's experiment is not ours, or cannot be run here.
        """
        options, text = self._options, welcome.settings[CONFIG]
        if self._read is None or self._read[0] != text:
            self._read = None  # the memory of the last one first
            self._experiment = None
            config = configs.parse(text, name="the server's config")
            if self._own is not None:
                _agree(self._own, config)
            problem = load_task(config, config.setting(options.data, options.config_dir))
            self._read = text, config, problem, identity_of(problem, options.reading)
        _, config, problem, identity = self._read
        found = identity.differences(TaskIdentity.parse(welcome.settings.get(TASK)))
        if found:  # before the config is resolved, which may fail because of it
            reason = f"{welcome.name}: not the server's task: {'; '.join(found)}: give both ends the same"
            raise OtherTask(reason, Code.here(config).added_to(identity.written()))
        if self._experiment is None:
            self._experiment = resolved(config, problem, config.setting(options.data, options.config_dir))
            self._coalition = None
        prepare(self._experiment, aggregates=options.attack is not None)
        log.info("%s: takes part in run %d", welcome.name, welcome.run_id, extra={"run_id": welcome.run_id})
        worker = self._worker(self._experiment, welcome.worker)
        context = Context(
            run_id=welcome.run_id, node_id=welcome.node_id, node_config={}, state=RecordDict(), run_config={}
        )
        app = client_app(worker, evaluates=options.evaluates)
        return Prepared(app, context, Code.here(config).added_to(identity.written()))

    def _worker(self, experiment: Experiment, index: int) -> Worker:
        options = self._options
        if options.attack is None:
            if not options.tried:
                try_out(experiment, index)
            return HonestWorker(experiment, index)
        if self._coalition is None:
            attack = configs.parse_attack(options.attack, options.settings, experiment.config)
            if not options.tried:
                try_out(experiment, index, attack)
            self._coalition = Coalition(experiment, attack)
            for fellow in options.fellows:
                self._coalition.enlist(fellow)
        return CoalitionMember(self._coalition, index)


def _agree(own: configs.Config, servers: configs.Config) -> None:
    """Refuse a server whose experiment differs from the client's own file in what a worker computes."""
    mine, theirs = own.worker_terms(), servers.worker_terms()
    for section in mine:
        for key in sorted({*mine[section], *theirs[section]}):
            ours, other = mine[section].get(key), theirs[section].get(key)
            if _text(ours) != _text(other):
                values = f"the server has {other!r}, the file given has {ours!r}"
                raise Refused(f"[{section}] {key}: {values}; make them agree")


def _text(value: object) -> str:
    """Return a value for comparison: tables have no order, and nan is what it is."""
    return json.dumps(value, sort_keys=True)
