"""``breakwater certs init | issue | revoke``: certificates for server and clients."""

import argparse
from pathlib import Path

from deploy.commands.options import Subparsers


def add(commands: Subparsers) -> None:
    """Register the command and its own commands."""
    parser = commands.add_parser("certs", help="make certificates, so that server and clients know each other (TLS)")
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    init = actions.add_parser("init", help="make an authority in a folder, and the server's certificate")
    issue = actions.add_parser("issue", help="make a certificate for each of some clients")
    for action in (init, issue):
        action.add_argument("folder", type=Path, metavar="DIR", help="folder of the authority; its ca.key stays here")
        action.add_argument("--days", type=int, metavar="N", default=365, help="how long they are valid (default: 365)")
        action.add_argument("--renew", action="store_true", help="replace certificates, not the authority")
    init.add_argument(
        "--host",
        action="append",
        required=True,
        metavar="NAME_OR_IP",
        help="what clients reach the server by; give it for each name and address that they use",
    )
    init.set_defaults(command=_init)
    issue.add_argument(
        "names", nargs="+", metavar="NAME", help="a client's name; DIR/NAME is all that its machine needs"
    )
    issue.add_argument(
        "--watcher", action="store_true", help="for those who may watch runs (breakwater watch), and take no part"
    )
    issue.set_defaults(command=_issue)
    revoke = actions.add_parser("revoke", help="take all certificates of some clients back; the server cuts them off")
    revoke.add_argument("folder", type=Path, metavar="DIR", help="folder of the authority")
    revoke.add_argument("names", nargs="+", metavar="NAME", help="a client's name; a renewed one is taken again")
    revoke.set_defaults(command=_revoke)


def _init(options: argparse.Namespace) -> int:
    from deploy.certs import init

    for line in init(options.folder, options.host, days=options.days, renew=options.renew):
        print(line)
    return 0


def _issue(options: argparse.Namespace) -> int:
    from deploy.certs import issue

    given = {"days": options.days, "renew": options.renew, "watcher": options.watcher}
    for line in issue(options.folder, options.names, **given):
        print(line)
    return 0


def _revoke(options: argparse.Namespace) -> int:
    from deploy.certs import revoke

    for line in revoke(options.folder, options.names):
        print(line)
    return 0
