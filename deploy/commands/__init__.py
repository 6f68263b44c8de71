"""The commands of the command line, one module each.

A command is a module with ``add(commands)``, which registers its parser, and an entry in ``COMMANDS``. What it needs is
imported by the function that runs it, so that ``breakwater --help`` stays quick.
"""

from typing import Protocol

from deploy.commands import certs, check, client, completion, demo, doctor, report, run, server, suspects, sweep, watch
from deploy.commands.options import Subparsers


class Command(Protocol):
    """What a module of a command has."""

    def add(self, commands: Subparsers) -> None:
        """Register the command's parser; its default ``command`` is what runs it and returns the exit status."""


COMMANDS: tuple[Command, ...] = (
    demo,
    run,
    server,
    client,
    watch,
    sweep,
    certs,
    check,
    report,
    suspects,
    doctor,
    completion,
)
"""In the order in which ``breakwater --help`` lists them."""
