"""Options that several commands share, and what they come to: the config, the data folder, the run folder."""

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from link.errors import ConfigError

if TYPE_CHECKING:
    from deploy.logs import LogOptions
    from server.monitor import Monitoring

    Subparsers: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]
else:  # generic to the type checker alone
    Subparsers = argparse._SubParsersAction


def add_config(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Add ``CONFIG.toml`` and ``--set``: the experiment, and changes to it."""
    parser.add_argument(
        "config", type=Path, nargs="?" if optional else None, metavar="CONFIG.toml", help="the experiment"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one value of the config"
    )


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add ``--data``."""
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder of data files (default: the environment's BREAKWATER_DATA)"
    )


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add ``--out``, the run folder."""
    parser.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: runs/NAME-TIME)")


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Add ``-q``."""
    parser.add_argument("-q", "--quiet", action="store_true", help="show only the last line, and errors")


def add_monitoring(parser: argparse.ArgumentParser) -> None:
    """Add ``-q`` and what watches a run from outside: ``--tensorboard``, ``--metrics-port``, ``--metrics-host``."""
    add_quiet(parser)
    parser.add_argument(
        "--tensorboard",
        nargs="?",
        const="",
        metavar="DIR",
        help="write event files for TensorBoard (default: tensorboard in the run folder)",
    )
    parser.add_argument(
        "--metrics-port", type=int, metavar="PORT", help="let Prometheus read metrics from this port (0: any free one)"
    )
    parser.add_argument(
        "--metrics-host", default="127.0.0.1", metavar="HOST", help="address of that port (default: 127.0.0.1)"
    )


def monitoring(options: argparse.Namespace) -> "Monitoring":
    """Return what the options of ``add_monitoring`` say.

    Raises:
        ConfigError: the port is none.
    """
    from server.monitor import Monitoring

    port: int | None = options.metrics_port
    if port is not None and not 0 <= port <= 65535:
        raise ConfigError(f"--metrics-port {port}: must be from 0 to 65535")
    return Monitoring(
        quiet=options.quiet,
        tensorboard=options.tensorboard and str(Path(options.tensorboard).absolute()),
        metrics_port=port,
        metrics_host=options.metrics_host,
    )


def add_logs(parser: argparse.ArgumentParser) -> None:
    """Add ``--log-format`` and ``--log-level``."""
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="of logs, one line a record")
    parser.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), help="what logs leave out is less than this"
    )


def log_options(options: argparse.Namespace) -> "LogOptions":
    """Return what the options of ``add_logs`` say."""
    from deploy.logs import LEVELS, LogOptions

    return LogOptions(form=options.log_format, level=None if options.log_level is None else LEVELS[options.log_level])


def data_dir(options: argparse.Namespace) -> Path | None:
    """Return the folder of data files that ``--data`` or the environment names; None for none.

    Raises:
        ConfigError: there is no such folder.
    """
    given = options.data or os.environ.get("BREAKWATER_DATA")
    if not given:
        return None
    path = Path(given).resolve()
    if not path.is_dir():
        source = "--data" if options.data else "BREAKWATER_DATA"
        raise ConfigError(f"{source} {given}: no such folder")
    return path


def out_dir(options: argparse.Namespace, name: str) -> Path:
    """Return the folder that ``--out`` names, or one of this name and the time; it need not be there yet.

    Raises:
        ConfigError: it holds something, or cannot be looked at.
    """
    out: Path = options.out or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be used: {error.strerror or error}; choose another folder") from None
    if taken:
        raise ConfigError(f"--out {out}: exists and is not an empty folder; choose another or remove it")
    return out
