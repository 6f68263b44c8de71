"""``breakwater sweep``: many runs of one experiment, as one table and its pictures."""

import argparse
from pathlib import Path

from deploy.commands.options import Subparsers, add_data, data_dir
from foundation.signals import raising


def add(commands: Subparsers) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "sweep",
        help="run a grid of configs and seeds; leave one table and its pictures",
        description="Runs every combination of an experiment file that DIR does not hold yet, and writes table.csv "
        "(one row a run), summary.csv and table.md (one row a combination: median and range over the seeds) and the "
        "figures. Interrupted, the same command goes on.",
    )
    parser.add_argument("experiment", type=Path, metavar="EXPERIMENT.toml", help="what to run: docs/experiments.md")
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="folder of the sweep; it may hold one")
    add_data(parser)
    parser.add_argument(
        "--in-process",
        action="store_true",
        help="run each federation in one process, without sockets: the same models and byte counts, many times faster "
        "where rounds are short",
    )
    parser.add_argument(
        "--jobs",
        type=_positive,
        metavar="N",
        help="runs at a time (default: one for each core with --in-process, else one for every four)",
    )
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="in place of the file's")
    parser.add_argument("--reduced", action="store_true", help="the file's [reduced] form, which takes seconds")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one value in every run"
    )
    parser.set_defaults(command=_sweep)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return number


def _sweep(options: argparse.Namespace) -> int:
    from deploy.sweeps.experiment import load_plan
    from deploy.sweeps.runner import default_jobs
    from deploy.sweeps.sweep import SweepOptions, sweep

    plan = load_plan(options.experiment, seeds=options.seeds, reduced=options.reduced, changes=options.set)
    asked = SweepOptions(
        path=options.experiment,
        plan=plan,
        out=options.out,
        jobs=options.jobs or default_jobs(options.in_process),
        in_process=options.in_process,
        data=data_dir(options),
    )
    with raising(ctrl_c=KeyboardInterrupt):
        return sweep(asked)
