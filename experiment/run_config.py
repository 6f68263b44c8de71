"""Flower's run config, read once where it comes in: strings and numbers become one typed object.

The keys for monitoring are read beside it, by ``server.monitor.exporters``.
"""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from experiment import config as configs
from experiment.problems import suggest
from foundation import origin
from foundation.errors import ConfigError

_LAST = "last"
"""The value of ``attackers`` that lets nodes attack without a node config."""


@dataclass(frozen=True)
class RunConfig:
    """What a Flower run config sets for the experiment; the comments name its keys.

    Args:
        config: path of the experiment's TOML file, absolute or in the bundle. (``config``)
        changes: ``section.key=value`` on top of the file. (``set``, separated by spaces)
        data: folder of data files; None for the environment's. (``data``)
        out: the run folder; None for a new one below ``runs``. (``out``)
        resume: the run folder of a run that is resumed; None for a new run. (``resume``)
        link: HOST:PORT where SuperNodes find the live link; "" for rounds through the SuperLink. (``link``)
        listen: HOST:PORT to bind it to; "" for the port of ``link`` on all interfaces. (``link-listen``)
        last_attack: nodes in the last f seats run ``[attack]``, as in a local run. (``attackers = "last"``)
    """

    config: str
    changes: tuple[str, ...] = ()
    data: Path | None = None
    out: Path | None = None
    resume: Path | None = None
    link: str = ""
    listen: str = ""
    last_attack: bool = False

    @classmethod
    def read(cls, given: Mapping[str, object]) -> Self:
        """Return what a run config sets.

        Raises:
            ConfigError: it names no experiment, or a value cannot be read; one line.
        """
        text = {key: str(given.get(key) or "") for key in ("config", "data", "out", "resume", "link", "link-listen")}
        if not text["config"]:
            raise ConfigError('run config: "config" is missing; name an experiment TOML')
        attackers = given.get("attackers", "")
        if attackers not in ("", _LAST):
            raise ConfigError(f'run config: attackers = {attackers!r}: must be "{_LAST}", or "" to use node configs')
        data, out, resume = (_path(text[key]) for key in ("data", "out", "resume"))
        changes, link, listen = split(given.get("set"), "run config"), text["link"], text["link-listen"]
        return cls(text["config"], changes, data, out, resume, link, listen, last_attack=attackers == _LAST)

    @property
    def path(self) -> Path:
        """Where the experiment's file is.

        Raises:
            ConfigError: there is none.
        """
        path = origin.ROOT / self.config  # an absolute one stays as it is
        if path.is_file():
            return path
        known = sorted(found.relative_to(origin.ROOT).as_posix() for found in origin.ROOT.glob("deploy/configs/*.toml"))
        missing = f'run config: config = "{self.config}": no such file in the bundle'
        raise ConfigError(f"{missing}{suggest(self.config, known)}")

    def load(self) -> configs.Config:
        """Return the config, with its changes.

        Raises:
            ConfigError: it cannot be used; one line.
        """
        return configs.load(self.path, self.changes)

    def data_dir(self, own: Path | None = None) -> Path | None:
        """Return the folder of data files: a node's own, else the run's, else the environment's; None for none."""
        return own or self.data or _path(os.environ.get("BREAKWATER_DATA", ""))


def split(changes: object, where: str) -> tuple[str, ...]:
    """Return the changes that the key ``set`` of a run config or node config holds.

    Raises:
        ConfigError: they cannot be separated; one line.
    """
    text = str(changes or "")
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise ConfigError(f'{where}: set = "{text}": {error}') from None


def _path(text: str) -> Path | None:
    return Path(text) if text else None
