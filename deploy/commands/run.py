"""``breakwater run``: a whole federation on this machine."""

import argparse
from typing import Any

from deploy.commands.options import (
    NEW_FOLDER,
    Subparsers,
    add_config,
    add_data,
    add_logs,
    add_monitoring,
    add_path,
    data_dir,
    log_options,
    monitoring,
    out_dir,
)


def add(commands: Subparsers) -> None:
    """Register the command."""
    parser = commands.add_parser("run", help="run a federation on this machine, with one process per participant")
    add_config(parser)
    add_data(parser)
    add_path(parser, "--out", NEW_FOLDER)
    add_monitoring(parser)
    add_logs(parser)
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from deploy.local import LocalOptions, run_local
    from experiment.config import load

    config, out = load(options.config, options.set), out_dir(options, options.config.stem)
    place, data = options.config.resolve().parent, data_dir(options)
    shown: dict[str, Any] = {"monitoring": monitoring(options), "log_options": log_options(options)}
    return run_local(LocalOptions(config=config, out=out, data=data, config_dir=place, **shown))
