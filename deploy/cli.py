"""The command line: ``breakwater COMMAND``; the commands are in ``deploy.commands``.

Exit status: 0 success; 1 the command started but could not complete; 2 invalid input (one line names it); 130
interrupted. docs/troubleshooting.md lists the exit status of each command.
"""

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from deploy import streams
from deploy.commands import COMMANDS
from deploy.environment import settle
from foundation.errors import BreakwaterError, ProcessEnded, ServerGone, Unwritten
from foundation.origin import examples
from foundation.signals import raising

EPILOG = (
    "Exit status: 0 success; 1 the command started but could not complete, or doctor found a problem; 2 invalid "
    f"options, config or files; 130 interrupted (details: docs/troubleshooting.md). Example configs: {examples()} "
    "Introduction: README.md."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Args:
        arguments: the command line without the program's name; None for this process's command line, in which case
            the output streams and signal handlers of the process are set up as well.
    """
    output = streams.prepare() if arguments is None else None
    settle()
    try:
        with raising(for_good=output is not None):
            return _run(arguments, output)
    except KeyboardInterrupt:
        print("breakwater: interrupted", file=sys.stderr)
        return 130
    except streams.OutputLost as error:
        if not error.reader_left:
            print(f"breakwater: error: {error}", file=sys.stderr)
        return 1
    except (ProcessEnded, ServerGone, Unwritten) as error:
        print(f"breakwater: error: {error}", file=sys.stderr)
        return error.status if isinstance(error, ProcessEnded) else 1
    except BreakwaterError as error:
        for line in str(error).splitlines():
            print(f"breakwater: error: {line}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of our output has closed the pipe: print nothing more, and no error when the interpreter exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in _SURROUNDINGS:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        print(f"breakwater: error: {where}{error.strerror}", file=sys.stderr)
        return 1


def _run(arguments: Sequence[str] | None, output: streams.Sink | None) -> int:
    """Run a command; raise if its output is its result and cannot be written."""
    if output is not None:
        output.strict = True  # also for --help and --version, which exit while parsing
    try:
        options = _parser().parse_args(arguments)
        try:
            os.getcwd()
        except OSError:
            print("breakwater: error: the current folder no longer exists; cd to an existing one", file=sys.stderr)
            return 2
        if output is not None:
            output.strict = options.prints
        return int(options.command(options))
    finally:
        if output is not None:
            sys.stdout.flush()


_SURROUNDINGS = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    *(errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE),
}
"""Errors of files, folders, disks and system limits. They are no bugs of Breakwater, so one line reports them."""


class _Parser(argparse.ArgumentParser):
    """An argument parser that reports an error as one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    """Print the versions and exit; they are only looked up when asked for, because that takes a moment."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from deploy.versions import lines

        print("\n".join(lines()))
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    about = "Byzantine-robust federated learning between machines that do not trust each other."
    parser: argparse.ArgumentParser = _Parser(prog="breakwater", description=about, epilog=EPILOG)
    parser.add_argument("--version", action=_Version, nargs=0, help="show the versions to include in a bug report")
    # ``prints``: the command's output is its result, so failing to write it is an error.
    parser.set_defaults(parser=parser, prints=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    for command in COMMANDS:
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
