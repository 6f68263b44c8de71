"""The fuzzer's targets in the test suite: on every kept input, on real frames, and on bytes of hypothesis."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import CORPUS
from tests.fuzz.seeds import seeds
from tests.fuzz.targets import LIVE, NAMES, target

ROOT = Path(__file__).parents[2]
IN_MEMORY = [name for name in NAMES if name not in LIVE]


def kept(name: str) -> list[bytes]:
    """Return the kept inputs of a target, those that it once failed on among them."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def test_every_target_has_kept_inputs_and_there_are_not_too_many() -> None:
    folders = {path.name: path for path in CORPUS.iterdir()}
    assert set(folders) == set(NAMES)
    assert all(any(folder.iterdir()) for folder in folders.values())
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < 300 << 10


@pytest.mark.parametrize("name", IN_MEMORY)
def test_a_target_holds_on_what_was_kept_and_on_real_frames(name: str) -> None:
    check = target(name)
    for data in [*kept(name), *seeds(name)]:
        check(data)


@pytest.mark.slow
def test_the_live_server_holds_on_what_was_kept_and_on_real_frames() -> None:
    from tests.fuzz.live import World  # it opens a port
    from tests.fuzz.script import Script

    world = World()
    try:
        for data in [*kept("live"), *seeds("live")]:
            world.meet(Script(data))
    finally:
        world.close()
    assert world.frames > world.rounds > 100


@pytest.mark.slow
def test_the_watched_server_holds_on_what_was_kept() -> None:
    from tests.fuzz.live import World  # it opens a port
    from tests.fuzz.script import Script

    world = World()
    try:
        for data in kept("watchers"):
            world.look_on(Script(data))
    finally:
        world.close()
    assert world.states > 20
    assert world.refusals > 2


@pytest.mark.parametrize("name", IN_MEMORY)
@settings(derandomize=True, deadline=None, max_examples=60)
@given(data=st.binary(max_size=300))
def test_a_target_holds_on_any_bytes(name: str, data: bytes) -> None:
    target(name)(data)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs atheris, of the extra `fuzz`")
def test_the_fuzzer_runs_and_counts() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "reader", "--inputs", "300", "--seed", "1"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "| reader | 300 |" in ended.stdout
    assert ended.stdout.rstrip().splitlines()[-1].startswith("300 inputs in ")
