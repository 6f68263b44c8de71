"""The link of one experiment: what ``breakwater server`` listens on, and what a Flower deployment is invited to."""

import logging
from collections.abc import Callable, Mapping
from functools import partial

import grpc  # type: ignore[import-untyped]  # grpcio ships no types

from experiment.code import Code, code_fingerprint
from experiment.opened import CONFIG, Experiment
from link import codec
from link.grid import StreamGrid
from link.identity.access import AccessControl
from link.invitation import TASK
from tasks.identity import TaskIdentity

log = logging.getLogger("breakwater.server")


def judge_of(experiment: Experiment) -> Callable[[str, str], str | None]:
    """Return what compares a client's task and code with the server's: why the client cannot take part, or None.

    Other code that may take part, and differences as small as those of rounding on another processor, are logged once.
    """
    mine, code = experiment.identity, Code.here(experiment.config)
    mixed = experiment.config.federation.same_code == "warn"  # else a fingerprint has proved that the code is the same
    logged: set[str] = set()

    def judge(name: str, report: str) -> str | None:
        theirs, runs = TaskIdentity.parse(report), Code.read(report)
        found = [*(runs.differences(code) if mixed else ()), *theirs.differences(mine)]
        if found:
            return f"{'; '.join(found)}: give both ends the same"
        if mixed and runs.fingerprint != code.fingerprint and (other := f"{name} runs {runs}") not in logged:
            logged.add(other)
            log.warning('%s, this server %s: it takes part because federation.same_code = "warn"', other, code)
        for what in theirs.roundings(mine):
            if what not in logged:
                logged.add(what)
                effect = "its processor or versions round differently, so other machines may not repeat this run"
                log.warning("%s of %s is not the same to the last bit as here: %s; reported once", what, name, effect)
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
        held: seats that are kept by name; where clients have weights by name, these have theirs.
    """
    config, method = experiment.as_written.for_clients().to_toml(), experiment.method
    task = experiment.identity.written()
    dim, dtype, federation = experiment.problem.dim, experiment.problem.dtype, experiment.config.federation
    return StreamGrid(
        run_id=run_id,
        clients=federation.clients,
        welcome=lambda name, worker: {CONFIG: config, TASK: task},
        fingerprint=code_fingerprint(),
        max_reply_bytes=codec.max_reply_bytes(dim, dtype, experiment.statistics),
        reply_bound=partial(codec.reply_bound, method=method, dim=dim, dtype=dtype, statistics=experiment.statistics),
        heartbeat_s=federation.heartbeat_s,
        credentials=credentials,
        access=access,
        held={**{name: worker for worker, name in enumerate(federation.names)}, **held},
        closed="has no weight in the server's [federation] weights" if federation.names else "",
        judge=judge_of(experiment),
        same_code=federation.same_code == "required",
    )
