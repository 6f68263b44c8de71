"""A coalition against methods that keep state: shadows follow, what the server holds is steered.

A server is driven by hand here: the method's own ask and update, honest workers and one brain with two seats.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from client.coalition import Coalition, CoalitionMember
from client.worker import HonestWorker, Worker
from experiment.config import parse, resolve
from experiment.opened import Experiment
from strategies.method import HELD, Ask, Packet, StateLostError, Vector
from strategies.randomness import Role, stream
from tasks.contract import Problem, Setting
from tasks.digits import DigitsTask

TEXT = """
[federation]
clients = 6
byzantine = 2
seed = 4
[task]
kind = "digits"
model = "softmax"
dtype = "float64"
[strategy]
rounds = 10
gamma = 0.1
batch = 8
"""
MEMBERS = (4, 5)
METHODS = {
    "dasha": ("strategy.kind=byz-dasha-page", "strategy.batch=8", "strategy.p=0.3"),
    "ef21": ("strategy.kind=byz-ef21", "compressor.kind=identity"),
    "ef21-sgdm": ("strategy.kind=byz-ef21-sgdm", "strategy.batch=8", "compressor.kind=identity"),
    "vr-dm21": ("strategy.kind=byz-dm21", "strategy.vr=true", "strategy.batch=8", "compressor.kind=identity"),
    "marina-2": ("strategy.kind=byz-vr-marina-2", "strategy.batch=8", "strategy.p=0.3"),
    "momentum": ("strategy.kind=robust-momentum-sgd", "strategy.batch=8", "strategy.beta=0.5"),
    "clipped momentum": (
        "strategy.kind=robust-momentum-sgd",
        "strategy.batch=8",
        "strategy.clip=true",
        "strategy.alpha=2",
    ),
    "rosdhb-local": (
        "strategy.kind=rosdhb-local",
        "strategy.batch=8",
        "compressor.kind=rand-k",
        "compressor.ratio=1.0",
    ),
    "rosdhb": ("strategy.kind=rosdhb", "strategy.batch=8", "compressor.kind=masked", "compressor.ratio=1.0"),
    "demoa": ("strategy.kind=demoa", "strategy.batch=8", "strategy.cohort=4", "strategy.alpha=0.4"),
    "demoa hold": ("strategy.kind=demoa", "strategy.batch=8", "strategy.alpha=0.4", "strategy.stale=hold"),
    "nsgdm": ("strategy.kind=byz-nsgdm", "strategy.batch=8", "strategy.beta=0.5"),
}


@cache
def problem(task: DigitsTask, setting: Setting) -> Problem:
    return task.load(setting)


def experiment(method: str, *overrides: str) -> Experiment:
    config = parse(TEXT, ["attack.kind=alie", *METHODS[method], *overrides])
    assert isinstance(config.task, DigitsTask)
    loaded = problem(config.task, config.setting(None, None))
    config = resolve(config, loaded)
    return Experiment(config, loaded)


class Server:
    """A server that keeps what it aggregates for each worker where a test can see it."""

    def __init__(self, opened: Experiment, workers: Iterable[Worker]) -> None:
        self.opened, self.method = opened, opened.method
        self.workers = {worker.index: worker for worker in workers}
        self.state: Any = self.method.start(opened.problem.initial())
        self.rows: dict[int, Vector] = {}
        """What was aggregated for each worker in the last round."""
        self.held: dict[int, Vector] = {}

    def round(self, lost: Iterable[int] = (), cohort: tuple[int, ...] | None = None) -> Ask:
        """Run a round; the replies of ``lost`` do not arrive. Returns what was asked.

        Args:
            lost: these workers.
            cohort: who is asked; default: everybody.
        """
        seed, k = self.opened.config.federation.seed, self.state.round
        ask = self.method.ask(self.state, stream(seed, Role.COIN, round_=k))
        cohort = tuple(sorted(self.workers)) if cohort is None else cohort
        ask = replace(ask, cohort=cohort)
        replies: dict[int, Vector] = {}
        self.stale: list[int] = []
        for i, worker in sorted(self.workers.items()):
            if i not in cohort:
                continue
            mine = replace(ask, vectors={**ask.vectors, **self.method.resync(self.state, i)})
            try:
                packet = worker.answer(mine)
            except StateLostError:
                self.stale.append(i)
                continue
            form = self.method.compressor_for(ask, i)
            assert isinstance(packet, Packet)
            assert form.validate(packet, len(self.state.x), self.state.x.dtype) is None
            if not self.method.accepts_version(self.state, i, packet.version):
                self.stale.append(i)
            elif i not in lost:
                replies[i] = form.decompress(packet, self.state.x.dtype)
        self.rows = {i: self.method.absorb(self.held.get(i), ask, q) for i, q in replies.items()}
        self.held |= self.rows
        rng = stream(seed, Role.AGGREGATE, round_=k)
        self.state = self.method.update(self.state, ask, replies, rng)
        return ask


def federation(method: str, *overrides: str) -> tuple[Server, Coalition]:
    opened = experiment(method, *overrides)
    assert opened.config.attack is not None
    brain = Coalition(opened, opened.config.attack)
    members = [CoalitionMember(brain, i) for i in MEMBERS]
    return Server(opened, [*(HonestWorker(opened, i) for i in range(4)), *members]), brain


def honest_rows(server: Server) -> np.ndarray:
    return np.stack([server.rows[i] for i in range(4)])


@pytest.mark.parametrize("method", METHODS)
def test_an_omniscient_coalition_follows_honest_workers_to_the_last_bit(method: str) -> None:
    server, brain = federation(method, "attack.view=omniscient", "attack.z=1.0")
    for _ in range(4):
        server.round()
        for i in range(4):
            shadow = brain._simulated.known[i, False]
            assert shadow.row is not None
            assert shadow.row.tobytes() == server.rows[i].tobytes()
    assert server.stale == []


EXPECTED: Mapping[str, tuple[tuple[str, ...], Callable[[np.ndarray], np.ndarray]]] = {
    "big": (("attack.kind=big",), lambda rows: np.full(rows.shape[1], -1000.0)),
    "alie": (("attack.kind=alie", "attack.z=1.0"), lambda rows: rows.mean(axis=0) - rows.std(axis=0, ddof=1)),
    "ipm": (("attack.kind=ipm", "attack.eps=2.0"), lambda rows: -2.0 * rows.mean(axis=0)),
}


@pytest.mark.parametrize("attack", EXPECTED)
@pytest.mark.parametrize("method", METHODS)
def test_what_the_server_aggregates_for_a_member_is_the_target(method: str, attack: str) -> None:
    overrides, target = EXPECTED[attack]
    server, _ = federation(method, *overrides, "attack.view=omniscient")
    for _ in range(4):
        server.round()
        for i in MEMBERS:
            np.testing.assert_allclose(server.rows[i], target(honest_rows(server)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_what_it_aggregates_for_members_with_jitter_differs_and_has_the_target_as_its_mean(method: str) -> None:
    overrides, target = EXPECTED["alie"]
    server, _ = federation(method, *overrides, "attack.jitter=1.0", "attack.view=omniscient")
    for _ in range(4):
        server.round()
        four, five = (server.rows[i] for i in MEMBERS)
        assert not np.allclose(four, five)
        np.testing.assert_allclose((four + five) / 2, target(honest_rows(server)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_what_it_aggregates_for_members_that_run_fang_is_beyond_the_honest_values(method: str) -> None:
    server, _ = federation(method, "attack.kind=fang", "attack.view=omniscient")
    for _ in range(4):
        server.round()
        rows = honest_rows(server)
        s = np.sign(rows.mean(axis=0))
        inner = np.where(s > 0, rows.min(axis=0), rows.max(axis=0))
        assert not np.array_equal(server.rows[4], server.rows[5])
        for i in MEMBERS:
            assert (s * server.rows[i] <= s * inner + 1e-9).all()


@pytest.mark.parametrize("attack", ["optimal-alie", "optimal-ipm", "foe", "min-max", "min-sum", "mimic", "rop", "shb"])
@pytest.mark.parametrize("method", METHODS)
def test_every_collusion_runs_against_every_method(method: str, attack: str) -> None:
    server, _ = federation(method, f"attack.kind={attack}", "attack.view=omniscient")
    for _ in range(3):
        server.round()
        assert set(server.rows) == set(range(6))
        np.testing.assert_allclose(server.rows[4], server.rows[5], rtol=1e-9, atol=1e-12)
        if attack == "mimic":
            distances = np.linalg.norm(honest_rows(server) - server.rows[4], axis=1)
            assert distances.min() < 1e-9


@pytest.mark.parametrize("method", ["dasha", "ef21", "marina-2", "momentum"])
def test_bit_flipping_sends_the_opposite_of_what_an_honest_worker_would(method: str) -> None:
    attacked, _ = federation(method, "attack.kind=bf")
    honest = Server(attacked.opened, [HonestWorker(attacked.opened, i) for i in range(6)])
    attacked.round()
    honest.round()
    for i in MEMBERS:
        np.testing.assert_array_equal(attacked.rows[i], -honest.rows[i])


@pytest.mark.parametrize("method", ["dasha", "ef21"])
def test_a_member_whose_reply_was_lost_takes_up_what_the_server_holds(method: str) -> None:
    server, _ = federation(method, "attack.kind=big")
    server.round()
    server.round(lost=[4])
    held = server.held[4]
    np.testing.assert_array_equal(server.method.resync(server.state, 4)[HELD], held)
    server.round()
    assert server.stale == []
    np.testing.assert_allclose(server.rows[4], -1000.0)
    np.testing.assert_allclose(server.state.estimates[4], -1000.0)


@pytest.mark.parametrize(
    ("method", "compressor"), [("rosdhb", "masked"), ("rosdhb-local", "rand-k"), ("dasha", "rand-k"), ("ef21", "top-k")]
)
def test_with_a_compressor_the_target_is_hit_where_the_packet_has_coordinates(method: str, compressor: str) -> None:
    overrides = (f"compressor.kind={compressor}", "compressor.ratio=0.25", "attack.kind=big", "attack.value=3.0")
    server, _ = federation(method, *overrides)
    for _ in range(5):
        before = server.held.get(4, np.zeros(len(server.state.x)))
        server.round()
        now = server.rows[4]
        hit = np.isclose(now, 3.0, rtol=1e-9)
        assert hit.sum() >= len(now) // 4  # all of them in the uncompressed first round of some methods
        missed = ~hit
        fade = 0.9 if method.startswith("rosdhb") else 1.0
        np.testing.assert_allclose(now[missed], fade * before[missed])


@pytest.mark.parametrize("method", ["dasha", "ef21"])
def test_a_coalition_that_has_lost_its_state_says_so_and_is_resynchronised(method: str) -> None:
    server, _ = federation(method, "attack.kind=alie", "attack.z=1.0", "attack.view=omniscient")
    server.round()
    attack = server.opened.config.attack
    assert attack is not None
    brain = Coalition(server.opened, attack)  # as after a restart
    server.workers |= {i: CoalitionMember(brain, i) for i in MEMBERS}
    server.round()
    assert server.stale == list(MEMBERS)
    server.round()
    assert server.stale == []
    assert set(MEMBERS) <= set(server.rows)
    # It knows of no honest worker's past, so that it can only go by its own messages.
    assert {i for i, _ in brain._simulated.known} == set(MEMBERS)


def test_a_server_that_has_gone_back_in_time_makes_the_brain_forget() -> None:
    server, brain = federation("momentum", "attack.kind=alie", "attack.z=1.0", "attack.view=omniscient")
    first = server.round()
    for _ in range(3):
        server.round()
    member = server.workers[4]
    assert isinstance(member.answer(first), Packet)
    assert brain._memory.round == 1
    assert {shadow.round for shadow in brain._simulated.known.values()} == {1}


def test_a_slow_seat_that_answers_in_vain_costs_the_others_nothing() -> None:
    server, brain = federation("momentum", "attack.kind=alie", "attack.z=1.0", "attack.view=omniscient")
    server.round()
    second = server.round()
    server.round()
    known = dict(brain._simulated.known)
    with pytest.raises(StateLostError, match="round 2 is over"):
        server.workers[4].answer(second)
    assert brain._simulated.known == known
    server.round()
    assert server.stale == []


def test_honest_packets_and_forged_ones_are_as_long_where_the_server_reads_them_as_they_are() -> None:
    # Under rand-k an honest packet of v reads as d/k v on its coordinates. So must a forged one, or it is a dwarf.
    overrides = ("compressor.kind=rand-k", "compressor.ratio=0.25", "attack.kind=big", "attack.value=3.0")
    for method in ("momentum", "clipped momentum"):
        server, _ = federation(method, *overrides)
        server.round()
        assert set(np.round(server.rows[4], 6)) == {0.0, round(3.0 * 650 / 162, 6)}


@pytest.mark.parametrize("attack", ["big", "bf", "wire"])
def test_shadows_of_others_are_kept_only_where_they_are_looked_at(attack: str) -> None:
    server, brain = federation("dasha", f"attack.kind={attack}", "attack.view=omniscient")
    for _ in range(3):
        if attack == "wire":
            member = server.workers[4]
            member.answer(replace(server.method.ask(server.state, np.random.default_rng(0)), cohort=(0, 1, 4)))
        else:
            server.round()
    assert {i for i, _ in brain._simulated.known} <= set(MEMBERS)


def test_packets_of_past_rounds_are_dropped() -> None:
    server, brain = federation("momentum", "attack.kind=alie", "attack.z=1.0", "attack.view=omniscient")
    server.round()
    brain._turn_to(server.method.ask(server.state, np.random.default_rng(0)))
    assert all(shadow.packet is None for shadow in brain._simulated.known.values())


def test_a_stateless_method_has_nothing_to_hold() -> None:
    opened = experiment("momentum", "strategy.kind=robust-sgd", "strategy.batch=8", "attack.kind=big")
    assert not opened.method.stateful
    assert opened.config.attack is not None
    brain = Coalition(opened, opened.config.attack)
    Server(opened, [CoalitionMember(brain, i) for i in MEMBERS]).round()
    assert brain._memory.held == {}


@pytest.mark.parametrize("attack", ["alie", "mimic", "rop", "gaussian"])
@pytest.mark.parametrize("method", ["dasha", "momentum", "rosdhb"])
def test_members_in_processes_of_their_own_act_as_one_coalition(method: str, attack: str) -> None:
    overrides = (f"attack.kind={attack}", "attack.view=omniscient")
    together, _ = federation(method, *overrides)
    apart, _ = federation(method, *overrides)
    for i in MEMBERS:
        assert apart.opened.config.attack is not None
        brain = Coalition(apart.opened, apart.opened.config.attack)
        for fellow in MEMBERS:  # as a Flower node does: the last f workers are its fellows
            brain.enlist(fellow)
        apart.workers[i] = CoalitionMember(brain, i)
    for k in range(4):
        lost = [4] if k == 1 else []
        together.round(lost)
        apart.round(lost)
        for i in together.rows:
            assert apart.rows[i].tobytes() == together.rows[i].tobytes()


@pytest.mark.parametrize("method", METHODS)
def test_the_largest_target_there_is_gives_a_packet_that_is_not_screened(method: str) -> None:
    server, _ = federation(method, "attack.kind=big", "attack.value=3.4e38", "task.dtype=float32")
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(3):
            server.round()  # looks for flaws
            assert np.abs(server.rows[4]).max() > 1e37


# --- partial participation, where the server aggregates a vector of everybody ---

COHORTS = ((0, 2, 4), (1, 4, 5), (0, 3, 5), (2, 4, 5), (1, 2, 4), (0, 3, 4))
"""At least one seat of ours in each."""


@pytest.mark.parametrize("method", ["demoa", "demoa hold"])
def test_an_omniscient_coalition_knows_the_rows_of_all_honest_workers(method: str) -> None:
    server, brain = federation(
        method, "strategy.cohort=3", "attack.kind=alie", "attack.z=1.0", "attack.view=omniscient"
    )
    for cohort in COHORTS:
        server.round(cohort=cohort)
        opened = brain._round
        assert opened is not None
        assert opened.rows is not None
        assert opened.peers == [0, 1, 2, 3]
        held = [server.state.momenta.get(i, np.zeros(650)) for i in range(4)]
        np.testing.assert_allclose(opened.rows, held, rtol=1e-12, atol=1e-18)
        target = opened.rows.mean(axis=0) - opened.rows.std(axis=0, ddof=1)
        for i in set(cohort) & set(MEMBERS):
            np.testing.assert_allclose(server.state.momenta[i], target, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["demoa", "demoa hold"])
def test_a_member_that_is_not_sampled_for_some_rounds_still_hits(method: str) -> None:
    server, _ = federation(method, "strategy.cohort=3", "attack.kind=big", "attack.value=2.0")
    for cohort in ((0, 4, 5), (0, 1, 2), (1, 2, 5), (0, 3, 5), (0, 1, 4)):
        server.round(cohort=cohort)
        for i in set(cohort) & set(MEMBERS):
            np.testing.assert_allclose(server.state.momenta[i], 2.0, rtol=1e-12)


def test_a_coalition_whose_memory_was_kept_elsewhere_hits_too() -> None:
    server, brain = federation("demoa", "strategy.cohort=3", "attack.kind=big", "attack.value=2.0")
    server.round(cohort=(0, 4, 5))
    saved = brain.remember()
    server.round(cohort=(0, 1, 2))
    assert server.opened.config.attack is not None
    again = Coalition(server.opened, server.opened.config.attack)
    members = {i: CoalitionMember(again, i) for i in MEMBERS}
    again.recall(saved)
    server.workers |= members
    server.round(cohort=(1, 4, 5))
    np.testing.assert_allclose(server.state.momenta[4], 2.0, rtol=1e-12)


def test_attackers_that_look_at_several_vectors_of_such_a_method_know_the_cohort() -> None:
    for view, attack, expected in (("coalition", "alie", True), ("own", "bf", False)):
        opened = experiment("demoa", f"attack.kind={attack}", f"attack.view={view}")
        assert opened.config.reveals_cohort is expected
