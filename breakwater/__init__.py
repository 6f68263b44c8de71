"""Byzantine-robust federated learning on Flower: what users import.

    import breakwater as bw

    run = bw.run("demo.toml", overrides={"strategy.rounds": 200}, out="runs/first")
    run.accuracy, run.metrics["loss"]
    bw.aggregators.GeometricMedian()(rows, f=3)

Names are loaded when they are first used, so ``import breakwater`` costs next to nothing. The catalogue has a module
for each kind of part: ``methods``, ``aggregators``, ``compressors``, ``attacks`` and ``tasks``.

In a checkout, our folders lie beside this one (``strategies``, ``server``, ...). A wheel holds them inside of it
(``breakwater.strategies``, ...) and puts nothing else on the path; ``deploy/wheel.py`` builds it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapters.answers import answer
    from adapters.app_strategy import AppStrategy
    from adapters.federated_averaging import RobustFedAvg
    from adapters.mods import robust_deltas_mod
    from breakwater import aggregators, attacks, compressors, methods, tasks
    from breakwater.runs import Comparison, Run, compare, load_config, run
    from experiment.config import CheckpointSection, Config, EvaluationSection
    from experiment.model_file import load_model
    from experiment.sections import Federation
    from foundation.errors import BreakwaterError, ConfigError
    from strategies.hold import StalledError
    from tasks.table_model import Predictions, TableModel

_MODULES = frozenset({"aggregators", "attacks", "compressors", "methods", "tasks"})
_WHERE = {
    "AppStrategy": "adapters.app_strategy",
    "BreakwaterError": "foundation.errors",
    "CheckpointSection": "experiment.config",
    "Comparison": "breakwater.runs",
    "Config": "experiment.config",
    "ConfigError": "foundation.errors",
    "EvaluationSection": "experiment.config",
    "Federation": "experiment.sections",
    "Predictions": "tasks.table_model",
    "RobustFedAvg": "adapters.federated_averaging",
    "Run": "breakwater.runs",
    "StalledError": "strategies.hold",
    "TableModel": "tasks.table_model",
    "answer": "adapters.answers",
    "compare": "breakwater.runs",
    "load_config": "breakwater.runs",
    "load_model": "experiment.model_file",
    "robust_deltas_mod": "adapters.mods",
    "run": "breakwater.runs",
}
"""The module of each name."""

__all__ = [
    "AppStrategy",
    "BreakwaterError",
    "CheckpointSection",
    "Comparison",
    "Config",
    "ConfigError",
    "EvaluationSection",
    "Federation",
    "Predictions",
    "RobustFedAvg",
    "Run",
    "StalledError",
    "TableModel",
    "aggregators",
    "answer",
    "attacks",
    "compare",
    "compressors",
    "load_config",
    "load_model",
    "methods",
    "robust_deltas_mod",
    "run",
    "tasks",
]


def __getattr__(name: str) -> Any:
    """Load a name when it is first used."""
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name == "__version__":
        from importlib.metadata import version

        return version("breakwater")
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_WHERE[name]), name)
    return found


def __dir__() -> list[str]:
    """Return what there is to use, loaded or not."""
    return sorted({*globals(), *__all__, "__version__"})
