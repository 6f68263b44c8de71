"""An experiment opened: config and loaded task.

A process opens an experiment once, and hands the object on.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Literal

from attacks.attack import Attack
from attacks.backdoor import Replace
from experiment import config as configs
from experiment.agreement import Agreement
from foundation.errors import ConfigError
from foundation.text import kind_and_line
from strategies.method import Method
from tasks import compute
from tasks.backdoor import Trigger
from tasks.contract import Problem, Setting, TaskError
from tasks.identity import Reading, TaskIdentity, identify, identify_party
from tasks.trial import Demands
from tasks.tryout import needs_trial
from tasks.tryout import try_out as try_task

log = logging.getLogger("breakwater.experiment")

SERVER_FOLDER = "--data (of `breakwater run`: --server-data)"
"""The option that names the folder of the server's own data, for messages."""
CONFIG = "config"
"""Key of the config, as TOML, among the settings of a Welcome; beside it ``link.invitation.TASK``."""


@dataclass(frozen=True, eq=False)
class Experiment:
    """A resolved config with its problem in memory.

    Args:
        config: resolved, see ``experiment.config.resolve``; it holds the method.
        problem: the loaded task.
        setting: what the task was loaded with; None where it was not loaded from a config.
        written: the config as it was read, where clients have their own data.
        pending: what is known only once these clients have joined, one line: the config is then resolved with stand-ins
            for m and L, until ``settled``. "" where nothing is.
        agreement: what was agreed on with clients that have their own data; None before that, and elsewhere.
    """

    config: configs.ResolvedConfig
    problem: Problem
    setting: Setting | None = None
    written: configs.Config | None = None
    pending: str = ""
    agreement: Agreement | None = None

    @property
    def method(self) -> Method:
        """The method, ready for either half."""
        return self.config.method

    @cached_property
    def identity(self) -> TaskIdentity:
        """What other processes must have loaded too.

        Raises:
            ConfigError: see ``identity_of``.
        """
        if self.config.own_data:
            declared, at_server = self.config.federation.declare_samples, self.at_server
            own = partial(identify_party, self.problem, at_server=at_server, samples=declared)
            return identity_of(self.problem, own=own)
        return identity_of(self.problem)

    @property
    def as_written(self) -> configs.Config:
        """The config that another process can read: resolved, or as it was written where something is agreed on."""
        return self.config if self.written is None else self.written

    @property
    def constants(self) -> configs.ProblemConstants:
        """What the task reports, with what was agreed on."""
        known = configs.ProblemConstants.of(self.problem)
        if self.agreement is None:
            return known
        smoothness = known.smoothness if self.agreement.smoothness is None else self.agreement.smoothness
        return replace(known, samples=self.agreement.samples or 0, smoothness=smoothness)

    @property
    def at_server(self) -> bool:
        """Whether it was loaded at the server of clients that have their own data."""
        return self.setting is not None and self.setting.party == "server"

    @property
    def statistics(self) -> int:
        """How many running statistics of batch norm clients are asked for; 0 where they are not."""
        problem: Any = self.problem
        return len(problem.variances) if getattr(problem, "norm_source", None) == "aggregate" else 0

    def settled(self, agreement: Agreement) -> "Experiment":
        """Return the experiment with what was agreed on; the task takes the scaling.

        Raises:
            ConfigError: the config does not fit it.
        """
        if self.written is None:
            raise ValueError("nothing is agreed on where all processes have the same data")
        if agreement.scaling:
            try:
                problem: Any = self.problem
                problem.settle(agreement.scaling)
            except (TaskError, ValueError, AttributeError) as error:
                raise ConfigError(f"the agreement's scaling cannot be used: {kind_and_line(error)}") from error
        agreed = replace(self, pending="", agreement=agreement)
        return replace(agreed, config=configs.resolve(self.written, agreed.constants))


