"""Attackers as workers: what a coalition knows, what its members send, and who is made when."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import numpy as np
import pytest

from attacks.attack import Attack
from attacks.classical import FOE
from attacks.faults import Faulty
from attacks.view import View
from client.app import Nodes, make_worker
from client.coalition import Coalition, CoalitionMember
from client.node_config import NodeConfig
from client.worker import HonestWorker, Worker
from experiment.config import parse, resolve
from experiment.opened import Experiment
from experiment.run_config import RunConfig
from foundation.errors import ConfigError
from strategies.byz_vr_marina_pp import ByzVRMarinaPP
from strategies.compressors import PermK
from strategies.method import STATELESS, Ask, Oracle, Packet, Rows, Vector
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
kind = "byz-vr-marina-pp"
rounds = 10
gamma = 0.1
p = 0.2
cohort = 4
batch = 8
alpha = 2.0
"""
MOMENTUM = """
[strategy]
kind = "robust-momentum-sgd"
rounds = 10
gamma = 0.1
batch = 8
"""
COHORT = (0, 2, 4, 5)  # two of them Byzantine


@cache
def problem(task: DigitsTask, setting: Setting) -> Problem:
    return task.load(setting)


def experiment(*overrides: str) -> Experiment:
    config = parse(TEXT, overrides)
    assert isinstance(config.task, DigitsTask)
    config = resolve(config, problem(config.task, config.setting(None, None)))
    return Experiment(config, problem(config.task, config.setting(None, None)))


def ask(opened: Experiment, kind: str = "difference", cohort: tuple[int, ...] | None = COHORT, round_: int = 3) -> Ask:
    x = opened.problem.initial()
    vectors = {"x": x} if kind == "full" else {"x": x, "x_prev": x + 0.1}
    return Ask(round_, kind, vectors, cohort=cohort)


def coalition(opened: Experiment) -> dict[int, CoalitionMember]:
    assert opened.config.attack is not None
    brain = Coalition(opened, opened.config.attack)
    return {i: CoalitionMember(brain, i) for i in (4, 5)}


def read(opened: Experiment, question: Ask, packet: Packet | Faulty | None, worker: int = 0) -> Vector:
    assert isinstance(packet, Packet)
    form = opened.method.compressor_for(question, worker)
    assert form.validate(packet, opened.problem.dim, opened.problem.dtype) is None
    return form.decompress(packet, opened.problem.dtype)


def honest(opened: Experiment, question: Ask, worker_indices: tuple[int, ...]) -> Rows:
    return np.stack([read(opened, question, HonestWorker(opened, i).answer(question), i) for i in worker_indices])


@pytest.mark.parametrize("kind", ["full", "difference"])
def test_an_honest_worker_runs_the_worker_half_of_the_method(kind: str) -> None:
    opened = experiment()
    question = ask(opened, kind)
    rng = stream(4, Role.WORKER, 2, 3)
    _, expected = opened.method.reply(2, STATELESS, question, opened.problem.oracle(2), rng)
    assert HonestWorker(opened, 2).answer(question).values.tobytes() == expected.values.tobytes()


def test_an_honest_worker_draws_anew_in_every_round() -> None:
    opened = experiment()
    worker = HonestWorker(opened, 2)
    first, second = (worker.answer(ask(opened, round_=k)).values for k in (3, 4))
    assert first.tolist() != second.tolist()
    assert worker.answer(ask(opened, round_=3)).values.tobytes() == first.tobytes()


@pytest.mark.parametrize("compressor", [[], ["compressor.kind=rand-k", "compressor.k=65"]])
def test_an_omniscient_attacker_knows_what_honest_clients_will_send(compressor: list[str]) -> None:
    opened = experiment("attack.kind=ipm", "attack.view=omniscient", "attack.eps=0.5", *compressor)
    question = ask(opened)
    got = read(opened, question, coalition(opened)[4].answer(question))
    expected = -0.5 * honest(opened, question, (0, 2)).mean(axis=0)
    if compressor:  # a rand-k packet holds a tenth of the target, ten times as large as the target itself
        kept = np.flatnonzero(got)
        assert 0 < len(kept) <= 65
        assert got[kept] == pytest.approx(10 * expected[kept])
    else:
        assert got == pytest.approx(expected, abs=1e-15)


