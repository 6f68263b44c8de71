"""Who measures the model: the default, what clients must agree on, and what a resumed run may change."""

from types import SimpleNamespace

import pytest

from experiment.config import parse
from experiment.opened import open_config
from foundation.errors import ConfigError
from server.run_folder.checkpoints import digest_of

TEXT = """
[federation]
clients = 5
byzantine = 1
[task]
kind = "digits"
model = "softmax"
[strategy]
kind = "robust-sgd"
rounds = 4
gamma = 0.1
"""


@pytest.mark.parametrize(
    ("by", "server", "clients"),
    [("server", True, False), ("clients", False, True), ("both", True, True), ("none", False, False)],
)
def test_server_and_clients_measure_as_the_config_says(by: str, server: bool, clients: bool) -> None:
    config = parse(TEXT, {"evaluation.by": by})
    assert (config.evaluated_by, config.server_evaluates, config.clients_evaluate) == (by, server, clients)


def test_the_server_measures_shared_data_and_clients_their_own_unless_the_config_says_otherwise() -> None:
    config = parse(TEXT)
    assert config.evaluated_by == "server"
    own = config.model_copy(update={"task": SimpleNamespace(partition="own")})
    assert own.evaluated_by == "clients"
    both = own.model_copy(update={"evaluation": parse(TEXT, {"evaluation.by": "both"}).evaluation})
    assert both.evaluated_by == "both"


def test_another_word_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        ConfigError, match=r"\[evaluation\] by = 'client': must be 'server', 'clients', 'both' or 'none'"
    ):
        parse(TEXT, {"evaluation.by": "client"})


def test_a_client_must_agree_on_who_measures_but_not_on_how_often() -> None:
    config = parse(TEXT)
    assert config.worker_terms() == parse(TEXT, {"evaluation.every": 3}).worker_terms()
    assert config.worker_terms() == parse(TEXT, {"evaluation.by": "server"}).worker_terms()
    assert config.worker_terms() != parse(TEXT, {"evaluation.by": "both"}).worker_terms()


def test_a_resumed_run_may_change_who_measures() -> None:
    config = open_config(parse(TEXT)).config
    other = open_config(parse(TEXT, {"evaluation.by": "both", "federation.declare_samples": False})).config
    assert digest_of(config) == digest_of(other)
    assert parse(other.to_toml()).evaluated_by == "both"


@pytest.mark.parametrize("kind", ["mnist", "cifar10"])
def test_with_local_running_statistics_only_clients_can_measure_the_model(kind: str) -> None:
    text = TEXT.replace('kind = "digits"\nmodel = "softmax"', f'kind = "{kind}"\nnorm_stats = "local"')
    config = parse(text)
    assert (config.server_evaluates, config.clients_evaluate) == (False, True)
    with pytest.raises(ConfigError, match=r'evaluation.by = "both": .*norm_stats = "local".*; use "clients" or "none"'):
        parse(text, {"evaluation.by": "both"})
