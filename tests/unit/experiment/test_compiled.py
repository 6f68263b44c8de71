"""Which compiled loops a process loads before its first round."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from experiment.compiled import prepare
from experiment.config import parse
from strategies.aggregators import weighted_rows
from strategies.compressors import packing

CONFIG = """
[federation]
clients = 4
[task]
kind = "digits"
[strategy]
kind = "robust-sgd"
rounds = 1
gamma = 0.1
"""
LONG = packing.LONG


@dataclass
class Opened:
    """What of an experiment is looked at."""

    config: Any
    problem: Any


@dataclass
class Sized:
    dim: int
    dtype: np.dtype[Any]


@pytest.mark.parametrize(
    ("dim", "dtype", "compressor", "aggregates", "loaded"),
    [
        (LONG, "f4", [], True, ["rules", "packets"]),  # full gradients are screened too
        (LONG, "f4", ["federation.weights=[3,2,1,1]"], True, ["rules with weights", "packets"]),
        (LONG, "f4", ["federation.weights=[3,3,3,3]"], True, ["rules", "packets"]),  # equal ones are none
        (LONG, "f4", [], False, []),  # an honest client that sends its vector as it is
        (LONG, "f4", ["compressor.kind=identity", "compressor.values=float16"], False, ["packets"]),
        (LONG, "f4", ["compressor.kind=rand-k", "compressor.k=9"], False, ["packets"]),
        (LONG, "f8", ["compressor.kind=rand-k", "compressor.k=9"], True, ["rules"]),
        (100, "f4", ["compressor.kind=rand-k", "compressor.k=9"], True, ["packets"]),  # which returns at once
    ],
)
def test_what_is_loaded(
    monkeypatch: pytest.MonkeyPatch, dim: int, dtype: str, compressor: list[str], aggregates: bool, loaded: list[str]
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(weighted_rows, "prepare", lambda _, weighted: seen.append("rules" + " with weights" * weighted))
    monkeypatch.setattr(packing, "prepare", lambda _: seen.append("packets"))
    opened: Any = Opened(parse(CONFIG, compressor), Sized(dim, np.dtype(dtype)))
    assert prepare(opened, aggregates=aggregates) >= 0
    assert seen == loaded


def test_short_vectors_load_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "load_loops", lambda: pytest.fail("loaded"))
    packing.prepare(100)
