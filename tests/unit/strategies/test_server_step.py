"""Server steps by hand: momentum, Adam with bias correction, and what is kept of them."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from server.run_folder.state_dict import put_together, take_apart
from strategies.aggregators import Mean
from strategies.compressors import Identity
from strategies.demoa import DeMoA
from strategies.local_sgd import LocalSGD
from strategies.robust_momentum_sgd import RobustMomentumSGD
from strategies.robust_sgd import RobustSGD
from strategies.server_step import ServerAdam, ServerMomentum, ServerStep
from tests.toys import rng, vector

COMMON: dict[str, Any] = {"n": 1, "f": 0, "aggregator": Mean(), "compressor": Identity(), "cohort": 1}
SERVERS = [ServerMomentum(mu=0.5), ServerAdam(b1=0.5, b2=0.75, tau=0.5)]
METHODS: list[Any] = [
    RobustSGD(gamma=1.0, **COMMON),
    RobustMomentumSGD(gamma=1.0, beta=0.0, **COMMON),
    LocalSGD(gamma=1.0, local_steps=1, local_gamma=1.0, **COMMON),
    DeMoA(gamma=1.0, alpha=1.0, **COMMON),
]


def advance(method: Any, state: Any, *gradients: Any) -> Any:
    """The state after rounds in which the one client sends these; None for silence."""
    for g in gradients:
        ask = replace(method.ask(state, rng()), cohort=(0,))
        state = method.update(state, ask, {} if g is None else {0: g}, rng())
    return state


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.kind)
def test_momentum_by_hand(method: Any) -> None:
    method = replace(method, server=ServerMomentum(mu=0.5))
    state = advance(method, method.start(vector(0, 0)), vector(4, 0), vector(0, 2))
    assert state.x.tolist() == [-4 - 2, -2], "M = (4, 0), then (2, 2)"
    assert not method.steps_along_aggregate


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.kind)
def test_adam_by_hand(method: Any) -> None:
    method = replace(method, gamma=0.25, server=ServerAdam(b1=0.5, b2=0.75, tau=0.5))
    state = advance(method, method.start(vector(0, 0)), vector(4, 0))
    first = (1 - 0.75) ** 0.5 / (1 - 0.5) * 2 / (2 + 0.5)  # M = 2, V = 4
    assert state.x == pytest.approx(vector(-0.25 * first, 0))
    state = advance(method, state, vector(4, 2))
    m, v = vector(3, 1), vector(7, 1)
    second = (1 - 0.75**2) ** 0.5 / (1 - 0.5**2) * m / (np.sqrt(v) + 0.5)
    assert state.x == pytest.approx(vector(-0.25 * first, 0) - 0.25 * second)


def test_a_round_in_which_the_model_stays_is_no_step() -> None:
    method = replace(METHODS[0], server=SERVERS[1])
    once = advance(method, method.start(vector(0, 0)), vector(4, 0))
    after = advance(method, once, None)
    assert after.x is once.x
    assert after.server is once.server, "t counts steps"


@pytest.mark.parametrize("server", SERVERS, ids=lambda server: server.kind)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.kind)
def test_a_checkpoint_has_all_of_it(method: Any, server: ServerStep) -> None:
    method = replace(method, server=server)
    x0 = vector(1, 2).astype(np.float32)
    gradients = [np.array(g, np.float32) for g in ((0.1, 3), (-2, 1e-3), (7, 0.3), (1, 1))]
    before = advance(method, method.start(x0), *gradients[:2])
    data, arrays = take_apart(before)
    back = put_together(method.start(x0), json.loads(json.dumps(data)), arrays)
    through, resumed = advance(method, before, *gradients[2:]), advance(method, back, *gradients[2:])
    assert through.x.tobytes() == resumed.x.tobytes()
    assert through.x.dtype == np.float32


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ServerMomentum(mu=1.0), "mu = 1.0: must be from 0 and below 1"),
        (lambda: ServerAdam(b1=-0.1), "b1 = -0.1: must be from 0 and below 1"),
        (lambda: ServerAdam(b2=1.0), "b2 = 1.0: must be from 0 and below 1"),
        (lambda: ServerAdam(tau=0.0), "tau = 0.0: must be above 0 and finite"),
    ],
)
def test_what_is_no_server_step(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_a_clipped_descent_keeps_its_estimate_and_measures_the_actual_step() -> None:
    method = replace(METHODS[0], alpha=2.0, server=ServerMomentum(mu=0.5))
    state = advance(method, method.start(vector(0, 0)), vector(4, 0), vector(4, 0))
    assert state.x.tolist() == [-10, 0]  # steps of 4 and 6
    state = advance(method, state, vector(100, 0))
    assert state.report.lam == 12
    assert state.g.tolist() == [4 + 12, 0]
