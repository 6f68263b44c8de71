"""``breakwater report``: regenerate the report of a run, or compare several runs on one page."""

import argparse
import os
from pathlib import Path

from deploy.commands.options import Subparsers, add_path
from foundation.errors import ConfigError


def add(commands: Subparsers) -> None:
    meaning = "regenerate the report of a run, or compare several runs"
    more = (
        "One run: regenerate its report.html; the run may be in progress or may have been killed. Several runs: write "
        "one page that compares them, where runs that differ only in federation.seed share a line with a band."
    )
    parser = commands.add_parser("report", help=meaning, description=more)
    add_path(parser, "folders", "run folder, or a folder that contains run folders", nargs="+")
    meaning = "file to write (default: report.html in the run folder, or for several runs in their common folder)"
    add_path(parser, "--out", meaning, metavar="FILE.html")
    parser.set_defaults(command=_report)


def _report(options: argparse.Namespace) -> int:
    from server.monitor.report import REPORT, write_comparison, write_report
    from server.monitor.report.reading import run_folders

    out: Path | None = options.out
    if out is not None:
        if not out.absolute().parent.is_dir():
            raise ConfigError(f"--out {out}: the folder {out.absolute().parent} does not exist")
        if out.exists() and not out.is_file():  # a device would be replaced by the page
            kind = "a folder" if out.is_dir() else "not a regular file"
            raise ConfigError(f"--out {out}: is {kind}; give the path of a file")
    folders = run_folders(options.folders)
    if len(folders) == 1:
        print(write_report(folders[0], out))
        return 0
    common = Path(os.path.commonpath([folder.absolute() for folder in options.folders]))
    if len(options.folders) > 1 and common in (folder.absolute() for folder in folders):
        common = common.parent  # one contains another: keep the former's own report
    print(write_comparison(folders, out or common / REPORT))
    return 0