def open_config(
    config: configs.Config,
    data_dir: Path | None = None,
    config_dir: Path | None = None,
    *,
    party: Literal["server", "client"] = "server",
    folders: Mapping[int, Path] = {},  # never written to
) -> Experiment:
    """Load a config's task and resolve the config.

    Args:
        config: as it was parsed.
        data_dir: folder of data files, or None.
        config_dir: folder that a custom task is looked up in; None refuses custom tasks, because a config that came
            over the network must not name code to run.
        party: who opens it; it matters where clients have their own data.
        folders: the data folder of each worker, for a process that holds several of these.

    Raises:
        ConfigError: the config or its task is at fault; one clear line.
    """
    setting = config.setting(data_dir, config_dir, party, folders)
    return resolved(config, load_task(config, setting), setting)


@lru_cache(maxsize=1)
def open_experiment(text: str, data_dir: Path | None, config_dir: Path | None) -> Experiment:
    """Parse and open a config that is TOML; see ``open_config``. The last one is kept."""
    return open_config(configs.parse(text), data_dir, config_dir)


def load_task(config: configs.Config, setting: Setting) -> Problem:
    """Load the task of a config; see ``open_config``, which resolves the config too."""
    if config.task.kind == "custom" and setting.config_dir is None:
        code = f'[task] kind = "custom" (path = "{config.task.path}"): the server\'s config names code to run'
        raise ConfigError(f"{code}, which is only taken from a file of your own; give --config FILE")
    try:
        problem = config.task.load(setting)
    except TaskError as error:
        raise ConfigError(f"[task] {error}") from None
    _note_compute(config, problem)
    return problem


def _note_compute(config: configs.Config, problem: Problem) -> None:
    """Say in this process's log where it computes, if that is not the default: no other process hears of it."""
    wanted = compute.current()
    if wanted == compute.CPU:
        return
    if on := getattr(problem, "computes_on", None):
        log.info("computes on %s", on)
    else:
        asked = f"device {wanted.device}, precision {wanted.precision}"
        log.warning('%s: not used, as the task "%s" computes without torch', asked, config.task.kind)


def resolved(config: configs.Config, problem: Problem, setting: Setting) -> Experiment:
    """Return the experiment of a config whose task is loaded.

    Raises:
        ConfigError: the config does not fit the task.
    """
    absent = [name for name in ("measure", "kept_back") if not hasattr(problem, name)]
    if config.clients_evaluate and absent:
        fix = 'add them (docs/tasks.md), or use "server" or "none"'
        raise ConfigError(
            f'[evaluation] by = "{config.evaluated_by}": the task has no {" and no ".join(absent)}; {fix}'
        )
    config = _with_norm_source(config, problem)
    if config.aggregator.needs_root and setting.party != "client":
        _check_root(config, problem)
    if not config.own_data:
        found = Experiment(configs.resolve(config, problem), problem, setting)
        trigger_of(found, config.attack)
        return found
    if setting.party == "server" and config.server_evaluates and not getattr(problem, "has_test_data", True):
        folder = f"name their folder with {SERVER_FOLDER}"
        where = f"the server has no test data; {folder}, or let the clients measure the model"
        raise ConfigError(f'[evaluation] by = "{config.evaluated_by}": {where}')
    return _before_joining(config, problem, setting)


def _with_norm_source(config: configs.Config, problem: Problem) -> configs.Config:
    """Return the config with where running statistics come from, if the model has some and the task knows."""
    task: Any = config.task
    source = getattr(problem, "norm_source", None)
    if source is None or task.norm_stats is not None:
        return config
    return config.model_copy(update={"task": replace(task, norm_stats=source)})


