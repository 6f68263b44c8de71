"""The live link on a Flower deployment: a SuperNode's process becomes a resident client for the length of a run.

A SuperNode starts a process for every message and polls for the next one, which takes seconds a round. So the
ServerApp sends each node a single message with an invitation to its own gRPC link (``server.bridge``). The process of
that message joins, answers round after round in milliseconds, and replies to the message when the run is over.
"""

from flwr.app import Context, RecordDict

from client import app as apps
from client.process import ClientOptions, Preparation
from experiment import config as configs
from experiment.opened import code_fingerprint, named
from link.identity.tls import Identity
from link.invitation import Invitation
from link.node import join

PATIENCE_S = 60.0
"""Seconds to look for the server's link before the node is given back to Flower."""


def take_part(content: RecordDict, context: Context) -> str:
    """Accept an invitation; return the reason that the server gave for its goodbye.

    Raises:
        ConfigError: the node config is at fault.
        LinkError: the server's link cannot be reached, or refuses this node.
    """
    invitation, given = Invitation.read(content), context.node_config
    apps.check_node_config(given)
    text, data, config_dir = named(context.run_config, given)
    config = configs.parse(text)
    identity = Identity(invitation.authority, invitation.certificate, invitation.key)
    options = ClientOptions(
        connect=invitation.address,
        name=identity.name,
        attack=apps.attack_of(context, config),
        fellows=apps.fellows_of(config),
        settings=apps.settings_of(given),
        config_dir=config_dir,
        data=data,
    )
    return join(
        invitation.address,
        identity.name,
        apps.app,
        Preparation(options),
        fingerprint=code_fingerprint(),
        worker=apps.seat_of(given, config.federation.clients),
        identity=identity,
        patience_s=PATIENCE_S,
    )
