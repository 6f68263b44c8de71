"""Numbers that a client may send to do harm: in its packet, beside it, for the wrong round or in another's name.

Each is rejected, with its reason beside the client's name, or harmless. Harmless means: the coordinate-wise median, of
three honest rows and one of the client's, stays among the honest ones, and the model is finite.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from experiment.config import Config, load
from experiment.opened import open_experiment
from link import codec, flwr_compat
from strategies.aggregators import (
    Bulyan,
    CenteredClipping,
    ComparativeGradientElimination,
    CoordinateMedian,
    CovarianceFilter,
    DivideAndConquer,
    FLTrust,
    GeometricMedian,
    Krum,
    Mean,
    MeanAroundMedian,
    MinimumDiameterAveraging,
    MoNNA,
    MultiKrum,
    Rule,
    SignGuard,
    SmallestVarianceAveraging,
    TrimmedMean,
)
from strategies.aggregators.preaggregators import AdaptiveRobustClipping, Bucketing, NearestNeighbourMixing
from strategies.compressors import QSGD, RandK, TopK
from strategies.method import Ask, Compressor, Packet, PacketLayout, Rows, Vector
from strategies.robust_sgd import RobustSGD
from strategies.strategy import RobustStrategy, RoundRecord
from tests.forms import FORMS
from tests.local_grid import LocalGrid, federation
from tests.shortened import schedule_within
from tests.toys import root_of
from tests.unit.client.test_methods_under_attack import SMALL, methods

N, HOSTILE = 4, 3
DIM = 200
X0 = np.linspace(-2.0, 3.0, DIM)


@dataclass(frozen=True)
class Parts:
    """The bytes of a packet, cut up."""

    layout: PacketLayout
    values: bytes
    marks: bytes
    seed: bytes
    scale: bytes
    label: bytes

    @classmethod
    def of(cls, data: bytes, layout: PacketLayout) -> "Parts":
        ends = np.cumsum([layout.count * layout.dtype.itemsize, layout.marks, 8 * layout.seed, 8 * layout.scale])
        values, marks, seed, scale, label = (bytes(part) for part in np.split(np.frombuffer(data, np.uint8), ends))
        return cls(layout, values, marks, seed, scale, label)

    def content(self) -> RecordDict:
        data = self.values + self.marks + self.seed + self.scale + self.label
        return RecordDict({"p": ConfigRecord({"": data})})


Change = Callable[[Parts, Ask, Compressor], Parts | None]
"""What a hostile client makes of a good packet; None where it can do no such thing with this form."""


def number(value: float, *, alternating: bool = False) -> Change:
    """All values, or where they are codes the scale, are this number, or the largest of their type."""

    def change(parts: Parts, ask: Ask, form: Compressor) -> Parts:
        if parts.layout.scale:
            return replace(parts, scale=np.array(abs(value), "<f8").tobytes())
        dtype = parts.layout.dtype
        values = np.full(parts.layout.count, np.clip(value, -np.finfo(dtype).max, np.finfo(dtype).max), dtype)
        if not math.isfinite(value):
            values[...] = value
        if alternating:
            values[::2] *= -1
        return replace(parts, values=values.tobytes())

    return change


def scale(value: float) -> Change:
    return lambda parts, ask, form: (
        replace(parts, scale=np.array(value, "<f8").tobytes()) if parts.layout.scale else None
    )


def seed(value: int) -> Change:
    return lambda parts, ask, form: replace(parts, seed=value.to_bytes(8, "little")) if parts.layout.seed else None


def ones(parts: Parts, ask: Ask, form: Compressor) -> Parts:
    """Every bit of values and marks is set: in 16 bits a NaN, in codes the lowest level or a filling bit."""
    return replace(parts, values=b"\xff" * len(parts.values))


def coordinates(change: Callable[[Any], None]) -> Change:
    """Coordinates as a list are changed in place; a bitmap gets all its bits."""

    def changed(parts: Parts, ask: Ask, form: Compressor) -> Parts | None:
        if not parts.marks:
            return None
        marks = np.frombuffer(parts.marks, np.uint8).copy()
        if isinstance(form, TopK) and 4 * parts.layout.count == len(marks):
            change(marks.view("<u4"))
        else:
            marks[...] = 0xFF
        return replace(parts, marks=marks.tobytes())

    return changed


def out_of_range(listed: Any) -> None:
    listed[-1] = DIM


def far_out_of_range(listed: Any) -> None:
    listed[-1] = 2**32 - 1


def repeated(listed: Any) -> None:
    listed[...] = listed[0]


def unsorted(listed: Any) -> None:
    listed[...] = listed[::-1].copy() if len(listed) > 1 else DIM + 1


def label(round_: Callable[[int], int], version: int = 0) -> Change:
    def change(parts: Parts, ask: Ask, form: Compressor) -> Parts:
        packet = Packet(form.kind, DIM, np.zeros(0), version=version)
        told = codec.write_packet(packet, replace(ask, round=round_(ask.round))).config_records["p"][""]
        assert isinstance(told, bytes)
        return replace(parts, label=told)

    return change


def label_of_bytes(text: bytes) -> Change:
    return lambda parts, ask, form: replace(parts, label=text)


ACCEPTED = ""
CHANGES: dict[str, tuple[Change, set[str]]] = {
    # value, or scale where values are codes -> how it is rejected; ACCEPTED: or not, and is harmless
    "NaN": (number(math.nan), {"not finite"}),
    "infinite": (number(math.inf), {"not finite"}),
    "minus infinite": (number(-math.inf), {"not finite"}),
    "largest float64": (number(np.finfo(np.float64).max), {ACCEPTED, "not finite", "bad scale"}),
    "largest, alternating": (number(np.finfo(np.float64).max, alternating=True), {ACCEPTED, "not finite", "bad scale"}),
    "largest power of two": (number(2.0**1023), {ACCEPTED, "not finite"}),
    "squares overflow": (number(2.0**600), {ACCEPTED}),
    "minus huge": (number(-(2.0**600)), {ACCEPTED}),
    "denormal": (number(5e-324), {ACCEPTED}),
    "minus denormal": (number(-5e-324, alternating=True), {ACCEPTED}),
    "zero": (number(0.0), {ACCEPTED, "bad scale"}),
    "negative scale": (scale(-1.0), {"bad scale"}),
    "minus zero for a scale": (scale(-0.0), {ACCEPTED, "bad scale"}),
    "odd scale": (scale(0.3), {ACCEPTED, "bad scale"}),
    "minus infinite scale": (scale(-math.inf), {"not finite"}),
    "all bits": (ones, {ACCEPTED, "not finite", "bad code"}),
    "seed 0": (seed(0), {ACCEPTED}),
    "seed 2^63": (seed(2**63), {ACCEPTED}),
    "seed 2^64 - 1": (seed(2**64 - 1), {ACCEPTED}),
    "index out of range": (coordinates(out_of_range), {"bad index"}),
    "index far out of range": (coordinates(far_out_of_range), {"bad index"}),
    "repeated index": (coordinates(repeated), {"bad index"}),
    "unsorted indices": (coordinates(unsorted), {"bad index"}),
    "last round": (label(lambda k: k - 1), {"wrong round"}),
    "next round": (label(lambda k: k + 1), {"wrong round"}),
    "last of all rounds": (label(lambda k: 2**64 - 1), {"wrong round"}),
    "version of the future": (label(lambda k: k, 2**63 - 1), {"stale state"}),
    "version out of range": (label(lambda k: k, 2**64 - 1), {"undecodable"}),
    "no label": (label_of_bytes(b""), {"undecodable", "wrong round", "wrong kind", "wrong shape"}),
    "label of ones": (label_of_bytes(b"\xff" * 8), {"undecodable"}),
}


def gradient(worker: int, x: Vector) -> Vector:
    """The honest rows differ a little, so that there is something to stay among."""
    return x + 0.01 * (worker - 1)


class Scene:
    """Robust SGD with the median over one compressor; the hostile client changes its replies, each otherwise."""

    def __init__(self, form: Compressor, changes: list[tuple[str, Change]]) -> None:
        self.form = form
        self.method = RobustSGD(n=N, f=1, gamma=0.1, cohort=N, batch=0, aggregator=CoordinateMedian(), compressor=form)
        self.changes = changes
        self.rows: dict[int, dict[int, Vector]] = {}  # round -> worker -> what an honest worker's packet reads as
        self.untouched: set[int] = set()  # rounds in which the form does not allow the change
        self.records: list[RoundRecord] = []
        self.models: list[Vector] = []

    def answer(self, worker: int, message: Message) -> Iterator[Message]:
        ask = codec.read_ask(message.content)
        form, v = self.method.compressor_for(ask, worker), gradient(worker, ask.vectors["x"])
        packet = form.compress(v, np.random.default_rng([worker, ask.round]))
        content = codec.write_packet(packet, ask)
        if worker == HOSTILE:
            data = content.config_records["p"][""]
            assert isinstance(data, bytes)
            parts = Parts.of(data, form.layout(DIM, v.dtype))
            changed = self.changes[ask.round - 1][1](parts, ask, form)
            if changed is None:
                self.untouched.add(ask.round)
            else:
                content = changed.content()
        else:
            self.rows.setdefault(ask.round, {})[worker] = form.decompress(packet, v.dtype)
        yield Message(content, reply_to=message)

    def run(self) -> None:
        grid = LocalGrid(N, self.answer)
        strategy = RobustStrategy(self.method, codec=codec, roster=grid, clients=N)

        def note(record: RoundRecord) -> None:
            self.records.append(record)
            self.models.append(strategy.state.x)

        strategy.on_round = note
        strategy.start(grid, codec.to_arrays(X0), len(self.changes))


def name_of(form: Compressor) -> str:
    return repr(form).replace(" ", "")


@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_every_hostile_number_is_rejected_with_its_reason_or_harmless(form: Compressor) -> None:
    scene = Scene(form, [(name, change) for name, (change, _) in CHANGES.items()])
    scene.run()
    assert len(scene.records) == len(CHANGES)
    x: Vector = X0
    for record, after, (name, _) in zip(scene.records, scene.models, scene.changes, strict=True):
        assert record.accepted[:3] == [0, 1, 2], name
        if record.round not in scene.untouched:
            slugs = {reason.partition(":")[0] for client, reason in record.rejected}
            assert {client for client, _ in record.rejected} <= {f"client-{HOSTILE}"}
            assert (slugs or {ACCEPTED}) <= CHANGES[name][1], (name, record.rejected)
            assert (HOSTILE in record.accepted) is not bool(slugs)
        rows = np.stack([scene.rows[record.round][i] for i in range(3)])
        step = (x - after) / 0.1
        slack = 1e-9 * (1 + np.abs(rows).max())
        assert (step >= rows.min(axis=0) - slack).all(), name
        assert (step <= rows.max(axis=0) + slack).all(), name
        assert np.isfinite(after).all()
        x = after


def test_the_changes_reach_every_part_of_a_packet() -> None:
    met: set[str] = set()
    for form in (RandK(ratio=0.3), TopK(ratio=0.02), QSGD(levels=5)):
        scene = Scene(form, [(name, change) for name, (change, _) in CHANGES.items()])
        scene.run()
        met |= {name for k, (name, _) in enumerate(scene.changes, start=1) if k not in scene.untouched}
    assert met == set(CHANGES)


# --- beside the packet ------------------------------------------------------------------------------------------------


def small(answer: Callable[[int, Message], Iterator[Message]], rounds: int = 3) -> tuple[list[RoundRecord], Vector]:
    """Run robust SGD without compression; return its rounds and the model."""
    scene = Scene(FORMS[0], [])
    grid = LocalGrid(N, lambda i, m: answer(i, m) if i == HOSTILE else scene_answer(i, m))
    records: list[RoundRecord] = []
    strategy = RobustStrategy(scene.method, codec=codec, roster=grid, clients=N, on_round=records.append)
    result = strategy.start(grid, codec.to_arrays(X0), rounds)
    return records, codec.from_arrays(result.arrays)


def scene_answer(worker: int, message: Message) -> Iterator[Message]:
    yield Message(good(worker, message), reply_to=message)


def good(worker: int, message: Message, **fields: Any) -> RecordDict:
    ask = codec.read_ask(message.content)
    packet = Packet("identity", DIM, gradient(worker, ask.vectors["x"]))
    return codec.write_packet(packet, replace(ask, **fields))


def test_claimed_counts_and_metrics_and_records_beside_the_packet_are_not_looked_at() -> None:
    def boaster(worker: int, message: Message) -> Iterator[Message]:
        claims: dict[str, int | float | list[int] | list[float]] = {
            "num-examples": 1e308,
            "loss": math.nan,
            "accuracy": 2**64 - 1,
            "weights": [1e308] * 9,
        }
        content = good(worker, message)
        content["metrics"] = MetricRecord(claims)
        content["config"] = ConfigRecord({"clients": 10**9, "round": -1, "worker": 0, "f": 0})
        content["arrays"] = ArrayRecord({"x": Array("float64", (2**40,), "raw.le", b"")})
        yield Message(content, reply_to=message)

    def modest(worker: int, message: Message) -> Iterator[Message]:
        yield Message(good(worker, message), reply_to=message)

    (records, x), (_, expected) = small(boaster), small(modest)
    assert all(record.accepted == [0, 1, 2, 3] and not record.rejected for record in records)
    assert x.tobytes() == expected.tobytes()


# --- replayed, reordered, in another's name ---------------------------------------------------------------------------


def test_a_replay_of_any_earlier_round_is_rejected_as_of_the_wrong_round() -> None:
    kept: list[RecordDict] = []

    def replayer(worker: int, message: Message) -> Iterator[Message]:
        kept.append(good(worker, message))
        yield Message(kept[0], reply_to=message)

    records, _ = small(replayer, 4)
    assert [record.rejected for record in records] == [
        [],
        *([(f"client-{HOSTILE}", f"wrong round: 1, expected {k}")] for k in (2, 3, 4)),
    ]


def test_the_same_reply_twice_counts_in_neither_copy() -> None:
    def twice(worker: int, message: Message) -> Iterator[Message]:
        for _ in range(3):
            yield Message(good(worker, message), reply_to=message)

    records, _ = small(twice)
    assert all(r.rejected == [(f"client-{HOSTILE}", "duplicate: more than one reply")] for r in records)


def in_the_name_of(node: int | None, victim: int) -> Callable[[int, Message], Iterator[Message]]:
    """Answer the instruction of another worker: as oneself (node None) or under a node id."""

    def forge(worker: int, message: Message) -> Iterator[Message]:
        yield Message(good(worker, message), reply_to=message)
        other = Message(RecordDict(), message.metadata.dst_node_id if node is None else node, "train")
        flwr_compat.stamp(other, message_id=f"{message.metadata.group_id}-{victim}", run_id=message.metadata.run_id)
        yield Message(good(worker, message), reply_to=other)

    return forge


def test_a_reply_to_another_workers_instruction_counts_neither_for_it_nor_against_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    records, _ = small(in_the_name_of(None, victim=1))
    assert all(record.accepted == [0, 1, 2, 3] and not record.rejected for record in records)
    assert caplog.text.count("node 103 answers no instruction of it") == 3


def test_replies_swapped_between_two_colluding_nodes_are_those_of_two_byzantine_ones() -> None:
    swapped: dict[int, RecordDict] = {}

    def swap(worker: int, message: Message) -> Iterator[Message]:
        swapped[worker] = good(worker, message)
        yield Message(swapped.get(2, swapped[worker]), reply_to=message)

    records, x = small(swap)
    assert all(record.accepted == [0, 1, 2, 3] for record in records)
    assert np.isfinite(x).all()


def test_replies_for_another_run_are_no_replies(caplog: pytest.LogCaptureFixture) -> None:
    def stranger(worker: int, message: Message) -> Iterator[Message]:
        other = Message(RecordDict(), message.metadata.dst_node_id, "train")
        flwr_compat.stamp(other, message_id="7-7", run_id=message.metadata.run_id + 1)
        yield Message(good(worker, message), reply_to=other)

    records, _ = small(stranger)
    assert all(r.rejected == [(f"client-{HOSTILE}", "silent: no reply within 30 s")] for r in records)
    assert "answers no instruction of it" in caplog.text


# --- every method -----------------------------------------------------------------------------------------------------

ROUNDS = 14


@cache
def small_config(name: str) -> Config:
    path = methods()[name]
    given = load(path)
    sizes = [
        f"strategy.{key}={7 if size == given.federation.clients else 5}"
        for key, size in given.cohorts.items()
        if key in type(given.strategy).model_fields
    ]
    return load(path, [*SMALL, *sizes, *schedule_within(path), f"strategy.rounds={ROUNDS}"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, path in methods().items() if load(path).aggregator.defends])
def test_two_hostile_clients_of_seven_leave_every_method_whole(name: str) -> None:
    """They try all changes and replays in turn, and meet the same reasons; the others are never rejected."""
    config = small_config(name)
    experiment = open_experiment(config.to_toml(), None, None)
    grid, strategy = federation(experiment)
    honest_answer, kept = grid._answer, list[bytes]()
    cycle = [change for change, _ in CHANGES.values()]

    def answer(worker: int, message: Message) -> Iterator[Message]:
        for reply in honest_answer(worker, message):
            if worker < 5 or reply.has_error():
                yield reply
                continue
            ask = codec.read_ask(message.content)
            form = experiment.method.compressor_for(ask, worker)
            data = data_of(reply.content)
            kept.append(data)
            if ask.round % 5 == 0:
                data = kept[-3]  # a replay
            else:
                layout = form.layout(experiment.problem.dim, experiment.problem.dtype)
                changed = cycle[(2 * ask.round + worker) % len(cycle)](Parts.of(data, layout), ask, form)
                data = data if changed is None else data_of(changed.content())
            yield Message(RecordDict({"p": ConfigRecord({"": data})}), reply_to=message)

    grid._answer = answer
    records: list[RoundRecord] = []
    strategy.on_round = records.append
    strategy.start(grid, codec.to_arrays(experiment.problem.initial()), ROUNDS)
    assert len(records) == ROUNDS
    assert np.isfinite(strategy.state.x).all()
    assert math.isfinite(experiment.problem.evaluate(strategy.state.x).loss)
    told = {(client, reason.partition(":")[0]) for record in records for client, reason in record.rejected}
    assert {client for client, _ in told} <= {"client-5", "client-6"}
    assert "wrong round" in {slug for _, slug in told}


def data_of(content: RecordDict) -> bytes:
    record = content["p"]
    if isinstance(record, ConfigRecord):
        data = record[""]
        assert isinstance(data, bytes)
        return data
    assert isinstance(record, ArrayRecord)
    return record[""].data


# --- rules ------------------------------------------------------------------------------------------------------------

ROBUST: list[Rule] = [
    CoordinateMedian(), TrimmedMean(), MeanAroundMedian(), GeometricMedian(), Krum(), MultiKrum(), Bulyan(),
    MinimumDiameterAveraging(), MoNNA(), CenteredClipping(), CovarianceFilter(), SmallestVarianceAveraging(),
    SignGuard(), ComparativeGradientElimination(), FLTrust(),
]  # fmt: skip
PRE = ((), (NearestNeighbourMixing(),), (AdaptiveRobustClipping(),), (Bucketing(s=2),))
RULES = [replace(rule, pre=pre) for rule in ROBUST for pre in PRE if not (rule.kind == "monna" and pre == PRE[3])]
"""monna trusts one row, which bucketing may spoil."""


def extreme(kind: str, shape: tuple[int, int], dtype: type) -> np.ndarray:
    top, signs = np.finfo(dtype), np.random.default_rng(3).choice([-1.0, 1.0], shape)
    largest, turns = float(top.max), (-1.0) ** np.arange(shape[0])[:, None]
    sizes = {
        "largest": largest, "minus largest": -largest, "squares just overflow": 2 * largest**0.5,
        "squares just do not": largest**0.5 / 4, "smallest": top.smallest_subnormal, "smallest normal": top.tiny,
        "largest in signs of columns": signs * largest, "largest in signs of rows": turns * largest,
    }  # fmt: skip
    return np.broadcast_to(sizes[kind], shape).astype(dtype)


EXTREMES = (
    "largest", "minus largest", "squares just overflow", "squares just do not", "smallest", "smallest normal",
    "largest in signs of columns", "largest in signs of rows",
)  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join([*(step.kind for step in rule.pre), rule.kind]))
def test_rows_at_the_ends_of_what_floats_hold_do_not_move_a_rule_out_of_the_honest_ones(
    rule: Rule, dtype: type
) -> None:
    f = rule.tolerates(11)
    rows: Rows = np.random.default_rng(0).uniform(-1, 1, (11, 6)).astype(dtype)
    root = root_of(rule, rows)
    for kind in EXTREMES:
        rows[11 - f :] = extreme(kind, (f, 6), dtype)
        result = rule(rows, f, np.random.default_rng(1), root)
        assert np.isfinite(result).all(), kind
        assert np.abs(result).max() <= 5.0, kind


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "rule",
    [Mean(), DivideAndConquer(), DivideAndConquer(sub=2, iters=3), *RULES],
    ids=lambda rule: "-".join([*(step.kind for step in rule.pre), rule.kind]),
)
def test_no_rows_at_all_make_a_rule_overflow(rule: Rule, dtype: type) -> None:
    """Also where all of a cohort is Byzantine, what comes out can be clipped and stepped along."""
    for kind in EXTREMES:
        rows = extreme(kind, (11, 6), dtype)
        result = rule(rows, rule.tolerates(11), np.random.default_rng(1), root_of(rule, rows))
        assert np.isfinite(result).all(), kind
