"""``breakwater check``: validate a config and explain what it means and what theory predicts, without running it."""

import argparse

from deploy.commands.options import Subparsers, add_config, add_data, data_dir


def add(commands: Subparsers) -> None:
    """Register the command."""
    parser = commands.add_parser("check", help="validate and explain a config without running it")
    add_config(parser)
    add_data(parser)
    meaning = "check the config only; do not load the task and its data"
    parser.add_argument("--no-load", action="store_true", help=meaning)
    parser.set_defaults(command=_check, prints=True)


def _check(options: argparse.Namespace) -> int:
    from experiment.config import load
    from experiment.explain import explain

    config = load(options.config, options.set)
    for line in explain(config, data_dir(options), options.config.resolve().parent, load=not options.no_load):
        print(line)
    return 0
