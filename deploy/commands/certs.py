"""``breakwater certs init | issue | revoke``: TLS certificates for server and clients."""

import argparse
from collections.abc import Sequence
from functools import partial

from deploy.commands.options import Subparsers, add_path, add_value


def add(commands: Subparsers) -> None:
    """Register the command and its subcommands."""
    parser = commands.add_parser("certs", help="create and revoke TLS certificates for server and clients")
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    init = actions.add_parser("init", help="create a certificate authority and the server's certificate")
    issue = actions.add_parser("issue", help="issue a certificate to each of these clients")
    for action in (init, issue):
        add_path(action, "folder", "folder of the authority; keep its ca.key here")
        add_value(action, "--days", "validity in days (default: 365)", "N", type=int, default=365)
        action.add_argument("--renew", action="store_true", help="replace the certificates, but keep the authority")
    meaning = "host name or IP address at which clients reach the server; repeat for each one"
    add_value(init, "--host", meaning, "NAME_OR_IP", action="append", required=True, dest="names")
    add_value(issue, "names", "client name; copy the folder DIR/NAME to the client's machine", "NAME", nargs="+")
    meaning = "issue certificates that allow watching runs, but not taking part"
    issue.add_argument("--watcher", action="store_true", help=meaning)
    revoke = actions.add_parser("revoke", help="revoke all certificates of these clients")
    add_path(revoke, "folder", "folder of the authority")
    meaning = "client name; a certificate issued later (issue --renew) is valid again"
    add_value(revoke, "names", meaning, "NAME", nargs="+")
    init.set_defaults(command=partial(_certs, "init", ("days", "renew")))
    issue.set_defaults(command=partial(_certs, "issue", ("days", "renew", "watcher")))
    revoke.set_defaults(command=partial(_certs, "revoke", ()))


def _certs(action: str, given: Sequence[str], options: argparse.Namespace) -> int:
    """Call this function of ``deploy.certs`` with the given options, and print its lines."""
    from deploy import certs

    lines = getattr(certs, action)(options.folder, options.names, **{name: getattr(options, name) for name in given})
    print(*lines, sep="\n")
    return 0
