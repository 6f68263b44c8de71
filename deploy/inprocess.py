"""A whole federation in one process: server, honest clients and the coalition, without sockets.

The apps, the frames and the books are those of ``breakwater run``, and so are the bits of the model and the bytes that
are counted: every instruction and every reply is written into the frames of ``link.wire``, and replies are read from
them. What is missing is the network, and with it the waiting: a client that says nothing costs a round no time. So it
is for many runs side by side, where twenty processes each would be in each other's way; ``breakwater sweep`` uses it.

Two kinds of wire faults differ from real processes, because only there time passes between rounds: a late reply is lost
in its own round, and a client that breaks off is back at once, without a new handshake.
"""

import secrets

from flwr.app import Context, Message, RecordDict

from client import worker as workers
from client.app import app as client_app
from client.coalition import Coalition, CoalitionMember
from deploy.local import LocalOptions, check_attack
from experiment.opened import CONFIG, CONFIG_DIR, DATA, LIFE, OUT, RESUME, Experiment, from_run_config, try_out
from foundation.errors import RESIDENT, WireError
from link import codec, flwr_compat, replies
from link import link_pb2 as pb
from link.grid import StreamGrid
from link.streams import Batch, Call
from link.wire import CONTROL_BYTES, Parcel, Payload, Reader
from server.app import app as server_app


def run_in_process(options: LocalOptions) -> None:
    """Run a federation to its end in this process, and leave its run folder.

    Args:
        options: as for ``breakwater run``.

    Raises:
        BreakwaterError: the config or the run folder cannot be used.
    """
    check_attack(options.config)
    run_id = secrets.randbits(62) + 2
    settings: dict[str, str | float | bool] = {
        **options.monitoring.run_config(),
        CONFIG: options.config.to_toml(),
        DATA: str(options.data or ""),
        CONFIG_DIR: str(options.config_dir or ""),
        OUT: str(options.out.absolute()),
        RESUME: "",
        LIFE: 1,
        **options.monitoring.run_config(),
    }
    experiment = from_run_config(settings)
    try_out(experiment)
    grid = InProcessGrid(experiment, run_id)
    server_app(grid, Context(run_id=run_id, node_id=1, node_config={}, state=RecordDict(), run_config=settings))


class InProcessGrid(StreamGrid):
    """The server's end of a link whose clients are called in turn, in this thread.

    Args:
        experiment: the opened experiment; its last f workers attack with one brain, if there is an ``[attack]``.
        run_id: of the run.
    """

    clients_change = False  # they are objects of this process: whatever they cannot do now they never can

    def __init__(self, experiment: Experiment, run_id: int) -> None:
        config, problem = experiment.config.for_clients(), experiment.problem
        n, f = config.federation.clients, config.federation.byzantine
        super().__init__(
            run_id=run_id,
            clients=n,
            welcome=lambda name, worker: {},
            fingerprint="",
            max_reply_bytes=codec.max_reply_bytes(problem.dim, problem.dtype),
            reply_bound=lambda content: codec.reply_bound(content, experiment.method, problem.dim, problem.dtype),
        )
        known = Experiment(config, problem)  # what clients are told
        brain = None if config.attack is None or not f else Coalition(known, config.attack)
        self._contexts: dict[int, Context] = {}  # by node id, as what follows
        self._readers: dict[int, Reader] = {}
        self._workers: dict[int, int] = {}  # node id by worker
        for worker, name in enumerate(names(n, f if brain else 0)):
            node = self._seats.take(name, worker=worker).node_id
            self._seats.confirm(name)
            self._workers[worker] = node
            self._readers[node] = Reader(CONTROL_BYTES)
            self._contexts[node] = Context(
                run_id=run_id,
                node_id=node,
                node_config={"partition-id": worker, RESIDENT: True},
                state=RecordDict(),
                run_config={},
            )
            member = CoalitionMember(brain, worker) if brain and worker >= n - f else None
            workers.keep(run_id, node, member or workers.HonestWorker(known, worker))

    def nodes(self) -> dict[int, int]:
        """Return the node ids by worker: all are there."""
        return dict(self._workers)

    def wait_for(self, count: int, timeout: float) -> int:
        """Return how many clients there are."""
        return len(self._workers)

    def _push(self, messages: list[Message]) -> Batch:
        """Have the instructions answered, in the order of workers; what is not answered has expired."""
        payloads: dict[int, Payload] = {}
        batch = Batch(len(messages))
        names = {seat.node_id: seat.name for seat in self.seats().values()}
        for message in messages:
            if id(message.content) not in payloads:
                payloads[id(message.content)] = self._payload(message.content)
            payload = payloads[id(message.content)]
            call = Call(next(self._ids), message, payload, batch, None)
            flwr_compat.stamp(message, message_id=call.message_id, run_id=self.run.run_id)
            batch.calls.append(call)
            self._exchange(call, payload, names[message.metadata.dst_node_id])
            call.expire()
        return batch

    def _exchange(self, call: Call, payload: Payload, name: str) -> None:
        """Send one instruction and take what comes back, as ``link.grid`` and ``link.node`` do."""
        metadata = call.message.metadata
        for frame in (payload.envelope(call.head()), *payload.shared_chunks):
            self.ledger.down(name, len(frame))
        parcel = Parcel(call.id, metadata.message_type, metadata.group_id, metadata.ttl, call.message.content)
        reply = replies.answer(parcel, client_app, self._contexts[metadata.dst_node_id], name=name)
        reader = self._readers[metadata.dst_node_id]
        reader.max_bytes = self._max_reply_bytes if call.reply_bound is None else call.reply_bound
        for frame in reply.frames:
            self.ledger.up(name, len(frame))
            try:
                read = reader.feed(frame)
            except WireError as error:
                call.fail(flwr_compat.BAD_REPLY, error.reason)
                continue
            if isinstance(read, Parcel) and not call.settled and not reply.delay_s:
                call.settle(read.answer)
            elif isinstance(read, pb.Pass):
                break
        if reply.end is not None:  # what had begun to come belongs to the stream that has ended
            self._readers[metadata.dst_node_id] = Reader(CONTROL_BYTES)
            worker = next(worker for worker, node in self._workers.items() if node == metadata.dst_node_id)
            call.fail(flwr_compat.NODE_UNAVAILABLE, f"disconnected: worker {worker} ({name})")


def names(clients: int, attackers: int) -> list[str]:
    """Return the names of the clients of a local run by worker."""
    width = len(str(clients - 1))
    honest = [f"client-{worker:0{width}}" for worker in range(clients - attackers)]
    return honest + (["byzantine"] if attackers == 1 else [f"byzantine-{i}" for i in range(attackers)])
