"""``breakwater`` on the command line, and ``python -m breakwater``; the commands are in ``deploy``."""

import sys

from deploy.cli import main

if __name__ == "__main__":
    sys.exit(main())
