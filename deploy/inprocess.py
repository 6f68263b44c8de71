"""A whole federation in one process: server, honest clients and the coalition, without sockets.

The frames and the checks are those of ``breakwater run`` (``link.inprocess``), and so are the bits of the model and the
bytes that are counted. The network is missing, and with it the waiting: a client that sends nothing costs a round no
time. So it is for many runs side by side, where twenty processes each would be in each other's way; ``breakwater
sweep`` uses it.

Two kinds of wire faults differ from real processes, because only there time passes between rounds: a late reply is lost
in its own round, and a client that breaks off is back at once, without a new handshake.
"""

import secrets
from functools import partial

from client.answers import client_app
from client.coalition import Coalition, CoalitionMember
from client.worker import HonestWorker
from deploy.local import LocalOptions, check_attack
from deploy.local import names as names
from experiment.opened import Experiment, open_config, try_out
from link import codec
from link.inprocess import InProcessGrid
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
    federation = options.config.federation
    config = options.config.seated(names(federation.clients, federation.byzantine))
    experiment = open_config(config, options.data, options.config_dir)
    try_out(experiment)
    with RunFolder(options.out.absolute(), None) as folder:
        run(experiment, folder, grid_of(experiment), options.monitoring, incarnation=1)


def grid_of(experiment: Experiment) -> InProcessGrid:
    """Return the clients of an experiment; the last f attack with one brain, if there is an ``[attack]``."""
    config, problem, method = experiment.config.for_clients(), experiment.problem, experiment.method
    n, f = config.federation.clients, config.federation.byzantine
    known = Experiment(config, problem)  # what clients are sent
    brain = None if config.attack is None or not f else Coalition(known, config.attack)
    workers = [
        CoalitionMember(brain, i) if brain and i in config.federation.last_seats else HonestWorker(known, i)
        for i in range(n)
    ]
    apps = {name: client_app(worker) for name, worker in zip(names(n, f if brain else 0), workers, strict=True)}
    bound = partial(codec.reply_bound, method=method, dim=problem.dim, dtype=problem.dtype)
    most = codec.max_reply_bytes(problem.dim, problem.dtype)
    return InProcessGrid(secrets.randbits(62) + 2, apps, max_reply_bytes=most, reply_bound=bound)
