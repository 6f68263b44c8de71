"""Tests on Flower's own machinery: SuperLink, SuperNodes, the simulation, and the `flwr` commands that users type."""

import pytest

pytest.register_assert_rewrite("tests.flower.ways")
