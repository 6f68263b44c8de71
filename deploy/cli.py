"""The command line: ``breakwater run | server | client | certs | check | demo``.

Exit status: 0 the run finished; 1 it started and could not go on; 2 something that the user gave cannot be used (one
clear line says what); 130 interrupted.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from deploy.signals import raising
from link.errors import BreakwaterError, ConfigError, ServerGone, Unwritten

if TYPE_CHECKING:
    from server.process import ServerOptions

EPILOG = "Configs for each thing to try lie in deploy/configs/; README.md tells how to go on."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    options = _parser().parse_args(arguments)
    # gRPC has a line of its own on standard error for every handshake that fails, and any stranger can make it fail. It
    # reads this when it is imported, which is later.
    os.environ.setdefault("GRPC_VERBOSITY", "none")
    try:
        with raising():
            return int(options.command(options))
    except KeyboardInterrupt:
        print("breakwater: interrupted", file=sys.stderr)
        return 130
    except (ServerGone, Unwritten) as error:
        print(f"breakwater: error: {error}", file=sys.stderr)
        return 1
    except BreakwaterError as error:
        for line in str(error).splitlines():
            print(f"breakwater: error: {line}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read our output has left; say nothing more, and do not complain on the way out either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="breakwater",
        description="Byzantine-robust federated learning between machines that do not trust each other.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"breakwater {version('breakwater')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser("demo", help="see it work: averaging against Byz-VR-MARINA-PP under the same attack")
    demo.add_argument("--out", type=Path, metavar="DIR", help="where to leave the two run folders and the picture")
    demo.set_defaults(command=_demo)

    run = commands.add_parser("run", help="run a whole federation on this machine, each party a process of its own")
    _config(run)
    _data(run)
    run.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: runs/NAME-TIME)")
    run.set_defaults(command=_run)

    server = commands.add_parser("server", help="run the server of a federation")
    _config(server, optional=True)
    _data(server)
    server.add_argument("--listen", metavar="HOST:PORT", help="address for clients, e.g. 0.0.0.0:9090")
    server.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="go on with the run in this folder; with CONFIG.toml and --listen begin it there if there is none yet",
    )
    server.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: runs/NAME-TIME)")
    server.add_argument(
        "--tls", type=Path, metavar="DIR", help="folder of the server's certificate: DIR/server of certs"
    )
    server.add_argument(
        "--lists",
        type=Path,
        metavar="DIR",
        help="folder of ca.crl and clients.txt, read while it runs (default: that of --tls)",
    )
    server.set_defaults(command=_server, complain=server.error)

    client = commands.add_parser("client", help="take part in a federation, honestly or not")
    client.add_argument("--connect", required=True, metavar="HOST:PORT", help="address of the server")
    client.add_argument(
        "--name", metavar="NAME", help="this client's name; unique in the federation (default: that of the certificate)"
    )
    client.add_argument(
        "--tls",
        type=Path,
        metavar="DIR",
        help="folder of this client's certificate; with --seats, one that holds the folders NAME-0, NAME-1, ...",
    )
    client.add_argument(
        "--worker",
        type=int,
        metavar="I",
        help="which worker to be, 0 .. n-1: decides the part of the data (default: the first free one)",
    )
    client.add_argument("--config", type=Path, metavar="FILE", help="own copy of the config, to hold the server to")
    _data(client)
    client.add_argument("--attack", metavar="KIND", help="be Byzantine: any kind of the [attack] section, such as alie")
    client.add_argument("--seats", type=int, default=1, metavar="N", help="hold N seats as one coalition (attackers)")
    client.add_argument(
        "--set", action="append", default=[], metavar="attack.KEY=VALUE", help="set a parameter of the attack"
    )
    client.add_argument("--patience", type=float, metavar="S", help="give up after S seconds without a server")
    client.set_defaults(command=_client, complain=client.error)

    certs = commands.add_parser("certs", help="make certificates, so that server and clients know each other (TLS)")
    actions = certs.add_subparsers(title="commands", metavar="COMMAND", required=True)
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
    init.set_defaults(command=_certs_init)
    issue.add_argument(
        "names", nargs="+", metavar="NAME", help="a client's name; DIR/NAME is all that its machine needs"
    )
    issue.set_defaults(command=_certs_issue)
    revoke = actions.add_parser("revoke", help="take all certificates of some clients back; the server cuts them off")
    revoke.add_argument("folder", type=Path, metavar="DIR", help="folder of the authority")
    revoke.add_argument("names", nargs="+", metavar="NAME", help="a client's name; a renewed one is taken again")
    revoke.set_defaults(command=_certs_revoke)

    check = commands.add_parser("check", help="check and explain a config without running it")
    _config(check)
    _data(check)
    check.set_defaults(command=_check)
    return parser


def _config(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    parser.add_argument(
        "config", type=Path, nargs="?" if optional else None, metavar="CONFIG.toml", help="the experiment"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one value of the config"
    )


def _data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder of data files (default: the environment's BREAKWATER_DATA)"
    )


def _data_dir(options: argparse.Namespace) -> Path | None:
    given = options.data or os.environ.get("BREAKWATER_DATA")
    if not given:
        return None
    path = Path(given).resolve()
    if not path.is_dir():
        source = "--data" if options.data else "BREAKWATER_DATA"
        raise ConfigError(f"{source} {given}: no such folder")
    return path


def _out(options: argparse.Namespace, name: str) -> Path:
    out: Path = options.out or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: exists and is not an empty folder; choose another or remove it")
    return out


def _demo(options: argparse.Namespace) -> int:
    from deploy.demo import demo

    return demo(_out(options, "demo"))


def _run(options: argparse.Namespace) -> int:
    from deploy.local import LocalOptions, run_local
    from link.config import load

    config = load(options.config, options.set)
    out = _out(options, options.config.stem)
    config_dir = options.config.resolve().parent
    return run_local(LocalOptions(config=config, out=out, data=_data_dir(options), config_dir=config_dir))


def _server(options: argparse.Namespace) -> int:
    from deploy import logs
    from server.process import Terminated, serve
    from strategies.strategy import NoClientsError

    settings = _server_options(options)
    logs.to_terminal()
    logs.to_file(settings.out / "logs" / "server.log")
    try:
        with raising(Terminated):
            serve(settings, lambda address: print(f"listening on {address}", flush=True))
    except KeyboardInterrupt:
        print(f"breakwater: interrupted; `breakwater server --resume {settings.out}` goes on", file=sys.stderr)
        return 130
    except NoClientsError as error:
        print(f"breakwater: {error}; `breakwater server --resume {settings.out}` goes on", file=sys.stderr)
        return 1
    return 0


def _server_options(options: argparse.Namespace) -> "ServerOptions":
    """Return what the server is told: of a new run, or of one that goes on."""
    from link.config import load
    from server.folder import CONFIG, RUN, RunCard
    from server.process import ServerOptions

    resume: Path | None = options.resume
    if resume is not None and options.out is not None:
        options.complain("--resume DIR goes on in DIR: leave out --out")
    if resume is not None and (options.config is None or (resume / RUN).exists()):
        card = RunCard.read(resume)
        config = load(options.config or resume / CONFIG, options.set)
        return ServerOptions.of_run(
            resume, card, config, listen=options.listen, data=_data_dir(options), tls=options.tls, lists=options.lists
        )
    needed = {"CONFIG.toml": options.config, "--listen": options.listen}
    missing = [name for name, given in needed.items() if given is None]
    if missing:
        options.complain(f"the following arguments are required: {', '.join(missing)}; or --resume DIR alone")
    return ServerOptions(
        config=load(options.config, options.set),
        listen=options.listen,
        out=resume or _out(options, options.config.stem),
        data=_data_dir(options),
        config_dir=options.config.resolve().parent,
        tls=options.tls,
        lists=options.lists,
    )


def _client(options: argparse.Namespace) -> int:
    from client.process import ClientOptions, run_client
    from deploy import logs

    logs.to_terminal(logging.INFO)
    name = _name(options)
    reason = run_client(
        ClientOptions(
            connect=options.connect,
            name=name,
            worker=options.worker,
            seats=options.seats,
            attack=options.attack,
            settings=options.set,
            config=options.config,
            config_dir=None if options.config is None else options.config.resolve().parent,
            data=_data_dir(options),
            patience_s=options.patience,
            tls=options.tls,
        )
    )
    print(f"{name}: {reason}")
    return 0


def _name(options: argparse.Namespace) -> str:
    """Return the client's name: what is typed, or what is certified."""
    from link.tls import Identity

    if options.name is not None:
        return str(options.name)
    if options.tls is None:
        options.complain("the following arguments are required: --name, or --tls with a certificate")
    if options.seats != 1:
        raise ConfigError(f"--seats {options.seats}: needs --name NAME; --tls holds the folders NAME-0, NAME-1, ...")
    return Identity.load(options.tls).name


def _certs_init(options: argparse.Namespace) -> int:
    from deploy.certs import init

    for line in init(options.folder, options.host, days=options.days, renew=options.renew):
        print(line)
    return 0


def _certs_issue(options: argparse.Namespace) -> int:
    from deploy.certs import issue

    for line in issue(options.folder, options.names, days=options.days, renew=options.renew):
        print(line)
    return 0


def _certs_revoke(options: argparse.Namespace) -> int:
    from deploy.certs import revoke

    for line in revoke(options.folder, options.names):
        print(line)
    return 0


def _check(options: argparse.Namespace) -> int:
    from deploy.explain import explain
    from link.config import load

    config = load(options.config, options.set)
    for line in explain(config, _data_dir(options), options.config.resolve().parent):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
