"""How a ServerApp on a Flower deployment talks to nodes it does not know yet: who they are, and the way to its link.

Both are Flower ``query`` messages with an action of their own, which another app's ClientApp does not know. With JOIN
the server sends a node the address of its link and a certificate for it, through Flower's own channel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from foundation.errors import ConfigError

WHO = "breakwater_worker"
"""Action of the question which worker a node is, and name of the record that answers it."""
TASK = "task"
"""Key of what the node has loaded, in that record and among the settings of a Welcome; see ``tasks.identity``."""
STATISTICS = "breakwater_statistics"
"""Action of the question for the statistics of a client's columns, and name of the record that answers it."""
MODEL = "breakwater_model"
"""Action of the message that brings a client the final model, and name of its record."""
NORM_STATS = "norm_stats"
"""Name of the record beside a model that holds the running statistics it is to be measured with."""
JOIN = "breakwater_link"
"""Action of an invitation to the link, and name of its record."""

_FIELDS = {"address": str, "authority": bytes, "certificate": bytes, "key": bytes}


@dataclass(frozen=True)
class Invitation:
    """The way to a server's link, for one node.

    Args:
        address: HOST:PORT.
        authority: PEM certificate of the authority that both ends trust.
        certificate: the node's, PEM; it holds the name to join with.
        key: the node's, PEM.
    """

    address: str
    authority: bytes
    certificate: bytes
    key: bytes

    def write(self) -> RecordDict:
        """Return it as the content of a message."""
        return RecordDict({JOIN: ConfigRecord({name: getattr(self, name) for name in _FIELDS})})

    @classmethod
    def read(cls, content: RecordDict) -> "Invitation":
        """Return the invitation that a message holds.

        Raises:
            ConfigError: it holds none.
        """
        record: Mapping[str, Any] = content.config_records.get(JOIN, ConfigRecord())
        for name, kind in _FIELDS.items():
            if not isinstance(record.get(name), kind):
                raise ConfigError(f"not an invitation to a link: {name} is missing or no {kind.__name__}")
        return cls(**{name: record[name] for name in _FIELDS})
