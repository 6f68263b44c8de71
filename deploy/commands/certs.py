"""``breakwater certs init | issue | revoke``: TLS certificates for server and clients."""

import argparse

from deploy.commands.options import Subparsers, add_path


def add(commands: Subparsers) -> None:
    """Register the command and its subcommands."""
    parser = commands.add_parser("certs", help="create and revoke TLS certificates for server and clients")
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    init = actions.add_parser("init", help="create a certificate authority and the server's certificate")
    issue = actions.add_parser("issue", help="issue a certificate to each of these clients")
    for action in (init, issue):
        add_path(action, "folder", "folder of the authority; keep its ca.key here")
        action.add_argument("--days", type=int, metavar="N", default=365, help="validity in days (default: 365)")
        action.add_argument("--renew", action="store_true", help="replace the certificates, but keep the authority")
    init.add_argument(
        "--host",
        action="append",
        required=True,
        metavar="NAME_OR_IP",
        help="host name or IP address at which clients reach the server; repeat for each one",
    )
    init.set_defaults(command=_init)
    issue.add_argument(
        "names", nargs="+", metavar="NAME", help="client name; copy the folder DIR/NAME to the client's machine"
    )
    issue.add_argument(
        "--watcher", action="store_true", help="issue certificates that allow watching runs, but not taking part"
    )
    issue.set_defaults(command=_issue)
    revoke = actions.add_parser("revoke", help="revoke all certificates of these clients")
    add_path(revoke, "folder", "folder of the authority")
    revoke.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="client name; a certificate issued later (issue --renew) is valid again",
    )
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
