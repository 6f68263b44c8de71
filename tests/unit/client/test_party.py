"""A client with its own data: the limits of its owner, and how little it says when something fails."""

import logging
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict

from client.party import Limits, PartyApp
from experiment.agreement import Agreement
from experiment.config import Config, parse
from foundation.errors import Broken, ConfigError, Silent
from foundation.faults import Fault
from link.flwr_compat import APP_RAISED, instruction
from link.invitation import STATISTICS
from link.replies import App
from strategies.batch_statistics import QUESTION
from strategies.method import AGREEMENT, ATTACK_FAILED, DECLINED, FAILED, STALE, UNPREPARED
from tests.parties import CONFIG

MARKER = "HIV+ 1987-02-03"
AGREED = Agreement(samples=20)


def context() -> Context:
    return Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={})


def message(kind: str = "train", round_: int = 1, agreement: Agreement | None = AGREED, **records: Any) -> Message:
    content = RecordDict({"ask": ConfigRecord({"round": round_, "kind": "full"}), **records})
    if agreement is not None:
        content[AGREEMENT] = agreement.record()
    return instruction(content, run_id=1, node_id=2, message_id="7", message_type=kind, group_id="", ttl_s=9.0)


def well(message: Message, context: Context) -> Message:
    return Message(RecordDict({"p": ConfigRecord({"": b"1"})}), reply_to=message)


def party(inner: App = well, limits: Limits = Limits(), problem: Any = None) -> PartyApp:  # noqa: B008  # it is frozen
    return PartyApp(lambda agreement: inner, problem, 0, limits)


def reason(reply: Message) -> str:
    return str(reply.error.reason) if reply.has_error() else ""


def test_without_an_agreement_it_is_unprepared_and_with_one_it_answers() -> None:
    app, here = party(), context()
    assert reason(app(message(agreement=None), here)).startswith("unprepared: ")
    assert not app(message(), here).has_error()
    assert not app(message(agreement=None), here).has_error()


def test_another_process_of_a_node_finds_the_agreement_in_its_state() -> None:
    here = context()
    party()(message(), here)
    assert not party()(message(agreement=None), here).has_error()


def test_the_agreement_of_a_run_cannot_be_changed(caplog: pytest.LogCaptureFixture) -> None:
    app, here = party(), context()
    app(message(), here)
    assert reason(app(message(agreement=Agreement(samples=21)), here)) == "failed: the client's own log has the reason"
    assert "the server changes what was agreed on" in caplog.text
    assert not app(message(), here).has_error()


@pytest.mark.parametrize("error", [ValueError(MARKER), ConfigError(MARKER), KeyError(MARKER), RecursionError(MARKER)])
def test_no_exception_leaves_with_its_text(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    def failing(message: Message, context: Context) -> Message:
        raise error

    with caplog.at_level(logging.ERROR):
        assert reason(party(failing)(message(), context())) == "failed: the client's own log has the reason"
    assert MARKER in caplog.text


@pytest.mark.parametrize("slug", [STALE, ATTACK_FAILED, FAILED, DECLINED, UNPREPARED, "error", ""])
def test_no_error_reply_leaves_with_its_text(slug: str) -> None:
    def replying(message: Message, context: Context) -> Message:
        return Message(Error(APP_RAISED, f"{slug}: {MARKER}"), reply_to=message)

    said = reason(party(replying)(message(), context()))
    assert said == f"{slug if slug in (STALE, ATTACK_FAILED) else 'failed'}: the client's own log has the reason"


def test_faults_of_an_attacker_pass() -> None:
    def silent(message: Message, context: Context) -> Message:
        raise Silent("nothing")

    def broken(message: Message, context: Context) -> Message:
        raise Broken(Fault.GARBAGE, RecordDict())

    with pytest.raises(Silent):
        party(silent)(message(), context())
    with pytest.raises(Broken):
        party(broken)(message(), context())


def test_the_owner_may_decline_evaluation_statistics_and_more_rounds() -> None:
    here = context()
    app = party(limits=Limits(evaluation=False, statistics=False, max_rounds=2))
    assert reason(app(message("evaluate"), here)) == "declined: evaluation"
    assert reason(app(message(f"query.{STATISTICS}"), here)) == "declined: statistics"
    answers = [reason(app(message(round_=r), here)) for r in (1, 1, 4, 5, 5)]
    assert answers == ["", "", "", "declined: more than 2 rounds", "declined: more than 2 rounds"]


class Normed:
    """A party whose model has batch norm."""

    answers_statistics, variances = True, (False, True)

    def __init__(self, rows: int, count: int) -> None:
        self.rows, self.samples = rows, count

    def batch_rows(self, worker: int) -> int:
        return self.rows

    def count(self, worker: int) -> int:
        return self.samples


@pytest.mark.parametrize(
    ("problem", "limits", "said"),
    [
        (Normed(8, 40), Limits(), ""),
        (Normed(5, 5), Limits(), ""),  # all that it has, as for gradients
        (Normed(5, 40), Limits(), "declined: too few rows for statistics of batches"),
        (Normed(16, 40), Limits(min_batch=20), "declined: too few rows for statistics of batches"),
        (Normed(16, 16), Limits(min_batch=20), "declined: too few rows for statistics of batches"),
        (Normed(20, 40), Limits(min_batch=20), ""),
        (Normed(16, 40), Limits(statistics=False), "declined: statistics"),
        (object(), Limits(), "declined: statistics of batches, by its own config"),
    ],
)
def test_statistics_of_batches_are_declined_by_the_owners_limits(problem: Any, limits: Limits, said: str) -> None:
    assert reason(party(limits=limits, problem=problem)(message(QUESTION), context())) == said


def test_statistics_are_sent_as_they_are_and_too_few_rows_send_none() -> None:
    class Problem:
        def __init__(self, found: Any) -> None:
            self.statistics = lambda worker: found

    asked = message(f"query.{STATISTICS}", agreement=None)
    found = {"age": {"mean": 3.0, "variance": 1.0}}
    sent = party(problem=Problem(found))(asked, context()).content.config_records[STATISTICS]
    assert sent == {"columns": '{"age": {"mean": 3.0, "variance": 1.0}}'}
    assert reason(party(problem=Problem(None))(asked, context())) == "declined: too few rows for statistics"
    assert reason(party(problem=object())(asked, context())) == "declined: too few rows for statistics"


def config(batch: int, full_batch: int = 0) -> Config:
    text = CONFIG.replace("{n}", "4").replace("{f}", "1").replace("batch = 8", f"batch = {batch}")
    return parse(text.replace("clip = false", f"clip = false\nfull_batch = {full_batch}"))


def test_gradients_of_too_few_samples_are_declined_before_joining() -> None:
    Limits().check(config(8), 100)
    Limits().check(config(1000), 3)  # all that there is
    Limits(min_batch=4).check(config(4), 100)
    with pytest.raises(ConfigError, match=r"strategy.batch = 7 gives gradients of 7 samples of this client's 100"):
        Limits().check(config(7), 100)
    with pytest.raises(ConfigError, match=r"strategy.full_batch = 2 gives gradients of 2 samples"):
        Limits().check(config(8, 2), 100)
    with pytest.raises(ConfigError, match=r"--min-batch 20 declines this experiment: strategy.batch = 50 .* of 10 "):
        Limits(min_batch=20).check(config(50), 10)
