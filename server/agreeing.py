"""Works out what clients with their own data agree on, from what they declare; see ``experiment.agreement``."""

import json
import logging
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict

from experiment.agreement import Agreement, claimed_smoothness, median_count
from experiment.opened import Experiment
from foundation.errors import ConfigError
from foundation.text import one_line
from link.invitation import STATISTICS
from link.transport import Transport
from server.asking import ask_all
from tasks.identity import TaskIdentity

log = logging.getLogger("breakwater.server")

_MOST_TEXT = 1 << 20
"""Characters of a client's statistics that are parsed."""


def agree(experiment: Experiment, transport: Transport) -> Agreement:
    """Return what the clients that have joined agree on.

    Args:
        experiment: of clients with their own data, before anything is agreed on.
        transport: where they are.

    Raises:
        ConfigError: too few clients declare what the experiment needs; one line.
    """
    federation, problem = experiment.config.federation, experiment.problem
    declared = {name: TaskIdentity.parse(report) for name, report in transport.reports().items()}
    samples = smoothness = None
    try:
        samples = median_count(declared, federation.byzantine) if federation.declare_samples else None
        if problem.smoothness is None and any(each.smoothness for each in declared.values()):
            smoothness = claimed_smoothness(declared, federation.byzantine)
    except ConfigError as error:
        if experiment.pending:
            raise
        log.info("nothing needs it: %s", error)
    agreement = Agreement(samples=samples, smoothness=smoothness, scaling=_scaling(experiment, transport))
    shown = [f"m = {samples}"] * (samples is not None) + [f"L = {smoothness}"] * (smoothness is not None)
    log.info("agreed with the clients: %s", ", ".join(shown + ["a scaling"] * bool(agreement.scaling)) or "nothing")
    return agreement


def _scaling(experiment: Experiment, transport: Transport) -> str:
    """Ask all clients for the statistics of their columns, and return the federation's scaling; "" for none."""
    problem: Any = experiment.problem
    if not getattr(problem, "needs_statistics", False):
        return ""
    federation, reported = experiment.config.federation, dict[str, object]()
    for worker, replies in ask_all(transport, federation, STATISTICS, RecordDict()).items():
        name = transport.name(worker)
        for reply in replies:
            if reply.has_error():
                log.warning("%s reports no statistics: %s", name, one_line(reply.error.reason, 200))
            else:
                reported.setdefault(name, _read(reply))
    try:
        return str(problem.scaling_of(reported, federation.byzantine))
    except ValueError as error:
        raise ConfigError(f"[task] {error}") from None


def _read(reply: Message) -> object:
    """Return the statistics in a reply, as JSON has them; the text where it is none."""
    text = reply.content.config_records.get(STATISTICS, ConfigRecord()).get("columns")
    try:
        return json.loads(text) if isinstance(text, str) and len(text) <= _MOST_TEXT else text
    except (ValueError, RecursionError):
        return text
