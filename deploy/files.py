"""The limit of open files: each connection and each process of a run takes one or two."""

import resource

from foundation.errors import ConfigError

OWN_FILES = 160
"""File descriptors that a server needs beside its connections."""
PAGE_FILES = 96
"""Those of the page for browsers: its connections, its streams and a few more; see ``server.monitor.web``."""


def for_server(clients: int, *, page: bool = False) -> int:
    """Return the maximum number of files that a server of this many clients opens, with or without the page."""
    return clients + OWN_FILES + (PAGE_FILES if page else 0)


def for_launcher(processes: int) -> int:
    """Return the maximum number of files that a launcher of this many processes opens: a pipe and a sentinel each."""
    return 2 * processes + 64


def allow(needed: int, what: str) -> None:
    """Raise the soft limit of open files, if needed, for this process and those that it starts.

    Args:
        needed: how many.
        what: what needs them, for the message.

    Raises:
        ConfigError: the system allows fewer.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard == resource.RLIM_INFINITY or hard >= needed:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        except (OSError, ValueError):
            hard = soft
        else:
            return
    raise ConfigError(
        f"{what} needs up to {needed} open files, and the limit is {hard} (ulimit -n): raise it to {needed} (ulimit "
        f"-Hn {needed} as root, LimitNOFILE= of systemd, --ulimit of docker), or use fewer clients"
    )
