"""``breakwater watch``: a run's live view from another terminal, or its states as lines of JSON."""

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from deploy.commands.options import Subparsers, add_path, add_patience, add_value, add_web, web
from foundation.errors import ConfigError, Refused
from foundation.text import one_line

if TYPE_CHECKING:
    from rich.console import Console

    from server.monitor.web.options import WebOptions


def add(commands: Subparsers) -> None:
    parser = commands.add_parser("watch", help="watch a run from another terminal")
    meaning = "address at which the server listens for clients, or a run folder on this machine"
    add_value(parser, "what", meaning, "HOST:PORT|DIR")
    add_path(parser, "--tls", "folder of a watcher's certificate, made with certs issue CERTS NAME --watcher")
    parser.add_argument("--json", action="store_true", help="print the state as a line of JSON, twice a second")
    add_patience(parser, "300")
    add_web(parser)
    parser.set_defaults(command=_watch, prints=True)


def _watch(options: argparse.Namespace) -> int:
    where = web(options)
    states = _checked(options.what, _states(options))
    if where is not None:
        states = _with_page(where, states, sys.stderr if options.json else sys.stdout)
    if options.json:
        last: dict[str, Any] = {}
        for last in states:
            print(json.dumps(last), flush=True)
        return _status(last)
    from rich.console import Console

    console = Console(soft_wrap=True)
    first = next(states)  # an error at the start is printed as a line, without the view
    moves = console.is_terminal and not console.is_dumb_terminal
    last = first if "goodbye" in first else (_moving if moves else _lines)(console, first, states)
    line = str(last.get("line") or last.get("goodbye") or "")
    console.print(one_line(line, 1000), highlight=False, markup=False)
    return _status(last)


def _states(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Return the states of the run."""
    path = Path(options.what)
    if path.is_dir():
        from server.monitor.follow import PATIENCE_S, follow_folder

        return follow_folder(path, patience_s=PATIENCE_S if options.patience is None else options.patience)
    if ":" not in options.what:
        raise ConfigError(f"{options.what}: no such run folder; give a run folder or the HOST:PORT of a server")
    from link.identity.tls import Identity
    from link.watch import FIRST_S, PATIENCE_S, follow

    identity = None if options.tls is None else Identity.load(options.tls)
    first_s, patience_s = (FIRST_S, PATIENCE_S) if options.patience is None else (options.patience,) * 2
    return follow(options.what, identity, first_s=first_s, patience_s=patience_s)


def _checked(what: str, states: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the states, validated.

    Raises:
        Refused: a state is invalid.
    """
    from server.monitor.live import checked

    for state in states:
        try:  # a server that ends at once sends nothing but its goodbye
            known = state if state.keys() == {"goodbye"} else checked(state)
        except ValueError as error:
            raise Refused(f"{what}: sent an invalid state ({error}); run the same version at both ends") from None
        yield known


def _with_page(where: "WebOptions", states: Iterator[dict[str, Any]], out: TextIO) -> Iterator[dict[str, Any]]:
    """Serve the coordinator's page of these states; yield them."""
    from server.monitor.web.page import WebPage

    newest: dict[str, Any] = {}
    page = WebPage(where, lambda: json.dumps(newest))
    try:
        print(f"page: {page.url}", file=out, flush=True)
        for newest in states:
            yield newest
    finally:
        page.stop()


def _moving(console: "Console", first: dict[str, Any], states: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Show states in place; return the last one."""
    from server.monitor.terminal import Screen

    newest = first
    with Screen(console, lambda: newest):
        for state in states:
            newest = state
    return newest


def _lines(console: "Console", first: dict[str, Any], states: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Print some states as lines, about a dozen per run; return the last state."""
    from server.monitor.terminal import PlainLines

    lines, newest, measured, away = PlainLines(console), first, -1, None
    for newest in chain([first], states):
        if newest.get("away") != away:
            away = newest.get("away")
            if away:
                print(f"server unreachable: {one_line(away)}; retrying", file=sys.stderr, flush=True)
        if newest["status"] != "waiting" and newest["measured"] != measured and lines.due(newest["round"]):
            measured = newest["measured"]
            lines.add(newest)
    return newest


def _status(last: dict[str, Any]) -> int:
    """Return 0 if the run has finished, 1 if it stalled or its server stopped earlier."""
    return 0 if last.get("line") and last.get("status") != "stalled" else 1
