"""``breakwater completion SHELL``: a script that lets a shell complete commands, options, configs and folders."""

import argparse
from collections.abc import Iterator
from typing import Any

from deploy.commands.options import Subparsers

# shtab takes what is completed for a path where the function's name says file.
_CONFIG = {"bash": "_breakwater_config_files", "zsh": "_files -g '*.toml'", "tcsh": "f:*.toml"}
_BASH = """
_breakwater_config_files() {
  compgen -f -X '!*.toml' -- "$1"
  compgen -d -S '/' -- "$1"
}
"""
"""A function that the script for bash needs: configs, and the folders on the way to them."""


def add(commands: Subparsers) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "completion",
        help="print a script that lets a shell complete these commands",
        epilog="docs/troubleshooting.md says where each shell wants it.",
    )
    parser.add_argument("shell", choices=["bash", "zsh", "tcsh"], help="which shell")
    parser.set_defaults(command=_completion, prints=True)


def _completion(options: argparse.Namespace) -> int:
    import shtab

    from experiment.config import AttackUnion, kinds_of

    kinds: dict[str | None, Any] = {
        "DIR": shtab.DIRECTORY,
        "HOST:PORT|DIR": shtab.DIRECTORY,
        "FILE": shtab.FILE,
        "FILE.html": shtab.FILE,
    }
    for action in _actions(options.parser):
        toml = action.dest == "config" or str(action.metavar).endswith(".toml")
        kind = _CONFIG if toml else kinds.get(str(action.metavar))
        if kind is not None:
            action.complete = kind  # type: ignore[attr-defined]  # where shtab looks for it
        if action.dest == "attack":
            action.choices = kinds_of(AttackUnion)
    preamble = _BASH if options.shell == "bash" else ""
    print(shtab.complete(options.parser, shell=options.shell, preamble=preamble))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield what a parser takes, and what its commands take."""
    for action in parser._actions:  # argparse has no other way to list them
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
