"""The link of one experiment: what ``breakwater server`` listens on, and what a Flower deployment is invited to."""

from collections.abc import Mapping

import grpc  # type: ignore[import-untyped]  # grpcio ships no types
from flwr.app import RecordDict

from link import codec
from link.experiment import CONFIG, Experiment, code_fingerprint
from link.grid import StreamGrid
from link.guests import Guests


def open_link(
    experiment: Experiment,
    run_id: int,
    credentials: grpc.ServerCredentials | None,
    guests: Guests | None = None,
    held: Mapping[str, int] = {},  # never written to
) -> StreamGrid:
    """Return the grid of an experiment, which does not listen yet.

    A client is sent the config as its settings, but for what is the server's alone, and may reply with as many bytes as
    the round's packets have.

    Args:
        experiment: of this run.
        run_id: of the run.
        credentials: for TLS; None for an open port.
        guests: who may be here, see ``link.grid.StreamGrid``.
        held: seats that are kept by name.
    """
    config, method = experiment.config.for_clients().to_toml(), experiment.method
    dim, dtype, federation = experiment.problem.dim, experiment.problem.dtype, experiment.config.federation

    def reply_bound(content: RecordDict) -> int:
        return codec.reply_bound(content, method, dim, dtype)

    return StreamGrid(
        run_id=run_id,
        clients=federation.clients,
        welcome=lambda name, worker: {CONFIG: config},
        fingerprint=code_fingerprint(),
        max_reply_bytes=codec.max_reply_bytes(dim, dtype),
        reply_bound=reply_bound,
        heartbeat_s=federation.heartbeat_s,
        credentials=credentials,
        guests=guests,
        held=held,
    )
