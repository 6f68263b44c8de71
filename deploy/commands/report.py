"""``breakwater report``: the page of a run written again, or several runs on one page."""

import argparse
import os
from pathlib import Path

from deploy.commands.options import Subparsers
from foundation.errors import ConfigError


def add(commands: Subparsers) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "report",
        help="write the report of a run again, or of several side by side",
        description="One run, which may still be going or have been killed: write its report.html again. Several: one "
        "page with all; runs that differ in federation.seed alone become one line with a band.",
    )
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="DIR", help="a run folder, or one that holds run folders"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.html",
        help="the page (default: report.html in the run folder; of several runs, in the folder that holds them all)",
    )
    parser.set_defaults(command=_report)


def _report(options: argparse.Namespace) -> int:
    from server.monitor.report import REPORT, write_comparison, write_report
    from server.monitor.report.reading import run_folders

    out: Path | None = options.out
    if out is not None:
        if not out.absolute().parent.is_dir():
            raise ConfigError(f"--out {out}: there is no folder {out.absolute().parent}")
        if out.exists() and not out.is_file():  # a device would be replaced by the page
            raise ConfigError(f"--out {out}: is {'a folder' if out.is_dir() else 'no plain file'}; name the file")
    folders = run_folders(options.folders)
    if len(folders) == 1:
        print(write_report(folders[0], out))
        return 0
    common = Path(os.path.commonpath([folder.absolute() for folder in options.folders]))
    if len(options.folders) > 1 and common in (folder.absolute() for folder in folders):
        common = common.parent  # one of them lies in another: that one's own report stays
    print(write_comparison(folders, out or common / REPORT))
    return 0
