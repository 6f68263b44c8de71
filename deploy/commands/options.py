"""Options that several commands share, and the values derived from them: config, data folder, run folder."""

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from deploy.folders import data_folder, new_folder
from foundation.errors import ConfigError
from link.address import Address, parse_host
from tasks import compute
from tasks.compute import parse_device, parse_memory, parse_precision

if TYPE_CHECKING:
    from deploy.logs import LogOptions
    from server.monitor.exporters import Monitoring
    from server.monitor.web.options import WebOptions

    Subparsers: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]
else:  # generic only for the type checker
    Subparsers = argparse._SubParsersAction


T = TypeVar("T")

NEW_FOLDER = "new run folder (default: runs/NAME-TIME)"
"""What ``--out`` means to the commands that run a federation."""


def add_config(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Add ``CONFIG.toml`` and ``--set``, which changes values of it."""
    add_path(parser, "config", "experiment config", "CONFIG.toml", nargs="?" if optional else None)
    add_set(parser, "SECTION.KEY=VALUE", "override a value of the config; may be repeated")


def add_set(parser: argparse.ArgumentParser, metavar: str, meaning: str) -> None:
    """Add ``--set``."""
    parser.add_argument("--set", action="append", default=[], metavar=metavar, help=meaning)


def add_value(parser: argparse._ActionsContainer, name: str, meaning: str, metavar: str, **given: Any) -> None:
    """Add an argument with a value; a text unless ``type`` names something else."""
    parser.add_argument(name, metavar=metavar, help=meaning, **given)


def add_path(parser: argparse._ActionsContainer, name: str, meaning: str, metavar: str = "DIR", **given: Any) -> None:
    """Add an argument that is a path, of a folder unless ``metavar`` names something else."""
    add_value(parser, name, meaning, metavar, type=Path, **given)


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add ``--data``."""
    add_path(parser, "--data", "folder of the data sets (default: environment variable BREAKWATER_DATA)")


def add_compute(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``, ``--precision`` and ``--device-memory``."""
    group = parser.add_argument_group("device of torch models; each party's own affair, and no part of the config")
    meaning = "auto, cpu, cuda, cuda:N or mps (default: environment variable BREAKWATER_DEVICE, else cpu)"
    add_value(group, "--device", meaning, "DEVICE", type=partial(_parsed, parse_device))
    meaning = "float32, or bf16 for forward passes in bfloat16 by autocast (default: BREAKWATER_PRECISION, or float32)"
    add_value(group, "--precision", meaning, "TYPE", type=partial(_parsed, parse_precision))
    meaning = (
        "share of a CUDA device's memory for each process, such as 0.2 (default: BREAKWATER_DEVICE_MEMORY, or all)"
    )
    add_value(group, "--device-memory", meaning, "SHARE", type=partial(_parsed, parse_memory))


def settle_compute(options: argparse.Namespace) -> None:
    """Keep the options of ``add_compute`` for this process and those that it starts.

    Raises:
        ConfigError: this machine does not have the device, or a variable of the environment cannot be used; one line.
    """
    for field, name in compute.KEYS.items():
        if (value := getattr(options, name.replace("-", "_"))) is not None:
            os.environ[compute.VARIABLES[field]] = str(value)
    compute.current().check()


def add_patience(parser: argparse.ArgumentParser, default: str) -> None:
    """Add ``--patience``."""
    add_value(parser, "--patience", f"exit after S seconds without a server (default: {default})", "S", type=float)


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Add ``-q``."""
    parser.add_argument("-q", "--quiet", action="store_true", help="print only the final line and errors")


def add_monitoring(parser: argparse.ArgumentParser) -> None:
    """Add ``-q``, ``--tensorboard``, ``--metrics-port``, ``--metrics-host``, and those of ``add_web``."""
    add_quiet(parser)
    meaning = "write TensorBoard event files to DIR (without DIR: to tensorboard/ in the run folder)"
    add_value(parser, "--tensorboard", meaning, "DIR", nargs="?", const="")
    add_value(parser, "--metrics-port", "serve Prometheus metrics on this port (0: any free port)", "PORT", type=int)
    meaning = "host name or IP address for the metrics port (default: 127.0.0.1)"
    add_value(parser, "--metrics-host", meaning, "HOST", type=host, default="127.0.0.1")
    add_web(parser)


def add_web(parser: argparse.ArgumentParser) -> None:
    """Add ``--web`` and ``--web-tls``."""
    meaning = "serve a live page of the run for browsers, such as on 127.0.0.1:8080; its address is printed"
    add_value(parser, "--web", meaning, "HOST:PORT", type=address_to_listen_on)
    add_path(parser, "--web-tls", "folder of the server's certificate for the page: tls.crt and tls.key")


def web(options: argparse.Namespace) -> "WebOptions | None":
    """Return the values of the options of ``add_web``.

    Raises:
        ConfigError: a certificate is given for no page.
    """
    from server.monitor.web.options import WebOptions

    if options.web is None and options.web_tls is not None:
        raise ConfigError(f"--web-tls {options.web_tls}: is for the page; give --web HOST:PORT too")
    return None if options.web is None else WebOptions(address=options.web, tls=options.web_tls)


def monitoring(options: argparse.Namespace) -> "Monitoring":
    """Return the values of the options of ``add_monitoring``.

    Raises:
        ConfigError: the port is out of range, or see ``web``.
    """
    from server.monitor.exporters import Monitoring

    port: int | None = options.metrics_port
    if port is not None and not 0 <= port <= 65535:
        raise ConfigError(f"--metrics-port {port}: must be from 0 to 65535")
    folder = options.tensorboard and str(Path(options.tensorboard).absolute())
    return Monitoring(
        quiet=options.quiet, tensorboard=folder, metrics_port=port, metrics_host=options.metrics_host, web=web(options)
    )


def at_least_one(text: str) -> int:
    """Parse a whole number from 1 up; an argparse type."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return number


def address(text: str) -> Address:
    """Parse a server's address; an argparse type.

    Raises:
        ArgumentTypeError: the argument is not a valid address.
    """
    return _argument(Address.parse, text)


def address_to_listen_on(text: str) -> Address:
    """Parse an address to listen on; an argparse type."""
    return _argument(partial(Address.parse, listens=True), text)


def host(text: str) -> str:
    """Parse a host name or IP address; an argparse type."""
    return _argument(parse_host, text)


def _argument(parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parsed(parse: Callable[[object], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_logs(parser: argparse.ArgumentParser) -> None:
    """Add ``--log-format`` and ``--log-level``."""
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="log format (default: text)")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="minimum level to log")


def log_options(options: argparse.Namespace) -> "LogOptions":
    """Return the values of the options of ``add_logs``."""
    from deploy.logs import LEVELS, LogOptions

    return LogOptions(form=options.log_format, level=None if options.log_level is None else LEVELS[options.log_level])


def data_dir(options: argparse.Namespace, recorded: str | None = None) -> Path | None:
    """Return the folder of the data sets: that of ``--data``, else ``recorded``, else BREAKWATER_DATA, else None.

    Args:
        options: of the command line.
        recorded: the data folder of a run that is resumed.

    Raises:
        ConfigError: the folder does not exist.
    """
    return data_folder(options.data, recorded, option="--data")


def out_dir(options: argparse.Namespace, name: str) -> Path:
    """Return the run folder: that of ``--out``, else ``runs/NAME-TIME``. It need not exist yet.

    Raises:
        ConfigError: it exists and is not an empty folder, or cannot be read.
    """
    return new_folder(options.out, name, option="--out")
