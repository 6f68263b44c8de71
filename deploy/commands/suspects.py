"""``breakwater suspects DIR``: who attacked? What a run shows about each client, most suspicious first."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from deploy.commands.options import Subparsers
from foundation.errors import ConfigError

WIDE = 160
"""Columns of the table where the output is no terminal."""


def add(commands: Subparsers) -> None:
    """Register the command."""
    parser = commands.add_parser("suspects", help="who attacked? what a run shows about each client")
    parser.add_argument("folder", type=Path, metavar="DIR", help="run folder; the run may still be going on")
    parser.add_argument("--json", action="store_true", help="as JSON, one object a client")
    parser.set_defaults(command=_suspects, prints=True)


def _suspects(options: argparse.Namespace) -> int:
    from experiment.config import load
    from server.monitor.suspects import STATEMENT, tally
    from server.run_folder import CONFIG, METRICS
    from server.run_folder.reader import each_round

    folder: Path = options.folder
    if not (folder / METRICS).is_file() or not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder}: no run folder: {METRICS} or {CONFIG} is missing")
    byzantine = load(folder / CONFIG).federation.byzantine
    suspects = tally(each_round(folder), byzantine)
    if options.json:
        # "answered" is the former name of "replied", for one release.
        print(json.dumps([{**asdict(suspect), "answered": suspect.replied} for suspect in suspects], indent=2))
        return 0
    from rich.console import Console

    from server.monitor.suspects import table

    console = Console(width=None if sys.stdout.isatty() else WIDE)
    console.print(table(suspects))
    console.print(STATEMENT, highlight=False)
    return 0