def test_a_coalition_without_that_view_looks_at_its_own_messages() -> None:
    opened = experiment("attack.kind=ipm", "attack.eps=0.5")
    question = ask(opened, cohort=None)
    got = read(opened, question, coalition(opened)[5].answer(question))
    assert got == pytest.approx(-0.5 * honest(opened, question, (4, 5)).mean(axis=0), abs=1e-15)


def test_a_lone_attacker_sees_its_own_message_only() -> None:
    opened = experiment("attack.kind=bf")
    question = ask(opened)
    for i, member in coalition(opened).items():
        assert read(opened, question, member.answer(question)) == pytest.approx(-honest(opened, question, (i,))[0])


def test_label_flipping_sends_an_honest_message_on_flipped_labels() -> None:
    opened = experiment("attack.kind=lf")
    question = ask(opened, "full")
    got = read(opened, question, coalition(opened)[4].answer(question))
    flipped = opened.problem.oracle(4, flipped=True).full_gradient(question.vectors["x"])
    assert got.tobytes() == flipped.tobytes()


INDIVIDUAL = {"fang": [], "alie": ["attack.jitter=1.0"], "shb": ["attack.jitter=1.0"], "foe": ["attack.jitter=0.5"]}
COLLUSIONS = [
    *("alie", "optimal-alie", "ipm", "optimal-ipm", "foe", "min-max", "min-sum", "mimic", "rop"),
    *("shb", "big", "gaussian", "zero"),
]


@pytest.mark.parametrize("attack", COLLUSIONS)
@pytest.mark.parametrize("compressor", [[], ["compressor.kind=rand-k", "compressor.k=65"]])
def test_colluders_say_the_same(attack: str, compressor: list[str]) -> None:
    opened = experiment(f"attack.kind={attack}", "attack.view=omniscient", *compressor)
    question = ask(opened)
    four, five = (read(opened, question, member.answer(question)) for member in coalition(opened).values())
    assert four.tobytes() == five.tobytes()


@pytest.mark.parametrize("attack", INDIVIDUAL)
@pytest.mark.parametrize("compressor", [[], ["compressor.kind=rand-k", "compressor.k=65"]])
def test_colluders_that_differ_do_so_on_the_same_coordinates(attack: str, compressor: list[str]) -> None:
    opened = experiment(f"attack.kind={attack}", "attack.view=omniscient", *INDIVIDUAL[attack], *compressor)
    question = ask(opened)
    four, five = (read(opened, question, member.answer(question)) for member in coalition(opened).values())
    assert not np.array_equal(four, five)
    if compressor:
        np.testing.assert_array_equal(np.flatnonzero(four), np.flatnonzero(five))


def test_the_mean_of_jittered_messages_is_that_of_those_without() -> None:
    question, rows = ask(experiment()), {}
    for jitter in (0.0, 1.0):
        opened = experiment("attack.kind=alie", "attack.view=omniscient", "attack.z=1.0", f"attack.jitter={jitter}")
        members = coalition(opened).values()
        rows[jitter] = np.stack([read(opened, question, member.answer(question)) for member in members])
    assert rows[1.0].mean(axis=0) == pytest.approx(rows[0.0].mean(axis=0), abs=1e-15)
    spread = honest(experiment(), question, (0, 2)).std(axis=0, ddof=1)
    far = np.abs(rows[1.0][0] - rows[0.0][0])  # half the difference of two draws, times the root of 2
    assert far[spread > 0].mean() == pytest.approx(spread[spread > 0].mean() * np.sqrt(2 / np.pi), rel=0.2)


def test_one_attacker_of_a_cohort_has_no_jitter() -> None:
    plain, jittered = (
        experiment("attack.kind=ipm", "attack.view=omniscient", f"attack.jitter={jitter}") for jitter in (0.0, 1.0)
    )
    question = ask(plain, cohort=(0, 2, 3, 5))
    one, other = (read(opened, question, coalition(opened)[5].answer(question)) for opened in (plain, jittered))
    assert one.tobytes() == other.tobytes()


