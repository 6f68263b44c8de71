"""What a wheel holds and what can be done with it, beside files that have the names of our folders."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from experiment.code import code_fingerprint
from foundation import origin
from tests.integration.processes import COMMAND, ROOT, Processes, sets, summary_of
from tests.packages import PACKAGES
from tests.wheel.building import OUTSIDE, uv
from tests.wheel.conftest import Run

pytestmark = [pytest.mark.wheel, pytest.mark.slow]

CONFIGS = ROOT / "deploy" / "configs"
SHORT = sets("strategy.rounds=30", "evaluation.every=10")
SWEEP = """
title = "Two rules"
base = "demo.toml"
set = ["strategy.rounds=10", "evaluation.every=10"]
seeds = [1]
[axes.rule]
rfa = "aggregator.kind=rfa"
cm = "aggregator.kind=cm"
"""

OWN_TASK = """
[federation]
clients = 2
[task]
kind = "custom"
path = "my_numpy_task.py:LeastSquares"
[strategy]
kind = "robust-sgd"
rounds = 10
gamma = 0.1
"""


@pytest.fixture
def processes(elsewhere: Path, installed: Path) -> Iterator[Processes]:
    with Processes(elsewhere, installed / "breakwater") as started:
        yield started


def model_of(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def test_it_holds_one_package_with_types_and_nothing_that_only_a_checkout_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entries = archive.read(f"breakwater-{version('breakwater')}.dist-info/entry_points.txt").decode()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"breakwater", f"breakwater-{version('breakwater')}.dist-info"}
    assert {"breakwater/py.typed", "breakwater/link/link_pb2.pyi", "breakwater/deploy/configs/demo.toml"} <= set(names)
    assert {name.split("/")[1] for name in names if name.count("/") > 1} >= set(PACKAGES) - {"breakwater"}
    assert not [name for name in names if re.search(r"Dockerfile|\.proto$|kubernetes|/tests?/|deploy/wheel", name)]
    assert entries.split() == ["[console_scripts]", "breakwater", "=", "breakwater.__main__:main"]


def test_the_same_checkout_gives_the_same_wheel_with_or_without_a_source_distribution(
    wheel: Path, tmp_path: Path
) -> None:
    uv("build", "--wheel", "--no-build-isolation", "--out-dir", tmp_path, ROOT)
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


def test_nothing_of_ours_is_on_the_path_but_the_package(installed: Path, run: Run, tmp_path: Path) -> None:
    code = (
        "import importlib.util as u, sys, breakwater as bw; from pathlib import Path\n"
        f"print([n for n in {sorted(set(PACKAGES) - {'breakwater'})} if u.find_spec(n)])\n"
        "for name in bw.__all__: getattr(bw, name)\n"
        "for module in (bw.methods, bw.aggregators, bw.compressors, bw.attacks, bw.tasks):\n"
        "    for name in module.__all__: getattr(module, name)\n"
        "print(bw.__version__, bw.methods.Method.__module__, 'torch' in sys.modules)\n"
    )
    said = run(installed / "python", "-P", "-c", code).stdout.splitlines()
    assert said == ["[]", f"{version('breakwater')} breakwater.strategies.method False"]


def test_the_commands_work(installed: Path, run: Run, elsewhere: Path) -> None:
    shutil.copy2(CONFIGS / "demo.toml", elsewhere)
    command = installed / "breakwater"
    first, second = run(command, "--version").stdout.splitlines()[:2]
    assert (first, second.split(maxsplit=1)) == (f"breakwater {version('breakwater')}", ["wheel", "as built"])
    assert "byz-vr-marina-pp" in run(command, "check", "demo.toml").stdout
    run(command, "run", "demo.toml", "--out", "wheel", *SHORT)
    run(COMMAND, "run", CONFIGS / "demo.toml", "--out", elsewhere / "checkout", *SHORT)
    assert model_of(elsewhere / "wheel") == model_of(elsewhere / "checkout")
    (elsewhere / "small.toml").write_text(SWEEP, encoding="utf-8")
    run(command, "sweep", "small.toml", "--in-process", "--out", "swept")
    assert len([*(elsewhere / "swept").rglob("summary.json")]) == 2
    (elsewhere / "wheel" / "report.html").unlink()
    run(command, "report", "wheel")
    assert "byz-vr-marina-pp" in (elsewhere / "wheel" / "report.html").read_text(encoding="utf-8")
    assert "ok       code" in run(command, "doctor").stdout
    assert run(installed / "python", "-m", "breakwater", "suspects", "wheel").stdout


def test_server_and_clients_by_hand_with_tls_and_a_client_of_the_checkout_among_them(
    processes: Processes, elsewhere: Path, run: Run, installed: Path, tmp_path: Path
) -> None:
    command = installed / "breakwater"
    run(command, "certs", "init", "certs", "--host", "127.0.0.1")
    run(command, "certs", "issue", "certs", "alice", "bob", "carol", "dave")
    shutil.copy2(CONFIGS / "by-hand.toml", elsewhere)
    honest = sets("federation.byzantine=0")
    options = ("by-hand.toml", *honest, "--listen", "127.0.0.1:0", "--tls", "certs/server", "--out", "wheel", *SHORT)
    server = processes.breakwater("server", *options)
    address = server.line(r"^listening on (\S+)")[1]
    for worker, name in enumerate(("alice", "bob", "carol", "dave")):
        client = COMMAND if name == "dave" else command
        place = ("--connect", address, "--tls", elsewhere / "certs" / name, "--worker", str(worker))
        processes.start(client, "client", *place)
    server.ends(0)
    processes.none_left()
    assert summary_of(elsewhere / "wheel")["status"] == "finished"
    with Processes() as alone:
        alone.breakwater("run", CONFIGS / "by-hand.toml", "--out", tmp_path / "checkout", *SHORT, *honest).ends(0)
    assert model_of(elsewhere / "wheel") == model_of(tmp_path / "checkout")


def test_a_file_with_a_task_is_the_same_task_for_a_wheel_and_for_a_checkout(
    processes: Processes, elsewhere: Path, tmp_path: Path
) -> None:
    """Each party has its own copy; the server compares digests of what they have loaded."""
    for folder in (elsewhere, tmp_path):
        shutil.copy2(ROOT / "examples" / "my_numpy_task.py", folder)
        (folder / "own.toml").write_text(OWN_TASK, encoding="utf-8")
    assert "from breakwater.tasks import" in (tmp_path / "my_numpy_task.py").read_text(encoding="utf-8")
    server = processes.breakwater("server", "own.toml", "--listen", "127.0.0.1:0", "--out", "out")
    address = server.line(r"^listening on (\S+)")[1]
    for name, command, folder in (("wheel", processes.command, elsewhere), ("checkout", COMMAND, tmp_path)):
        processes.start(command, "client", "--connect", address, "--name", name, "--config", folder / "own.toml")
    server.ends(0)
    processes.none_left()
    assert summary_of(elsewhere / "out")["rejected"] == {}


def test_a_wheel_has_the_fingerprint_of_its_checkout_until_a_file_is_changed(
    beside: Callable[[str], Path], run: Run, elsewhere: Path
) -> None:
    place = beside("changed")
    code = "from breakwater.experiment.code import code_fingerprint; print(code_fingerprint())"
    assert run(place / "python", "-c", code).stdout.split() == [code_fingerprint()]
    (package,) = place.parent.glob("lib/python*/site-packages/breakwater")
    with (package / "tasks" / "digits.py").open("a", encoding="utf-8") as file:
        file.write("\n")
    changed = run(place / "python", "-c", code).stdout.strip()
    assert re.fullmatch("modified-[0-9a-f]{12}", changed)
    assert "modified since it was built" in run(place / "breakwater", "--version").stdout
    with Processes() as checkout:
        out = ("--out", elsewhere / "out")
        server = checkout.breakwater("server", CONFIGS / "by-hand.toml", "--listen", "127.0.0.1:0", *out)
        address = server.line(r"^listening on (\S+)")[1]
        refused = run(place / "breakwater", "client", "--connect", address, "--name", "eve", status=2)
        server.ctrl_c()
        server.wait()
    ours, theirs = (origin.named(version("breakwater"), digits) for digits in (code_fingerprint(), changed))
    assert f"other code: {theirs}; this server runs {ours}: run the same version at both ends" in refused.stderr
    # Processes of one machine agree all the same: who changes a file to look into something can run it.
    run(place / "breakwater", "run", CONFIGS / "by-hand.toml", "--out", "own", *SHORT, *sets("federation.byzantine=0"))


def test_a_script_is_checked_against_the_types_of_the_wheel(beside: Callable[[str], Path], elsewhere: Path) -> None:
    script = elsewhere / "script.py"
    text = "import breakwater as bw\nrule = bw.aggregators.GeometricMedian()\nreveal_type(rule)\nrule.nonsense\n"
    script.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", beside("types") / "python", "script.py"]
    shutil.rmtree(elsewhere / "strategies")
    done = subprocess.run([*map(str, command)], cwd=elsewhere, env=OUTSIDE, capture_output=True, text=True, check=False)
    assert 'Revealed type is "breakwater.strategies.aggregators.center_rules.GeometricMedian"' in done.stdout
    assert '"GeometricMedian" has no attribute "nonsense"' in done.stdout
    assert json.dumps(done.stdout).count("error:") == 1, done.stdout
