"""A Flower Grid without a network: every instruction is answered by a function of this process.

It is its own roster too, so ``RobustStrategy`` can be driven with nothing else; worker i sits at node 100 + i.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from flwr.app import Context, Error, Message, RecordDict

from client.answers import client_app, measure, visit
from client.app import make_worker
from client.coalition import Coalition, CoalitionMember
from client.node_config import NodeConfig
from client.worker import HonestWorker, Worker
from experiment.opened import Experiment
from experiment.run_config import RunConfig
from foundation.errors import Broken, Silent
from link import claims, codec, flwr_compat
from link.transport import Transport
from strategies.strategy import EVALUATE, RobustStrategy

Answer = Callable[[int, Message], Iterable[Message]]
"""(worker, instruction) -> its replies: none, one or more."""

FIRST_NODE = 100
_run_ids = itertools.count(1)


class LocalGrid(Transport):
    """The grid and its roster.

    Args:
        clients: n.
        answer: gives the replies of a worker to an instruction.
    """

    def __init__(self, clients: int, answer: Answer) -> None:
        self.run_id = next(_run_ids)
        self.online = set(range(clients))
        self.pushed: list[list[Message]] = []
        """The instructions of every call."""
        self.timeouts: list[float | None] = []
        """The timeout of every call of send_and_receive."""
        self.measured: Iterator[tuple[int, int]] = itertools.repeat((0, 0))
        """What ``traffic`` returns, call by call; as the next two."""
        self.late_names: Iterator[Sequence[str]] = itertools.repeat(())
        self.took: Sequence[float] = ()
        self.workers: dict[int, Worker] = {}
        """The workers behind it, where it is a ``federation``."""
        self._answer = answer
        self._replies: list[Message] = []
        flwr_compat.set_identity(self.run_id)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        self.timeouts.append(timeout)
        self.push_messages(messages)
        replies, self._replies = self._replies, []
        return replies

    def nodes(self) -> Mapping[int, int]:
        return {worker: FIRST_NODE + worker for worker in sorted(self.online)}

    def name(self, worker: int) -> str:
        return f"client-{worker}"

    def wait(self, count: int, timeout: float) -> int:
        return len(self.online)

    def waits(self) -> Sequence[float]:
        return self.took

    def late(self) -> Sequence[str]:
        return next(self.late_names)

    def traffic(self) -> tuple[int, int]:
        return next(self.measured)

    def get_node_ids(self) -> list[int]:
        return list(self.nodes().values())

    @property
    def run(self) -> flwr_compat.Run:
        return flwr_compat.empty_run(self.run_id)

    def set_run(self, run: flwr_compat.Run) -> None:
        raise AssertionError("a strategy sets no run")

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        batch = list(messages)
        self.pushed.append(batch)
        for number, message in enumerate(batch):
            flwr_compat.stamp(message, message_id=f"{len(self.pushed)}-{number}", run_id=self.run_id)
        for message in batch:
            self._replies += self._answer(message.metadata.dst_node_id - FIRST_NODE, message)
        return [message.metadata.message_id for message in batch]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        wanted = set(message_ids)
        found = [reply for reply in self._replies if reply.metadata.reply_to_message_id in wanted]
        self._replies = [reply for reply in self._replies if reply not in found]
        return found


def federation(experiment: Experiment, *, resident: bool = True) -> tuple[LocalGrid, RobustStrategy]:
    """Return the clients of an experiment behind a grid, the last f of them attacking, and the server's strategy.

    Args:
        experiment: the opened experiment.
        resident: clients stay, as on the link: workers keep what they know, and attackers have one brain. Else the
            nodes are Flower's, each for itself.
    """
    config = experiment.config
    n, f = config.federation.clients, config.federation.byzantine
    contexts: dict[int, Context] = {}

    def answer(worker: int, message: Message) -> Iterator[Message]:
        context, made = contexts[worker], grid.workers[worker]
        try:
            if resident:
                yield client_app(made)(message, context)
            elif message.metadata.message_type == EVALUATE:
                yield measure(message, lambda: made)
            else:
                yield visit(message, context.state, lambda: made)
        except (Silent, Broken):  # what breaks on the way does not come
            return
        except Exception as error:  # as Flower reports it
            yield Message(Error(flwr_compat.APP_RAISED, str(error)), reply_to=message)

    grid = LocalGrid(n, answer)
    brain = Coalition(experiment, config.attack) if config.attack is not None and resident else None
    for worker, node in grid.nodes().items():
        attack = config.attack if worker >= n - f else None
        contexts[worker] = Context(grid.run_id, node, {}, RecordDict(), {})
        if attack is None:
            grid.workers[worker] = HonestWorker(experiment, worker)
        elif brain is not None:
            grid.workers[worker] = CoalitionMember(brain, worker)
        else:
            node_config = NodeConfig(partition=worker, attack=attack.kind)
            grid.workers[worker] = make_worker(experiment, node_config, RunConfig(""))
    strategy = RobustStrategy(
        experiment.method,
        codec=codec,
        roster=grid,
        clients=n,
        seed=config.federation.seed,
        reveal_cohort=config.reveals_cohort,
        byzantine=f if config.clients_evaluate else 0,
        evaluate=experiment.problem.evaluate if config.server_evaluates else None,
        claim_codec=claims if config.clients_evaluate else None,
        declare_samples=config.federation.declare_samples,
        every=config.evaluation.every,
    )
    return grid, strategy
