"""Runs real containers with podman: makes the base image, builds the Dockerfile, starts services, removes everything.

No image is pulled from a registry: debootstrap makes the base image from the Debian mirror that apt uses, under the
name that the Dockerfile is FROM. Images, volumes, networks, containers and the build's cache lie in one folder, the
storage for these tests, which is removed at the end. Other images and containers on this machine are not touched.
"""

import json
import os
import re
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from tests.deployment.files import DOCKER, DOCKERFILES, Ended, arguments, dockerfile, ran, values
from tests.integration.processes import ROOT, Process, until

TOOLS = {"podman": "podman", "runc": "runc", "debootstrap": "debootstrap", "apt-get": "apt"}
"""Commands, and the Debian packages that have them."""

PACKAGES = ("python3", "python3-venv", "python3-pip", "ca-certificates")

SETTINGS = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
"""Runs wherever root may start a container at all: without systemd, and below the limits that this process has."""

BUILD_S = 1800.0
"""A bound for a minute or two."""

WAIT_S = 120.0
"""A bound for what takes seconds, on a machine that is busy."""

INDEX = re.compile(r"(PIP|UV)_\w*(INDEX|HOST)\w*")
"""Environment variables that say where packages come from."""


def base_image() -> tuple[str, str]:
    """Return the image that the Dockerfile is FROM, and the Debian release in it."""
    instructions = dockerfile(DOCKERFILES[0])
    (name,) = {value.split()[0] for value in values(instructions, "FROM")}
    for key, value in arguments(instructions).items():
        name = name.replace(f"${{{key}}}", value)
    return name, name.rpartition("-")[2]


def mirror(release: str) -> str | None:
    """Return where apt gets a release of Debian from, or None."""
    which = ("Created-By: Packages", f"Codename: {release}", "Component: main")
    ended = ran("apt-get", "indextargets", "--format", "$(REPO_URI)", *which)
    return next((line for line in ended.stdout.splitlines() if line.startswith(("http", "file"))), None)


def why_not() -> str | None:
    """Return why no containers can be run here, or None."""
    if os.geteuid() != 0:
        return "needs root, for debootstrap"
    missing = [package for command, package in TOOLS.items() if shutil.which(command) is None]
    if missing:
        return f"needs {', '.join(missing)}: apt-get install {' '.join(TOOLS.values())}"
    if mirror(base_image()[1]) is None:
        return f"apt knows no mirror of Debian {base_image()[1]}, which the base image is made of"
    return None


class MissingError(Exception):
    """This machine cannot do what containers need; the message says what."""


