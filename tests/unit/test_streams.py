"""What the server's end keeps for one client: little, however long the client is silent."""

import gc
import weakref

from flwr.app import Message, RecordDict

from link import flwr_compat
from link.ledger import Ledger
from link.seats import Seat
from link.streams import Batch, Call, Stream
from link.wire import CONTROL_BYTES, Payload


def call(number: int, stream: Stream, reply_bound: int | None = None) -> Call:
    flwr_compat.set_identity(1)
    payload = Payload(RecordDict())
    payload.reply_bound = reply_bound
    batch = Batch(1)
    made = Call(number, Message(RecordDict(), 5, "train"), payload, batch, stream)
    batch.calls.append(made)
    return made


def stream() -> Stream:
    return Stream(Seat("a", 0, 5, connected=True), None, Ledger(), 1_000_000)


def test_expired_instructions_do_not_pile_up_at_a_silent_client() -> None:
    silent = stream()
    silent.hold(call(0, silent))
    payloads, batches = [], []
    for number in range(1, 100):
        asked = call(number, silent)
        payloads.append(weakref.ref(asked.payload))
        batches.append(weakref.ref(asked.batch))
        silent.enqueue(asked)
        assert len(silent.queue) == 1
        asked.expire()
    del asked
    gc.collect()
    assert not any(one() for one in payloads)
    assert not any(one() for one in batches)


def test_what_a_client_has_in_hand_says_how_long_its_reply_may_be() -> None:
    one = stream()
    assert one.reader.max_bytes == CONTROL_BYTES
    asked = call(1, one, reply_bound=7000)
    one.hold(asked)
    asked.expire()  # a late reply still has the bound of its own instruction
    assert one.reader.max_bytes == 7000
    one.free()
    assert one.reader.max_bytes == CONTROL_BYTES
    one.hold(call(2, one))
    assert one.reader.max_bytes == 1_000_000