def trigger_of(experiment: Experiment, attack: Attack | None) -> Callable[[int], Trigger] | None:
    """Return what each worker plants where it runs this attack; None for an attack without a trigger.

    Raises:
        ConfigError: the task has no images that it could be planted into; one line.
    """
    if not isinstance(attack, Replace):
        return None
    whole = Trigger(attack.q, attack.target, attack.rho, attack.anomaly)
    kinds = configs.kinds_of(configs.TaskUnion)
    fitting = ", ".join(name for name, task in kinds.items() if getattr(task, "has_images", False))
    flaw = f"needs a task on images: {fitting}, or a custom one whose inputs are images"
    if hasattr(experiment.problem, "flaw_of_trigger"):
        flaw = experiment.problem.flaw_of_trigger(whole)
    if flaw:
        raise ConfigError(f'[attack] kind = "replace": {flaw}')
    return lambda worker: replace(whole, quarter=worker % 4) if attack.triggers == 4 else whole


def _check_root(config: configs.Config, problem: Problem) -> None:
    """Refuse a rule that needs the server's own row where the server has no training data for it.

    Raises:
        ConfigError: it has none; one line.
    """
    if getattr(problem, "has_root_data", hasattr(problem, "root")):
        return
    fix = "give a custom task root(), or with its own data root_data(folder); a table root_file (docs/tasks.md)"
    where = f"and name the server's folder with {SERVER_FOLDER}" if config.own_data else "or use another rule"
    rule = f'aggregator.kind = "{config.aggregator.kind}"'
    raise ConfigError(f"{rule}: the server has no training data to compute its own row on; {fix}, {where}")


def _before_joining(config: configs.Config, problem: Problem, setting: Setting) -> Experiment:
    """Return the experiment of clients with their own data, before anything is agreed on."""
    known = replace(configs.ProblemConstants.of(problem), samples=0)
    without_m, without_l = replace(known, samples=1), replace(known, samples=1, smoothness=known.smoothness or 1.0)
    pending = ""
    for stand_in in (known, without_m, without_l):
        try:
            resolved = configs.resolve(config, stand_in)
            break
        except ConfigError as error:
            if stand_in is without_l or (stand_in is known and not config.federation.declare_samples):
                raise
            pending = str(error)
    return Experiment(resolved, problem, setting, written=config, pending=pending)


def identity_of(
    problem: Problem, data: Reading = "whole", own: Callable[[], TaskIdentity] | None = None
) -> TaskIdentity:
    """Return what other processes must have loaded too.

    Args:
        problem: the loaded task.
        data: how its data are read.
        own: returns it for a party that has its own data.

    Raises:
        ConfigError: the problem of a custom task cannot be identified; one line.
    """
    try:
        return identify(problem, data) if own is None else own()
    except TaskError as error:
        raise ConfigError(f"[task] {error}") from None
    except Exception as error:  # methods of the user's own
        raise ConfigError(f"[task] it cannot be identified: {kind_and_line(error)}") from error


def try_out(experiment: Experiment, worker: int | None = None, attack: Attack | None = None) -> None:
    """Try the task of an experiment before anybody relies on it; see ``tasks.tryout``.

    Args:
        experiment: as ``open_config`` returns it.
        worker: the one whose gradients this process computes; None for the server and for whole federations, which try
            all workers and measure the model.
        attack: what that worker does; None for an honest one.

    Raises:
        ConfigError: the task cannot be used; one clear line.
    """
    config = experiment.config
    if experiment.setting is None or not needs_trial(config.task):
        return
    flips = getattr(attack if worker is not None else config.attack, "flips_labels", False)
    attackers: Sequence[int] = config.attackers if worker is None else [worker]
    sizes = list(config.batches.values())
    full = 0 in sizes or "full_batch" not in config.batches
    workers: Sequence[int] = range(config.federation.clients) if worker is None else [worker]
    evaluates = worker is None and config.server_evaluates
    if experiment.at_server:  # it has no training data
        workers, attackers, evaluates = [], [], evaluates and getattr(experiment.problem, "has_test_data", True)
    batches = [size for size in sizes if size] + ([0] if full else [])
    demands = Demands(workers=workers, batches=batches, flipped=attackers if flips else [], evaluates=evaluates)
    try:
        try_task(config.task, experiment.setting, demands, experiment.problem)
    except TaskError as error:
        raise ConfigError(f"[task] {error}") from None
