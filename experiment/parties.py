"""The parties of a federation on one machine: a folder with one sub-folder of data for each of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from experiment.config import Config
from foundation.errors import ConfigError


@dataclass(frozen=True)
class Parties:
    """Who has which seat and which data.

    Args:
        folders: the data folder by worker; its name is the party's.
    """

    folders: Mapping[int, Path]

    @classmethod
    def of(cls, config: Config, data: Path | None, attackers: Sequence[str] = ()) -> Self:
        """Seat the sub-folders of a folder by their sorted names; attackers take the last seats.

        Args:
            config: whose clients have their own data.
            data: the folder.
            attackers: the names of the f that attack; none for the last f.

        Raises:
            ConfigError: there is no such folder, or it has another number of sub-folders; one line.
        """
        n, f = config.federation.clients, config.federation.byzantine
        if data is None or not data.is_dir():
            which = "none was named" if data is None else f"{data} is none"
            raise ConfigError(f"--data: must be a folder with one sub-folder for each client, and {which}")
        found = sorted((path for path in data.iterdir() if path.is_dir() and path.name[0] != "."), key=lambda p: p.name)
        if len(found) != n:
            shown = ", ".join(path.name for path in found[:8]) + (", ..." if len(found) > 8 else "")
            raise ConfigError(f"--data {data}: {len(found)} sub-folders ({shown}), but federation.clients = {n}")
        names = {path.name for path in found}
        if unknown := [name for name in attackers if name not in names]:
            raise ConfigError(f"--attackers {','.join(attackers)}: there is no folder {unknown[0]!r} in {data}")
        if attackers and len(set(attackers)) != f:
            raise ConfigError(f"--attackers {','.join(attackers)}: must be federation.byzantine = {f} different names")
        found.sort(key=lambda path: path.name in attackers)
        return cls(dict(enumerate(found)))

    @property
    def names(self) -> dict[int, str]:
        """The parties' names by worker."""
        return {worker: folder.name for worker, folder in self.folders.items()}
