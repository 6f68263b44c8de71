"""Wire faults as the ClientApp makes them: in the records of a reply on any Grid, by a signal where the link is."""

from functools import cache

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from client.answers import client_app, visit
from client.app import make_worker
from client.coalition import Coalition, CoalitionMember
from client.node_config import NodeConfig
from experiment.config import parse, resolve
from experiment.opened import Experiment
from experiment.run_config import RunConfig
from foundation.errors import Broken, Silent, WireError
from foundation.faults import Fault
from link import codec, flwr_compat
from link.replies import broken
from link.wire import CHUNK_BYTES, Parcel, Reader
from strategies.method import Ask
from tasks.contract import Problem, Setting
from tasks.digits import DigitsTask
from tests.local_grid import federation

TEXT = """
[federation]
clients = 4
byzantine = 1
deadline_s = 8.0
flower_deadline_s = 40.0
[task]
kind = "digits"
model = "softmax"
[strategy]
kind = "robust-sgd"
rounds = 3
gamma = 0.1
batch = 8
[attack]
kind = "wire"
"""
BELOW = {Fault.LATE, Fault.TRUNCATED, Fault.GARBAGE, Fault.DISCONNECT}
"""Faults that need the link."""


@cache
def problem(task: DigitsTask, setting: Setting) -> Problem:
    return task.load(setting)


def experiment(fault: Fault, *overrides: str) -> Experiment:
    config = parse(TEXT, [f"attack.fault={fault}", *overrides])
    assert isinstance(config.task, DigitsTask)
    loaded = problem(config.task, config.setting(None, None))
    config = resolve(config, loaded)
    return Experiment(config, loaded)


@pytest.mark.parametrize("method", [(), ("strategy.kind=byz-dasha-page", "strategy.batch=8", "strategy.p=0.5")])
@pytest.mark.parametrize("fault", Fault)
def test_on_a_grid_without_our_link_each_is_rejected_as_its_nearest(
    fault: Fault, method: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    opened = experiment(fault, *method)
    grid, strategy = federation(opened, resident=False)
    arrays = codec.to_arrays(opened.problem.initial())
    for k in (1, 2, 3):
        strategy.start(grid, arrays, num_rounds=k)
        assert strategy.last is not None
        rejected = dict(strategy.last.rejected)
        assert {0, 1, 2} <= set(strategy.last.accepted)
        if fault is Fault.LATE:  # this grid has no deadline, it would wait for ever
            assert (slept, rejected) == ([50.0] * k, {})
        elif fault is Fault.REPLAY and k == 1:
            assert rejected == {}
        else:
            # A reply that is too long is cut off by the link alone; elsewhere it has the wrong shape.
            expected = "wrong shape" if fault is Fault.OVERSIZE else fault.nearest.reason
            assert {name: reason.partition(":")[0] for name, reason in rejected.items()} == {"client-3": expected}


def ask_attacker(fault: Fault, round_: int, *, resident: bool) -> Message:
    """Have the attacker answer a question about the starting point."""
    opened = experiment(fault)
    message = flwr_compat.instruction(
        codec.write_ask(Ask(round_, "gradient", {"x": opened.problem.initial()})),
        run_id=71,
        node_id=72,
        message_id="1",
        message_type="train",
        group_id="1",
        ttl_s=8.0,
    )
    if not resident:
        worker = make_worker(opened, NodeConfig(partition=3, attack="wire"), RunConfig(""))
        return visit(message, RecordDict(), lambda: worker)
    assert opened.config.attack is not None
    brain = Coalition(opened, opened.config.attack)
    return client_app(CoalitionMember(brain, 3))(message, Context(71, 72, {}, RecordDict(), {}))


@pytest.mark.parametrize("fault", sorted(BELOW))
def test_where_the_link_is_it_is_told_how_to_break_a_good_reply(fault: Fault) -> None:
    opened = experiment(fault)
    x = opened.problem.initial()
    for round_ in (2, 3):
        with pytest.raises(Broken) as told:
            ask_attacker(fault, round_, resident=True)
        broken = told.value
        assert broken.how == fault.value
        assert broken.delay_s == (10.0 if fault is Fault.LATE else 0.0)
        assert broken.last == (round_ == 3)
        ask = Ask(round_, "gradient", {"x": x})
        good = codec.read_reply(_reply(broken.content), ask, opened.method.compressor_for(ask, 3), x)
        assert not hasattr(good, "reason"), good


def _reply(content: RecordDict) -> Message:
    question = flwr_compat.instruction(
        RecordDict(), run_id=71, node_id=1, message_id="1", message_type="train", group_id="1", ttl_s=1.0
    )
    return Message(content, reply_to=question)


def test_silence_is_silence_everywhere() -> None:
    for resident in (False, True):
        with pytest.raises(Silent):
            ask_attacker(Fault.SILENCE, 1, resident=resident)


def test_an_oversize_reply_is_longer_than_any_honest_one_may_be() -> None:
    opened = experiment(Fault.OVERSIZE)
    x = opened.problem.initial()
    content = ask_attacker(Fault.OVERSIZE, 1, resident=True).content
    data = content.config_records["p"][""]
    assert isinstance(data, bytes)
    assert len(data) > codec.max_reply_bytes(x.size, x.dtype)


# --- what the link's client end sends ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 70_000, 3 * CHUNK_BYTES + 5])
@pytest.mark.parametrize("how", [Fault.TRUNCATED, Fault.GARBAGE])
def test_a_server_cannot_decode_what_is_damaged_but_reads_on(how: Fault, size: int) -> None:
    content, reader, flaws = RecordDict({"p": ConfigRecord({"": bytes(size)})}), Reader(1 << 30), []
    for _ in range(2):
        for frame in broken(Broken(how, content), 7).frames:
            try:
                assert reader.feed(frame) is None
            except WireError as error:
                flaws.append(error.reason.partition(":")[0])
    assert flaws == ["undecodable"] * 2
    (whole,) = [parcel for frame in broken(Broken(Fault.LATE, content), 7).frames if (parcel := reader.feed(frame))]
    assert isinstance(whole, Parcel)
    assert whole.answer == content


def test_a_late_reply_waits_and_a_broken_off_one_ends_the_stream() -> None:
    content = RecordDict()
    assert broken(Broken(Fault.LATE, content, 2.5), 7).delay_s == 2.5
    begun = broken(Broken(Fault.DISCONNECT, content), 7)
    assert begun.end == "broke off in the middle of a reply"
    assert [Reader(1000).feed(frame) for frame in begun.frames] == [None]  # more is to come
    last = broken(Broken(Fault.DISCONNECT, content, last=True), 7).end
    assert not isinstance(last, str)
    assert last is not None
    assert last.final
