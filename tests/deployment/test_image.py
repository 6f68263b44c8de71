"""The image without a container engine: its build commands run in a folder, its processes confined to the result."""

import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from experiment.code import code_fingerprint
from tests.deployment.confined import USER, image_script, why_not
from tests.deployment.files import (
    DOCKER,
    DOCKERFILES,
    clients_of,
    compose,
    copy_context,
    dockerfile,
    environment,
    pod_of,
    ran,
    swapped,
    values,
)
from tests.integration.processes import ROOT, Process, Processes, sets, summary_of, until

pytestmark = pytest.mark.slow

TWO = sets("federation.clients=2", "federation.start_with=2", "federation.byzantine=0", "strategy.cohort=2")
TWO += sets("strategy.full_cohort=2", "strategy.rounds=20", "evaluation.every=10")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the first stage of the Dockerfile makes of this checkout, in a folder that stands for /opt.

    uv takes packages from its cache, which `make setup` filled. That lacks uv itself, which pip installed: where
    something is missing, the step is run again with the registry.
    """
    opt = tmp_path_factory.mktemp("image") / "opt"
    env = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"  # its python is the image's python, its uv the image's
    folder = Path()
    for step in dockerfile(DOCKERFILES[0]):
        if step.stage != 1:
            continue
        if step.keyword == "ARG":
            name, _, default = step.value.partition("=")
            env[name] = default
        elif step.keyword == "WORKDIR":
            folder = Path(step.value.replace("/opt", str(opt)))
            folder.mkdir(parents=True)
        elif step.keyword == "COPY":
            *sources, destination = step.value.split()
            for source in sources:
                assert destination in {"./", f"./{source}"}
                copy_context(DOCKERFILES[0], source, folder)
        elif step.keyword == "RUN" and not step.value.endswith("constraints.txt uv"):  # uv is here already
            script = re.sub(r"^--mount=\S+ ", "", step.value).replace("/opt", str(opt))
            script = script.replace("UV_LINK_MODE=copy ", "")  # links to uv's cache are as good here, and quick
            before = set(opt.iterdir())
            for offline in ("1", "0"):
                ended = ran("sh", "-c", script, cwd=folder, env={**env, "UV_OFFLINE": offline})
                if ended.returncode == 0:
                    break
                for made in set(opt.iterdir()) - before:  # of a step that fails a build keeps nothing
                    shutil.rmtree(made)
            assert ended.returncode == 0, ended.stderr
    yield opt
    # Hundreds of megabytes, which pytest would keep for three runs.
    shutil.rmtree(opt)


class Container:
    """Starts commands of the image as compose.yaml would have them started."""

    def __init__(self, processes: Processes, image: Path, tmp: Path) -> None:
        self._processes, self._image, self._tmp = processes, image, tmp
        instructions = dockerfile(DOCKERFILES[0])
        env = environment(instructions, 2)
        self._env = {**env, "PATH": swapped(env["PATH"].replace("$PATH", "/usr/bin:/bin"), {"/opt": image})}
        self._folder = values(instructions, "WORKDIR", 2)[0]
        self.volumes: dict[str, Path] = {}

    def volume(self, name: str) -> Path:
        """A named volume: owned by the image's user from the start."""
        if name not in self.volumes:
            self.volumes[name] = self._tmp / "volumes" / name
            self.volumes[name].mkdir(parents=True)
            os.chown(self.volumes[name], USER, USER)
        return self.volumes[name]

    def start(self, command: Sequence[str], mounts: Mapping[str, tuple[Path, str]]) -> Process:
        root = self._tmp / f"root-{len(list(self._tmp.iterdir()))}"
        root.mkdir()
        all_mounts = {str(self._image): (self._image, "ro"), **mounts}
        if self._folder not in all_mounts:
            all_mounts[self._folder] = (self.volume("none"), "ro")
        script = image_script(root, command, env=self._env, folder=self._folder, mounts=all_mounts)
        return self._processes.start(
            "unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation=private", "sh", "-c", script
        )


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_the_image_runs_a_federation_on_a_read_only_system_without_rights(
    image: Path, processes: Processes, tmp_path: Path
) -> None:
    container = Container(processes, image, tmp_path)
    services = compose(DOCKER / "compose.yaml")["services"]
    certs = {"/certs": (container.volume("certs"), "rw")}

    probe = "import os; print(os.getuid(), sorted(os.listdir('/')))\nfor p in '/x', '/opt/x', '/usr/x', '/etc/x':\n"
    probe += "  try: open(p.replace('/opt', os.environ['PATH'].split('/venv')[0]), 'w'); print('wrote', p)\n"
    probe += "  except OSError as error: print(error.strerror)"
    looked = container.start(["python", "-c", probe], {})
    looked.ends(0)
    assert looked.out[0].startswith(f"{USER} ")
    assert looked.out[1:] == ["Read-only file system"] * 4

    for typed in ("init /certs --host 127.0.0.1", "issue /certs alice bob"):
        container.start([*services["certs"]["entrypoint"], *shlex.split(typed)], certs).ends(0)
    folder = container.volume("certs")
    assert (folder / "ca.key").stat().st_mode & 0o077 == 0

    def tls(name: str) -> dict[str, tuple[Path, str]]:
        return {"/tls": (folder / name, "ro")}

    config = {"/etc/breakwater/experiment.toml": (ROOT / "deploy" / "configs" / "by-hand.toml", "ro")}
    runs = {"/var/lib/breakwater": (container.volume("runs"), "rw")}
    words = [word.replace("0.0.0.0:9090", "127.0.0.1:0") for word in services["server"]["command"]]
    server = container.start(["breakwater", *words, *TWO], {**tls("server"), **config, **runs})
    address = server.line(r"^listening on (\S+)")[1]
    clients = clients_of(services)
    joined = []
    for name in ("alice", "bob"):
        joins = [address if word == "server:9090" else word for word in clients[name]]
        joined.append(container.start(["breakwater", *joins], tls(name)))
    for process in (server, *joined):
        process.ends(0)
    (run,) = (container.volume("runs") / "runs").iterdir()
    assert (summary_of(run)["status"], summary_of(run)["rounds"]) == ("finished", 20)
    assert (run / "curve.png").stat().st_uid == USER

    # The pod that keeps the results in reach, in Kubernetes.
    (keeper,) = pod_of("Deployment", "breakwater-server")["containers"]
    kept = container.start(keeper["command"], {})

    def stopped() -> bool:
        for pid, words in processes.living().items():
            if words.startswith("python -c import signal"):
                os.kill(pid, signal.SIGTERM)
        return not kept.running()

    until(stopped, "the end of a container that was told to stop")
    kept.ends(0)

    # Process 1 of a container: a signal that it does not ask for is lost on it.
    waiting = container.start(
        ["breakwater", *(word.replace("server:9090", address) for word in clients["alice"])], tls("alice")
    )
    waiting.line("trying again")
    (pid,) = (p for p, words in processes.living().items() if "/venv/bin/breakwater client" in words)
    (stop,) = values(dockerfile(DOCKERFILES[0]), "STOPSIGNAL")
    os.kill(pid, signal.Signals[stop])
    waiting.ends(130)


def test_the_image_holds_the_code_and_no_more(image: Path) -> None:
    code = image / "breakwater"
    found = {path.name for path in code.iterdir()} - {"__pycache__"}
    wanted = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks", "docs"}
    assert found == wanted | {"examples", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    folders = {path.name for path in (code / "deploy").iterdir() if path.is_dir()}
    assert folders == {"commands", "configs", "doctor", "sweeps", "__pycache__"}
    code_of = "from experiment.code import code_fingerprint as f; print(f())"
    said = ran(image / "venv/bin/python", "-c", code_of, cwd=Path("/"))
    assert said.stdout.strip() == code_fingerprint()
    assert not list((image / "venv").glob("lib/*/site-packages/torch"))
    assert list((code / "link" / "__pycache__").glob("wire.*.pyc"))
