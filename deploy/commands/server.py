"""``breakwater server``: the server of a federation, for a new run or to resume one."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.commands.options import (
    NEW_FOLDER,
    Subparsers,
    add_compute,
    add_config,
    add_data,
    add_logs,
    add_monitoring,
    add_path,
    add_value,
    address_to_listen_on,
    data_dir,
    log_options,
    monitoring,
    out_dir,
    settle_compute,
)
from foundation.errors import RunEndedError
from foundation.signals import raising

if TYPE_CHECKING:
    from server.process import ServerOptions


def add(commands: Subparsers) -> None:
    """Register the command."""
    parser = commands.add_parser("server", help="run the server of a federation")
    add_config(parser, optional=True)
    add_data(parser)
    add_compute(parser)
    meaning = "address to listen on for clients, such as 0.0.0.0:9090"
    add_value(parser, "--listen", meaning, "HOST:PORT", type=address_to_listen_on)
    meaning = "resume the run in this folder; with CONFIG.toml and --listen, start it there if it does not exist yet"
    add_path(parser, "--resume", meaning)
    add_path(parser, "--out", NEW_FOLDER)
    add_path(parser, "--tls", "folder of the server's certificate: server/ in the folder of certs init")
    meaning = "folder of ca.crl and clients.txt, which are re-read while the server runs (default: the folder of --tls)"
    add_path(parser, "--lists", meaning)
    add_monitoring(parser)
    add_logs(parser)
    parser.set_defaults(command=_server, complain=parser.error)


def _server(options: argparse.Namespace) -> int:
    from deploy import files, logs
    from server.process import Terminated, serve
    from server.run_folder import MANIFEST

    settle_compute(options)
    settings = _server_options(options)
    more = f"; `breakwater server --resume {settings.out}` continues it"
    needed = files.for_server(settings.config.federation.clients, page=settings.monitoring.web is not None)
    files.allow(needed, "a server of this federation")
    logs.to_terminal(options=log_options(options), process="server")
    logs.to_file(settings.out / "logs" / "server.log", log_options(options), what=f"run folder {settings.out}")
    try:
        with raising(Terminated, ctrl_c=KeyboardInterrupt):
            serve(settings, None if options.quiet else lambda address: print(f"listening on {address}", flush=True))
    except KeyboardInterrupt:
        print(f"breakwater: interrupted{more if (settings.out / MANIFEST).exists() else ''}", file=sys.stderr)
        return 130
    except RunEndedError as error:
        print(f"breakwater: {error}{more}", file=sys.stderr)
        return 1
    return 0


def _server_options(options: argparse.Namespace) -> "ServerOptions":
    """Return the options of a new run, or of one that is resumed."""
    from experiment.config import load
    from server.process import ServerOptions
    from server.run_folder import CONFIG, MANIFEST
    from server.run_folder.manifest import RunManifest

    resume: Path | None = options.resume
    if resume is not None and options.out is not None:
        options.complain("--resume DIR writes to DIR: omit --out")
    if resume is not None and (options.config is None or (resume / MANIFEST).exists()):
        manifest, config = RunManifest.read(resume), load(options.config or resume / CONFIG, options.set)
        return ServerOptions.of_run(
            resume,
            manifest,
            config,
            listen=options.listen and str(options.listen),
            data=data_dir(options, manifest.data),
            tls=options.tls,
            lists=options.lists,
            monitoring=monitoring(options),
        )
    needed = {"CONFIG.toml": options.config, "--listen": options.listen}
    missing = [name for name, given in needed.items() if given is None]
    if missing:
        options.complain(f"the following arguments are required: {', '.join(missing)}; or only --resume DIR")
    return ServerOptions(
        config=load(options.config, options.set),
        listen=str(options.listen),
        out=resume or out_dir(options, options.config.stem),
        data=data_dir(options),
        config_dir=options.config.resolve().parent,
        tls=options.tls,
        lists=options.lists,
        monitoring=monitoring(options),
    )
