"""What can go wrong, as types that a caller can tell apart.

::

    BreakwaterError
    ├── ConfigError               a config that cannot be run: which value, which bound, how to mend it
    ├── LinkError                 the link between server and client
    │   ├── Refused               the server does not take this client: final, another attempt would end the same
    │   ├── ServerGone            the server has not answered for longer than the client's patience
    │   └── WireError             a peer sent bytes that are no message, or too many of them
    └── Silent                    raised by a ClientApp that sends no reply at all (a Byzantine fault)

Every message is one line for a user: it carries the value and the bound that the value broke.
"""


class BreakwaterError(Exception):
    """Base of all errors of this project that a caller may want to catch."""


class ConfigError(BreakwaterError):
    """A config that cannot be run."""


class LinkError(BreakwaterError):
    """The link between server and client failed."""


class Refused(LinkError):  # noqa: N818  # the name says what happened
    """The server does not take this client, and would not at another attempt."""


class ServerGone(LinkError):  # noqa: N818  # the name says what happened
    """The server has not answered for longer than the client's patience."""


class WireError(LinkError):
    """A peer sent bytes that are no message, or too many of them.

    Args:
        reason: one line that begins with the kind of flaw: ``undecodable: ...``, ``oversize: ...`` or
            ``out of order: ...``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Silent(BreakwaterError):  # noqa: N818  # the name says what happened
    """Raised by a ClientApp that does not answer this instruction at all, not even with an error."""
