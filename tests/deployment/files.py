"""Reads what deploys Breakwater, as far as tests need it: Dockerfiles, compose files, units, manifests, the page."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from tests.integration.processes import ROOT

DOCKER, SYSTEMD, KUBERNETES = (ROOT / "deploy" / part for part in ("docker", "systemd", "kubernetes"))
COMPOSE = sorted(DOCKER.glob("compose*.yaml"))
DOCKERFILES = [DOCKER / "Dockerfile", DOCKER / "Dockerfile.flower"]
UNITS = sorted(SYSTEMD.glob("*.service"))

Ended = subprocess.CompletedProcess[str]


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def swapped(text: str, places: Mapping[str, object]) -> str:
    """Put other paths and addresses into a text: whole ones, the longest where two fit."""
    longest_first = sorted(places, key=len, reverse=True)
    pattern = "|".join(re.escape(old) + (r"(?![\w.-])" if old[-1].isalnum() else "") for old in longest_first)
    return re.sub(pattern, lambda match: str(places[match[0]]), text)


def ran(*command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Ended:
    """Run a short command to its end, whatever that is."""
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


# --- Dockerfiles ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instruction:
    """One instruction, its lines joined and its comments gone; ``stage`` counts the FROMs, 0 before the first."""

    stage: int
    keyword: str
    value: str


def dockerfile(path: Path) -> list[Instruction]:
    lines = [line for line in read(path).splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found: list[Instruction] = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        keyword, _, value = line.strip().partition(" ")
        stage = sum(instruction.keyword == "FROM" for instruction in found) + (keyword == "FROM")
        found.append(Instruction(stage, keyword, " ".join(value.split()) if keyword != "RUN" else value.strip()))
    return found


def values(instructions: Sequence[Instruction], keyword: str, stage: int | None = None) -> list[str]:
    """Return what stands behind a keyword, in order."""
    return [i.value for i in instructions if i.keyword == keyword and stage in {None, i.stage}]


def arguments(instructions: Sequence[Instruction]) -> dict[str, str]:
    """Return the defaults of the build arguments."""
    return dict(value.split("=", 1) for value in values(instructions, "ARG") if "=" in value)


def environment(instructions: Sequence[Instruction], stage: int) -> dict[str, str]:
    """Return what the ENV instructions of a stage set."""
    words = shlex.split(" ".join(values(instructions, "ENV", stage)))
    return dict(word.split("=", 1) for word in words)


def ignored(patterns: Sequence[str], path: str) -> bool:
    """Tell whether a file of the build context is hidden: the last pattern that fits it, or a folder of it, decides."""
    parts = path.split("/")
    heads = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
    hidden = False
    for pattern in patterns:
        plain = pattern.removeprefix("!")
        fits = (
            any(fnmatchcase(part, plain.removeprefix("**/")) for part in parts)
            if plain.startswith("**/")
            else any(head.count("/") == plain.count("/") and fnmatchcase(head, plain) for head in heads)
        )
        if fits:
            hidden = not pattern.startswith("!")
    return hidden


def ignore_patterns(path: Path) -> list[str]:
    """Return the patterns of the ignore file beside a Dockerfile."""
    lines = read(path.with_name(f"{path.name}.dockerignore")).splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def copied(path: Path) -> list[tuple[str, str]]:
    """Return source and destination of everything that a Dockerfile copies out of the build context."""
    pairs = []
    for value in values(dockerfile(path), "COPY"):
        *sources, destination = value.split()
        if not value.startswith("--from="):
            pairs += [(source, destination) for source in sources]
    return pairs


def copy_context(path: Path, source: str, destination: Path) -> None:
    """Copy a file or folder of the checkout as a build would, without what is ignored."""
    patterns = ignore_patterns(path)
    files = [ROOT / source] if (ROOT / source).is_file() else sorted((ROOT / source).rglob("*"))
    for file in files:
        relative = file.relative_to(ROOT).as_posix()
        if file.is_file() and not ignored(patterns, relative):
            target = destination / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, target)


# --- compose ----------------------------------------------------------------------------------------------------------


def compose(path: Path) -> dict[str, Any]:
    """Return a compose file in which every ${NAME:-value} has its default, and ${NAME:?...} stands as NAME."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", read(path))
    text = re.sub(r"\$\{(\w+):\?[^}]*\}", r"\1", text)
    assert "${" not in text, f"{path}: a variable without a default"
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def clients_of(services: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the commands of the services that are clients of the live link."""
    commands = {name: service.get("command") or [] for name, service in services.items()}
    return {name: command for name, command in commands.items() if command[:1] == ["client"]}


# --- systemd ----------------------------------------------------------------------------------------------------------


def unit(path: Path) -> dict[str, list[str]]:
    """Return the values of each key of a unit's sections, in order."""
    found: dict[str, list[str]] = {}
    for line in read(path).splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def expanded(unit_keys: Mapping[str, list[str]], specifiers: Mapping[str, str], env: Mapping[str, str]) -> list[str]:
    """Return the words of ExecStart as systemd would make them: ${NAME} within a word, $NAME as words of its own."""
    words = []
    for word in unit_keys["ExecStart"][0].split():
        if word.startswith("$") and not word.startswith("${"):
            words += env.get(word[1:], "").split()
        else:
            text = re.sub(r"\$\{(\w+)\}", lambda match: env[match[1]], word)
            words.append(re.sub(r"%(\w)", lambda match: specifiers[match[1]], text))
    return words


# --- Kubernetes -------------------------------------------------------------------------------------------------------


def manifests(folder: Path = KUBERNETES) -> Iterator[dict[str, Any]]:
    """Yield the objects that a kustomization lists, as they are written there."""
    for resource in yaml.safe_load(read(folder / "kustomization.yaml"))["resources"]:
        if (folder / resource).is_dir():
            yield from manifests(folder / resource)
        else:
            yield from yaml.safe_load_all(read(folder / resource))


def manifest(kind: str, name: str) -> dict[str, Any]:
    """Return one object."""
    (found,) = [m for m in manifests() if (m["kind"], m["metadata"]["name"]) == (kind, name)]
    return found


def pod_of(kind: str, name: str) -> dict[str, Any]:
    """Return the pod's spec of a Deployment or a StatefulSet."""
    spec: dict[str, Any] = manifest(kind, name)["spec"]["template"]["spec"]
    return spec


# --- docs/deploy.md ---------------------------------------------------------------------------------------------------


def documented(section: str) -> list[str]:
    """Return the commands that docs/deploy.md tells to type in a section, continued lines joined."""
    text = read(ROOT / "docs" / "deploy.md").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    assert blocks, f"docs/deploy.md has no commands under {section!r}"
    return [line for block in blocks for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines()]
