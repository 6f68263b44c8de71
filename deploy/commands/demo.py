"""``breakwater demo``: plain averaging against the robust method, under the same attack."""

import argparse

from deploy.commands.options import Subparsers, add_path, add_quiet, out_dir
from foundation.signals import raising


def add(commands: Subparsers) -> None:
    parser = commands.add_parser("demo", help="compare averaging with Byz-VR-MARINA-PP under the same attack")
    add_path(parser, "--out", "new folder for the two run folders and the figure (default: runs/demo-TIME)")
    add_quiet(parser)
    parser.set_defaults(command=_demo)


def _demo(options: argparse.Namespace) -> int:
    from deploy.demo import demo

    with raising(ctrl_c=KeyboardInterrupt):
        return demo(out_dir(options, "demo"), quiet=options.quiet)
