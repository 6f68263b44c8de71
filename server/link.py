"""The link of one experiment: what ``breakwater server`` listens on, and what a Flower deployment is invited to."""

import logging
from collections.abc import Callable, Mapping
from functools import partial

import grpc  # type: ignore[import-untyped]  # grpcio ships no types

from experiment.opened import CONFIG, Experiment, code_fingerprint
from link import codec
from link.grid import StreamGrid
from link.identity.access import AccessControl
from link.invitation import TASK
from tasks.identity import TaskIdentity

log = logging.getLogger("breakwater.server")


def judge_of(experiment: Experiment) -> Callable[[str, str], str | None]:
    """Return what compares a client's task with the server's: a reason why the client cannot take part, or None.

    Differences as small as those of rounding on another processor are logged once.
    """
    mine = experiment.identity
    reported: set[str] = set()

    def judge(name: str, said: str) -> str | None:
        theirs = TaskIdentity.parse(said)
        found = theirs.differences(mine)
        if found:
            return f"{'; '.join(found)}: give both ends the same"
        for what in theirs.roundings(mine):
            if what not in reported:
                reported.add(what)
                log.warning(
                    "%s of %s is not the same to the last bit as here: its processor or its versions round otherwise, "
                    "so that other machines may not repeat this run to the last bit; reported once",
                    what,
                    name,
                )
        return None

    return judge


def open_link(
    experiment: Experiment,
    run_id: int,
    credentials: grpc.ServerCredentials | None,
    access: AccessControl | None = None,
    held: Mapping[str, int] = {},  # never written to
) -> StreamGrid:
    """Return the grid of an experiment, which does not listen yet.

    A client is sent the config as its settings, but for what is the server's alone, and may reply with as many bytes as
    the round's packets have.

    Args:
        experiment: of this run.
        run_id: of the run.
        credentials: for TLS; None for an open port.
        access: who may be here, see ``link.grid.StreamGrid``.
        held: seats that are kept by name.
    """
    config, method = experiment.config.for_clients().to_toml(), experiment.method
    task = experiment.identity.written()
    dim, dtype, federation = experiment.problem.dim, experiment.problem.dtype, experiment.config.federation
    return StreamGrid(
        run_id=run_id,
        clients=federation.clients,
        welcome=lambda name, worker: {CONFIG: config, TASK: task},
        fingerprint=code_fingerprint(),
        max_reply_bytes=codec.max_reply_bytes(dim, dtype),
        reply_bound=partial(codec.reply_bound, method=method, dim=dim, dtype=dtype),
        heartbeat_s=federation.heartbeat_s,
        credentials=credentials,
        access=access,
        held=held,
        judge=judge_of(experiment),
    )
