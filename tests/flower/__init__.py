"""Tests on Flower's own machinery: SuperLink, SuperNodes, the simulation, and the `flwr` commands that users type."""
