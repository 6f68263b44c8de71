"""`.ci/run`: what it hands to the commands that decide, without running those."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.processes import ROOT

CACHES = ("HOME", "XDG_CACHE_HOME", "PIP_CACHE_DIR", "UV_CACHE_DIR", "NUMBA_CACHE_DIR", "FLWR_HOME")
STEPS = ["clean", "setup", "check", "test", "test-wheel", "test-flower"]


class Machine:
    """A machine on which somebody has worked, with a checkout whose `make` writes down what it is called with."""

    def __init__(self, folder: Path) -> None:
        self.home, self.checkout, self.tmp, self._bin = (folder / n for n in ("home", "checkout", "tmp", "bin"))
        for made in (self.home, self.checkout / ".ci", self.tmp, self._bin):
            made.mkdir(parents=True)
        shutil.copy2(ROOT / ".ci" / "run", self.checkout / ".ci" / "run")
        self._calls = folder / "calls"
        self.env = {"HOME": str(self.home), "TMPDIR": str(self.tmp), "PATH": f"{self._bin}:/usr/bin:/bin"}
        self.command("chromium", "exit 0")
        self.command("python3", f'exec {shlex.quote(sys.executable)} "$@"')
        self.command("make", f'printf "%s\\n" "$1" >> {shlex.quote(str(self._calls))}')

    def command(self, name: str, script: str) -> None:
        path = self._bin / name
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(0o755)

    def on_make(self, script: str) -> None:
        """Run something more in place of every `make`."""
        self.command("make", f'printf "%s\\n" "$1" >> {shlex.quote(str(self._calls))}\n{script}')

    def run(self) -> subprocess.CompletedProcess[str]:
        command = [self.checkout / ".ci" / "run"]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, check=False)

    def calls(self) -> list[str]:
        return self._calls.read_text(encoding="utf-8").split()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_every_cache_is_new_and_gone_in_the_end(machine: Machine) -> None:
    (machine.home / ".cache" / "uv").mkdir(parents=True)
    machine.env |= {"UV_CACHE_DIR": str(machine.home / ".cache" / "uv"), "MPLCONFIGDIR": str(machine.home)}
    seen = " ".join(f'{name} "${name}"' for name in CACHES)
    machine.on_make(f'printf "%s %s\\n" {seen}; find "$HOME" "$(dirname "$HOME")" -type f; env | grep ^MPL')
    ended = machine.run()
    assert (ended.returncode, ended.stderr, machine.calls()) == (1, "", ["clean"])  # grep finds nothing
    places = dict(line.split(" ") for line in ended.stdout.splitlines())
    assert tuple(places) == CACHES
    assert len(set(places.values())) == len(CACHES)
    for place in places.values():
        assert Path(place).is_relative_to(machine.tmp), place
    assert not list(machine.tmp.iterdir())


def test_it_runs_all_steps_from_nothing_and_stops_at_the_first_that_fails(machine: Machine) -> None:
    assert machine.run().returncode == 0
    assert machine.calls() == STEPS
    machine.on_make('mkdir -p "$UV_CACHE_DIR"; [ "$1" != check ] || exit 7')
    assert machine.run().returncode == 7
    assert machine.calls()[len(STEPS) :] == STEPS[:3]
    assert not list(machine.tmp.iterdir())


@pytest.mark.parametrize("elsewhere", [False, True], ids=["in-home", "xdg"])
def test_how_to_reach_registries_is_still_known(machine: Machine, tmp_path: Path, elsewhere: bool) -> None:
    config = tmp_path / "config" if elsewhere else machine.home / ".config"
    if elsewhere:
        machine.env["XDG_CONFIG_HOME"] = str(config)
    for path in (config / "pip" / "pip.conf", config / "uv" / "uv.toml", config / "git" / "config"):
        path.parent.mkdir(parents=True)
        path.write_text(path.name, encoding="utf-8")
    (machine.home / ".netrc").write_text("netrc", encoding="utf-8")
    machine.env["PIP_CERT"] = "/a/bundle"
    machine.on_make('cd "$HOME/.config"; cat pip/pip.conf uv/uv.toml git/config ../.netrc; echo "$PIP_CERT"; exit 1')
    ended = machine.run()
    assert (ended.stdout, ended.stderr) == ("pip.confuv.tomlconfignetrc/a/bundle\n", "")
    assert (config / "pip" / "pip.conf").exists(), "removed with the new home"


def test_python_is_found_by_way_of_the_home_and_behind_the_virtual_environment_of_the_checkout(
    machine: Machine,
) -> None:
    """Version managers put a script into PATH that looks into the home; `make clean` removes .venv."""
    python = machine.checkout / ".venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", python.parents[1]], check=True)
    (machine.home / "python").symlink_to(python)
    machine.command("python3", f'[ -e "$HOME/python" ] && exec {shlex.quote(str(python))} "$@"')
    machine.on_make('rm -rf .venv; "$PYTHON" -c "import sys; print(sys.prefix)"')
    ended = machine.run()
    assert (ended.returncode, ended.stdout.splitlines()) == (0, [sys.base_prefix] * len(STEPS))


@pytest.mark.skipif(os.geteuid() != 0, reason="without HOME the home of the user who runs the tests would be taken")
def test_no_home_shell_or_terminal_is_needed(machine: Machine) -> None:
    del machine.env["HOME"]
    machine.on_make('[ -z "$SHELL$TERM" ] || [ "$TERM" = dumb ] && ls -d "$HOME"')
    ended = machine.run()
    assert (ended.returncode, ended.stderr, machine.calls()) == (0, "", STEPS)


def test_stopped_it_leaves_nothing_behind(machine: Machine) -> None:
    machine.on_make("kill -TERM $PPID; sleep 0.2")
    assert machine.run().returncode in {-signal.SIGTERM, 128 + signal.SIGTERM}
    assert machine.calls() == ["clean"]
    assert not list(machine.tmp.iterdir())
