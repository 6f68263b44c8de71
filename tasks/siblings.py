"""Runs the Python file of a custom task as if it lay in a package with the files beside it.

``import net`` in ``task.py`` finds ``net.py`` or ``net/`` in the same folder; so do ``from .net import make`` and an
import inside a method that is called later. The folder is never on ``sys.path`` and the modules have names of their
own, so nobody else sees them: two tasks may have siblings of the same name, and a sibling called ``queue.py`` replaces
the standard library's only in the task's files. The product's packages always win.

How: every module of the task has separate builtins with another ``__import__``, which Python asks for each import
statement of that module's code, whenever it runs.
"""

import builtins
import hashlib
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import module_from_spec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

OURS = frozenset(
    {"adapters", "attacks", "breakwater", "client", "deploy", "experiment"}
    | {"foundation", "link", "server", "strategies", "tasks"}
)
"""The product's packages: a sibling of such a name is not seen."""


def run(file: Path, digests: dict[str, str]) -> ModuleType:
    """Run a Python file afresh, and the siblings that it imports.

    Args:
        file: its path.
        digests: is given a digest of the source of every file of its folder that is run, by its path in the folder;
            also of those that are imported later.
    """
    folder = file.resolve().parent
    package = f"custom_task_{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    for name in [name for name in list(sys.modules) if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]  # of an earlier load: files may have changed since; another thread may import meanwhile
    siblings = _Siblings(folder, package, digests)
    sys.meta_path[:] = [finder for finder in sys.meta_path if not siblings.replaces(finder)]
    sys.meta_path.insert(0, siblings)
    parent = ModuleType(package)
    parent.__path__ = [str(folder)]
    parent.__package__ = package
    parent.__spec__ = ModuleSpec(package, None, is_package=True)
    sys.modules[package] = parent
    name = f"{package}.{file.stem}"
    loader = _Loader(name, str(file), siblings)
    spec = ModuleSpec(name, loader, origin=str(file))
    spec.has_location = True
    module = module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses in it look themselves up
    setattr(parent, file.stem, module)
    loader.exec_module(module)
    return module


class _Siblings(MetaPathFinder):
    """The modules of one folder, under the name of a package that only they import from.

    Args:
        folder: of the task's file.
        package: the name.
        digests: see ``run``.
    """

    def __init__(self, folder: Path, package: str, digests: dict[str, str]) -> None:
        self.folder, self.package, self.digests = folder, package, digests
        self.builtins = {**vars(builtins), "__import__": self.imports}

    def replaces(self, other: object) -> bool:
        """Return whether another finder is one for the same folder."""
        return isinstance(other, _Siblings) and other.package == self.package

    def imports(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,  # noqa: A002  # as Python calls it
        locals: Mapping[str, Any] | None = None,  # noqa: A002  # as Python calls it
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """Import for a module of the task: ``builtins.__import__``, but that siblings come first."""
        top = name.partition(".")[0]
        if level or not self._has(top):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        found = builtins.__import__(f"{self.package}.{name}", globals, locals, fromlist or (), 0)
        return found if fromlist else sys.modules[f"{self.package}.{top}"]

    def _has(self, top: str) -> bool:
        """Return whether there is a sibling of that name; one is a file, or a folder with Python files."""
        if top in OURS or top in sys.builtin_module_names:
            return False
        place = self.folder / top
        return place.with_name(f"{top}.py").is_file() or (place.is_dir() and next(place.glob("*.py"), None) is not None)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module of the package, and have it run with the builtins of the task."""
        if not fullname.startswith(f"{self.package}."):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path, self)
        return spec


class _Loader(SourceFileLoader):
    """Runs the source as it lies there: never a compiled file, which Python takes for current by its time and length.

    Args:
        name: of the module.
        path: of the file.
        siblings: whose module it is.
    """

    def __init__(self, name: str, path: str, siblings: _Siblings) -> None:
        super().__init__(name, path)
        self._siblings = siblings

    def get_code(self, fullname: str) -> CodeType:
        """Compile the file, and note what is in it."""
        source = self.get_data(self.path)
        place = Path(self.path).resolve()
        inside = place.relative_to(self._siblings.folder) if place.is_relative_to(self._siblings.folder) else place
        # Line ends are not part of what is run: version control may have changed them.
        self._siblings.digests[inside.as_posix()] = hashlib.sha256(source.replace(b"\r\n", b"\n")).hexdigest()
        code: CodeType = self.source_to_code(source, self.path)
        return code

    def exec_module(self, module: ModuleType) -> None:
        """Run the file with the builtins of the task."""
        module.__dict__["__builtins__"] = self._siblings.builtins
        super().exec_module(module)
