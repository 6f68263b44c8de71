"""``breakwater run``: a whole federation on this machine."""

import argparse

from deploy.commands.options import (
    NEW_FOLDER,
    Subparsers,
    add_compute,
    add_config,
    add_data,
    add_logs,
    add_monitoring,
    add_path,
    add_value,
    data_dir,
    log_options,
    monitoring,
    out_dir,
    settle_compute,
)


def add(commands: Subparsers) -> None:
    """Register the command."""
    parser = commands.add_parser("run", help="run a federation on this machine, with one process per participant")
    add_config(parser)
    add_data(parser)
    add_compute(parser)
    meaning = 'with [task] partition = "own": the sub-folders of --data whose clients attack (default: the last f)'
    add_value(parser, "--attackers", meaning, "NAME,NAME")
    add_path(parser, "--server-data", "with the same: the folder of the server's own test data")
    add_path(parser, "--out", NEW_FOLDER)
    add_monitoring(parser)
    add_logs(parser)
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from deploy.local import LocalOptions, run_local
    from experiment.config import load

    settle_compute(options)
    return run_local(
        LocalOptions(
            config=load(options.config, options.set),
            out=out_dir(options, options.config.stem),
            data=data_dir(options),
            config_dir=options.config.resolve().parent,
            attackers=[name for name in (options.attackers or "").split(",") if name],
            server_data=options.server_data,
            monitoring=monitoring(options),
            log_options=log_options(options),
        )
    )
