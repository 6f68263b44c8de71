"""The systemd units: understood by systemd, hardened up to a bound, with no path that the other files do not know."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.deployment.files import UNITS, ran, read, unit

EXPOSURE = 1.3
"""What `systemd-analyze security` may give at most, out of 10: network, sockets and executable memory are needed."""

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


@pytest.fixture
def installed(tmp_path: Path) -> list[Path]:
    """The units as installed, but for a command that exists here; a template is an instance."""
    paths = []
    for path in UNITS:
        target = tmp_path / path.name.replace("@.", "@alice.")
        target.write_text(read(path).replace("/opt/breakwater/.venv/bin/breakwater", "/bin/true"), encoding="utf-8")
        paths.append(target)
    return paths


def test_there_are_two() -> None:
    assert [path.name for path in UNITS] == ["breakwater-client@.service", "breakwater-server.service"]


@needs_systemd
def test_systemd_understands_every_line(installed: list[Path]) -> None:
    for path in installed:
        ended = ran("systemd-analyze", "verify", path)
        assert (ended.returncode, ended.stderr) == (0, "")


@needs_systemd
def test_exposure_is_bounded(installed: list[Path]) -> None:
    for path in installed:
        security = "systemd-analyze", "security", "--offline=true"
        ended = ran(*security, f"--threshold={EXPOSURE * 10:.0f}", path)
        assert ended.returncode == 0, ended.stdout
        listed = ran(*security, "--json=short", path)
        weak = {entry["json_field"] for entry in json.loads(listed.stdout) if entry["exposure"] is not None}
        assert "MemoryDenyWriteExecute" in weak  # or the comment in the units lies
        assert "UserOrDynamicUser" not in weak


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_keys_are_credentials(path: Path) -> None:
    keys = unit(path)
    pairs = [line.split(":") for line in keys["LoadCredential"]]
    assert [name for name, _ in pairs] == ["ca.crt", "tls.crt", "tls.key"]
    folder = "/etc/breakwater/tls/" + ("%i" if "@" in path.name else "server")
    assert [source for _, source in pairs] == [f"{folder}/{name}" for name, _ in pairs]
    assert "--tls %d" in keys["ExecStart"][0]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_what_it_writes_lies_in_folders_of_its_own(path: Path) -> None:
    keys = unit(path)
    (cache,) = keys["CacheDirectory"]
    for pair in keys["Environment"][-1].split():
        assert pair.split("=")[1].startswith(f"%C/{cache}")
    assert keys["ProtectSystem"] == ["strict"]
    assert keys["DynamicUser"] == ["yes"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_executable_memory_must_stay_allowed(tmp_path: Path) -> None:
    """What MemoryDenyWriteExecute would do, done by the kernel's own switch (Linux 6.3)."""
    denied = "import ctypes\nif ctypes.CDLL(None).prctl(65, 1, 0, 0, 0): raise SystemExit('no such switch')\n"
    compiles = "import numba\n@numba.njit\ndef f(x): return x + 1\nprint(f(1))"
    allowed, ended = (ran(sys.executable, "-c", code, cwd=tmp_path) for code in (compiles, denied + compiles))
    assert (allowed.returncode, allowed.stdout) == (0, "2\n")
    if "no such switch" in ended.stderr:
        pytest.skip("needs Linux 6.3 or newer")
    assert "cannot allocate executable memory" in ended.stderr


def test_both_are_confined_alike() -> None:
    def confinement(path: Path) -> list[str]:
        section = read(path).partition("DynamicUser=")[2].partition("[Install]")[0]
        return [line for line in section.splitlines() if not line.startswith("#")]

    assert confinement(UNITS[0]) == confinement(UNITS[1])
