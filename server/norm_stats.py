"""Running statistics of batch norm that clients answer: how they are asked, and the task that measures with them."""

from typing import Any

from flwr.app import ArrayRecord, Message, RecordDict

from experiment.opened import Experiment
from link import batch_statistics
from strategies.method import Rejected, Vector


class StatisticsOfClients:
    """What ``RobustStrategy`` asks with, for one experiment.

    Args:
        experiment: whose clients answer running statistics.
    """

    def __init__(self, experiment: Experiment) -> None:
        problem: Any = experiment.problem
        self._problem, self.variances = problem, problem.variances

    def write_question(self, round_: int, arrays: ArrayRecord) -> RecordDict:
        """Return the content of a question about a model."""
        return batch_statistics.write_question(round_, arrays)

    def read_answer(self, message: Message) -> Vector | Rejected:
        """Return the statistics of an answer, or why there are none. Never raises."""
        return batch_statistics.read_answer(message, self.variances)

    def use(self, values: Vector | None) -> None:
        """Measure and save models with these statistics from now on; None for those that the model was made with."""
        self._problem.set_norm_stats(values)
