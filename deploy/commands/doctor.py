"""``breakwater doctor``: what is wrong with this machine, a certificate, a server or data, and how to mend it."""

import argparse
import json
from pathlib import Path

from deploy.commands.options import Subparsers, add_data, address, address_to_listen_on


def add(commands: Subparsers) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "doctor",
        help="look for what is wrong here, and say how to mend it",
        epilog="Ends with status 0 if there is no problem, with 1 if there is one; warnings do not count.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="an experiment that is to run here")
    add_data(parser)
    parser.add_argument("--tls", type=Path, metavar="DIR", help="folder of a server's or client's certificate")
    parser.add_argument(
        "--lists", type=Path, metavar="DIR", help="folder of a server's ca.crl and clients.txt (default: that of --tls)"
    )
    parser.add_argument(
        "--connect", type=address, metavar="HOST:PORT", help="look at the server there; it takes no seat"
    )
    parser.add_argument(
        "--listen", type=address_to_listen_on, metavar="HOST:PORT", help="an address that a server is to have here"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR", help="where run folders go (default: runs)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, for scripts and bug reports")
    parser.set_defaults(command=_doctor, prints=True)


def _doctor(options: argparse.Namespace) -> int:
    from deploy.doctor import Questions, examine
    from deploy.versions import versions

    questions = Questions(
        config=options.config,
        tls=options.tls,
        lists=options.lists,
        connect=options.connect,
        listen=options.listen,
        data=options.data,
        out=options.out,
    )
    findings = []
    for finding in examine(questions):
        findings.append(finding)
        if not options.json:
            print(finding, flush=True)
    problems = sum(finding.level == "problem" for finding in findings)
    warnings = sum(finding.level == "warning" for finding in findings)
    if options.json:
        told = {"versions": versions(), "problems": problems, "findings": [each.as_json() for each in findings]}
        print(json.dumps(told, indent=2))
    else:
        print(f"{problems} problem{'s' * (problems != 1)}, {warnings} warning{'s' * (warnings != 1)}")
    return 1 if problems else 0