KRUM = ("federation.clients=7", "aggregator.kind=krum", "strategy.cohort=7")


def test_fang_draws_anew_in_every_round_and_knows_the_servers_rule() -> None:
    opened = experiment("attack.kind=fang", "attack.view=omniscient")
    first, second = (
        read(opened, question, coalition(opened)[4].answer(question))
        for question in (ask(opened, round_=3), ask(opened, round_=4))
    )
    assert not np.array_equal(first, second)
    opened = experiment("attack.kind=fang", "attack.view=omniscient", *KRUM)
    question = ask(opened, "full", cohort=tuple(range(7)))
    four, five = (read(opened, question, member.answer(question)) for member in coalition(opened).values())
    mean = honest(opened, question, (0, 1, 2, 3, 6)).mean(axis=0)
    np.testing.assert_array_equal(np.sign(four), -np.sign(mean))
    assert four.tobytes() == five.tobytes()


@pytest.mark.parametrize("attack", ["bf", "lf", *COLLUSIONS, "fang", "alie+jitter", "shb+jitter", "foe+jitter"])
def test_members_in_processes_of_their_own_act_as_one_coalition(attack: str) -> None:
    """As Flower nodes do: each process has its own brain, which takes the last f workers to be its fellows."""
    attack, _, jittered = attack.partition("+")
    more = INDIVIDUAL[attack] if jittered else []
    opened = experiment(
        f"attack.kind={attack}", "attack.view=omniscient", "compressor.kind=rand-k", "compressor.k=65", *more
    )
    together = coalition(opened)
    for k in (1, 2, 3):
        question = ask(opened, round_=k)
        ours = {i: member.answer(question) for i, member in together.items()}
        for i, packet in ours.items():
            alone = coalition(opened)[i].answer(question)  # a brain that has seen no other member and no other round
            assert isinstance(packet, Packet)
            assert isinstance(alone, Packet)
            assert (alone.seed, alone.values.tobytes()) == (packet.seed, packet.values.tobytes())


@pytest.mark.parametrize(
    ("cohort", "shifted"), [((0, 2, 4, 5), False), ((0, 4, 5), True), ((5,), True), ((0, 2, 5), False)]
)
def test_shift_back_needs_a_strict_majority(cohort: tuple[int, ...], shifted: bool) -> None:
    opened = experiment("attack.kind=shb")
    question = Ask(3, "full", {"x": opened.problem.initial() + 1.0}, cohort=cohort)
    got = read(opened, question, coalition(opened)[5].answer(question))
    step_back = np.ones(opened.problem.dim)
    if shifted:
        assert got == pytest.approx(step_back)
    else:
        assert got == pytest.approx(honest(opened, question, tuple(i for i in cohort if i < 4)).mean(axis=0), abs=1e-15)


def test_a_cohort_of_attackers_alone_has_no_honest_message_to_look_at() -> None:
    opened = experiment("attack.kind=ipm", "attack.view=omniscient", "attack.eps=2.0")
    question = ask(opened, cohort=(4, 5))
    four, five = (read(opened, question, member.answer(question)) for member in coalition(opened).values())
    assert four == pytest.approx(-2 * honest(opened, question, (4,))[0])
    assert five == pytest.approx(-2 * honest(opened, question, (5,))[0])


def test_silence_and_not_a_number() -> None:
    opened = experiment("attack.kind=silence")
    assert coalition(opened)[4].answer(ask(opened)) is None
    opened = experiment("attack.kind=nan")
    packet = coalition(opened)[4].answer(ask(opened))
    assert isinstance(packet, Packet)
    assert np.isnan(packet.values).all()


class Counting:
    """A problem that notes whose gradients are computed."""

    def __init__(self, opened: Experiment) -> None:
        self.asked: list[int] = []
        self._problem = opened.problem

    def __getattr__(self, name: str) -> Any:
        return getattr(self._problem, name)

    def oracle(self, worker: int, *, flipped: bool = False) -> Oracle:
        self.asked.append(worker)
        return self._problem.oracle(worker, flipped=flipped)


def counted(*overrides: str) -> tuple[Experiment, list[int]]:
    return counted_problem(experiment(*overrides))


