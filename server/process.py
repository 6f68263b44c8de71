"""The ``breakwater server`` process: opens the link and runs one experiment over it."""

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from experiment.config import Config
from experiment.opened import open_config, try_out
from foundation.errors import ConfigError
from link.identity.access import AccessControl
from link.identity.tls import Identity, server_credentials
from link.seats import flaw_of_name
from server.link import open_link
from server.monitor.exporters import Monitoring
from server.run import console_for, load_loops, run
from server.run_folder.checkpoints import resumed
from server.run_folder.manifest import RunManifest
from server.run_folder.writer import Claim, RunFolder
from strategies.strategy import StalledError

log = logging.getLogger("breakwater.server")


class Terminated(KeyboardInterrupt):
    """Raised by the handler of a signal that ends this server, but not its run: clients stay and wait for the next."""


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """The options of ``breakwater server``.

    Args:
        config: the experiment, with overrides applied.
        listen: HOST:PORT; port 0 for any free one.
        out: the run folder.
        data: folder of data files.
        config_dir: folder of the config file, where a custom task is looked up.
        tls: folder of the server's certificate, see ``link.identity.tls.Identity``; None for an open port.
        lists: folder of the allow-list and the CRL, see ``link.identity.access``; None for that of the certificate.
        monitoring: what is shown of the run, and to whom.
        own: the caller starts the clients itself, so there is no warning about an open port.
        manifest: of the run in ``out`` that is resumed; None for a new run.
    """

    config: Config
    listen: str
    out: Path
    data: Path | None = None
    config_dir: Path | None = None
    tls: Path | None = None
    lists: Path | None = None
    monitoring: Monitoring = field(default_factory=Monitoring)
    own: bool = False
    manifest: RunManifest | None = None

    @classmethod
    def of_run(
        cls,
        folder: Path,
        manifest: RunManifest,
        config: Config,
        *,
        listen: str | None,
        data: Path | None,
        tls: Path | None,
        lists: Path | None = None,
        monitoring: Monitoring | None = None,
    ) -> Self:
        """Return the options of a run that is resumed: as it was started, except what is given.

        Args:
            folder: the run folder.
            manifest: what is in it, of the server before this one.
            config: the experiment; whatever affects the models must be unchanged, see
                ``server.run_folder.checkpoints``.
            listen: HOST:PORT.
            data: folder of data files.
            tls: folder of the server's certificate.
            lists: folder of the allow-list and the CRL.
            monitoring: see the class.
        """
        return cls(
            config=config,
            listen=listen or manifest.listen,
            out=folder,
            data=data or (Path(manifest.data) if manifest.data else None),
            config_dir=Path(manifest.config_dir) if manifest.config_dir else None,
            tls=tls or (Path(manifest.tls) if manifest.tls else None),
            lists=lists or (Path(manifest.lists) if manifest.lists else None),
            monitoring=monitoring or Monitoring(),
            manifest=manifest.restarted(),
        )


def serve(options: ServerOptions, on_listening: Callable[[str], None] | None = None) -> None:
    """Run one experiment, then say goodbye to the clients.

    Args:
        options: see there.
        on_listening: called with the bound address once clients can join.

    Raises:
        BreakwaterError: the config does not fit the task, the certificate or a list of clients cannot be used, the
            address cannot be bound, or the run folder cannot be used; one line.
        RunEndedError: too few clients came or answered.
    """
    with Claim(options.out.absolute(), goes_on=options.manifest is not None) as claim:
        _serve(options, on_listening, claim)


def _serve(options: ServerOptions, on_listening: Callable[[str], None] | None, claim: Claim) -> None:
    """Run the experiment in a folder that is ours."""
    identity = None if options.tls is None else Identity.load(options.tls)
    credentials = None if identity is None else server_credentials(identity)
    access = _access(identity, options.lists)
    monitoring = options.monitoring.with_tls(options.tls)
    monitoring.check()
    check_names(options.config, identity)
    out = options.out.absolute()
    experiment = open_config(options.config, options.data, options.config_dir)
    try_out(experiment)
    # Before anybody joins: clients on the same machine then find on disk what they would all compile at once.
    load_loops(experiment, console_for(monitoring))
    manifest = options.manifest
    run_id = secrets.randbits(62) + 2 if manifest is None else manifest.run_id
    point = None if manifest is None else resumed(out, experiment)
    grid = open_link(experiment, run_id, credentials, access, {} if point is None else point[0].seats)
    address = grid.listen(options.listen)
    log.info("run %d listens on %s", run_id, address, extra={"run_id": run_id})
    manifest = RunManifest(
        run_id=run_id,
        listen=address,
        data=None if options.data is None else str(options.data),
        config_dir=None if options.config_dir is None else str(options.config_dir),
        tls=None if options.tls is None else str(options.tls.absolute()),
        starts=1 if manifest is None else manifest.starts,
        lists=None if options.lists is None else str(options.lists.absolute()),
    )
    if credentials is None and not options.own:
        _warn_insecure(address)
    if on_listening:
        on_listening(address)
    reason, final = "the server stopped before the end of the run", True
    try:
        manifest.write(options.out, experiment.as_written.to_toml())
        with RunFolder(out, point[0] if point else None, claim) as folder:
            run(experiment, folder, grid, monitoring, point=point, incarnation=manifest.starts)
        reason = "the run is over"
    except StalledError:
        reason = "the run stalled: too few clients answered"
        raise
    except Terminated:
        reason, final = "the server was stopped, and may go on", False
        raise
    finally:
        grid.close(reason, final=final)


def check_names(config: Config, identity: Identity | None) -> None:
    """Refuse weights by name where a name is the client's word, or cannot be one."""
    names = config.federation.names
    if names and identity is None:
        fix = "give --tls, or a list by seat for an experiment"
        raise ConfigError(f"[federation] weights by name: without TLS anybody can claim a name; {fix}")
    for name in names:
        if (flaw := flaw_of_name(name)) is not None:
            raise ConfigError(f"[federation] weights: {flaw}")


def _access(server: Identity | None, folder: Path | None) -> AccessControl | None:
    """Return who may take part; None without TLS, where a name is the client's word."""
    if folder is not None and server is None:
        raise ConfigError(f"--lists {folder}: needs --tls; without it nobody's name is certain")
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"--lists {folder}: no such folder; it may be empty, and is read while the server runs")
    return None if server is None else AccessControl.of(server, folder)


def _warn_insecure(address: str) -> None:
    """Say what is lost without TLS; on loopback too, where every user of the machine can connect."""
    sybils = "one client can take all seats under different names (a Sybil attack): federation.byzantine bounds nothing"
    log.warning("%s is open, without TLS (--tls): %s, and others can read and change the models", address, sybils)
