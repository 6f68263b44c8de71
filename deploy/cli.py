"""The command line: ``breakwater COMMAND``; the commands are in ``deploy.commands``.

Exit status: 0 it is done; 1 it began and could not go on; 2 something that the user gave cannot be used (one clear line
says what); 130 interrupted. docs/troubleshooting.md says which command gives which, and when.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from deploy.commands import COMMANDS
from deploy.environment import settle
from deploy.signals import raising
from link.errors import BreakwaterError, ServerGone, Unwritten

EPILOG = (
    "Exit status: 0 it is done; 1 it began and could not go on, or doctor found a problem; 2 something that was given "
    "cannot be used; 130 interrupted (docs/troubleshooting.md). Configs for each thing to try lie in deploy/configs/; "
    "README.md tells how to go on."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    options = _parser().parse_args(arguments)
    settle()
    try:
        os.getcwd()
    except OSError:
        print("breakwater: error: the current folder is gone; cd to one that is there", file=sys.stderr)
        return 2
    try:
        with raising():
            return int(options.command(options))
    except KeyboardInterrupt:
        print("breakwater: interrupted", file=sys.stderr)
        return 130
    except (ServerGone, Unwritten) as error:
        print(f"breakwater: error: {error}", file=sys.stderr)
        return 1
    except BreakwaterError as error:
        for line in str(error).splitlines():
            print(f"breakwater: error: {line}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read our output has left; say nothing more, and do not complain on the way out either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    """Prints the versions, which take a moment to find, and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Print them."""
        from deploy.versions import lines

        print("\n".join(lines()))
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog="breakwater",
        description="Byzantine-robust federated learning between machines that do not trust each other.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the versions that matter in a bug report")
    parser.set_defaults(parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    for command in COMMANDS:
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