def counted_problem(opened: Experiment) -> tuple[Experiment, list[int]]:
    problem = Counting(opened)
    return replace(opened, problem=cast(Problem, problem)), problem.asked


@pytest.mark.parametrize("view", ["own", "coalition", "omniscient"])
@pytest.mark.parametrize("attack", ["bf", "lf", "big", "nan", "inf", "zero", "gaussian", "silence", "wire"])
def test_who_needs_no_messages_of_others_computes_none(attack: str, view: str) -> None:
    opened, computed = counted(f"attack.kind={attack}", f"attack.view={view}")
    for member in coalition(opened).values():
        member.answer(ask(opened))
    assert computed == ([4, 5] if attack in ("bf", "lf", "wire") else [])  # the others do not even look at their own


@pytest.mark.parametrize("attack", ["big", "nan", "zero", "gaussian"])
def test_who_looks_at_nothing_computes_nothing_where_workers_keep_state_either(attack: str) -> None:
    text = TEXT.partition("[strategy]")[0] + MOMENTUM
    base = experiment().problem
    config = resolve(parse(text, [f"attack.kind={attack}"]), base)
    opened, computed = counted_problem(Experiment(config, base))
    members = coalition(opened)
    x = opened.problem.initial()
    for k in (1, 2):
        for member in members.values():
            packet = member.answer(Ask(k, "momentum", {"x": x}))
            assert isinstance(packet, Packet)
            assert packet.version == k - 1  # as of a worker that has answered all along
    assert computed == []


@pytest.mark.parametrize("attack", ["alie", "foe", "min-max", "mimic", "rop", "shb", "fang", "alie attack.jitter=1"])
def test_every_message_is_computed_once_a_round_for_all_members(attack: str) -> None:
    opened, computed = counted(*f"attack.kind={attack}".split(), "attack.view=omniscient")
    members = coalition(opened)
    for k in (3, 4):
        computed.clear()
        for member in members.values():
            member.answer(ask(opened, round_=k))
        assert sorted(computed) == [0, 2]  # not their own, which they do not look at


def test_a_round_leaves_nothing_behind_where_workers_keep_no_state() -> None:
    opened = experiment("attack.kind=alie", "attack.view=omniscient")
    assert opened.config.attack is not None
    brain = Coalition(opened, opened.config.attack)
    member = CoalitionMember(brain, 5)
    for k, cohort in ((3, (0, 1, 2, 5)), (4, (3, 5))):
        member.answer(ask(opened, cohort=cohort, round_=k))
        assert {worker for worker, _ in brain._simulated.known} == set(cohort) - {5}
        rows = brain._round.rows if brain._round else None
        assert rows is not None
        for row, worker in zip(rows, cohort, strict=False):
            shadow = brain._simulated.known[worker, False]
            assert shadow.row is not None
            assert np.shares_memory(shadow.row, row)  # one vector a message
            assert shadow.packet is None


def test_a_mimic_sends_the_very_packet_of_the_other() -> None:
    opened = experiment("attack.kind=mimic", "attack.target=2", "compressor.kind=rand-k", "compressor.k=65")
    question = ask(opened)
    original = HonestWorker(opened, 2).answer(question)
    for member in coalition(opened).values():
        copy = member.answer(question)
        assert isinstance(copy, Packet)
        assert (copy.seed, copy.values.tobytes()) == (original.seed, original.values.tobytes())


def test_a_mimic_that_cannot_send_another_ones_packet_aims_at_what_it_says() -> None:
    # Under perm-k every worker has coordinates of its own.
    opened = experiment("attack.kind=mimic", "attack.target=2")
    assert isinstance(opened.method, ByzVRMarinaPP)
    opened.config._method = replace(opened.method, compressor=PermK(parts=6))
    question = replace(ask(opened), seed=8)
    original = read(opened, question, HonestWorker(opened, 2).answer(question), 2)
    aimed = read(opened, question, coalition(opened)[4].answer(question), 4)
    assert not np.flatnonzero(aimed * original).size
    assert not np.array_equal(aimed, original)


