"""The live link on a Flower deployment: a SuperNode's process becomes a resident client for the length of a run.

A SuperNode starts a process for every message and polls for the next one, which takes seconds a round. So the
ServerApp sends each node a single message with an invitation to its own gRPC link (``server.bridge``). The process of
that message joins, answers round after round in milliseconds, and replies to the message when the run is over.
"""

from flwr.app import RecordDict

from client.node_config import NodeConfig
from client.preparation import Preparation, PreparationOptions
from experiment.code import code_fingerprint
from experiment.run_config import RunConfig
from link.identity.tls import Identity
from link.invitation import Invitation
from link.node import join

PATIENCE_S = 60.0
"""Seconds to look for the server's link before the node is given back to Flower."""


def take_part(content: RecordDict, run: RunConfig, node: NodeConfig) -> str:
    """Accept an invitation; return the reason that the server gave for its goodbye.

    Raises:
        ConfigError: the run config or the node config is at fault.
        LinkError: the server's link cannot be reached, or refuses this node.
    """
    invitation, config = Invitation.read(content), run.load()
    identity = Identity(invitation.authority, invitation.certificate, invitation.key)
    options = PreparationOptions(
        attack=node.attack_kind(run, config),
        settings=node.settings,
        fellows=config.federation.last_seats,
        config_dir=run.path.parent,
        data=run.data_dir(node.data),
    )
    seat, code = node.seat(config.federation.clients), code_fingerprint()
    server, name = invitation.address, identity.name
    return join(server, name, Preparation(options), seat, identity, fingerprint=code, patience_s=PATIENCE_S)
