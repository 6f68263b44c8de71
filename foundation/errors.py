"""The errors, as types that a caller can distinguish.

::

    BreakwaterError
    ├── ConfigError               a config that cannot be run: which value, which bound, how to fix it
    ├── LinkError                 the link between server and client
    │   ├── Refused               the server does not take this client: final, another attempt would end the same
    │   │   └── OtherTask         because the two have not loaded the same task
    │   ├── ServerGone            the server has not answered for longer than the client's patience
    │   └── WireError             a peer sent bytes that are no message, or too many of them
    ├── RunEndedError             a run that cannot continue: no client came, or too few answer (``strategies.hold``)
    ├── ProcessEnded              a process that a run cannot do without has ended
    ├── Unwritten                 a run whose results or checkpoints could not be written
    ├── Silent                    raised by a ClientApp that sends no reply at all (a Byzantine fault)
    └── Broken                    raised by a ClientApp whose reply is to break on the way (a Byzantine fault)

Every message is one line for a user: it carries the value and the bound that the value broke.
"""

from typing import TYPE_CHECKING

from foundation.faults import Fault

if TYPE_CHECKING:
    from flwr.app import RecordDict


class BreakwaterError(Exception):
    """Base of all errors of this project that a caller may want to catch."""


class ConfigError(BreakwaterError):
    """A config that cannot be run."""


class Unwritten(BreakwaterError):  # noqa: N818  # the name says what happened
    """A run's results or checkpoints could not be written; it can be continued from its last checkpoint."""


class RunEndedError(BreakwaterError):
    """A run ended before its last round, because of its clients; with what it has it can be resumed."""


class ProcessEnded(BreakwaterError):  # noqa: N818  # the name says what happened
    """A process that a run cannot do without has ended before its time.

    Args:
        message: which one, and how it ended.
        status: the exit status of the command.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class LinkError(BreakwaterError):
    """The link between server and client failed."""


class Refused(LinkError):  # noqa: N818  # the name says what happened
    """The server does not take this client, and would not at another attempt."""


class OtherTask(Refused):  # the name says what happened
    """What this client has loaded is not what the server has loaded.

    Args:
        reason: one line.
        task: what it has loaded, for the server to say the same in its log.
    """

    def __init__(self, reason: str, task: str) -> None:
        super().__init__(reason)
        self.task = task


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


class Broken(BreakwaterError):  # noqa: N818  # the name says what happened
    """Raised by a ClientApp whose reply is to break below its records; ``link.node`` carries it out.

    Args:
        how: a fault ``below_records``. A late reply is sent after a delay, while the process continues.
        content: the reply.
        delay_s: seconds, for a late one.
        last: no other round follows, so there is nothing to come back for.
    """

    def __init__(self, how: Fault, content: "RecordDict", delay_s: float = 0.0, *, last: bool = False) -> None:
        super().__init__(f"a broken reply: {how}")
        self.how = how
        self.content = content
        self.delay_s = delay_s
        self.last = last