def test_the_last_aggregate_is_told_by_the_last_step() -> None:
    opened = experiment("attack.kind=rop", "attack.location=1.0", "attack.z=1e-12", "attack.view=omniscient")
    member = coalition(opened)[4]
    x, g = opened.problem.initial(), np.linspace(-1.0, 1.0, opened.problem.dim)
    first = Ask(1, "full", {"x": x}, cohort=COHORT)
    assert read(opened, first, member.answer(first)) == pytest.approx(honest(opened, first, (0, 2)).mean(axis=0))
    second = Ask(2, "full", {"x": x - 0.1 * g}, cohort=COHORT)
    assert read(opened, second, member.answer(second)) == pytest.approx(g)
    fourth = Ask(4, "full", {"x": x - 0.1 * g}, cohort=COHORT)  # the third was missed
    assert read(opened, fourth, member.answer(fourth)) == pytest.approx(honest(opened, fourth, (0, 2)).mean(axis=0))
    fifth = ask(opened, round_=5)  # differences are no neighbours of g
    assert read(opened, fifth, member.answer(fifth)) == pytest.approx(honest(opened, fifth, (0, 2)).mean(axis=0))


def test_without_knowing_the_cohort_the_whole_federation_is_taken_for_it() -> None:
    seen: list[View] = []

    @dataclass(frozen=True, kw_only=True)
    class Curious(Attack):
        kind: str = "curious"

        def _target(self, view: View, rng: np.random.Generator) -> Vector:
            seen.append(view)
            return view.own

    opened = experiment()
    brain = Coalition(opened, Curious())
    members = [CoalitionMember(brain, i) for i in (4, 5)]
    for cohort in (COHORT, (0, 1, 2, 3, 5), None):
        members[1].answer(ask(opened, cohort=cohort, round_=3 if cohort else 4))
    assert [(view.sampled, view.sampled_byzantine) for view in seen] == [(4, 2), (5, 1), (6, 2)]


@pytest.mark.parametrize(("changes", "known"), [((), True), (("strategy.server={kind='momentum'}",), False)])
def test_an_attacker_knows_the_gamma_of_the_round(changes: tuple[str, ...], known: bool) -> None:
    seen: list[View] = []

    @dataclass(frozen=True, kw_only=True)
    class Curious(Attack):
        kind: str = "curious"

        def _target(self, view: View, rng: np.random.Generator) -> Vector:
            seen.append(view)
            return view.own

    linear = "strategy.gamma={kind='linear',start=0.8,rounds=4}"
    opened = experiment("strategy.kind=robust-sgd", "strategy.rounds=4", linear, *changes)
    member = CoalitionMember(Coalition(opened, Curious()), 4)
    x, g = opened.problem.initial(), np.ones(opened.problem.dim)
    member.answer(Ask(2, "gradient", {"x": x}, cohort=COHORT))
    member.answer(Ask(3, "gradient", {"x": x - 0.5 * 0.6 * g}, cohort=COHORT, step_scale=0.5))  # gamma of round 2: 0.6
    assert [view.gamma for view in seen] == pytest.approx([0.6, 0.5 * 0.4])
    assert seen[0].g is None
    assert (seen[1].g is not None) == known
    if known:
        assert seen[1].g == pytest.approx(g)


@pytest.mark.parametrize("attack", [*COLLUSIONS, "fang", "alie attack.jitter=1.0"])
def test_a_diverged_model_crashes_no_attacker(attack: str) -> None:
    opened = experiment(*f"attack.kind={attack}".split(), "attack.view=omniscient", "task.dtype=float32")
    x = np.full(opened.problem.dim, 1e38, np.float32)
    for k, point in ((1, x), (2, -3 * x), (3, x * np.nan)):
        question = Ask(k, "difference", {"x": point, "x_prev": x}, cohort=COHORT)
        with np.errstate(over="ignore", invalid="ignore"):
            for member in coalition(opened).values():
                assert isinstance(member.answer(question), Packet)


