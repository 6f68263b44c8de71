"""Lets tests that import ``strategies`` and our other folders get those of an installed wheel.

It is copied into the environment that the unit tests run in, and imported there when Python starts. It imports nothing
that takes time.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

ROOMS: frozenset[str] = frozenset()
"""The folders; the line is replaced in the copy."""


class Renamed(MetaPathFinder, Loader):
    """Finds a module of a checkout in the wheel; both names are then the same module."""

    def __init__(self) -> None:
        self._specs: dict[str, ModuleSpec | None] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Claim the modules of our folders."""
        return ModuleSpec(fullname, self) if fullname.partition(".")[0] in ROOMS else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module of the wheel."""
        try:
            module = import_module(f"breakwater.{spec.name}")
        except ModuleNotFoundError as error:
            if error.name == f"breakwater.{spec.name}":
                raise ModuleNotFoundError(f"No module named {spec.name!r}", name=spec.name) from None
            raise
        self._specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Leave it as it is: it has run."""
        name = module.__spec__.name if module.__spec__ else ""
        module.__spec__ = self._specs.pop(name)


sys.meta_path.insert(0, Renamed())
