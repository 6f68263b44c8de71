"""A Flower deployment or simulation of a test's own: child processes on free loopback ports, in a folder of their own.

The commands are Flower's, typed as a user types them. Whatever they start is found and reaped by ``Processes``; nothing
is written into the checkout, into the user's Flower home or anywhere else outside the folder that the test gives.
"""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.flower import seed
from tests.flower.environments import environment
from tests.flower.keys import write_authority, write_node_key
from tests.integration.processes import ROOT, Process, Processes, free_address, until

STARTS_S = 300.0
"""A bound for starting a part of Flower: each takes some seconds of a core, and several start at once."""

ONLINE = "SuperNode ID: "
"""What a SuperNode says once the SuperLink knows it."""

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # seconds of every run; one test has it on, as a user would
    "COLUMNS": "1000",  # error messages are wrapped to the width of a terminal otherwise
    "PYTHONUNBUFFERED": "1",
}
SETTINGS = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}
"""What we recommend to set for a SuperNode: it looks five times a second for a message to work on, and not once."""
GRPC_FLEET = {"FLWR_INTERNAL_GRPC_FLEET_API": "1"}
"""What makes a newer SuperLink serve older SuperNodes, over gRPC; those before 1.40 do it unasked."""


def copy_checkout(folder: Path) -> Path:
    """Copy what git knows of, or would, into a folder with a name that `flwr build` takes; return it."""
    app = folder / "breakwater"
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():  # a file that git still lists may have been removed
            (app / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, app / name)
    return app


def _speaks_grpc(version: str) -> bool:
    """Return whether SuperNodes of this version speak gRPC with their SuperLink; from 1.40 on they speak HTTP."""
    return tuple(map(int, version.split(".")[:2])) < (1, 40)


def toml_value(value: object) -> str:
    """Write one value of a run config or a node config as Flower's command line reads it."""
    return f"'{value}'" if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)


def pairs(settings: Mapping[str, object]) -> str:
    """Write the settings as Flower's command line reads them."""
    return " ".join(f"{key}={toml_value(value)}" for key, value in settings.items())


@dataclass(frozen=True)
class Way:
    """How the SuperNodes reach the SuperLink, and how many rounds go through both.

    Args:
        version: of Flower.
        rounds: how many.
        stock: processes and settings are Flower's own; see ``tests.flower.seed``.
        secure: over TLS, with SuperNode authentication.
        nodes: version of the SuperNodes, where it is another one: the newest ones speak no gRPC.
    """

    version: str
    rounds: int
    stock: bool = False
    secure: bool = False
    nodes: str = ""


class FailedError(Exception):
    """A `flwr` command says that it failed; the message is what it said."""


@dataclass(frozen=True)
class Run:
    """One run: its id, its run folder, and the Flower that it runs on."""

    flower: "Flower"
    id: str
    out: Path

    def wait(self, timeout_s: float = STARTS_S) -> str:
        """Wait until the run has ended; return how, as Flower says: "finished:completed", ..."""
        until(self._over, f"the end of the run, {timeout_s:g} s long", timeout_s)
        until(lambda: self.status().startswith("finished"), "Flower's word that the run has ended", timeout_s)
        return self.status()

    def status(self) -> str:
        """Return how the run stands, as Flower says."""
        (run,) = self.flower.flwr("list", "--run-id", self.id)["runs"]
        return str(run["status"])

    def log(self) -> str:
        """Return what the ServerApp said."""
        return self.flower.command("flwr", "log", self.id, "--show", self.flower.name)

    def stop(self) -> None:
        """Stop it as a user does."""
        self.flower.flwr("stop", self.id)

    def _over(self) -> bool:
        """Look where that is cheap: the summary is the last file but one, and asking Flower takes two CPU seconds."""
        return (self.out / "summary.json").exists() or (
            not self.flower.busy("flwr-serverapp", "flwr-simulation") and self.status().startswith("finished")
        )


