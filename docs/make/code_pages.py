"""Names the modules of the code reference; mkdocstrings fills its pages in from docstrings, without running code."""

from collections.abc import Iterator
from pathlib import Path

PACKAGES = {
    "strategies": "Methods",
    "strategies.aggregators": "Rules",
    "strategies.compressors": "Compressors",
    "attacks": "Attacks",
    "tasks": "Tasks",
    "adapters": "Adapters",
    "experiment": "Experiment",
    "experiment.sections": "Config sections",
    "link": "Link",
    "link.identity": "Identity",
    "server": "Server",
    "server.run_folder": "Run folder",
    "server.monitor": "Monitor",
    "server.monitor.report": "Report",
    "client": "Client",
    "foundation": "Foundation",
}
"""The packages of the reference, and what their pages are called."""
LEFT_OUT = ("fast_", "kernels", "link_pb2", "__init__")
"""Beginnings of the names of modules that hold compiled loops or generated code."""


def texts(root: Path) -> Iterator[tuple[str, str]]:
    """Yield name and text of each page: one for a package, with all of its modules."""
    for package, title in PACKAGES.items():
        lines = [f"# {title}: `{package}`", ""]
        for module in modules(root, package):
            lines += [f"::: {package}.{module}", ""]
        yield f"{package.replace('.', '-')}.md", "\n".join(lines)


def modules(root: Path, package: str) -> list[str]:
    """Return the modules of a package that the reference shows."""
    names = sorted(path.stem for path in (root / package.replace(".", "/")).glob("*.py"))
    return [name for name in names if not name.startswith(LEFT_OUT)]
