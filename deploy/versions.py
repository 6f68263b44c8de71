"""The versions that matter in a bug report; nothing heavy is imported to find them."""

import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from foundation import origin

PACKAGES = ("flwr", "grpcio", "protobuf", "cryptography", "numpy", "numba", "scipy", "pydantic", "torch")
"""Packages that can cause a wrong round, a failed handshake or a crash."""

_GIT_S = 5.0
"""Seconds that git may take."""


def versions() -> dict[str, str]:
    """Return the versions by name, ``breakwater`` first; what is not installed says so."""
    found = {"breakwater": origin.release() or "not installed"}
    if origin.manifest() is not None:
        found["wheel"] = "modified since it was built" if origin.sources([""]).modified else "as built"
    revision = _revision()
    if revision is not None:
        found["revision"] = revision
    found["python"] = f"{platform.python_version()} ({platform.python_compiler()})"
    return found | {name: _version(name) for name in PACKAGES} | {"platform": platform.platform()}


def lines() -> list[str]:
    """Return the versions as ``breakwater --version`` prints them, one a line."""
    found = versions()
    return [f"breakwater {found.pop('breakwater')}", *(f"{name:<12} {text}" for name, text in found.items())]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _revision() -> str | None:
    """Return the commit of the checkout, with ``-dirty`` where files are changed; None where there is no checkout."""
    if not (origin.ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(origin.ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    with suppress(OSError, subprocess.SubprocessError):
        # What is run is fixed, but for the folder of this file; git is whichever the user has.
        ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_GIT_S)  # noqa: S603
        return ended.stdout.strip() or None
    return None
