"""Lists the modules of the code reference; mkdocstrings fills in its pages from docstrings, without running code."""

from collections.abc import Iterator
from pathlib import Path

PACKAGES = {
    "breakwater": "Library",
    "strategies": "Methods",
    "strategies.aggregators": "Rules",
    "strategies.compressors": "Compressors",
    "attacks": "Attacks",
    "tasks": "Tasks",
    "adapters": "Adapters",
    "experiment": "Experiment",
    "link": "Link",
    "link.identity": "Identity",
    "server": "Server",
    "server.run_folder": "Run folder",
    "server.monitor": "Monitor",
    "server.monitor.report": "Report",
    "server.monitor.web": "Page",
    "client": "Client",
    "foundation": "Foundation",
}
"""The packages of the reference, and the titles of their pages."""
LEFT_OUT = ("fast_", "kernels", "link_pb2", "__init__")
"""Prefixes of modules with compiled loops or generated code, which the reference omits."""


def texts(root: Path) -> Iterator[tuple[str, str]]:
    """Yield name and text of each page: one per package, with all of its modules."""
    for package, title in PACKAGES.items():
        lines = [f"# {title}: `{package}`", ""]
        for module in modules(root, package):
            lines += [f"::: {package}.{module}", ""]
        yield f"{package.replace('.', '-')}.md", "\n".join(lines)


def modules(root: Path, package: str) -> list[str]:
    """Return the modules of a package that are in the reference."""
    names = sorted(path.stem for path in (root / package.replace(".", "/")).glob("*.py"))
    return [name for name in names if not name.startswith(LEFT_OUT)]
