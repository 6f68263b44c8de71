"""What holds whatever gets lost: server and worker agree on g_i to the last bit, or the server knows that they may not.

Methods in which the server holds an estimate of every client, under random schedules of lost replies, restarts and
absences.
"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.aggregators import CoordinateMedian
from strategies.byz_dasha_page import ByzDashaPage
from strategies.byz_dm21 import ByzDM21
from strategies.byz_ef21 import ByzEF21, ByzEF21BC
from strategies.byz_ef21_sgdm import ByzEF21SGDM
from strategies.compressors import Identity, RandK, TopK
from strategies.estimates import START
from strategies.method import HELD, Ask, Packet, WorkerState
from tests.simulation import Logistic, Simulation, optimum

N = 4
SHARED: dict[str, Any] = {"n": N, "f": 1, "gamma": 0.3, "aggregator": CoordinateMedian()}
METHODS: dict[str, Any] = {
    "byz-dasha-page": ByzDashaPage(**SHARED, compressor=RandK(k=2), p=0.3, batch=4, a=0.25),
    "byz-ef21": ByzEF21(**SHARED, compressor=TopK(k=2)),
    "byz-ef21-bc": ByzEF21BC(**SHARED, compressor=TopK(k=2)),
    "byz-ef21-sgdm": ByzEF21SGDM(**SHARED, compressor=TopK(k=2), eta=0.3),
    "byz-dm21": ByzDM21(**SHARED, compressor=TopK(k=2), eta=0.3),
    "byz-vr-dm21": ByzDM21(**SHARED, compressor=TopK(k=2), eta=0.3, vr=True),
}
SOME = st.sets(st.integers(0, N - 1), max_size=2)
SCHEDULES = st.lists(st.fixed_dictionaries({"away": SOME, "lost": SOME, "restarted": SOME}), min_size=1, max_size=12)


@pytest.mark.parametrize("name", METHODS)
@given(schedule=SCHEDULES, dtype=st.sampled_from([np.float32, np.float64]))
def test_server_and_workers_agree_on_every_estimate(
    name: str, schedule: list[dict[str, set[int]]], dtype: type[np.floating]
) -> None:
    run = Simulation(METHODS[name], [Logistic(i, dtype) for i in range(N)], np.zeros(5, dtype))
    for faults in [*schedule, *[dict[str, set[int]]()] * 3]:
        before = run.state
        run.round(**faults)
        state = run.state
        assert state.round == before.round + 1
        if state.g is None:
            continue
        assert state.behind == set(range(N)) - set(run.counted)
        if before.g is not None:  # only who is behind is sent anything of its own, and all of those who are there
            assert set(run.resynced) == before.behind - faults.get("away", set())
            assert set(run.stale) <= faults.get("restarted", set())
        for i in run.counted:
            mine: WorkerState = run.workers[i]
            assert mine.version == before.round
            assert mine.vectors["g"].tobytes() == state.estimates[i].tobytes()
            if "w" in mine.vectors:
                assert mine.vectors["w"].tobytes() == state.w.tobytes()
        for i in set(before.estimates) - set(run.counted):
            assert state.estimates[i] is before.estimates[i], "who is not heard stays as it was"
    assert state.g is not None
    assert run.counted == list(range(N)), "two rounds without a fault mend everything"
    assert not state.behind


@pytest.mark.parametrize("name", METHODS)
def test_the_optimum_is_a_fixed_point(name: str) -> None:
    oracles = [Logistic(0)] * N
    x = optimum(oracles[:1])
    run = Simulation(METHODS[name], oracles, x)
    run.run(50)
    assert np.linalg.norm(run.state.x - x) < 1e-12


@pytest.mark.parametrize("name", METHODS)
def test_a_run_with_faults_converges_all_the_same(name: str) -> None:
    oracles = [Logistic(0)] * N
    run = Simulation(METHODS[name], oracles, np.zeros(5))
    for k in range(400):
        run.round(lost=[k % N] if k % 10 == 3 else [], restarted=[(k + 1) % N] if k % 10 == 5 else [])
    assert np.linalg.norm(run.state.x - optimum(oracles[:1])) < 1e-4


@pytest.mark.parametrize("name", METHODS)
@given(
    values=st.lists(st.sampled_from([0.0, 1.0, -1e30, 3e38, -3.4e38, 1e-40]), min_size=5, max_size=5),
    rounds=st.integers(1, 6),
)
def test_nothing_that_a_client_sends_makes_the_model_other_than_finite(
    name: str, values: list[float], rounds: int
) -> None:
    def cheat(i: int, ask: Ask, packet: Packet) -> Packet:
        form = run.method.compressor_for(ask, i)
        with np.errstate(over="ignore"):  # where the form multiplies by d/k
            forged = form.forge(np.array(values, np.float32), np.random.default_rng(ask.round))
        return Packet(**{**vars(forged), "version": packet.version})

    oracles = [Logistic(i, np.float32) for i in range(N)]
    run = Simulation(METHODS[name], oracles, np.zeros(5, np.float32), byzantine=[3], cheat=cheat)
    for _ in range(rounds):
        run.round()
        assert np.isfinite(run.state.x).all()
        assert all(np.isfinite(g).all() for g in run.state.estimates.values())
    assert norm_of(run) < 10


def norm_of(run: Simulation) -> float:
    return float(np.linalg.norm(run.state.x))


@given(target=st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3), held=st.floats(-1e6, 1e6))
def test_an_attacker_that_aims_hits(target: list[float], held: float) -> None:
    method, wanted, old = METHODS["byz-ef21"], np.array(target), np.full(3, held)
    for ask in (Ask(1, START, {}), Ask(2, "change", {HELD: old})):
        got = method.absorb(old, ask, method.aim(old, ask, wanted))
        assert got == pytest.approx(wanted, abs=1e-9)
        assert method.compressor_for(Ask(1, START, {}), 0) == Identity()
