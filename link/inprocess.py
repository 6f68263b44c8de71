"""A Grid whose clients are ClientApps of this process, called in turn: the link's frames without its sockets.

What is counted, and what a client can get wrong, is as on the live link. A reply with which nothing is wrong is counted
by the length of its frames and handed over as it is, since reading these frames would give the same records. Any other
reply is written into frames and read from them.
"""

from collections.abc import Mapping, Sequence

from flwr.app import Context, RecordDict

from foundation.errors import WireError
from link import flwr_compat, replies
from link import link_pb2 as pb
from link.calls import Call, FramedGrid, ReplyBound
from link.memory import keep_buffers
from link.replies import App
from link.seats import Seat
from link.wire import CONTROL_BYTES, Parcel, Reader, reply_head_bytes


class InProcessGrid(FramedGrid):
    """The server's end of a link whose clients are called in the order of their seats, in the caller's thread.

    Args:
        run_id: of the run.
        apps: each client's ClientApp by its name, in the order of their seats.
        max_reply_bytes: see ``link.calls.FramedGrid``.
        reply_bound: see there.
        reports: what the clients report that they have loaded, by name.
    """

    clients_change = False  # they are objects of this process: whatever they cannot do now they never can

    def __init__(
        self,
        run_id: int,
        apps: Mapping[str, App],
        *,
        max_reply_bytes: int,
        reply_bound: ReplyBound,
        reports: Mapping[str, str] = {},  # never written to
    ) -> None:
        keep_buffers()
        held = {name: worker for worker, name in enumerate(apps)}
        super().__init__(
            run_id=run_id, clients=len(apps), max_reply_bytes=max_reply_bytes, reply_bound=reply_bound, held=held
        )
        self._reports = reports
        self._clients = {seat.node_id: _Client(seat, apps[seat.name], run_id) for seat in self.seats().values()}
        self._nodes = {client.worker: node for node, client in self._clients.items()}
        self._names = tuple(apps)

    def nodes(self) -> Mapping[int, int]:
        """Return node id by worker: all are there."""
        return self._nodes

    def name(self, worker: int) -> str:
        """Return the name that the worker joined with: seats never change hands."""
        return self._names[worker]

    def reports(self) -> Mapping[str, str]:
        """Return what the clients have loaded, by name."""
        return self._reports

    def wait(self, count: int, timeout: float) -> int:
        """Return how many clients there are."""
        return len(self._clients)

    def carry(self, calls: Sequence[Call]) -> None:
        """Have the instructions answered; what is not answered has expired."""
        for call in calls:
            self._exchange(call, self._clients[call.message.metadata.dst_node_id])
            call.expire()

    def _exchange(self, call: Call, client: "_Client") -> None:
        """Send one instruction and take what comes back, as ``link.grid`` and ``link.node`` do."""
        payload = call.payload
        if payload is None:
            return
        self.ledger.down(client.name, *payload.frame_bytes(call.head_bytes()))
        reply = replies.answer_to(call.message, call.id, client.app, client.context, name=client.name)
        bound = self.max_reply_bytes if call.reply_bound is None else call.reply_bound
        if reply.whole is not None and client.reader.expects_message:
            message, payload = reply.whole
            lengths = payload.frame_bytes(reply_head_bytes(call.id))
            if sum(lengths) <= bound:
                self.ledger.up(client.name, *lengths)
                call.settle(message if message.metadata.reply_to_message_id == call.message_id else message.content)
                return
        client.reader.max_bytes = bound
        for frame in reply.frames:
            self.ledger.up(client.name, len(frame))
            try:
                read = client.reader.feed(frame)
            except WireError as error:
                call.fail(flwr_compat.BAD_REPLY, error.reason)
                continue
            if isinstance(read, Parcel) and not call.settled and not reply.delay_s:
                call.settle(read.answer)
            elif isinstance(read, pb.Pass):
                break
        if reply.end is not None:  # the part of a reply that had come belongs to the stream that has ended
            client.reader = Reader(CONTROL_BYTES)
            call.fail(flwr_compat.NODE_UNAVAILABLE, f"disconnected: worker {client.worker} ({client.name})")


class _Client:
    """One client: its app, and how its frames are read."""

    def __init__(self, seat: Seat, app: App, run_id: int) -> None:
        self.name, self.worker = seat.name, seat.worker
        self.app = app
        self.reader = Reader(CONTROL_BYTES)
        self.context = Context(run_id=run_id, node_id=seat.node_id, node_config={}, state=RecordDict(), run_config={})
