"""The Dockerfiles: linted, small in what they may see, and in agreement with the rest of the checkout."""

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.deployment.files import (
    COMPOSE,
    DOCKER,
    DOCKERFILES,
    KUBERNETES,
    arguments,
    compose,
    copied,
    dockerfile,
    ignore_patterns,
    ignored,
    ran,
    read,
    values,
)
from tests.integration.processes import ROOT

PROJECT = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]
SECRETS = [
    "certs/ca.key",
    "alice/tls.key",
    ".git/config",
    ".venv/bin/python",
    "runs/a/model.safetensors",
    "data/a9a.gz",
]


def test_the_linter_has_nothing_to_say() -> None:
    command = Path(sys.executable).with_name("hadolint")
    ended = ran(command, "--no-color", *DOCKERFILES)
    assert (ended.returncode, ended.stdout) == (0, "")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_exists_and_is_not_ignored(path: Path) -> None:
    patterns = ignore_patterns(path)
    for source, _ in copied(path):
        assert (ROOT / source).exists()
        files = [ROOT / source] if (ROOT / source).is_file() else (ROOT / source).rglob("*.py")
        for file in files:
            assert not ignored(patterns, file.relative_to(ROOT).as_posix())
    sources = {source for source, _ in copied(path)}
    wanted = {source for source in sources if not {str(folder) for folder in Path(source).parents} & sources}
    assert {pattern[1:] for pattern in patterns if pattern.startswith("!")} == wanted


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_build_sees_no_secret_and_no_rubbish(path: Path) -> None:
    patterns = ignore_patterns(path)
    for name in (*SECRETS, "tests/conftest.py", "link/__pycache__/wire.cpython-311.pyc", "deploy/docker/compose.yaml"):
        assert ignored(patterns, name), name


def test_the_last_stage_runs_our_command_as_a_numbered_user() -> None:
    instructions = dockerfile(DOCKERFILES[0])
    last = instructions[-1].stage
    assert last == 2
    assert json.loads(values(instructions, "ENTRYPOINT", last)[-1]) == ["breakwater"]
    assert values(instructions, "STOPSIGNAL", last) == ["SIGTERM"]
    # Nothing but folders is made in it: what builds stays behind in the first stage.
    assert [value.split()[0] for value in values(instructions, "RUN", last)] == ["install"]
    assert not re.search(r"\b(apt-get|pip|uv|curl|gcc)\b", " ".join(values(instructions, "RUN", last)))


@pytest.mark.parametrize(("path", "user"), [(DOCKERFILES[0], "10001:10001"), (DOCKERFILES[1], "49999:49999")])
def test_nobody_is_root_in_the_end(path: Path, user: str) -> None:
    assert values(dockerfile(path), "USER")[-1] == user
    owners = re.findall(r"--(?:owner|group)=(\d+)", read(path))
    assert set(owners) == {user.split(":")[0]}


def test_versions_agree() -> None:
    ours, flowers = (dockerfile(path) for path in DOCKERFILES)
    python = arguments(ours)["PYTHON_VERSION"]
    assert Version(python) in Requirement(f"python{PROJECT['requires-python']}").specifier
    assert f":{python}" not in "".join(values(ours, "FROM"))  # it is said once

    flwr = arguments(flowers)["FLWR_VERSION"]
    (bound,) = [Requirement(text) for text in PROJECT["dependencies"] if text.startswith("flwr")]
    assert Version(flwr) in bound.specifier
    assert f"flwr=={flwr}\n" in read(ROOT / "constraints.txt")
    for path in COMPOSE:
        for service in compose(path)["services"].values():
            if "build" in service:
                assert service["build"]["args"].get("FLWR_VERSION", flwr) == flwr
                expected = flwr if "FLWR_VERSION" in service["build"]["args"] else PROJECT["version"]
                assert service["image"].split(":")[1] == f"{expected}-base"

    for instructions in (ours, flowers):
        assert f'org.opencontainers.image.version="{PROJECT["version"]}"' in " ".join(values(instructions, "LABEL"))
    assert f"newTag: {PROJECT['version']}-base" in read(KUBERNETES / "kustomization.yaml")


def test_no_image_floats() -> None:
    images = [value.split()[0] for path in DOCKERFILES for value in values(dockerfile(path), "FROM")]
    images += [
        service["image"] for path in COMPOSE for service in compose(path)["services"].values() if "image" in service
    ]
    assert len(images) >= 5
    for image in images:
        name, _, tag = image.partition(":")
        assert name
        assert tag not in {"", "latest", "nightly", "unstable"}
        assert re.search(r"\d|\$\{(PYTHON|FLWR)_VERSION\}", tag)


def test_variants_are_those_that_are_explained() -> None:
    for path in DOCKERFILES:
        script = next(value for value in values(dockerfile(path), "RUN") if "VARIANT" in value)
        assert re.findall(r"\b(base|cpu|cuda)\)", script) == ["base", "cpu", "cuda"]
        (default,) = {value for value in values(dockerfile(path), "ARG") if value.startswith("VARIANT")}
        assert default == "VARIANT=base"
    assert "VARIANT" in read(DOCKER / "compose.yaml")
