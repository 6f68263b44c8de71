"""``breakwater client``: one client of a federation, honest or Byzantine."""

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.commands.options import (
    Subparsers,
    add_compute,
    add_data,
    add_logs,
    add_path,
    add_patience,
    add_quiet,
    add_set,
    add_value,
    address,
    at_least_one,
    data_dir,
    log_options,
    settle_compute,
)
from foundation.errors import ConfigError

if TYPE_CHECKING:
    from client.observers import Observers
    from client.process import ClientOptions


def add(commands: Subparsers) -> None:
    """Register the command."""
    parser = commands.add_parser("client", help="run a client")
    add_value(parser, "--connect", "address of the server", "HOST:PORT", type=address)
    meaning = "name of this client, unique in the federation (default: the certificate's name)"
    add_value(parser, "--name", meaning, "NAME")
    meaning = "certificate folder of this client; with --seats, the parent of the folders NAME-0, NAME-1, ..."
    add_path(parser, "--tls", meaning)
    meaning = "index of the worker, 0 to n-1, which determines its share of the data (default: the first free index)"
    add_value(parser, "--worker", meaning, "I", type=int)
    add_path(parser, "--config", "refuse to take part if the server's config differs from FILE", metavar="FILE")
    add_data(parser)
    add_compute(parser)
    own = parser.add_argument_group(
        'own data ([task] partition = "own"); what is set here wins over the server\'s config'
    )
    meaning = "decline experiments with gradients of fewer than N samples (default: 8, or all there are if fewer)"
    add_value(own, "--min-batch", meaning, "N", type=at_least_one)
    add_value(own, "--max-rounds", "answer at most N rounds (default: all)", "N", type=at_least_one)
    own.add_argument("--no-evaluation", action="store_true", help="do not report how good a model is on this data")
    own.add_argument(
        "--no-statistics",
        action="store_true",
        help="do not report statistics of columns or batches",
    )
    own.add_argument(
        "--changed-data",
        choices=("warn", "refuse"),
        default="warn",
        help="when the data are not those that this client had in the same run before (default: warn)",
    )
    add_path(own, "--model", "write the final model to FILE, as the server sends it at the end", metavar="FILE")
    meaning = "append a JSON line to FILE for each message that leaves, before it leaves"
    add_path(parser, "--ledger", meaning, metavar="FILE")
    meaning = "show what this client would compute and send; connect to nobody (needs --config)"
    parser.add_argument("--dry-run", action="store_true", help=meaning)
    add_value(parser, "--attack", "act as a Byzantine client: any kind of [attack], such as alie", "KIND")
    meaning = "take N seats as one coalition; needs --attack (default: 1)"
    add_value(parser, "--seats", meaning, "N", type=int, default=1)
    add_set(parser, "attack.KEY=VALUE", "set a parameter of the attack; may be repeated")
    add_patience(parser, "never")
    add_quiet(parser)
    add_path(parser, "--log-file", "also append the log to FILE", metavar="FILE")
    add_logs(parser)
    parser.set_defaults(command=_client, complain=parser.error)


def _client(options: argparse.Namespace) -> int:
    from client.process import run_client
    from deploy import logs

    settle_compute(options)
    if options.dry_run:
        return _dry_run(options)
    if options.connect is None:
        options.complain("the following arguments are required: --connect, or --dry-run")
    name, form = _name(options), log_options(options)
    logs.to_terminal(form.level or logging.INFO, form, name)
    if options.log_file is not None:
        logs.to_file(options.log_file, form, name, what=f"--log-file {options.log_file}", at_once=True)
    with _observed(options) as observers:
        reason = run_client(_client_options(options, name, observers))
    print(f"{name}: {reason}")
    return 0


def _client_options(options: argparse.Namespace, name: str, observers: "Observers | None") -> "ClientOptions":
    """Return the options of the client's process."""
    from client.final_model import ModelFile
    from client.party import Limits
    from client.process import ClientOptions

    if options.model is not None:
        _check_own_data(options.config)
    return ClientOptions(
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
        limits=Limits(
            min_batch=options.min_batch,
            evaluation=not options.no_evaluation,
            statistics=not options.no_statistics,
            max_rounds=options.max_rounds,
        ),
        model=None if options.model is None else ModelFile(options.model),
        changed_data=options.changed_data,
        observers=observers,
    )


def _check_own_data(config: Path | None) -> None:
    """Refuse to wait for a final model that no server sends."""
    from experiment import config as configs

    if config is None or not configs.load(config).own_data:
        needs = 'only clients with [task] partition = "own" are sent the final model, which needs --config FILE'
        raise ConfigError(f"--model: {needs}; elsewhere take model.safetensors of the server's run folder")


@contextmanager
def _observed(options: argparse.Namespace) -> "Iterator[Observers | None]":
    """Within: what is asked and sent is shown, and listed where there is a ledger."""
    from rich.console import Console

    from client.ledger import SentLedger
    from client.observers import Observers
    from client.screen import Screen

    ledger = None if options.ledger is None else SentLedger(options.ledger)
    if options.quiet:
        yield None if ledger is None else Observers(ledger)
        return
    with Screen(Console(file=sys.stderr, soft_wrap=True)) as screen:
        yield Observers(ledger, screen)


def _dry_run(options: argparse.Namespace) -> int:
    """Print what this client would do."""
    from client.dry_run import dry_run
    from deploy import logs

    form = log_options(options)
    logs.to_terminal(form.level or logging.WARNING, form, "dry-run")
    for line in dry_run(_client_options(options, options.name or "dry-run", None), options.worker):
        print(line)
    return 0


def _name(options: argparse.Namespace) -> str:
    """Return the client's name: that of ``--name``, or the certificate's."""
    from link.identity.tls import Identity

    if options.name is not None:
        return str(options.name)
    if options.tls is None:
        options.complain("the following arguments are required: --name, or --tls with a certificate")
    if options.seats != 1:
        raise ConfigError(f"--seats {options.seats}: needs --name NAME; --tls holds the folders NAME-0, NAME-1, ...")
    return Identity.load(options.tls).name
