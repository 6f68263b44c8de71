"""A client that has data of its own: what it agrees to, what it declines, and how little it says when something fails.

Everything that leaves such a client passes here. It answers instructions once it has the federation's agreement, keeps
to the limits of its owner, and replaces the text of every error by a fixed one: an exception may quote a value of its
data. The text itself goes into the client's own log.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict

from client.answers import error_reply
from client.final_model import read_model_of
from experiment.agreement import Agreement
from experiment.config import Config
from foundation.errors import BreakwaterError, Broken, ConfigError, Silent
from foundation.text import kind_and_line
from link.claims import read_norm_stats
from link.invitation import MODEL, STATISTICS
from link.replies import App
from strategies.batch_statistics import NO_STATISTICS, QUESTION
from strategies.claims import NO_EVALUATION
from strategies.method import AGREEMENT, ATTACK_FAILED, DECLINED, FAILED, STALE, UNPREPARED, Vector
from tasks.contract import Problem

log = logging.getLogger("breakwater.client")

FAILED_TEXT = f"{FAILED}: the client's own log has the reason"
_ROUNDS = "rounds answered"
LEAST_BATCH = 8
"""Fewer samples than these are no minibatch, unless the owner says so: a gradient of few samples shows them."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the owner of the data allows; it wins over what the server asks.

    Args:
        min_batch: the fewest samples that a gradient may be computed from; None for 8, or all there are if fewer.
        evaluation: whether the client measures models on its data and reports the result.
        statistics: whether it reports statistics of its columns, and of its batches for batch norm.
        max_rounds: how many rounds it answers; None for all.
    """

    min_batch: int | None = None
    evaluation: bool = True
    statistics: bool = True
    max_rounds: int | None = None

    def least(self, samples: int) -> int:
        """Return the fewest samples that a gradient may be computed from at a party with so many."""
        return min(LEAST_BATCH, samples) if self.min_batch is None else self.min_batch

    def declines_batches(self, problem: Any, worker: int) -> str:
        """Say why no statistics of this party's batches may leave it, for batch norm; "" if they may.

        The text leaves the party, so it holds no number of its data.

        Args:
            problem: of the party.
            worker: which one it is.
        """
        if not getattr(problem, "answers_statistics", False):
            return f"{DECLINED}: statistics of batches, by its own config"
        if not self.statistics:
            return NO_STATISTICS
        too_few = problem.batch_rows(worker) < self.least(problem.count(worker))
        return f"{DECLINED}: too few rows for statistics of batches" if too_few else ""

    def check(self, config: Config, samples: int) -> None:
        """Refuse an experiment that computes gradients of fewer samples than the owner allows.

        Args:
            config: of the experiment.
            samples: how many the party trains on.

        Raises:
            ConfigError: which key; one line.
        """
        least = self.least(samples)
        for key, size in (config.batches or {"batch": 0}).items():
            used = min(size or samples, samples)
            if used < least:
                what = f"strategy.{key} = {size} gives gradients of {used} samples of this client's {samples}"
                option = f"--min-batch {least}" if self.min_batch is not None else f"--min-batch, by default {least},"
                fix = "the study can raise it, or the owner can give --min-batch N to the client"
                raise ConfigError(f"{option} declines this experiment: {what}; {fix}")


class PartyApp:
    """Answers in place of a ClientApp, for one client with its own data.

    Args:
        prepare: makes the ClientApp once there is an agreement.
        problem: the party's data, for statistics.
        index: which worker the party is.
        limits: of the owner.
        keep: takes the final model, shape (d,), once the task has the federation's scaling; None where nobody wants it.
    """

    def __init__(
        self,
        prepare: Callable[[Agreement], App],
        problem: Problem,
        index: int,
        limits: Limits,
        keep: Callable[[Vector], None] | None = None,
    ) -> None:
        self.problem = problem
        self._prepare, self._index, self._limits = prepare, index, limits
        self._keep = keep
        self._agreement: Agreement | None = None
        self._inner: App | None = None

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer an instruction; raise only what stands for a Byzantine fault of the wire."""
        try:
            return self._answer(message, context)
        except (Silent, Broken):
            raise
        except Exception:  # whatever it says may be about the data
            log.exception("this instruction could not be answered; the server is told no more than that")
            return error_reply(message, FAILED_TEXT)

    def _answer(self, message: Message, context: Context) -> Message:
        kind = message.metadata.message_type
        if kind == f"query.{STATISTICS}":
            return self._statistics(message)
        self._agree(message.content, context)
        if kind == "evaluate" and not self._limits.evaluation:
            return error_reply(message, NO_EVALUATION)
        if kind == "train" and not self._takes_part(message.content, context):
            return error_reply(message, f"{DECLINED}: more than {self._limits.max_rounds} rounds")
        if kind == QUESTION and (why := self._limits.declines_batches(self.problem, self._index)):
            return error_reply(message, why)
        if self._inner is None:
            return error_reply(message, f"{UNPREPARED}: this client has not been sent the agreement")
        if kind == f"query.{MODEL}":
            return self._take_model(message)
        return self._screened(self._inner(message, context), message)

    def _agree(self, content: RecordDict, context: Context) -> None:
        """Take the agreement from an instruction, or from the state of a node that had it before.

        Raises:
            ConfigError: it cannot be used, or is another one than before.
        """
        sent, kept = Agreement.read(content), Agreement.read(context.state)
        if sent is not None and kept is not None and sent != kept:
            raise ConfigError("the server changes what was agreed on; it is fixed for a run")
        found = sent or kept
        if found is None or found == self._agreement:
            return
        self._inner = self._prepare(found)
        self._agreement = found
        context.state[AGREEMENT] = found.record()

    def _takes_part(self, content: RecordDict, context: Context) -> bool:
        """Count the rounds of a client that does not answer all; return whether it answers this one."""
        if self._limits.max_rounds is None:
            return True
        record: Any = content.config_records.get("ask", ConfigRecord())
        counted: Any = context.state.config_records.get(_ROUNDS, ConfigRecord({"count": 0, "last": -1}))
        if record.get("round") != counted["last"]:
            if counted["count"] >= self._limits.max_rounds:
                return False
            count = {"count": counted["count"] + 1, "last": int(record.get("round", -1))}
            context.state[_ROUNDS] = ConfigRecord(count)
        return True

    def _take_model(self, message: Message) -> Message:
        """Keep the final model, if it is wanted here."""
        if (take := getattr(self.problem, "set_norm_stats", None)) is not None:
            take(read_norm_stats(message.content))
        if self._keep is not None:
            self._keep(read_model_of(message.content, self.problem))
        return Message(RecordDict(), reply_to=message)

    def _statistics(self, message: Message) -> Message:
        """Report the statistics of the columns, if there are any and the owner allows it."""
        if not self._limits.statistics:
            return error_reply(message, NO_STATISTICS)
        find: Any = getattr(self.problem, "statistics", None)
        found = None if find is None else find(self._index)
        if found is None:
            return error_reply(message, f"{DECLINED}: too few rows for statistics")
        record = ConfigRecord({"columns": json.dumps(found)})
        return Message(RecordDict({STATISTICS: record}), reply_to=message)

    def _screened(self, reply: Message, message: Message) -> Message:
        """Replace the text of an error, whatever it begins with: the owner's code may have raised it."""
        if not reply.has_error():
            return reply
        reason = reply.error.reason or ""
        log.error("the server is told that this instruction failed, and not why: %s", reason)
        known = next((slug for slug in (STALE, ATTACK_FAILED) if reason.startswith(slug)), None)
        return error_reply(message, FAILED_TEXT if known is None else f"{known}: the client's own log has the reason")


def withheld(error: Exception) -> ConfigError:
    """Log an error whose text may hold a value of the owner's data; return the one that others may see."""
    log.error("%s", error if isinstance(error, BreakwaterError) else kind_and_line(error))
    return ConfigError(FAILED_TEXT)
