"""``breakwater check``: validate a config and explain what it means and what theory predicts, without running it."""

import argparse
from contextlib import suppress

from deploy.commands.options import Subparsers, add_config, add_data, data_dir


def add(commands: Subparsers) -> None:
    """Register the command."""
    parser = commands.add_parser("check", help="validate and explain a config without running it")
    add_config(parser)
    add_data(parser)
    meaning = "check the config only; do not load the task and its data"
    parser.add_argument("--no-load", action="store_true", help=meaning)
    meaning = "advise cohort sizes that are safe in all rounds with this probability (default: %(default)s)"
    parser.add_argument("--confidence", type=_confidence, default=0.99, metavar="P", help=meaning)
    parser.set_defaults(command=_check, prints=True)


def _check(options: argparse.Namespace) -> int:
    from experiment.config import load
    from experiment.explain import explain

    config = load(options.config, options.set)
    folder, load_task = options.config.resolve().parent, not options.no_load
    for line in explain(config, data_dir(options), folder, load=load_task, confidence=options.confidence):
        print(line)
    return 0


def _confidence(text: str) -> float:
    """Return a probability from the command line."""
    with suppress(ValueError):
        if 0 < (value := float(text)) < 1:
            return value
    raise argparse.ArgumentTypeError(f"{text}: must be a probability above 0 and below 1, for example 0.99")
