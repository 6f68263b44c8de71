"""``breakwater client``: one party of a federation, honest or not."""

import argparse
import logging
from pathlib import Path

from deploy.commands.options import Subparsers, add_data, add_logs, address, data_dir, log_options
from foundation.errors import ConfigError


def add(commands: Subparsers) -> None:
    """Register the command."""
    parser = commands.add_parser("client", help="take part in a federation, honestly or not")
    parser.add_argument("--connect", type=address, required=True, metavar="HOST:PORT", help="address of the server")
    parser.add_argument(
        "--name", metavar="NAME", help="this client's name; unique in the federation (default: that of the certificate)"
    )
    parser.add_argument(
        "--tls",
        type=Path,
        metavar="DIR",
        help="folder of this client's certificate; with --seats, one that holds the folders NAME-0, NAME-1, ...",
    )
    parser.add_argument(
        "--worker",
        type=int,
        metavar="I",
        help="which worker to be, 0 .. n-1: decides the part of the data (default: the first free one)",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="own copy of the config, to hold the server to")
    add_data(parser)
    parser.add_argument("--attack", metavar="KIND", help="be Byzantine: any kind of the [attack] section, such as alie")
    parser.add_argument("--seats", type=int, default=1, metavar="N", help="hold N seats as one coalition (attackers)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="attack.KEY=VALUE", help="set a parameter of the attack"
    )
    parser.add_argument("--patience", type=float, metavar="S", help="give up after S seconds without a server")
    parser.add_argument("--log-file", type=Path, metavar="FILE", help="append the log to this file too")
    add_logs(parser)
    parser.set_defaults(command=_client, complain=parser.error)


def _client(options: argparse.Namespace) -> int:
    from client.process import ClientOptions, run_client
    from deploy import logs

    name, form = _name(options), log_options(options)
    logs.to_terminal(form.level or logging.INFO, form, name)
    if options.log_file is not None:
        logs.to_file(options.log_file, form, name, what=f"--log-file {options.log_file}", at_once=True)
    reason = run_client(
        ClientOptions(
            connect=str(options.connect),
            name=name,
            worker=options.worker,
            seats=options.seats,
            attack=options.attack,
            settings=options.set,
            config=options.config,
            config_dir=None if options.config is None else options.config.resolve().parent,
            data=data_dir(options),
            patience_s=options.patience,
            tls=options.tls,
        )
    )
    print(f"{name}: {reason}")
    return 0


def _name(options: argparse.Namespace) -> str:
    """Return the client's name: what is typed, or what is certified."""
    from link.identity.tls import Identity

    if options.name is not None:
        return str(options.name)
    if options.tls is None:
        options.complain("the following arguments are required: --name, or --tls with a certificate")
    if options.seats != 1:
        raise ConfigError(f"--seats {options.seats}: needs --name NAME; --tls holds the folders NAME-0, NAME-1, ...")
    return Identity.load(options.tls).name
