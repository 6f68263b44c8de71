"""Configs made of objects in Python: the same as those of files, and written to files that load to the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attacks.classical import ALIE
from experiment.config import CheckpointSection, Config, EvaluationSection, changed, load, parse
from experiment.sections import Federation
from foundation.errors import ConfigError
from strategies.aggregators import CoordinateMedian, TrimmedMean
from strategies.aggregators.preaggregators import Bucketing
from strategies.byz_vr_marina_pp import ByzVRMarinaPP
from strategies.compressors import Identity, RandK
from strategies.method import Method
from strategies.robust_averaging import RobustAveraging
from tasks.digits import DigitsTask
from tasks.logistic import LogisticTask

CONFIGS = sorted((Path(__file__).parents[3] / "deploy" / "configs").glob("*.toml"))


def method_of(config: Config) -> Method:
    """Return the method as somebody who reads the file would write it in Python."""
    who, section = config.federation, dict(config.strategy)
    values: dict[str, Any] = {name: section[name] for name in config.strategy.method.keys()}  # noqa: SIM118
    if "clip" in section:
        values["alpha"] = {True: section["alpha"] or "2L", False: None}.get(section["clip"], section["clip"])
    parts: dict[str, Any] = {"aggregator": config.aggregator, "compressor": config.compressor}
    return config.strategy.method(n=who.clients, f=who.byzantine, **parts, **values)


def of_objects(config: Config) -> Config:
    """Return the config made anew of its parts, with a method in place of its sections."""
    rest = {name: value for name, value in dict(config).items() if name not in ("aggregator", "compressor", "strategy")}
    return Config(**rest, strategy=method_of(config), rounds=config.strategy.rounds)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_made_of_objects_and_written(path: Path, tmp_path: Path) -> None:
    config = load(path)
    if dict(config.strategy).get("clip") is True and dict(config.strategy)["alpha"] is None:
        config = load(path, {"strategy.alpha": "2L"})  # the default, written out
    made = of_objects(config)
    assert made == config
    assert Config(**dict(config)) == config
    made.write(tmp_path / "again.toml")
    assert load(tmp_path / "again.toml") == config


def marina(**other: Any) -> ByzVRMarinaPP:
    given: dict[str, Any] = {
        "n": 10, "f": 3, "gamma": 0.1, "p": 0.2, "batch": 16, "cohort": 5, "full_cohort": 10, "alpha": 2.0,
        "aggregator": TrimmedMean(pre=(Bucketing(s=2),)), "compressor": RandK(ratio=0.1),
    }  # fmt: skip
    return ByzVRMarinaPP(**given | other)


def config(**other: Any) -> Config:
    who = Federation(clients=10, byzantine=3)
    given: dict[str, Any] = {"federation": who, "task": DigitsTask(), "strategy": marina(), "rounds": 20}
    return Config(**given | other)


def test_a_method_brings_its_rule_and_compressor() -> None:
    made = config(strategy=marina(f=3, aggregator=TrimmedMean()), attack=ALIE())
    assert made.aggregator == TrimmedMean()
    assert made.compressor == RandK(ratio=0.1)
    assert (made.strategy.rounds, made.attack) == (20, ALIE())
    assert parse(made.to_toml()) == made


def test_numbers_may_be_in_terms_of_l_and_of_numpy() -> None:
    made = config(task=LogisticTask(), strategy=marina(
        gamma="0.2/L", alpha="2L", batch=np.int64(8), aggregator=TrimmedMean(), full_cohort="least",
    ))  # fmt: skip
    section = dict(made.strategy)
    assert [section[key] for key in ("gamma", "alpha", "batch", "full_cohort")] == ["0.2/L", "2L", 8, "least"]
    assert parse(made.to_toml()) == made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": None}, r"rounds: missing; give Config\(strategy=ByzVRMarinaPP"),
        ({"strategy": marina(n=11)}, r"federation.clients = 10, but strategy = ByzVRMarinaPP\(n=11\)"),
        ({"strategy": marina(f=2)}, r"federation.byzantine = 3, but strategy = ByzVRMarinaPP\(f=2\)"),
        ({"aggregator": CoordinateMedian()}, "aggregator: is another one than that of strategy"),
        ({"compressor": Identity()}, "compressor: is another one than that of strategy"),
        ({"strategy": marina(batch="many", aggregator=TrimmedMean())}, r"\[strategy\] batch = 'many': must be"),
        ({"strategy": marina(gamma="fast", aggregator=TrimmedMean())}, r'\[strategy\] gamma = "fast": must be a posit'),
        ({"strategy": marina(cohort=11, aggregator=TrimmedMean())}, "strategy.cohort = 11: must be at most feder"),
        ({"task": DigitsTask(hidden=2.5)}, r"\[task\] hidden = 2.5: must be"),  # type: ignore[arg-type]
        ({"attack": TrimmedMean()}, r'\[attack\] kind = "cwtm": unknown'),
        ({"checkpoint": {"keep": 0}}, r"\[checkpoint\] keep = 0: must be greater than or equal to 1"),
        ({"colour": 1}, "colour: unknown section"),
    ],
)
def test_what_is_wrong_is_one_line_as_for_a_file(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}") as error:
        config(**{"strategy": marina(aggregator=TrimmedMean()), **change})
    assert "\n" not in str(error.value)


def test_a_method_that_no_config_names_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"RobustAveraging\(\.\.\.\): is not in the table of methods"):
        config(
            strategy=RobustAveraging(n=10, f=3, gamma=1.0, cohort=10, aggregator=TrimmedMean(), compressor=Identity())
        )


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (lambda: Federation(clients=0), r"\[federation\] clients = 0: must be greater than or equal to 1"),
        (lambda: Federation(clients="9"), r"\[federation\] clients = '9': must be a valid integer"),  # type: ignore[arg-type]
        (lambda: EvaluationSection(every=0), r"\[evaluation\] every = 0"),
        (lambda: CheckpointSection(kept=1), r"\[checkpoint\] kept: unknown key; did you mean keep\?"),  # type: ignore[call-arg]
    ],
)
def test_a_section_that_is_wrong_is_one_line(section: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        section()


def test_overrides_are_a_mapping_or_as_on_the_command_line() -> None:
    path = next(path for path in CONFIGS if path.stem == "demo")
    typed = ["strategy.rounds=7", "aggregator.kind=cwtm", "attack.kind=none", "federation.byzantine=0"]
    values = {"strategy.rounds": 7, "aggregator.kind": "cwtm", "attack.kind": "none", "federation.byzantine": 0}
    assert load(path, typed) == load(path, values) == changed(load(path), values)
    assert load(path, {"strategy.rounds": np.int64(7)}).strategy.rounds == 7
    assert changed(load(path), values).folder == path.parent
    for wrong, message in (
        ({"strategy.rounds": "7"}, r"demo.toml: \[strategy\] rounds = '7': must be a valid integer"),
        ({"rounds": 7}, "override rounds: must read section.key=value"),
        ("strategy.rounds=7", 'overrides = "strategy.rounds=7": must be a mapping, or a list'),
    ):
        with pytest.raises(ConfigError, match=message):
            load(path, wrong)
