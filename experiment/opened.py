"""An experiment opened: config, loaded task, and the fingerprint of the code that both ends must share.

A process opens an experiment once; a coalition of several seats, or a server that first listens and then trains, gets
the same object again.
"""

import hashlib
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from attacks.attack import Attack
from experiment import config as configs
from foundation.errors import ConfigError
from foundation.text import kind_and_line
from strategies.compressors import QSGD, Identity, Natural, RandK, ScaledSign
from strategies.method import Method
from strategies.randomness import Role, stream
from tasks.contract import Problem, Setting, TaskError
from tasks.identity import Reading, TaskIdentity, identify
from tasks.trial import Demands
from tasks.tryout import needs_trial
from tasks.tryout import try_out as try_task

ROOT = Path(__file__).resolve().parent.parent
"""The checkout, or the folder that a Flower App Bundle was unpacked to."""

CONFIG, CONFIG_DIR, SET, DATA, OUT = "config", "config-dir", "set", "data", "out"
"""Keys of a Flower run config: TOML text, or the path of a TOML file in the bundle; the folder that a custom task in
TOML text is relative to; ``section.key=value`` on top of a file, separated by spaces; data folder; run folder."""
RESUME, LIFE = "resume", "life"
"""More of them: the run folder of a run that goes on; how often a server was started for it, if clients outlive it."""
TASK = "task"
"""Key of a client's settings and of a node's answer: what the task looks like there, see ``tasks.identity``."""
LINK, LISTEN, ATTACKERS, LAST = "link", "link-listen", "attackers", "last"
"""More of them: HOST:PORT where SuperNodes find the live link; where to bind it; ``"last"`` for nodes in the last f
seats to run the config's ``[attack]``, as in a local run."""

FINGERPRINTED = ("foundation", "strategies", "tasks", "experiment", "link", "client")
"""The folders whose source ``code_fingerprint`` covers: what both ends run."""


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


@lru_cache(maxsize=1)
def open_experiment(text: str, data_dir: Path | None, config_dir: Path | None) -> Experiment:
    """Parse a config, load its task and resolve it.

    Args:
        text: the config as TOML.
        data_dir: folder of data files, or None.
        config_dir: folder that a custom task is looked up in; None refuses custom tasks, because a config that came
            over the network must not name code to run.

    Raises:
        ConfigError: the config or its task is at fault; one clear line.
    """
    config, problem = load_task(text, data_dir, config_dir)
    return Experiment(configs.resolve(config, problem), problem, config.setting(data_dir, config_dir))


@lru_cache(maxsize=1)
def load_task(text: str, data_dir: Path | None, config_dir: Path | None) -> tuple[configs.Config, Problem]:
    """Parse a config and load its task; see ``open_experiment``, which resolves the config too."""
    config = configs.parse(text)
    if config.task.kind == "custom" and config_dir is None:
        raise ConfigError(
            f'[task] kind = "custom" (path = "{config.task.path}"): the server\'s config names code to run, which is '
            "only taken from a file of your own; give --config FILE"
        )
    try:
        return config, config.task.load(config.setting(data_dir, config_dir))
    except TaskError as error:
        raise ConfigError(f"[task] {error}") from None


def identity_of(problem: Problem, data: Reading = "whole") -> TaskIdentity:
    """Return what other processes must have loaded too.

    Args:
        problem: the loaded task.
        data: how its data are read.

    Raises:
        ConfigError: the problem of a custom task cannot say it; one line.
    """
    try:
        return identify(problem, data)
    except TaskError as error:
        raise ConfigError(f"[task] {error}") from None
    except Exception as error:  # methods of the user's own
        raise ConfigError(f"[task] what it is cannot be said: {kind_and_line(error)}") from error


