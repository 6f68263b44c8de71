"""At the end of a run, every connected client with data of its own is sent the final model."""

import logging
from collections.abc import Callable

from flwr.app import RecordDict

from experiment.opened import Experiment
from foundation.text import kind_and_line
from link import codec
from link.claims import with_norm_stats
from link.invitation import MODEL
from link.transport import Transport
from server.asking import ask_all
from strategies.method import AGREEMENT, Vector

log = logging.getLogger("breakwater.server")


def send_model(experiment: Experiment, transport: Transport, x: Vector) -> None:
    """Send the final model, and wait for the answers until the deadline of a round. Never raises.

    Each client is sent the agreement too: one that was never sampled does not have it. What clients answer has no
    effect; one that has gone, or does not answer, misses the model.

    Args:
        experiment: settled.
        transport: where the clients are.
        x: the model as the run folder has it, shape (d,).
    """
    norm_stats: Callable[[Vector], Vector | None] = getattr(experiment.problem, "norm_stats", lambda _: None)
    content = with_norm_stats(RecordDict({MODEL: codec.to_arrays(x)}), norm_stats(x))
    if experiment.agreement is not None:
        content[AGREEMENT] = experiment.agreement.record()
    try:
        answers = ask_all(transport, experiment.config.federation, MODEL, content)
        missed = [transport.name(i) for i, replies in answers.items() if all(each.has_error() for each in replies)]
    except Exception as error:  # the run is over and its results are written
        log.error("the final model could not be sent to the clients: %s", kind_and_line(error))
        return
    log.info("%d of %d connected clients took the final model", len(answers) - len(missed), len(answers))
    if missed:
        log.warning("the final model did not reach %s", ", ".join(missed[:10]) + " ..." * (len(missed) > 10))
