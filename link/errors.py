"""The former name of ``foundation.errors``."""

from foundation.errors import *  # noqa: F403
from foundation.former import moved

moved(__name__, "foundation.errors")