@lru_cache(maxsize=1)
def try_out(experiment: Experiment, worker: int | None = None, attack: Attack | None = None) -> None:
    """Try the task of an experiment before anybody relies on it; see ``tasks.tryout``. A second call does nothing.

    Args:
        experiment: as ``open_experiment`` returns it.
        worker: whose gradients this process computes, and nothing else; None for the server and for whole federations,
            which try all workers and measure the model.
        attack: what that worker does; None for an honest one.

    Raises:
        ConfigError: the task cannot be used; one clear line.
    """
    config = experiment.config
    if experiment.setting is None or not needs_trial(config.task):
        return
    n, f = config.federation.clients, config.federation.byzantine
    flips = getattr(attack if worker is not None else config.attack, "flips_labels", False)
    attackers = range(n - f, n) if worker is None else [worker]
    strategy = config.strategy.model_dump()
    sizes = [strategy[key] for key in ("batch", "full_batch") if strategy.get(key) is not None]
    full = 0 in sizes or "full_batch" not in strategy or not sizes
    demands = Demands(
        workers=range(n) if worker is None else [worker],
        batches=[size for size in sizes if size] + ([0] if full else []),
        flipped=attackers if flips else [],
        evaluates=worker is None,
    )
    try:
        try_task(config.task, experiment.setting, demands, experiment.problem)
    except TaskError as error:
        raise ConfigError(f"[task] {error}") from None


def from_run_config(run_config: Mapping[str, object], node_config: Mapping[str, object] = {}) -> Experiment:
    """Open the experiment that a Flower run config names.

    Args:
        run_config: of the run: ``config`` and what goes with it, see the keys above.
        node_config: of the node, whose ``data`` folder is its own.

    Raises:
        ConfigError: as ``open_experiment``, and where the run config names no experiment that is there.
    """
    return open_experiment(*named(run_config, node_config))


def named(
    run_config: Mapping[str, object],
    node_config: Mapping[str, object] = {},  # never written to
) -> tuple[str, Path | None, Path | None]:
    """Return what ``open_experiment`` takes for the experiment that a run config names; see ``from_run_config``."""
    name = str(run_config.get(CONFIG, ""))
    if not name:
        raise ConfigError(f'run config: "{CONFIG}" is missing; name an experiment TOML')
    data = str(node_config.get(DATA) or run_config.get(DATA) or os.environ.get("BREAKWATER_DATA", ""))
    data_dir = Path(data) if data else None
    try:
        changes = shlex.split(str(run_config.get(SET, "")))
    except ValueError as error:
        raise ConfigError(f'run config: {SET} = "{run_config[SET]}": {error}') from None
    if "\n" in name:
        folder = str(run_config.get(CONFIG_DIR, ""))
        return name, data_dir, Path(folder) if folder else None
    path = ROOT / name  # an absolute one stays as it is
    if not path.is_file():
        there = sorted(found.relative_to(ROOT).as_posix() for found in ROOT.glob("deploy/configs/*.toml"))
        raise ConfigError(f'run config: {CONFIG} = "{name}": no such file in the bundle{configs.suggest(name, there)}')
    return configs.load(path, changes).to_toml(), data_dir, path.parent


@lru_cache(maxsize=1)
def code_fingerprint() -> str:
    """Return 12 hex digits that agree exactly where two ends would compute the same round.

    They cover the source of everything that both ends run, and what the random streams of this NumPy draw.
    """
    digest = hashlib.sha256()
    for folder in FINGERPRINTED:
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    rng = stream(1, Role.WORKER, 2, 3)
    digest.update(
        rng.choice(1000, 32, replace=False).tobytes() + rng.random(4).tobytes() + rng.permutation(9).tobytes()
    )
    rounders = (RandK(k=4), RandK(k=4, levels=3), Identity(values="float16"), Identity(values="bfloat16"), Natural())
    for compressor in (*rounders, QSGD(levels=3), ScaledSign()):
        v = rng.random(64) - 0.5
        digest.update(compressor.decompress(compressor.compress(v, rng), v.dtype).tobytes())
    return digest.hexdigest()[:12]
