"""RobustStrategy on a grid of this process: what it asks, whom it believes, what it writes down."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy

from link import codec, flwr_compat
from strategies.aggregators import CoordinateMedian, Mean
from strategies.byz_vr_marina_pp import ByzVRMarinaPP
from strategies.compressors import Identity
from strategies.deadline import LearntDeadline
from strategies.method import HELD, Ask, Evaluation, Packet, Vector
from strategies.randomness import Role, stream
from strategies.robust_sgd import RobustSGD
from strategies.strategy import NoClientsError, RobustStrategy, RoundRecord, StalledError
from tests.local_grid import FIRST_NODE, LocalGrid

N = 4
X0 = np.array([8.0, -4.0])
SGD = RobustSGD(n=N, f=1, gamma=0.5, cohort=N, batch=0, aggregator=CoordinateMedian(), compressor=Identity())
MARINA = ByzVRMarinaPP(
    n=N, f=1, gamma=0.5, p=0.5, cohort=2, full_cohort=N, batch=1, alpha=2.0, aggregator=CoordinateMedian(),
    compressor=Identity(),
)  # fmt: skip


def honest(ask: Ask) -> Packet:
    """The gradient of ||x||^2 / 2, or its difference."""
    v = ask.vectors["x"] - ask.vectors["x_prev"] if ask.kind == "difference" else ask.vectors["x"]
    return Packet("identity", len(v), v.copy())


def good(worker: int, message: Message) -> Iterator[Message]:
    """An honest worker's answer."""
    ask = codec.read_ask(message.content)
    yield Message(codec.write_packet(honest(ask), ask), reply_to=message)


def spoilt(bad: Callable[[int, Message], Iterable[Message]], worker: int = 2) -> LocalGrid:
    """A grid on which one worker misbehaves."""
    return LocalGrid(N, lambda i, message: bad(i, message) if i == worker else good(i, message))


def strategy(grid: LocalGrid, method: Any = SGD, **options: Any) -> RobustStrategy:
    return RobustStrategy(method, codec=codec, roster=grid, clients=N, **options)


def run(grid: LocalGrid, rounds: int, method: Any = SGD, **options: Any) -> tuple[list[RoundRecord], Vector]:
    records: list[RoundRecord] = []
    driven = strategy(grid, method, **{"on_round": records.append, **options})
    result = driven.start(grid, codec.to_arrays(X0), rounds)
    return records, codec.from_arrays(result.arrays)


# --- an honest run ---


def test_a_run_by_hand() -> None:
    grid = LocalGrid(N, good)
    records, x = run(grid, 3)
    assert x.tolist() == [1.0, -0.5]
    assert [record.round for record in records] == [1, 2, 3]
    first = records[0]
    assert (first.kind, first.cohort, first.accepted, first.rejected) == ("gradient", [0, 1, 2, 3], [0, 1, 2, 3], [])
    assert (first.lam, list(first.clipped), first.note, first.step_norm) == (None, [], "", 0.0)
    assert records[1].step_norm == pytest.approx(np.linalg.norm(X0 / 2))
    assert all(record.round_s > 0 for record in records)
    assert (records[0].bytes_up, records[0].bytes_down) == (0, 0)


def test_the_instructions_of_a_round() -> None:
    grid = LocalGrid(N, good)
    run(grid, 2, deadline_s=7.0)
    assert grid.timeouts == [7.0, 7.0]
    for k, batch in enumerate(grid.pushed, start=1):
        assert [m.metadata.dst_node_id for m in batch] == [FIRST_NODE + i for i in range(N)]
        assert {(m.metadata.group_id, m.metadata.message_type, m.metadata.ttl) for m in batch} == {
            (str(k), "train", 7.0)
        }
        assert len({id(m.content) for m in batch}) == 1, "one content for all, so that it is serialised once"
        assert codec.read_ask(batch[0].content).round == k


