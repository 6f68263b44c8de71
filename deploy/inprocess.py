"""A whole federation in one process: server, honest clients and the coalition, without sockets.

The frames and the checks are those of ``breakwater run`` (``link.inprocess``), and so are the bits of the model and the
bytes that are counted. The network is missing, and with it the waiting: a client that sends nothing costs a round no
time. So it is for many runs side by side, where twenty processes each would be in each other's way; ``breakwater
sweep`` uses it.

Two kinds of wire faults differ from real processes, because only there time passes between rounds: a late reply is lost
in its own round, and a client that breaks off is back at once, without a new handshake.
"""

import secrets
from collections.abc import Mapping
from functools import partial
from typing import Any

from client.answers import ReadAsk, local_app
from client.coalition import Coalition, CoalitionMember
from client.honest_replies import HonestReplies
from client.preparation import PartyPreparation, PreparationOptions
from client.worker import HonestWorker
from deploy.local import LocalOptions, check_attack
from deploy.local import names as names
from experiment.opened import CONFIG, Experiment, open_config, try_out
from experiment.parties import Parties
from link import codec
from link.inprocess import InProcessGrid
from link.invitation import TASK
from link.node import Prepared
from link.replies import App
from link.wire import Welcome
from server.run import run
from server.run_folder.writer import RunFolder


def run_in_process(options: LocalOptions) -> None:
    """Run a federation to its end in this process, and leave its run folder.

    Args:
        options: as for ``breakwater run``.

    Raises:
        BreakwaterError: the config or the run folder cannot be used, or the run ended early.
    """
    check_attack(options.config)
    options = options.seated()
    config, parties = options.config, options.parties()
    experiment = open_config(config, options.server_data if parties else options.data, options.config_dir)
    try_out(experiment)
    with RunFolder(options.out.absolute(), None) as folder:
        grid = grid_of(experiment) if parties is None else grid_of_parties(experiment, parties)
        run(experiment, folder, grid, options.monitoring, incarnation=1)


def grid_of_parties(experiment: Experiment, parties: Parties) -> InProcessGrid:
    """Return the clients of an experiment in which each has its own data; the last f attack, if there is an attack."""
    config, setting = experiment.as_written, experiment.setting
    config_dir, attackers = None if setting is None else setting.config_dir, list(config.attackers)
    kinds: dict[str | None, list[int]] = {None: list(parties.folders)}
    if config.attack is not None:
        kinds = {None: [i for i in parties.folders if i not in attackers], config.attack.kind: attackers}
    settings = {CONFIG: config.for_clients().to_toml(), TASK: experiment.identity.written()}
    prepared: dict[int, Prepared] = {}
    for attack, workers in kinds.items():
        folders = {worker: parties.folders[worker] for worker in workers}
        prepare = PartyPreparation(config, PreparationOptions(attack=attack, config_dir=config_dir, folders=folders))
        for worker in workers:
            prepared[worker] = prepare(
                Welcome(
                    name=parties.names[worker],
                    run_id=0,
                    node_id=0,
                    worker=worker,
                    clients=len(parties.folders),
                    settings=settings,
                    heartbeat_s=0.0,
                    max_reply_bytes=0,
                )
            )
    apps = {parties.names[worker]: prepared[worker].app for worker in sorted(prepared)}
    return _grid(experiment, apps, {parties.names[worker]: each.task for worker, each in prepared.items()})


def grid_of(experiment: Experiment) -> InProcessGrid:
    """Return the clients of an experiment; those that attack have one brain."""
    config, problem = experiment.config.for_clients(), experiment.problem
    n, f = config.federation.clients, config.federation.byzantine
    known = Experiment(config, problem)  # what clients are sent
    replies = HonestReplies() if config.attack is not None and config.attack.sees_honest else None
    brain = None if config.attack is None or not f else Coalition(known, config.attack, replies=replies)
    workers = [
        CoalitionMember(brain, i) if brain and i in config.attackers else HonestWorker(known, i, replies)
        for i in range(n)
    ]
    read = codec.AskReader()
    seats = zip(names(n, f if brain and not config.mobile else 0), workers, strict=True)
    return _grid(experiment, {name: local_app(worker, read) for name, worker in seats}, read=read)


def _grid(
    experiment: Experiment,
    apps: Mapping[str, App],
    reports: Mapping[str, str] = {},
    read: ReadAsk = codec.read_ask,
) -> InProcessGrid:
    sizes: dict[str, Any] = {"dim": experiment.problem.dim, "dtype": experiment.problem.dtype}
    sizes["statistics"] = experiment.statistics
    bound = partial(codec.reply_bound, method=experiment.method, read=read, **sizes)
    most = codec.max_reply_bytes(**sizes)
    return InProcessGrid(secrets.randbits(62) + 2, apps, max_reply_bytes=most, reply_bound=bound, reports=reports)
