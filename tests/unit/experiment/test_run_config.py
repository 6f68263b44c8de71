"""Flower's run config, read once: which file, with which changes, data and folders."""

from pathlib import Path

import pytest

from experiment.config import parse
from experiment.run_config import RunConfig
from foundation import origin
from foundation.errors import ConfigError
from tests.unit.experiment.test_opened import SMALL


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "small.toml").write_text(SMALL)
    return tmp_path


def test_a_run_config_names_a_file_by_its_path_or_in_the_bundle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_path = RunConfig.read({"config": str(folder / "small.toml")})
    assert by_path.load() == parse(SMALL)
    monkeypatch.setattr(origin, "ROOT", folder)
    in_bundle = RunConfig.read({"config": "small.toml"})
    assert in_bundle.path == by_path.path
    assert in_bundle.load() == parse(SMALL)


def test_the_text_of_a_config_is_no_path() -> None:
    with pytest.raises(ConfigError, match="no such file in the bundle"):
        RunConfig.read({"config": SMALL}).load()


def test_a_run_config_changes_a_file(folder: Path) -> None:
    given = {"config": str(folder / "small.toml"), "set": "strategy.rounds=7 'federation.seed = 5'"}
    config = RunConfig.read(given).load()
    assert (config.strategy.rounds, config.federation.seed) == (7, 5)
    with pytest.raises(ConfigError, match=r"\[strategy\] round: unknown key"):
        RunConfig.read(given | {"set": "strategy.round=7"}).load()
    with pytest.raises(ConfigError, match=r"run config: set = \"a='b\": No closing quotation"):
        RunConfig.read(given | {"set": "a='b"})


def test_where_the_data_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node's own folder, else the run's, else the environment's."""
    monkeypatch.setenv("BREAKWATER_DATA", "environment")
    run, bare = RunConfig.read({"config": "x", "data": "run"}), RunConfig.read({"config": "x"})
    found = run.data_dir(Path("node")), run.data_dir(), bare.data_dir()
    assert found == (*map(Path, ("node", "run", "environment")),)
    monkeypatch.delenv("BREAKWATER_DATA")
    assert bare.data_dir() is None


def test_the_other_keys() -> None:
    keys = {"out": "o", "resume": "", "link": "a:1", "link-listen": ":2", "attackers": "last"}
    run = RunConfig.read({"config": "x", **keys})
    assert run == RunConfig("x", out=Path("o"), link="a:1", listen=":2", last_attack=True)
    with pytest.raises(ConfigError, match=r"run config: attackers = 'first': must be \"last\""):
        RunConfig.read({"config": "x", "attackers": "first"})


@pytest.mark.parametrize("given", [{}, {"config": ""}, {"data": "x"}])
def test_a_run_config_that_names_no_experiment(given: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match='run config: "config" is missing; name an experiment TOML'):
        RunConfig.read(given)


def test_a_path_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match=r'^run config: config = "no/such\.toml": no such file in the bundle; known'):
        RunConfig.read({"config": "no/such.toml"}).load()
