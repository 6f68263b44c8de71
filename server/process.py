"""The ``breakwater server`` process: listens on the link and runs the ServerApp over it."""

import logging
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, RecordDict
from rich.console import Console

from link import codec
from link.config import Config
from link.experiment import CONFIG, CONFIG_DIR, DATA, OUT, code_fingerprint, open_experiment
from link.grid import StreamGrid
from link.tls import Identity, server_credentials
from server.app import app, load_loops

log = logging.getLogger("breakwater.server")


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """What ``breakwater server`` was told.

    Args:
        config: the experiment, with overrides applied.
        listen: HOST:PORT; port 0 for any free one.
        out: the run folder.
        data: folder of data files.
        config_dir: folder of the config file, where a custom task is looked up.
        tls: folder of the server's certificate, see ``link.tls.Identity``; None for an open port.
    """

    config: Config
    listen: str
    out: Path
    data: Path | None = None
    config_dir: Path | None = None
    tls: Path | None = None


def serve(options: ServerOptions, on_listening: Callable[[str], None] | None = None) -> None:
    """Run one experiment, then tell the clients goodbye.

    Args:
        options: see there.
        on_listening: called with the bound address once clients can join.

    Raises:
        BreakwaterError: the config does not fit the task, the certificate cannot be used, or the address cannot be
            bound; one line.
        NoClientsError: clients did not come, or all stayed away.
    """
    credentials = None if options.tls is None else server_credentials(Identity.load(options.tls))
    text = options.config.to_toml()
    experiment = open_experiment(text, options.data, options.config_dir)
    problem, federation = experiment.problem, experiment.config.federation
    # Before anybody joins: clients on the same machine then find on disk what they would all compile at once.
    load_loops(experiment, Console(file=sys.stdout, soft_wrap=True))
    resolved = experiment.config.to_toml()
    run_id = secrets.randbits(62) + 2
    grid = StreamGrid(
        run_id=run_id,
        clients=federation.clients,
        welcome=lambda name, worker: {CONFIG: resolved},
        fingerprint=code_fingerprint(),
        max_reply_bytes=codec.max_reply_bytes(problem.dim, problem.dtype),
        heartbeat_s=federation.heartbeat_s,
        credentials=credentials,
    )
    address = grid.listen(options.listen)
    if credentials is None:
        _warn_insecure(address)
    if on_listening:
        on_listening(address)
    context = Context(
        run_id=run_id,
        node_id=1,
        node_config={},
        state=RecordDict(),
        run_config={
            CONFIG: text,
            DATA: str(options.data or ""),
            CONFIG_DIR: str(options.config_dir or ""),
            OUT: str(options.out),
        },
    )
    reason = "the server stopped before the end of the run"
    try:
        app(grid, context)
        reason = "the run is over"
    finally:
        grid.close(reason, final=True)


def _warn_insecure(address: str) -> None:
    host = address.rpartition(":")[0].strip("[]")
    if host not in {"127.0.0.1", "::1", "localhost"}:
        log.warning(
            "%s is open to the network without TLS: anyone who reaches it can read the models, and can claim any name "
            "and as many seats as are free, so federation.byzantine bounds nothing; give it a "
            "certificate (--tls), or use it in a network you trust",
            address,
        )
