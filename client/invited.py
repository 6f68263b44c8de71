"""The live link on a Flower deployment: a SuperNode's process becomes a resident client for the length of a run.

A SuperNode starts a process for every message and polls for the next one, which takes seconds a round. So the
ServerApp sends each node a single message with an invitation to its own gRPC link (``server.bridge``). The process of
that message joins, answers round after round in milliseconds, and replies to the message when the run is over.
"""

from dataclasses import replace

from flwr.app import RecordDict

from client.final_model import ModelFile
from client.node_config import NodeConfig
from client.preparation import Preparation, PreparationOptions
from experiment.code import code_fingerprint
from experiment.config import Config
from experiment.parties import Parties
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
    seat, code = node.seat(config.federation.clients), code_fingerprint()
    server, name = invitation.address, identity.name
    preparation = Preparation(options_of(run, node, config))
    return join(server, name, preparation, seat, identity, fingerprint=code, patience_s=PATIENCE_S)


def options_of(run: RunConfig, node: NodeConfig, config: Config) -> PreparationOptions:
    """Return what a node brings to a run.

    A node with its own data has them in a folder that its node config names, else in the one of its seat among the
    sub-folders of the run's data folder, as in a simulation.

    Raises:
        ConfigError: the node config is at fault.
    """
    common = PreparationOptions(
        attack=node.attack_kind(run, config),
        settings=node.settings,
        fellows=config.attackers,
        config_dir=run.path.parent,
        data=run.data_dir(node.data),
    )
    if not config.own_data:
        return common
    folder, own = node.data, node.config or run.path
    model = None if node.model is None else ModelFile(node.model)
    if folder is None:
        folder = Parties.of(config, run.data_dir()).folders[node.seat(config.federation.clients)]
    common = replace(common, limits=node.limits, model=model, fellows=())
    return replace(common, data=folder, config=own, config_dir=own.parent)
