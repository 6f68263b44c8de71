"""Running a federation: the command line, the local launcher, the demo, configs."""

import sys
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parent.parent)
if "." not in __name__ and sys.path[0] != _ROOT:
    # Our packages have common names (server, client): those beside this one come before any on a user's PYTHONPATH.
    # In a wheel their names begin with ``breakwater``, and this one's has a dot.
    sys.path.insert(0, _ROOT)
