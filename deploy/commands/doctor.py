"""``breakwater doctor``: check this machine, a certificate, a server or data, and suggest fixes."""

import argparse
import json
from dataclasses import fields
from pathlib import Path

from deploy.commands.options import Subparsers, add_data, add_path, add_value, address, address_to_listen_on


def add(commands: Subparsers) -> None:
    """Register the command."""
    more = "Exit status: 0 if there is no problem (there may be warnings), 1 if there is a problem."
    parser = commands.add_parser("doctor", help="check this machine and suggest fixes", epilog=more)
    add_path(parser, "--config", "also check that this config can run here", metavar="FILE")
    add_data(parser)
    add_path(parser, "--tls", "check the server or client certificate in this folder")
    add_path(parser, "--lists", "folder of the server's ca.crl and clients.txt (default: the folder of --tls)")
    meaning = "check the connection to this server, without taking a seat"
    add_value(parser, "--connect", meaning, "HOST:PORT", type=address)
    meaning = "check that a server can listen on this address"
    add_value(parser, "--listen", meaning, "HOST:PORT", type=address_to_listen_on)
    add_path(parser, "--out", "check the folder for run folders (default: runs)", default=Path("runs"))
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON object")
    parser.set_defaults(command=_doctor, prints=True)


def _doctor(options: argparse.Namespace) -> int:
    from deploy.doctor import Questions, examine
    from deploy.versions import versions

    questions = Questions(**{field.name: getattr(options, field.name) for field in fields(Questions)})
    findings = []
    for finding in examine(questions):
        findings.append(finding)
        if not options.json:
            print(finding, flush=True)
    problems, warnings = (sum(each.level == level for each in findings) for level in ("problem", "warning"))
    if options.json:
        result = {"versions": versions(), "problems": problems, "findings": [each.as_json() for each in findings]}
        print(json.dumps(result, indent=2))
    else:
        print(f"{problems} problem{'s' * (problems != 1)}, {warnings} warning{'s' * (warnings != 1)}")
    return 1 if problems else 0