class Flower:
    """A SuperLink and the `flwr` command that talks to it.

    Args:
        processes: reaps what is started here.
        version: of Flower.
        folder: holds all that is written.
        simulation: the SuperLink simulates its clients.
        secure: TLS, and SuperNodes that prove who they are.
        nodes: Flower version of the SuperNodes, where it is another one; before 1.40 they speak gRPC.
        env: environment variables on top of ours.
        stock: every process is started as Flower starts it, and not forked; see ``tests.flower.seed``. Simulations are.
    """

    name = "test"
    """The connection's name in Flower's config file."""

    def __init__(
        self,
        processes: Processes,
        version: str,
        folder: Path,
        *,
        simulation: bool = False,
        secure: bool = False,
        nodes: str = "",
        env: Mapping[str, str] = {},
        stock: bool = False,
    ) -> None:
        self.version = version
        self.folder = folder
        self.secure = secure
        self._processes = processes
        self._bin = environment(version)
        self._node_bin = environment(nodes or version)
        self._env = {**QUIET, "FLWR_HOME": str(folder / "home"), **env}
        self._started: list[Process] = []
        self._stock = stock or simulation
        self._seeds: dict[Path, Path] = {}  # folders of stubs by folders of commands
        self.nodes: dict[int, Process] = {}
        self.address = free_address()
        host, _, port = self.address.rpartition(":")
        grpc = _speaks_grpc(nodes or version) and not simulation
        self._fleet = free_address() if grpc else self.address
        options: list[str | Path] = ["--host", host, "--port", port]
        if grpc:
            options += ["--fleet-api-address", self._fleet]
            self._env |= GRPC_FLEET
        connection = f'[superlink]\ndefault = "{self.name}"\n[superlink.{self.name}]\naddress = "{self.address}"\n'
        if secure:
            authority = write_authority(folder / "tls")
            self._trust: list[str | Path] = ["--root-certificates", authority.ca]
            options += ["--ssl-ca-certfile", authority.ca, "--ssl-certfile", authority.certificate]
            options += ["--ssl-keyfile", authority.key, "--enable-supernode-auth"]
            connection += f'root-certificates = "{authority.ca}"\n'
        else:
            self._trust = ["--insecure"]
            options += ["--insecure"]
            connection += "insecure = true\n"
        self._short = tempfile.TemporaryDirectory(prefix="bw-")  # for sockets: Ray's lie deep below, 107 bytes at most
        if simulation:
            options += ["--simulation"]
            # Ray would join a cluster of somebody else on this machine, and end with it.
            self._env |= {"RAY_ADDRESS": "local", "RAY_TMPDIR": self._short.name, "RAY_USAGE_STATS_ENABLED": "0"}
        (folder / "home").mkdir(parents=True)
        (folder / "home" / "config.toml").write_text(connection, encoding="utf-8")
        self.superlink = self.start("flower-superlink", *options)

    def ready(self) -> None:
        """Wait until the SuperLink takes requests."""
        self.superlink.line("Application startup complete", STARTS_S)

    def start(self, command: str, *arguments: str | Path, env: Mapping[str, str] = {}) -> Process:
        """Start a command of this Flower in the folder."""
        commands = self._node_bin if command == "flower-supernode" else self._bin
        if not self._stock and not env:  # some variables are read while Flower is imported
            commands = self._stubs(commands)
        path = f"{commands}:/usr/bin:/bin"  # Flower finds its own commands there
        settings = [f"{key}={value}" for key, value in {**self._env, **env, "PATH": path}.items()]
        process = self._processes.start("env", "-C", self.folder, *settings, commands / command, *arguments)
        self._started.append(process)
        return process

    def _stubs(self, commands: Path) -> Path:
        """Return a folder with the same commands as forks; what forks them is started when it is first wanted."""
        if commands not in self._seeds:
            number = len(self._seeds)
            socket = f"{self._short.name}/{number}"
            self._seeds[commands] = self.folder / f"stubs-{number}"
            seed.write_stubs(self._seeds[commands], commands, socket)
            settings = [f"{key}={value}" for key, value in {**self._env, "PATH": f"{commands}:/usr/bin:/bin"}.items()]
            # -P: not from this folder, whose modules have names that others have too.
            self._started.append(
                self._processes.start("env", *settings, commands / "python", "-P", seed.__file__, socket)
            )
        return self._seeds[commands]

    def command(self, command: str, *arguments: str | Path, env: Mapping[str, str] = {}) -> str:
        """Run a command to its end; return what it said."""
        process = self.start(command, *arguments, env=env)
        process.wait(STARTS_S)
        return process.said()

    def flwr(self, command: str, *arguments: str | Path) -> dict[str, Any]:
        """Run a `flwr` command on the SuperLink; return its answer.

        Raises:
            FailedError: it says so.
        """
        said = self.command("flwr", *command.split(), *arguments, self.name, "--format", "json")
        answer: dict[str, Any] = json.loads(said[said.index("{") :])
        if not answer["success"]:
            raise FailedError(answer["error-message"])
        return answer

    def run(self, app: Path, out: Path, *, federation: Mapping[str, object] = {}, **config: object) -> Run:
        """Start a run of an app.

        Args:
            app: folder of the app.
            out: its run folder.
            federation: the federation config, for simulations.
            config: the run config; `_` stands for `-` in its keys.

        Raises:
            FailedError: `flwr run` refuses it.
        """
        settings = {key.replace("_", "-"): value for key, value in config.items()}
        options = ["--run-config", pairs({**settings, "out": str(out)})]
        if federation:
            options += ["--federation-config", pairs(federation)]
        said = self.command("flwr", "run", app, self.name, *options, "--format", "json")
        answer = json.loads(said[said.index("{") :])
        if not answer["success"]:
            raise FailedError(answer["error-message"])
        return Run(self, answer["run-id"], out)

    def node(self, worker: int, config: Mapping[str, object] = {}, env: Mapping[str, str] = {}) -> Process:
        """Start the SuperNode of a worker, or start it again.

        Args:
            worker: which one; its `partition-id` unless the config says otherwise.
            config: further keys of the node config.
            env: environment variables of this node.
        """
        settings = {"partition-id": worker, **config}
        options: list[str | Path] = [*self._trust, "--superlink", self._fleet, "--node-config", pairs(settings)]
        host, _, port = free_address().rpartition(":")
        options += ["--host", host, "--port", port]
        if self.secure:
            key = self.folder / "keys" / f"node-{worker}"
            if not key.exists():
                public = write_node_key(key)
                self.flwr("supernode register", public)
            options += ["--auth-supernode-private-key", key]
        self.nodes[worker] = self.start("flower-supernode", *options, env=env)
        return self.nodes[worker]

    def online(self) -> None:
        """Wait until the SuperLink knows all SuperNodes."""
        for node in self.nodes.values():
            node.line(ONLINE, STARTS_S)

    def said(self) -> str:
        """Return all that SuperLink and SuperNodes have said, for the message of a failing test."""
        parts = {"SuperLink": self.superlink} | {f"SuperNode {i}": node for i, node in self.nodes.items()}
        return "\n".join(f"--- {name}\n{process.said()}" for name, process in parts.items())

    def busy(self, *names: str) -> bool:
        """Return whether a process with one of these names runs."""
        return any(name in command for command in self._processes.living().values() for name in names)

    def close(self) -> None:
        """End all that was started, and what that has started; Flower's own way out takes a minute and is not ours."""
        for pid in self._processes.living():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._started:
            process.wait()
        self._processes.none_left()
        self._short.cleanup()
