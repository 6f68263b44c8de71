"""Tasks: model, loss and data; those that come with Breakwater, and what a task of one's own needs.

    from breakwater.tasks import Evaluation, Oracle, Problem, Setting

docs/tasks.md shows how to write one.
"""

from strategies.method import Evaluation, Oracle
from strategies.operators import Vector
from tasks.cifar10 import Cifar10Task
from tasks.contract import Problem, Setting, TaskError, TaskSpec
from tasks.custom import CustomTask
from tasks.digits import DigitsTask
from tasks.logistic import LogisticTask
from tasks.mnist import MnistTask
from tasks.table import TableTask

__all__ = [
    "Cifar10Task",
    "CustomTask",
    "DigitsTask",
    "Evaluation",
    "LogisticTask",
    "MnistTask",
    "Oracle",
    "Problem",
    "Setting",
    "TableTask",
    "TaskError",
    "TaskSpec",
    "Vector",
]
