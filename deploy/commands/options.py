"""Options that several commands share, and what they come to: the config, the data folder, the run folder."""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from foundation.errors import ConfigError
from link.address import Address, parse_host

if TYPE_CHECKING:
    from deploy.logs import LogOptions
    from server.monitor.exporters import Monitoring

    Subparsers: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]
else:  # generic to the type checker alone
    Subparsers = argparse._SubParsersAction


T = TypeVar("T")


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
        "--metrics-host",
        type=host,
        default="127.0.0.1",
        metavar="HOST",
        help="address of that port (default: 127.0.0.1)",
    )


def monitoring(options: argparse.Namespace) -> "Monitoring":
    """Return what the options of ``add_monitoring`` say.

    Raises:
        ConfigError: the port is none.
    """
    from server.monitor.exporters import Monitoring

    port: int | None = options.metrics_port
    if port is not None and not 0 <= port <= 65535:
        raise ConfigError(f"--metrics-port {port}: must be from 0 to 65535")
    return Monitoring(
        quiet=options.quiet,
        tensorboard=options.tensorboard and str(Path(options.tensorboard).absolute()),
        metrics_port=port,
        metrics_host=options.metrics_host,
    )


def address(text: str) -> Address:
    """Return the address of a server that an argument names; for argparse.

    Raises:
        ArgumentTypeError: it is none.
    """
    return _argument(lambda: Address.parse(text))


def address_to_listen_on(text: str) -> Address:
    """Return an address to listen on, see ``address``."""
    return _argument(lambda: Address.parse(text, listens=True))


def host(text: str) -> str:
    """Return a host name or IP address, see ``address``."""
    return _argument(lambda: parse_host(text))


def _argument(parse: Callable[[], T]) -> T:
    try:
        return parse()
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


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


def data_dir(options: argparse.Namespace, recorded: str | None = None) -> Path | None:
    """Return the folder of data files that ``--data`` or the environment names; None for none.

    Args:
        options: of the command line.
        recorded: the folder of a run that goes on: after ``--data``, and before the environment.

    Raises:
        ConfigError: there is no such folder.
    """
    given = options.data or recorded or os.environ.get("BREAKWATER_DATA")
    if not given:
        return None
    path = Path(given).resolve()
    if not path.is_dir():
        source = "--data" if options.data else "the run's data folder" if recorded else "BREAKWATER_DATA"
        mend = "; name another with --data FOLDER" if recorded and not options.data else ""
        raise ConfigError(f"{source} {given}: no such folder{mend}")
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