class Podman:
    """Podman with a storage of its own, from the base image to the last container; a context manager.

    Raises:
        MissingError: no base image can be made, or no container of it runs.
    """

    def __init__(self) -> None:
        # Podman wants short paths here. /var/tmp, as images are large and /tmp may lie in memory.
        self.folder = Path(tempfile.mkdtemp(prefix="bw-podman-", dir="/var/tmp"))
        (self.folder / "tmp").mkdir()
        (self.folder / "containers.conf").write_text(SETTINGS, encoding="utf-8")
        self._env = {**os.environ, "CONTAINERS_CONF": str(self.folder / "containers.conf")}
        self._env |= {"TMPDIR": str(self.folder / "tmp")}  # a build's cache lies there
        self._started: list[Process] = []
        places = {"--root": "s", "--runroot": "r", "--network-config-dir": "n", "--tmpdir": "t"}
        self._podman = ["podman", *(word for key, name in places.items() for word in (key, f"{self.folder}/{name}"))]

    def __enter__(self) -> Self:
        """Make the base image and see that it runs."""
        try:
            self._make_base()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Remove everything, whether it runs or not."""
        self.emptied(strict=False)
        for line in reversed(Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()):
            if (place := line.split()[1]).startswith(f"{self.folder}/"):
                ran("umount", place)
        shutil.rmtree(self.folder)

    def emptied(self, *, strict: bool = True) -> None:
        """Remove pods, containers, volumes, Secrets and networks; images stay."""
        for process in self._started:  # first, as they may hold locks
            process.end()
            process.close()
        self._started.clear()
        for words in ("pod rm --time 0 --force", "rm --time 0 --force", "volume rm --force", "secret rm"):
            ended = self.tried(*words.split(), "--all")
            assert ended.returncode == 0 or not strict, ended.stderr
        self.tried("network", "prune", "--force")

    def tried(self, *words: str | Path, stdin: str | None = None) -> Ended:
        """Run podman to its end, whatever that is."""
        command: list[str | Path] = [
            "timeout",
            f"{BUILD_S:g}" if words[0] == "build" else f"{WAIT_S:g}",
            *self._podman,
            *words,
        ]
        return subprocess.run(
            command, cwd=ROOT, env=self._env, capture_output=True, text=True, check=False, input=stdin
        )

    def __call__(self, *words: str | Path, stdin: str | None = None) -> str:
        """Run podman to its good end; return what it said."""
        ended = self.tried(*words, stdin=stdin)
        assert ended.returncode == 0, f"podman {' '.join(map(str, words))}: {ended.stderr.strip()}"
        return ended.stdout.strip()

    def wrote(self, file: IO[bytes], *words: str | Path) -> None:
        """Run podman to its good end; its output goes to a file."""
        subprocess.run([*self._podman, *words], env=self._env, stdout=file, check=True)

    def started(self, *words: str | Path) -> Process:
        """Start podman; what it says is collected. It is killed in the end."""
        process = Process([*self._podman, *words], self._env)
        self._started.append(process)
        return process

    def build(self, tag: str) -> None:
        """Build the Dockerfile as it is."""
        limits = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096")
        self("build", "--pull=never", "--network=host", *limits, "--file", DOCKERFILES[0], "--tag", tag, ROOT)

    def inspect(self, container: str) -> dict[str, Any]:
        """Return what podman knows of a container."""
        (found,) = json.loads(self("container", "inspect", container))
        assert isinstance(found, dict)
        return found

    def volume(self, name: str) -> Path:
        """Return where a volume lies on this machine."""
        return Path(self("volume", "inspect", "--format", "{{.Mountpoint}}", name))

    def logs(self, container: str) -> str:
        """Return all that a container has said."""
        ended = self.tried("logs", container)
        return ended.stdout + ended.stderr

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for what no event tells of; where that is in vain, the message has what all containers said."""
        try:
            until(condition, what, WAIT_S)
        except AssertionError as error:
            names = self("ps", "--all", "--format", "{{.Names}} {{.Status}}").splitlines()
            said = [f"--- {name}\n{self.logs(name.split()[0])}" for name in names]
            raise AssertionError("\n".join([str(error), *said])) from None

    def line(self, container: str, pattern: str) -> None:
        """Wait until a container has said something."""
        self.until(lambda: re.search(pattern, self.logs(container)), f"{container}: {pattern!r}")

    def ends(self, container: str, status: int) -> None:
        """Wait for the end of a container and check its exit status."""
        self.until(lambda: self.inspect(container)["State"]["Status"] == "exited", f"the end of {container}")
        found = self.inspect(container)["State"]["ExitCode"]
        assert found == status, f"{container}: exit status {found}, expected {status}:\n{self.logs(container)}"

    def service(self, file: Mapping[str, Any], name: str) -> list[str]:
        """Return the words of `podman run`, up to the image, that make a container of a service of a compose file.

        Podman 4.3 has no `subpath`: the folder of the volume is mounted from where the volume lies on this machine.
        """
        service = dict(file["services"][name])
        words: list[str] = []

        def take(key: str, option: str) -> None:
            words.extend(f"{option}={value}" for value in service.pop(key, []))

        for key in ("build", "image", "profiles", "expose", "command"):  # not for the container, or for the caller
            service.pop(key, None)
        assert service.pop("read_only") is True
        words.append("--read-only")
        take("tmpfs", "--tmpfs")
        take("cap_drop", "--cap-drop")
        take("security_opt", "--security-opt")
        words += [f"--pids-limit={service.pop('pids_limit')}", f"--restart={service.pop('restart', 'no')}"]
        if "entrypoint" in service:
            words += ["--entrypoint", json.dumps(service.pop("entrypoint"))]
        words += [f"--env={key}={value}" for key, value in service.pop("environment", {}).items()]
        networks = [service.pop("network_mode")] if "network_mode" in service else service.pop("networks")
        words += [f"--network={each}" for each in networks]
        for config in service.pop("configs", []):
            source = (DOCKER / file["configs"][config["source"]]["file"]).resolve()
            words.append(f"--volume={source}:{config['target']}:ro")
        for mount in service.pop("volumes", []):
            if isinstance(mount, str):
                words.append(f"--volume={mount}")
            else:
                part = self.volume(mount["source"]) / mount["volume"]["subpath"]
                assert mount["read_only"] is True
                words.append(f"--volume={part}:{mount['target']}:ro")
        assert not service, f"podman is not told of {sorted(service)}"
        return words

    def _make_base(self) -> None:
        name, release = base_image()
        base = self.folder / "base"
        made = ran(
            "debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", release, base, mirror(release) or ""
        )
        if made.returncode:
            said = (made.stderr or made.stdout).strip().splitlines() or [f"exit status {made.returncode}"]
            raise MissingError(f"debootstrap makes no Debian {release} here: {said[-1]}")
        # What the official image has: `python`, and a pip that installs beside Debian's packages.
        (base / "usr/bin/python").symlink_to("python3")
        for mark in base.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            mark.unlink()
        changes = self._take_along(base)
        tar = self.folder / "base.tar"
        assert ran("tar", "-C", base, "-cf", tar, ".").returncode == 0
        self("import", *(word for pair in changes for word in ("--change", f"ENV={pair}")), tar, f"localhost/{name}")
        tar.unlink()
        shutil.rmtree(base)
        tried = self.tried("run", "--rm", "--network=none", f"localhost/{name}", "python", "--version")
        if tried.returncode:
            raise MissingError(f"podman runs no container here: {tried.stderr.strip().splitlines()[-1]}")
        wanted = arguments(dockerfile(DOCKERFILES[0]))["PYTHON_VERSION"]
        assert tried.stdout.startswith(f"Python {wanted}."), f"Debian {release} has {tried.stdout}"

    def _take_along(self, base: Path) -> list[str]:
        """Put this machine's way to its package registries into the base image; return the environment for it."""
        home = Path.home()
        config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        files = {
            "etc/pip.conf": [Path("/etc/pip.conf")],
            "etc/uv/uv.toml": [Path("/etc/uv/uv.toml")],
            "root/.config/pip/pip.conf": [Path(os.environ.get("PIP_CONFIG_FILE", "")), config / "pip/pip.conf"],
            "root/.config/uv/uv.toml": [Path(os.environ.get("UV_CONFIG_FILE", "")), config / "uv/uv.toml"],
            "root/.netrc": [home / ".netrc"],
        }
        for target, sources in files.items():
            for source in filter(Path.is_file, sources):
                (base / target).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, base / target)
                break
        bundle = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
        inside = "etc/ssl/certs/ca-certificates.crt"
        if bundle and Path(bundle).is_file():
            shutil.copyfile(bundle, base / inside)
        return [f"SSL_CERT_FILE=/{inside}", *(f"{k}={v}" for k, v in os.environ.items() if INDEX.fullmatch(k))]
