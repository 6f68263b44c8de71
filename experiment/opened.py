"""An experiment opened: config and loaded task.

A process opens an experiment once, and hands the object on.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from attacks.attack import Attack
from experiment import config as configs
from foundation.errors import ConfigError
from foundation.text import kind_and_line
from strategies.method import Method
from tasks.contract import Problem, Setting, TaskError
from tasks.identity import Reading, TaskIdentity, identify
from tasks.trial import Demands
from tasks.tryout import needs_trial
from tasks.tryout import try_out as try_task

CONFIG = "config"
"""Key of the config, as TOML, among the settings of a Welcome; beside it ``link.invitation.TASK``."""


@dataclass(frozen=True, eq=False)
class Experiment:
    """A resolved config with its problem in memory.

    Args:
        config: resolved, see ``experiment.config.resolve``; it holds the method.
        problem: the loaded task.
        setting: what the task was loaded with; None where it was not loaded from a config.
    """

    config: configs.ResolvedConfig
    problem: Problem
    setting: Setting | None = None

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
        return identity_of(self.problem)


def open_config(config: configs.Config, data_dir: Path | None = None, config_dir: Path | None = None) -> Experiment:
    """Load a config's task and resolve the config.

    Args:
        config: as it was parsed.
        data_dir: folder of data files, or None.
        config_dir: folder that a custom task is looked up in; None refuses custom tasks, because a config that came
            over the network must not name code to run.

    Raises:
        ConfigError: the config or its task is at fault; one clear line.
    """
    setting = config.setting(data_dir, config_dir)
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
        return config.task.load(setting)
    except TaskError as error:
        raise ConfigError(f"[task] {error}") from None


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
    return Experiment(configs.resolve(config, problem), problem, setting)


def identity_of(problem: Problem, data: Reading = "whole") -> TaskIdentity:
    """Return what other processes must have loaded too.

    Args:
        problem: the loaded task.
        data: how its data are read.

    Raises:
        ConfigError: the problem of a custom task cannot be identified; one line.
    """
    try:
        return identify(problem, data)
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
    attackers = config.federation.last_seats if worker is None else [worker]
    strategy = config.strategy.model_dump()
    sizes = [strategy[key] for key in ("batch", "full_batch") if strategy.get(key) is not None]
    full = 0 in sizes or "full_batch" not in strategy or not sizes
    workers = range(config.federation.clients) if worker is None else [worker]
    batches = [size for size in sizes if size] + ([0] if full else [])
    evaluates = worker is None and config.server_evaluates
    demands = Demands(workers=workers, batches=batches, flipped=attackers if flips else [], evaluates=evaluates)
    try:
        try_task(config.task, experiment.setting, demands, experiment.problem)
    except TaskError as error:
        raise ConfigError(f"[task] {error}") from None
