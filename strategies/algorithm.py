"""The former name of ``strategies.method``."""

from foundation.former import moved
from strategies.method import *  # noqa: F403

moved(__name__, "strategies.method")