def test_the_searching_attack_runs_the_servers_own_pipeline() -> None:
    opened = experiment("attack.kind=foe", "attack.view=omniscient", "strategy.clip=false")
    question = ask(opened)
    rows = honest(opened, question, (0, 2))
    mean = rows.mean(axis=0)
    got = read(opened, question, coalition(opened)[4].answer(question))
    factor = float(np.dot(got, mean) / np.dot(mean, mean))
    assert got == pytest.approx(factor * mean, abs=1e-14)
    harm = {}
    for eps in (0.1, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0):
        attacked = np.concatenate([rows, [-eps * mean, -eps * mean]])
        moved = np.median(attacked, axis=0) - np.median(rows, axis=0)
        harm[eps] = np.linalg.norm(moved)
    assert harm[round(-factor, 6)] == pytest.approx(max(harm.values()))


def test_an_omniscient_attacker_that_is_told_no_cohort() -> None:
    opened = experiment("attack.kind=ipm", "attack.view=omniscient")
    with pytest.raises(ConfigError, match="needs the cohort"):
        coalition(opened)[4].answer(ask(opened, cohort=None))


# --- who is made for a node ---


def made(opened: Experiment, *, run: RunConfig | None = None, **node_config: str | float | bool) -> Worker:
    """The worker of a node config; its keys with an underscore for a hyphen."""
    node = NodeConfig.read({key.replace("_", "-"): value for key, value in node_config.items()})
    return make_worker(opened, node, run or RunConfig(""))


def test_the_node_config_says_who_a_node_is() -> None:
    opened = experiment("attack.kind=bf")
    assert isinstance(made(opened, partition_id=3), HonestWorker)
    attacker = made(opened, partition_id=5, attack="bf")
    assert isinstance(attacker, CoalitionMember)
    assert (attacker.index, made(opened, partition_id=0).index) == (5, 0)


@pytest.mark.parametrize("index", [-1, 6, 1.0, "2"])
def test_a_seat_that_there_is_not(index: str | float) -> None:
    with pytest.raises(ConfigError, match=r"partition-id = .*: must be 0 \.\. 5"):
        made(experiment(), partition_id=index)
    with pytest.raises(ConfigError, match=r"partition-id is missing; give --node-config .*, I from 0 \.\. 5"):
        made(experiment())


def test_the_number_of_partitions_must_agree() -> None:
    assert made(experiment(), partition_id=1, num_partitions=6).index == 1
    with pytest.raises(ConfigError, match=r"num-partitions = 4: must be federation.clients = 6"):
        made(experiment(), partition_id=1, num_partitions=4)


def test_the_run_config_may_let_the_last_seats_attack() -> None:
    opened = experiment("attack.kind=bf")
    for seat, kind in ((3, HonestWorker), (4, CoalitionMember), (5, CoalitionMember)):
        assert isinstance(made(opened, run=RunConfig("", last_attack=True), partition_id=seat), kind)
        assert isinstance(made(opened, partition_id=seat), HonestWorker)


def test_a_key_of_the_node_config_that_means_nothing() -> None:
    with pytest.raises(ConfigError, match=r"node config: atack: unknown key; did you mean attack\?"):
        NodeConfig.read({"partition-id": 0, "atack": "bf"})


def test_the_node_config_has_parameters_of_the_attack() -> None:
    attacker = made(experiment(), partition_id=5, attack="foe", set="attack.eps=7.5 attack.view=coalition")
    assert isinstance(attacker, CoalitionMember)
    attack: object = attacker._coalition._attack
    assert isinstance(attack, FOE)
    assert (attack.eps, attack.view) == (7.5, "coalition")
    with pytest.raises(ConfigError, match=r"node config: set = \"attack.eps='1\": No closing quotation"):
        made(experiment(), partition_id=5, attack="foe", set="attack.eps='1")


def test_an_unknown_attack_in_the_node_config() -> None:
    with pytest.raises(ConfigError, match=r'kind = "bff": unknown; did you mean bf\?'):
        made(experiment(), partition_id=5, attack="bff")


def test_a_worker_is_made_once_for_each_node_of_a_run() -> None:
    run = RunConfig("deploy/configs/flower.toml")
    nodes = Nodes(run, run.load(), None)
    one = nodes.worker(NodeConfig(partition=1))
    assert nodes.worker(NodeConfig(partition=1)) is one
    assert nodes.worker(NodeConfig(partition=2)) is not one
