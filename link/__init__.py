"""The transport: gRPC streams between one server and its clients, as a Flower Grid. It knows no task and no attack."""

from importlib.metadata import version

_FLWR = version("flwr")
if not (1, 39) <= tuple(int(part) for part in _FLWR.split(".")[:2]) < (2,):  # before anything misses a name in it
    raise ImportError(f"Breakwater needs flwr >= 1.39 and < 2, here is {_FLWR}: pip install 'flwr>=1.39,<2'")
