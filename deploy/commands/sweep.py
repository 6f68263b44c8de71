"""``breakwater sweep``: run a grid of configs and seeds, and summarise it in a table and figures."""

import argparse

from deploy.commands.options import Subparsers, add_data, add_path, add_set, add_value, at_least_one, data_dir
from foundation.signals import raising


def add(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "sweep",
        help="run a grid of configs and seeds; write a table and figures",
        description="Runs every combination of the experiment file that DIR does not contain yet, then writes "
        "table.csv (one row per run), summary.csv and table.md (one row per combination: median and range over the "
        "seeds) and the figures. After an interruption, the same command continues.",
    )
    add_path(parser, "experiment", "experiment file (docs/experiments.md)", metavar="EXPERIMENT.toml")
    add_path(parser, "--out", "new sweep folder, or one to continue", required=True)
    add_data(parser)
    meaning = (
        "run each federation in one process, without sockets: same models and byte counts, many times faster if rounds "
        "are short"
    )
    parser.add_argument("--in-process", action="store_true", help=meaning)
    meaning = "number of concurrent runs (default: one per core with --in-process, else one per four cores)"
    add_value(parser, "--jobs", meaning, "N", type=at_least_one)
    add_value(parser, "--seeds", "seeds to use instead of the file's", "N", type=int, nargs="+")
    parser.add_argument("--reduced", action="store_true", help="run the file's [reduced] version, which takes seconds")
    add_set(parser, "SECTION.KEY=VALUE", "override a value in every run; may be repeated")
    parser.set_defaults(command=_sweep)


def _sweep(options: argparse.Namespace) -> int:
    from deploy.sweeps.experiment import load_plan
    from deploy.sweeps.runner import SweepOptions, default_jobs
    from deploy.sweeps.sweep import sweep

    plan = load_plan(options.experiment, seeds=options.seeds, reduced=options.reduced, changes=options.set)
    jobs, data = options.jobs or default_jobs(options.in_process), data_dir(options)
    with raising(ctrl_c=KeyboardInterrupt):
        return sweep(SweepOptions(options.experiment, plan, options.out, jobs, options.in_process, data))
