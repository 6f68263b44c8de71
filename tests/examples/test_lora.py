"""The adapters of a language model: only they travel, another base is refused, and a tiny federation trains them."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import breakwater as bw
from breakwater.tasks import Setting
from tasks.identity import identify_party

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what other people's packages say of each other while they are imported
    from examples.lora import adapters

STUDY = Path(adapters.__file__).parent / "study.toml"
TINY: dict[str, Any] = {"hidden": 8, "layers": 1, "rank": 2, "length": 24}
ATTACKERS = ("shoes", "tea")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the parties' texts."""
    folder = tmp_path_factory.mktemp("texts")
    adapters.main([str(folder), "--count", "24"])
    return folder


def tiny(changes: Mapping[str, Any] = {}) -> dict[str, Any]:  # never written to
    """Return overrides of the study."""
    options = {f"task.options.{name}": value for name, value in TINY.items()}
    return options | {"strategy.rounds": 3, "strategy.batch": 8, "evaluation.every": 3} | dict(changes)


def problem(data: Path, seed: int = 1, **options: Any) -> Any:
    """Return the loaded task of all parties."""
    config = bw.load_config(STUDY, tiny({f"task.options.{name}": value for name, value in options.items()}))
    folders = {number: data / name for number, name in enumerate(adapters.PARTIES)}
    return config.task.load(
        Setting(clients=7, byzantine=2, seed=seed, party="client", folders=folders, config_dir=STUDY.parent)
    )


def test_only_adapters_and_the_classifier_are_trained(data: Path) -> None:
    one = problem(data)
    model = adapters.Adapters(**TINY).model()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    assert one.dim == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert one.dim < sum(parameter.numel() for parameter in model.parameters()) / 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_gradients_are_float32_and_repeat_under_dropout(data: Path, dtype: str) -> None:
    one = problem(data, dtype=dtype)
    x, found = one.initial(), []
    for round_number in (1, 1, 2):
        oracle = one.oracle(0)
        oracle.begin(np.random.default_rng(round_number))
        found.append(oracle.minibatch_gradients([x, x], 8, np.random.default_rng(5)))
    assert found[0][0].dtype == x.dtype == np.float32
    assert np.any(found[0][0])
    assert np.array_equal(found[0][0], found[0][1])  # one mask at both points
    assert np.array_equal(found[0][0], found[1][0])  # a repeated message
    assert not np.array_equal(found[0][0], found[2][0])  # the next round


def test_a_party_with_another_base_model_is_refused(data: Path) -> None:
    server, same, other = (
        identify_party(each, at_server=False, samples=False)
        for each in (problem(data), problem(data, seed=2), problem(data, base=1))
    )
    assert same.differences(server) == []  # the base does not depend on the seed of the run
    assert other.differences(server) == ["the model's frozen parameters or buffers have other values"]


def test_a_federation_sends_the_bytes_of_the_adapters(data: Path, tmp_path: Path) -> None:
    run = bw.run(
        STUDY,
        overrides=tiny(),
        out=tmp_path / "run",
        data=data,
        attackers=ATTACKERS,
        processes=False,
        quiet=True,
        pictures=False,
    )
    one = problem(data)
    assert run.status == "finished"
    assert run.summary["rejected"] == {}
    payload = 3 * 7 * 4 * one.dim
    assert payload < run.bytes_up < payload + 3 * 7 * 200  # envelopes
    start = one.initial()
    assert run.model.shape == start.shape
    assert not np.array_equal(run.model, start)
    assert run.accuracy is not None
    model = adapters.Adapters(**TINY).model()
    run.load_into(model)
