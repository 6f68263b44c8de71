"""The commands of the command line, one module each.

A command is a module with ``add(commands)``, which registers its parser, and an entry in ``COMMANDS``. The function
that runs the command imports what it needs, so that ``breakwater --help`` stays fast.
"""

from typing import Protocol

from deploy.commands import (
    certs,
    check,
    client,
    completion,
    demo,
    doctor,
    predict,
    report,
    run,
    server,
    suspects,
    sweep,
    watch,
)
from deploy.commands.options import Subparsers


class Command(Protocol):
    """The interface of a command module."""

    def add(self, commands: Subparsers) -> None:
        """Register the command's parser; its default ``command`` runs the command and returns the exit status."""


COMMANDS: tuple[Command, ...] = (
    *(demo, run, server, client, watch, sweep),
    *(certs, check, predict, report, suspects, doctor, completion),
)
"""The commands, in the order in which ``breakwater --help`` lists them."""