def test_the_cohort_comes_from_its_own_stream() -> None:
    grid = LocalGrid(N, good)
    records, _ = run(grid, 12, MARINA, seed=9)
    assert {record.kind for record in records} == {"full", "difference"}
    assert records[0].kind == "full"
    for record in records:
        size = N if record.kind == "full" else 2
        drawn = stream(9, Role.COHORT, round_=record.round).permutation(N)[:size]
        assert record.cohort == sorted(drawn.tolist())


def test_the_same_seed_gives_the_same_run() -> None:
    first, second, other = (run(LocalGrid(N, good), 9, MARINA, seed=seed) for seed in (1, 1, 2))
    assert first[1].tobytes() == second[1].tobytes()
    assert [r.kind for r in first[0]] == [r.kind for r in second[0]]
    assert [(r.kind, r.cohort) for r in first[0]] != [(r.kind, r.cohort) for r in other[0]]


def test_the_order_of_arrival_changes_nothing() -> None:
    class Shuffled(LocalGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
            return super().send_and_receive(messages, timeout=timeout)[::-1]

    def own(worker: int, message: Message) -> Iterator[Message]:
        ask = codec.read_ask(message.content)
        packet = Packet("identity", 2, honest(ask).values + 0.1 * worker)
        yield Message(codec.write_packet(packet, ask), reply_to=message)

    method = RobustSGD(n=N, f=0, gamma=0.3, cohort=N, batch=0, aggregator=Mean(), compressor=Identity())
    straight, reverse = (run(grid(N, own), 5, method) for grid in (LocalGrid, Shuffled))
    assert straight[1].tobytes() == reverse[1].tobytes()
    assert reverse[0][0].accepted == [0, 1, 2, 3]


def test_clipping_is_reported_by_worker() -> None:
    def tenfold(worker: int, message: Message) -> Iterator[Message]:
        ask = codec.read_ask(message.content)
        packet = Packet("identity", 2, 10 * honest(ask).values)
        yield Message(codec.write_packet(packet, ask), reply_to=message)

    records, _ = run(spoilt(tenfold), 12, MARINA)
    clipped = [record for record in records if record.clipped]
    assert clipped
    assert all(record.kind == "difference" and list(record.clipped) == [2] for record in clipped)
    assert all(record.lam == pytest.approx(2 * record.step_norm) for record in clipped)
    assert all(record.lam is None for record in records if record.kind == "full")


def test_the_evidence_of_a_round_is_that_of_its_accepted_workers() -> None:
    def tenfold(worker: int, message: Message) -> Iterator[Message]:
        ask = codec.read_ask(message.content)
        packet = Packet("identity", 2, -10 * honest(ask).values)
        yield Message(codec.write_packet(packet, ask), reply_to=message)

    records, _ = run(spoilt(tenfold), 12, MARINA)
    assert all(record.names == [f"client-{worker}" for worker in record.cohort] for record in records)
    first, full = records[0].evidence, records[0]
    assert first is not None
    assert (full.accepted, first.workers) == ([0, 1, 2, 3], [0, 1, 2, 3])
    assert first.cosine == pytest.approx([1, 1, -1, 1])
    assert not first.kept
    assert first.same == [[0, 1, 3]]
    clipped = next(record for record in records if record.clipped)
    assert clipped.evidence is not None
    assert clipped.evidence.of([2]).kept == pytest.approx([2 / 10])


def test_the_names_of_the_late_are_those_since_the_round_before() -> None:
    grid = LocalGrid(N, good)
    grid.late_names = iter([[], ["client-3"]])
    records, _ = run(grid, 2)
    assert [record.late for record in records] == [[], ["client-3"]]


# --- replies that do not count ---


def changed(round_: int | None = None, **fields: Any) -> Callable[[int, Message], Iterator[Message]]:
    """Answer well but for the round or some fields of the packet."""

    def answer(worker: int, message: Message) -> Iterator[Message]:
        ask = codec.read_ask(message.content)
        packet = replace(honest(ask), **fields)
        told = ask if round_ is None else replace(ask, round=round_)
        yield Message(codec.write_packet(packet, told), reply_to=message)

    return answer


def twice(worker: int, message: Message) -> Iterator[Message]:
    yield from good(worker, message)
    yield from good(worker, message)


def silent(worker: int, message: Message) -> Iterator[Message]:
    yield from ()


def failing(worker: int, message: Message) -> Iterator[Message]:
    yield Message(Error(2, "ValueError: no\ndata"), reply_to=message)


def nothing(worker: int, message: Message) -> Iterator[Message]:
    yield Message(RecordDict(), reply_to=message)


BAD = {
    "silent": (silent, "silent: no reply within 30 s"),
    "twice": (twice, "duplicate: more than one reply"),
    "failing": (failing, "error: ValueError: no?data"),
    "nothing": (nothing, "undecodable: no packet in the reply"),
    "nan": (changed(values=np.array([1.0, np.nan])), "not finite: NaN or infinite values"),
    "short": (changed(values=np.ones(1)), "wrong shape: a packet of 8 bytes, expected 16"),
    "old": (changed(round_=0), "wrong round: 0, expected 1"),
    "other kind": (changed(kind="rand-k"), "wrong kind: 'rand-k', expected 'identity'"),
    "seeded": (changed(seed=4), "wrong shape: a packet of 24 bytes, expected 16"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_reply_costs_its_senders_voice_and_nothing_else(fault: str) -> None:
    bad, reason = BAD[fault]
    records, x = run(spoilt(bad), 3)
    assert records[0].rejected == [("client-2", reason)]
    assert all(record.accepted == [0, 1, 3] and len(record.rejected) == 1 for record in records)
    assert x.tolist() == [1.0, -0.5]


def test_a_duplicate_is_believed_in_neither_form() -> None:
    def first_good_then_bad(worker: int, message: Message) -> Iterator[Message]:
        yield from good(worker, message)
        yield from nothing(worker, message)

    records, _ = run(spoilt(first_good_then_bad), 1)
    assert records[0].rejected == [("client-2", "duplicate: more than one reply")]


def test_a_reply_to_nothing_is_no_reply(caplog: pytest.LogCaptureFixture) -> None:
    def astray(worker: int, message: Message) -> Iterator[Message]:
        yield from good(worker, message)
        stranger = Message(RecordDict(), message.metadata.dst_node_id, "train")
        flwr_compat.stamp(stranger, message_id="77-7", run_id=1)
        yield Message(codec.write_packet(Packet("identity", 2, X0), Ask(1, "gradient", {})), reply_to=stranger)

    records, x = run(spoilt(astray), 1)
    assert records[0].accepted == [0, 1, 2, 3]
    assert x.tolist() == [4.0, -2.0]
    assert "node 102 answers no instruction of it" in caplog.text


def test_an_error_in_the_name_of_another_node_counts_against_the_one_that_was_asked() -> None:
    def lost(worker: int, message: Message) -> Iterator[Message]:
        reply = Message(Error(5, "disconnected: gone"), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = flwr_compat.SERVER_NODE_ID  # as a SuperLink does it
        yield reply

    records, _ = run(spoilt(lost), 1)
    assert records[0].rejected == [("client-2", "disconnected: gone")]


def test_nobody_answers() -> None:
    records: list[RoundRecord] = []
    with pytest.raises(StalledError) as stalled:
        run(LocalGrid(N, silent), 9, on_round=records.append, idle_timeout_s=0.01)
    assert stalled.value.model.tolist() == X0.tolist()
    assert [record.note for record in records] == ["no usable reply; the model stays"] * 2
    assert [len(record.rejected) for record in records] == [4, 4]
    records = []
    with pytest.raises(StalledError):
        run(LocalGrid(N, silent), 9, MARINA, on_round=records.append, idle_timeout_s=0.01)
    assert [record.kind for record in records] == ["full"] * 2
    assert all(record.incomplete for record in records)
    assert records[0].note == "no quorum: 0 usable replies of the 3 that a full round needs; g stays"


def test_the_log_warns_once_for_each_client_and_reason(caplog: pytest.LogCaptureFixture) -> None:
    def moody(worker: int, message: Message) -> Iterable[Message]:
        return nothing(worker, message) if codec.read_ask(message.content).round % 2 else silent(worker, message)

    caplog.set_level(logging.INFO, "breakwater.strategy")
    run(LocalGrid(N, lambda i, m: good(i, m) if i < 2 else moody(i, m)), 6)
    told = [record for record in caplog.records if "rejected" in record.getMessage()]
    assert len(told) == 12
    loud = [record.getMessage() for record in told if record.levelno == logging.WARNING]
    assert len(loud) == 4
    assert sum("client-2 rejected: silent" in line for line in loud) == 1
    assert sum("client-3 rejected: undecodable" in line for line in loud) == 1
    assert all(record.levelno == logging.INFO for record in told if record.getMessage() not in loud)
    assert all("repetitions" in line for line in loud)


# --- who can be reached ---


def test_only_connected_workers_are_asked() -> None:
    grid = LocalGrid(N, good)
    grid.online = {1, 3}
    records, _ = run(grid, 1)
    assert records[0].cohort == [1, 3]
    assert records[0].rejected == []


def test_nobody_connected_ends_the_run_after_a_while() -> None:
    grid = LocalGrid(N, good)
    grid.online = set()
    with pytest.raises(NoClientsError, match=r"no client connected for 3 s \(federation\.join_timeout_s\)"):
        run(grid, 1, idle_timeout_s=3.0)
    assert grid.pushed == []


def test_nobody_connected_for_a_moment_does_not(caplog: pytest.LogCaptureFixture) -> None:
    class Late(LocalGrid):
        def wait(self, count: int, timeout: float) -> int:
            self.online = {0, 1, 2}
            return 3

    grid = Late(N, good)
    grid.online = set()
    records, _ = run(grid, 1, idle_timeout_s=3.0)
    assert records[0].cohort == [0, 1, 2]
    assert "no client is connected; waiting for up to 3 s" in caplog.text


@pytest.mark.parametrize(("reveal", "expected"), [(True, (1, 3)), (False, None)])
def test_the_cohort_is_told_only_where_it_is_to_be(reveal: bool, expected: tuple[int, ...] | None) -> None:
    grid = LocalGrid(N, good)
    grid.online = {1, 3}
    run(grid, 1, reveal_cohort=reveal)
    assert codec.read_ask(grid.pushed[0][0].content).cohort == expected
    assert ("cohort" in grid.pushed[0][0].content.config_records["ask"]) is reveal


# --- metrics, evaluation, the end ---


def test_traffic_is_that_of_the_round() -> None:
    grid = LocalGrid(N, good)
    grid.measured = iter([(10, 100), (15, 130), (15, 130), (35, 190)])
    records, _ = run(grid, 2)
    assert [(record.bytes_up, record.bytes_down) for record in records] == [(5, 30), (20, 60)]


@pytest.mark.parametrize(
    ("rounds", "every", "expected"), [(6, 2, [2, 4, 6]), (7, 3, [3, 6, 7]), (2, 50, [2]), (3, 1, [1, 2, 3])]
)
def test_when_the_model_is_measured(rounds: int, every: int, expected: list[int]) -> None:
    seen: list[Vector] = []

    def evaluate(x: Vector) -> Evaluation:
        seen.append(x)
        return Evaluation(loss=float(np.sum(x * x)), accuracy=0.5)

    records, x = run(LocalGrid(N, good), rounds, every=every, evaluate=evaluate)
    assert [record.round for record in records if record.evaluation] == expected
    assert seen[-1].tolist() == x.tolist(), "round r measures x^r"
    last = records[-1].evaluation
    assert last is not None
    assert last.loss == pytest.approx(80 * 0.25**rounds)


def test_a_model_that_is_not_finite_ends_the_run(caplog: pytest.LogCaptureFixture) -> None:
    def huge(worker: int, message: Message) -> Iterator[Message]:
        ask = codec.read_ask(message.content)
        packet = Packet("identity", 2, -1e200 * ask.vectors["x"])
        yield Message(codec.write_packet(packet, ask), reply_to=message)

    measured: list[Vector] = []

    def evaluate(x: Vector) -> Evaluation:
        measured.append(x)
        return Evaluation(loss=float("nan"), accuracy=0.0)

    # The gradients, -8e200 and 4e200, are finite and pass; the step of 1e120 times as much is not.
    method = RobustSGD(n=N, f=1, gamma=1e120, cohort=N, batch=0, aggregator=CoordinateMedian(), compressor=Identity())
    records, x = run(LocalGrid(N, huge), 9, method, evaluate=evaluate, every=5)
    assert not np.isfinite(x).all()
    assert [record.round for record in records] == [1]
    assert records[-1].note == "diverged: model or loss is not finite after round 1"
    assert records[-1].evaluation is not None
    assert len(measured) == 1
    assert "the run ends here" in caplog.text


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    records, _ = run(LocalGrid(N, good), 9, evaluate=lambda x: Evaluation(loss=float("inf"), accuracy=0.0), every=2)
    assert [record.round for record in records] == [1, 2]
    assert records[-1].note.startswith("diverged: ")


def test_flowers_own_evaluation_function_is_called() -> None:
    grid = LocalGrid(N, good)
    result = strategy(grid, every=2).start(
        grid, codec.to_arrays(X0), 3, evaluate_fn=lambda k, arrays: MetricRecord({"x": codec.from_arrays(arrays)[0]})
    )
    assert {k: record["x"] for k, record in result.evaluate_metrics_serverapp.items()} == {2: 2.0, 3: 1.0}


def test_the_smaller_deadline_counts() -> None:
    grid = LocalGrid(N, good)
    strategy(grid, deadline_s=30.0).start(grid, codec.to_arrays(X0), 1, timeout=2.0)
    assert grid.timeouts == [2.0]


# --- Flower's own loop ---


def test_flowers_own_loop_drives_it_to_the_same_model() -> None:
    _, x = run(LocalGrid(N, good), 8, MARINA, seed=3)
    grid = LocalGrid(N, good)
    driven = strategy(grid, MARINA, seed=3)
    result = Strategy.start(driven, grid, codec.to_arrays(X0), 8)
    assert codec.from_arrays(result.arrays).tobytes() == x.tobytes()
    assert sorted(result.train_metrics_clientapp) == list(range(1, 9))
    assert not result.evaluate_metrics_clientapp


def test_closing_a_round_that_was_not_opened() -> None:
    with pytest.raises(RuntimeError, match="aggregate_train without configure_train"):
        strategy(LocalGrid(N, good)).aggregate_train(1, [])


def test_clients_are_never_asked_to_evaluate() -> None:
    grid = LocalGrid(N, good)
    driven = strategy(grid)
    assert list(driven.configure_evaluate(1, ArrayRecord(), ConfigRecord(), grid)) == []
    assert driven.aggregate_evaluate(1, []) is None


def test_the_summary_names_the_method(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "breakwater.strategy")
    strategy(LocalGrid(N, good)).summary()
    assert "RobustSGD(n=4, f=1, gamma=0.5" in caplog.text


# --- workers that keep state ---


class Remembering(RobustSGD):
    """Robust SGD whose workers must not miss a round; worker 2 is sent its state again in round 2."""

    def resync(self, state: Any, i: int) -> dict[str, Vector]:
        return {HELD: np.array([7.0, 7.0])} if (i, state.round) == (2, 2) else {}

    def accepts_version(self, state: Any, i: int, version: int) -> bool:
        return bool(version == state.round - 1)


def versioned(worker: int, message: Message) -> Iterator[Message]:
    """A reply that builds on the round before; worker 1 has lost its state in round 2 and says so in round 3."""
    ask = codec.read_ask(message.content)
    if (worker, ask.round) == (1, 3):
        yield Message(Error(flwr_compat.APP_RAISED, "stale state: there is none"), reply_to=message)
        return
    version = 0 if (worker, ask.round) == (1, 2) else ask.round - 1
    packet = replace(honest(ask), version=version)
    yield Message(codec.write_packet(packet, ask), reply_to=message)


def test_a_reply_that_builds_on_another_state_is_rejected_and_its_worker_resynchronised() -> None:
    method = Remembering(n=N, f=1, gamma=0.5, cohort=N, batch=0, aggregator=Mean(), compressor=Identity())
    grid = LocalGrid(N, versioned)
    records, _ = run(grid, 3, method)
    assert [record.accepted for record in records] == [[0, 1, 2, 3], [0, 2, 3], [0, 2, 3]]
    (name, reason), (_, told) = records[1].rejected[0], records[2].rejected[0]
    assert name == "client-1"
    assert reason == "stale state: the reply builds on version 0, which is not this round's"
    assert told == "stale state: there is none"
    assert [list(record.resynced) for record in records] == [[], [2], []]
    extra = [codec.read_ask(message.content).vectors.get(HELD) for message in grid.pushed[1]]
    assert [None if v is None else v.tolist() for v in extra] == [None, None, [7, 7], None]
    assert len({id(message.content) for message in grid.pushed[1]}) == 2, "the others share one content"


# --- deadlines and quorums --------------------------------------------------------------------------------------------


def test_a_deadline_is_learnt_from_what_rounds_take() -> None:
    grid = LocalGrid(N, good)
    learnt = LearntDeadline(N, 1)
    grid.took = [0.1, 0.5, 0.4, 9.0]
    records, _ = run(grid, 8, deadline_s=learnt)
    # The third of four replies counts, as one of them may be Byzantine: 20 x 0.5 s, once five rounds are known.
    assert grid.timeouts == [30.0] * 5 + [10.0] * 3
    assert [record.deadline_s for record in records] == grid.timeouts
    assert grid.pushed[-1][0].metadata.ttl == 10.0


def test_the_timeout_that_flower_gives_is_never_exceeded() -> None:
    grid = LocalGrid(N, good)
    driven = strategy(grid, deadline_s=LearntDeadline(N, 1))
    driven.start(grid, codec.to_arrays(X0), 2, timeout=3.0)
    assert grid.timeouts == [3.0, 3.0]


def test_too_few_usable_replies_for_the_quorum_are_as_none() -> None:
    grid = spoilt(lambda i, message: [], 2)
    records: list[RoundRecord] = []
    with pytest.raises(StalledError) as stalled:
        run(grid, 9, quorum=0.9, on_round=records.append, idle_timeout_s=0.01)
    assert stalled.value.model.tolist() == X0.tolist()
    assert len(records) == 2
    for record in records:
        assert (list(record.accepted), len(record.rejected)) == ([], 4)
        why = "no quorum: 3 usable replies of the 4 that federation.quorum wants; none is used"
        assert [reason for name, reason in record.rejected if name != "client-2"] == [why] * 3
        assert record.note == f"{why}; no usable reply; the model stays"
    enough, moved = run(spoilt(lambda i, message: [], 2), 2, quorum=0.75)
    assert [list(record.accepted) for record in enough] == [[0, 1, 3]] * 2
    assert moved.tolist() != X0.tolist()


def test_the_quorum_of_the_config_comes_before_that_of_the_method() -> None:
    grid = LocalGrid(N, good)
    records, _ = run(grid, 2, MARINA, quorum=1.0)
    assert [record.note for record in records] == ["", ""]
    grid.online = {0, 1, 3}
    records = []
    with pytest.raises(StalledError):
        run(grid, 9, MARINA, quorum=1.0, on_round=records.append, idle_timeout_s=0.01)
    assert len(records) == 2
    assert all("none is used; no quorum: 0 usable replies" in record.note for record in records)
