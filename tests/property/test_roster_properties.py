"""Where there is no link, nodes say themselves who they are: no answer raises, shares a seat or spoils a log line."""

from collections.abc import Iterator
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import example, given
from hypothesis import strategies as st

from link import flwr_compat
from link.invitation import WHO
from link.polled import PolledGrid
from link.queried import QueriedGrid
from tests.local_grid import FIRST_NODE, LocalGrid

CLIENTS = 3
CODE = "fingerprint"
TEXTS = st.text(max_size=20) | st.sampled_from([CODE, "\x1b[31m\n", "x" * 5000])
VALUES: st.SearchStrategy[Any] = st.one_of(
    st.integers(-2, 4), st.integers(-(2**63), 2**64 - 1), st.booleans(), st.floats(), TEXTS, st.binary(max_size=9),
    st.lists(st.integers(0, 3), max_size=3), st.lists(TEXTS, max_size=3),
)  # fmt: skip
CLAIMS = st.fixed_dictionaries(
    {}, optional={"index": VALUES, "fingerprint": st.just(CODE) | VALUES, "flaw": VALUES, "else": VALUES}
).map(ConfigRecord)
ANSWERS: st.SearchStrategy[list[RecordDict | Error]] = st.lists(
    st.one_of(
        CLAIMS.map(lambda claim: RecordDict({WHO: claim})),
        st.builds(lambda claim, name: RecordDict({name: claim}), CLAIMS, TEXTS),
        st.just(RecordDict({WHO: MetricRecord({"index": 1})})),
        st.just(RecordDict({WHO: ArrayRecord({"index": Array("uint8", (1,), "raw", b"1")})})),
        st.builds(Error, st.integers(-9, 9), st.none() | TEXTS),
    ),
    max_size=2,
)


@given(st.lists(ANSWERS, min_size=1, max_size=6))
def test_any_answers_seat_one_node_at_most_on_each_seat(answers: list[list[RecordDict | Error]]) -> None:
    def answer(worker: int, message: Message) -> Iterator[Message]:
        for content in answers[worker]:
            yield Message(content, reply_to=message)

    grid = LocalGrid(len(answers), answer)
    roster = QueriedGrid(grid, CLIENTS, CODE, timeout_s=0.01)
    seated = roster.nodes()
    assert set(seated) <= set(range(CLIENTS))
    assert len(set(seated.values())) == len(seated) or any(len(several) > 1 for several in answers)
    assert roster.complaints().isprintable()
    assert len(roster.complaints()) < 3000
    assert dict(roster.nodes()) == dict(seated)
    for worker, node in seated.items():
        said = [c for c in answers[node - FIRST_NODE] if isinstance(c, RecordDict)]
        assert any(c.config_records.get(WHO, ConfigRecord()).get("index") == worker for c in said)


@example([["1-0"]], b"")
@given(
    st.lists(st.lists(st.sampled_from(["1-0", "1-1", "1-2", "9-9", ""]), max_size=3), min_size=1, max_size=3),
    st.binary(max_size=20),
)
def test_replies_to_anything_end_a_round_with_those_that_were_asked_for(named: list[list[str]], data: bytes) -> None:
    def answer(worker: int, message: Message) -> Iterator[Message]:
        for message_id in named[worker]:
            other = Message(RecordDict(), message.metadata.dst_node_id, "train")
            flwr_compat.stamp(other, message_id=message_id, run_id=1)
            yield Message(RecordDict({"p": ConfigRecord({"": data})}), reply_to=other)

    grid = PolledGrid(LocalGrid(len(named), answer))
    messages = [Message(RecordDict(), FIRST_NODE + i, "train") for i in range(len(named))]
    replies = list(grid.send_and_receive(messages, timeout=0.0))
    asked = {message.metadata.message_id for message in messages}
    assert {reply.metadata.reply_to_message_id for reply in replies} == asked & {id_ for ids in named for id_ in ids}
