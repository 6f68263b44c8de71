"""The manifest of a run, ``run.json``: what a server needs beside its checkpoints to resume it."""

import importlib.metadata
import json
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from foundation.errors import ConfigError
from foundation.files import replace_text
from foundation.text import TextError, read_text
from server.run_folder import CONFIG, MANIFEST


@dataclass(frozen=True, kw_only=True)
class RunManifest:
    """What a server must know to resume a run.

    Args:
        run_id: of the run: clients know by it that they need not prepare again.
        listen: HOST:PORT that was bound, where the clients look for the server.
        data: folder of data files.
        config_dir: folder of the config file.
        tls: folder of the server's certificate.
        starts: how often a server has been started for this run.
        lists: folder of the lists of who may take part, where it is not ``tls``.
    """

    run_id: int
    listen: str
    data: str | None
    config_dir: str | None
    tls: str | None
    starts: int = 1
    lists: str | None = None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the manifest of a run folder.

        Raises:
            ConfigError: there is none, or one that cannot be read.
        """
        path = folder / MANIFEST
        try:
            found = json.loads(read_text(path))
            if "lives" in found:  # its name in folders of the version before
                found["starts"] = found.pop("lives")
            return cls(**found)
        except FileNotFoundError:
            missing = f"no run of `breakwater server` is there ({MANIFEST} is missing)"
            raise ConfigError(f"--resume {folder}: {missing}") from None
        except TextError as error:
            raise ConfigError(f"{path}: {error}") from None
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path}: is damaged: {error}") from None

    def restarted(self) -> Self:
        """Return the manifest for the next server."""
        return replace(self, starts=self.starts + 1)

    def write(self, folder: Path, config: str) -> None:
        """Write the manifest and the resolved config.

        Raises:
            ConfigError: the folder cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            replace_text(folder / CONFIG, config)
            replace_text(folder / MANIFEST, json.dumps(asdict(self), indent=2) + "\n")
        except OSError as error:
            raise unwritable(folder, error, goes_on=self.starts > 1) from None


def unwritable(folder: Path, error: OSError, *, goes_on: bool = False) -> ConfigError:
    """Return the error of a run folder that cannot be used, for a new run or one that is resumed."""
    fix = f"fix that, then `breakwater server --resume {folder}`" if goes_on else "give --out another folder"
    return ConfigError(f"{folder}: cannot be written: {error.strerror or error}; {fix}")


def versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    found = {"python": platform.python_version()}
    for name in ("breakwater", "flwr", "grpcio", "numba", "numpy", "scipy", "torch"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
