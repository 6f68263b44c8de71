"""The fuzzer's targets in the test suite: on every kept input, on real frames, and on bytes of hypothesis."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import corpus
from tests.fuzz.names import LIVE, NAMES, target
from tests.fuzz.seeds import seeds

ROOT = Path(__file__).parents[2]
IN_MEMORY = [name for name in NAMES if name not in LIVE]


def kept(name: str) -> list[bytes]:
    """Return the kept inputs of a target, those that it once failed on among them."""
    return list(corpus.load(corpus.path_of(name)).values())


def test_every_target_has_kept_inputs_and_there_are_not_too_many() -> None:
    assert {path.name for path in corpus.CORPUS.iterdir()} == {f"{name}.txt" for name in NAMES}
    assert all(kept(name) for name in NAMES)
    assert sum(len(data) for name in NAMES for data in kept(name)) < 300 << 10


@pytest.mark.parametrize("name", NAMES)
def test_a_corpus_file_is_what_saving_it_again_gives(name: str, tmp_path: Path) -> None:
    inputs = corpus.load(corpus.path_of(name))
    corpus.save(tmp_path / "again", inputs)
    assert (tmp_path / "again").read_bytes() == corpus.path_of(name).read_bytes()
    assert list(inputs) == [corpus.name_of(data, found=label.startswith("found-")) for label, data in inputs.items()]


def test_an_input_is_added_to_a_corpus_file(tmp_path: Path) -> None:
    path = tmp_path / "target.txt"
    assert corpus.load(path) == {}
    inputs = {corpus.name_of(data): data for data in (b"", b"\0\n", bytes(range(256)))}
    corpus.save(path, inputs)
    inputs[corpus.name_of(b"failed", found=True)] = b"failed"
    corpus.save(path, corpus.load(path) | inputs)
    assert corpus.load(path) == inputs


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
