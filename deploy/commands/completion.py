"""``breakwater completion SHELL``: a shell completion script for commands, options, configs and folders."""

import argparse
from collections.abc import Iterator
from typing import Any

from deploy.commands.options import Subparsers

# shtab completes paths with any function whose name contains "file".
_CONFIG = {"bash": "_breakwater_config_files", "zsh": "_files -g '*.toml'", "tcsh": "f:*.toml"}
_BASH = """
_breakwater_config_files() {
  compgen -f -X '!*.toml' -- "$1"
  compgen -d -S '/' -- "$1"
}
"""
"""A function for the bash script: completes configs, and folders that may contain some."""


def add(commands: Subparsers) -> None:
    """Register the command."""
    more = "docs/troubleshooting.md describes how to install it."
    parser = commands.add_parser("completion", help="print a shell completion script", epilog=more)
    parser.add_argument("shell", choices=["bash", "zsh", "tcsh"], help="shell to print the script for")
    parser.set_defaults(command=_completion, prints=True)


def _completion(options: argparse.Namespace) -> int:
    import shtab

    from experiment.config import AttackUnion
    from experiment.problems import kinds_of

    kinds: dict[str, Any] = dict.fromkeys(("DIR", "HOST:PORT|DIR"), shtab.DIRECTORY)
    kinds |= dict.fromkeys(("FILE", "FILE.html", "MODEL", "PREDICTIONS.csv"), shtab.FILE)
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
    """Yield the actions of a parser and of its subcommands."""
    for action in parser._actions:  # argparse has no other way to list them
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
