"""``breakwater suspects DIR``: what a run shows about each client, most suspicious first."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from deploy.commands.options import Subparsers, add_path
from foundation.errors import ConfigError

WIDE = 160
"""Width of the table in columns if the output is not a terminal."""


def add(commands: Subparsers) -> None:
    parser = commands.add_parser("suspects", help="rank clients by how suspicious their replies look")
    add_path(parser, "folder", "run folder; the run may still be in progress")
    parser.add_argument("--json", action="store_true", help="print JSON, one object per client")
    parser.set_defaults(command=_suspects, prints=True)


def _suspects(options: argparse.Namespace) -> int:
    from experiment.config import load
    from server.monitor.suspects import STATEMENT, tally
    from server.run_folder import CONFIG, METRICS
    from server.run_folder.reader import each_round

    folder: Path = options.folder
    if not (folder / METRICS).is_file() or not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder}: not a run folder: {METRICS} or {CONFIG} is missing")
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
