"""What is fuzzed: each target gives an input to a reader and raises AssertionError if what comes back is not allowed.

==============  ======================================================================================================
target          what reads
==============  ======================================================================================================
``reader``      ``link.wire.Reader``: frames of a stream in any order, then a reply that must still be read
``codec-KIND``  ``link.codec.read_reply`` and the compressor, for every form of that kind: bytes to a vector
``ask``         the client's end: ``read_ask``, a broadcast packet, orders of ``adapters`` and invitations to a link
``live``        a ``StreamGrid`` with its port open: frames on real streams, before and after hello (``live``)
``watchers``    the same port: what asks to watch the run (``live``)
``watch``       `breakwater watch`: what a server sends to who watches it (``watching``)
==============  ======================================================================================================
"""

from collections.abc import Callable

from tests.forms import FORMS
from tests.fuzz import targets

Target = Callable[[bytes], None]

KINDS = sorted({form.kind for form in FORMS})
NAMES = ("reader", "ask", *(f"codec-{kind}" for kind in KINDS), "watch", "live", "watchers")
"""The targets."""
LIVE = ("live", "watchers")
"""Those that open a port."""


def target(name: str) -> Target:
    """Return a target by its name."""
    if name == "reader":
        return targets.read_frames
    if name == "ask":
        return targets.read_instruction
    if name == "live":
        from tests.fuzz.live import serve_streams  # it opens a port

        return serve_streams
    if name == "watchers":
        from tests.fuzz.live import serve_watchers

        return serve_watchers
    if name == "watch":
        from tests.fuzz.watching import read_watched  # it needs the command line

        return read_watched
    kind = name.removeprefix("codec-")
    return lambda data: targets.read_packet(data, kind)
