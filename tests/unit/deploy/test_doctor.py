"""``breakwater doctor``: a healthy machine has no problem; each thing that is broken is named, with its mend.

Every test breaks one thing. The looks that import torch and numba, in processes of their own, are stubbed except where
they are what is tested.
"""

import gzip
import json
import os
import pickle
import platform
import resource
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from deploy.certs import init, issue, revoke
from deploy.cli import main
from deploy.doctor import Finding, data, machine, network, party
from deploy.doctor.findings import Demand, guarded, ok
from experiment.code import code_fingerprint
from foundation import origin
from link import flwr_compat
from link.address import Address
from link.grid import StreamGrid
from link.identity import certificates
from link.identity.access import AccessControl
from link.identity.authority import Authority
from link.identity.tls import Identity, server_credentials
from tasks.cifar10 import BATCHES, SUBSET, TEST, TRAIN
from tasks.mnist import FILES

CONFIG = Path(__file__).parents[3] / "deploy" / "configs" / "demo.toml"
GOOD_TORCH = {"version": "2.9", "threads": 2, "value": 64.0**3, "cuda": None}
SLOW_S = 60.0


class Said:
    """A probe that has its answer already."""

    def __init__(self, told: dict[str, object] | str) -> None:
        self._told = told

    def result(self) -> dict[str, object] | str:
        return self._told


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working folder, no data folder, and imports that went well."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BREAKWATER_DATA", raising=False)
    monkeypatch.setattr(machine, "torch_probe", lambda: Said(GOOD_TORCH))
    monkeypatch.setattr(machine, "loops_probe", lambda: Said({"cache": str(tmp_path)}))
    return tmp_path


def only(findings: Iterator[Finding]) -> Finding:
    """The one thing that was found."""
    (finding,) = findings
    return finding


def bad(findings: Iterator[Finding]) -> Finding:
    """The one thing that was found and is not well."""
    (finding,) = [each for each in findings if each.level != "ok"]
    assert finding.fix
    assert str(finding).count("\n") == 0
    return finding


def told(finding: Finding) -> tuple[str, str]:
    return finding.level, finding.says


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_healthy_machine_has_no_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real looks, all of them, at what must be good for these tests to run at all."""
    arguments = ["doctor", "--json", "--config", str(CONFIG), "--listen", "127.0.0.1:0", "--out", str(tmp_path)]
    status = main(arguments)
    said = json.loads(capsys.readouterr().out)
    assert [each for each in said["findings"] if each["level"] == "problem"] == []
    assert (status, said["problems"]) == (0, 0)
    about = [each["about"] for each in said["findings"]]
    expected = ["python", "packages", "flwr", "code", "torch", "numba", "config", "data", "cores", "files", "disk"]
    assert list(dict.fromkeys(about)) == [*expected, "listen", "clock"]
    assert next(iter(said["versions"])) == "breakwater"


def test_a_problem_is_one_line_with_its_mend_and_status_1(healthy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--listen", "192.0.2.7:9090"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "problem  listen       192.0.2.7:9090: Cannot assign requested address: this machine has no" in "\n".join(
        lines
    )
    assert lines[-1].startswith("1 problem, ")
    assert all(line.split()[0] in ("ok", "warning", "problem") for line in lines[:-1])


def test_warnings_alone_do_not_fail(
    healthy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "has_torch", lambda: False)
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert (
        "warning  torch        is not installed, so the tasks mnist, cifar10 and custom cannot run: make setup\n"
        in said
    )
    assert "0 problems, 1 warning\n" in said or "0 problems, 2 warnings\n" in said


def test_a_look_that_breaks_is_a_problem_and_the_others_follow() -> None:
    def look() -> Iterator[Finding]:
        yield ok("this", "is good")
        raise OSError("no such\ndevice")

    assert [(each.level, each.says) for each in guarded("that", look)] == [
        ("ok", "is good"),
        ("problem", "check failed: OSError: no such device"),
    ]


def test_what_a_stranger_says_cannot_move_the_cursor() -> None:
    line = str(Finding("ok", "connect", "\x1b[2Jhello\r\nok \u202e"))
    assert line == "ok       connect      ?[2Jhello??ok ?"


# --- the machine ------------------------------------------------------------------------------------------------------


def test_a_python_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "python_version", lambda: "3.9.1")
    assert told(bad(machine.python())) == ("problem", "3.9.1, but >=3.11 is needed")


@pytest.mark.parametrize("there", ["1.38.0", "2.0.0", None])
def test_a_package_that_is_out_of_its_bounds_or_not_there(there: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name != "flwr":
            return metadata.version(name)
        if there is None:
            raise metadata.PackageNotFoundError
        return there

    monkeypatch.setattr(machine, "version", version)
    says = "flwr is not installed" if there is None else f"flwr {there} is outside the tested range <2,>=1.39"
    finding = bad(machine.packages())
    assert told(finding) == ("problem", says)
    assert "constraints.txt" in finding.fix


def test_without_a_checkout_the_bounds_are_those_of_the_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    assert only(machine.packages()).level == "ok"
    monkeypatch.setattr(machine, "version", lambda name: "0.0.1")
    assert "numpy 0.0.1 is outside the tested range <3,>=2" in [each.says for each in machine.packages()]


def test_a_flower_without_a_name_that_the_link_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(flwr_compat, "Metadata")
    finding = bad(machine.flower())
    assert finding.level == "problem"
    assert "lacks a name that the link needs: name 'Metadata' is not defined" in finding.says


def test_a_flower_whose_names_do_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flwr_compat, "stamp", lambda message, **_: None)
    assert "but they behave differently" in bad(machine.flower()).says


def test_a_torch_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libtorch_cpu.so: cannot open shared object file')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding = bad(machine.torch(machine.torch_probe()))
    says = "cannot be imported: OSError: libtorch_cpu.so: cannot open shared object file"
    assert told(finding) == ("problem", says)


def test_a_probe_that_dies_or_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    died = machine.Probe("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    assert died.result() == "ended with status -4"
    monkeypatch.setattr(machine, "PROBE_S", 0.3)
    assert machine.Probe("import time; time.sleep(600)").result() == "no answer within 0.3 s"


def test_a_torch_that_cannot_multiply() -> None:
    broken = Said(GOOD_TORCH | {"value": 3.0})
    assert bad(machine.torch(broken)).says == "a product of matrices of ones gives 3.0"
    with_cuda = Said(GOOD_TORCH | {"cuda": "H200"})
    assert "CUDA: H200, which" in only(machine.torch(with_cuda)).says


def test_compiled_loops_that_cannot_be_kept_or_loaded() -> None:
    nowhere = bad(machine.loops(Said({"cache": None})))
    assert nowhere.level == "warning"
    assert "NUMBA_CACHE_DIR" in nowhere.fix
    broken = bad(machine.loops(Said("ImportError: Numba needs NumPy 2.4 or less")))
    assert told(broken) == (
        "problem",
        "the compiled loops cannot be loaded: ImportError: Numba needs NumPy 2.4 or less",
    )


def test_a_container_with_half_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_quota", lambda: 0.5)
    finding = bad(machine.cores(10))
    assert finding.level == "warning"
    assert "of which 0.5 at a time: rounds will be slow; a local run has 11 processes" in finding.says


@pytest.mark.parametrize(("hard", "level"), [(100, "problem"), (300, "warning"), (1024, "ok"), (-1, "ok")])
def test_a_limit_to_open_files(hard: int, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resource.RLIM_INFINITY == -1
    monkeypatch.setattr(resource, "getrlimit", lambda what: (50, hard))
    finding = only(machine.open_files(20))
    assert finding.level == level
    assert hard == -1 or finding.says.startswith(f"limit {hard}; a server of 20 clients needs 180")
    assert (level == "ok") == (not finding.fix)


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def free(count: int) -> Finding:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=count))
        return only(machine.disk(tmp_path / "runs" / "x", 2 << 30))

    assert free(10 << 20).level == "problem"
    assert free(2000 << 20).says == f"2.0 GiB free in {tmp_path}, but a run needs 2.0 GiB"
    assert told(free(5 << 29)) == ("warning", f"2.5 GiB free in {tmp_path}")
    assert told(free(1 << 40)) == ("ok", f"1024.0 GiB free in {tmp_path}")


def test_a_run_folder_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finding = bad(machine.disk(tmp_path / "file" / "runs", 0))
    assert told(finding) == ("problem", f"{tmp_path / 'file'} is not a writable folder")


def test_a_clock_that_is_set_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = machine.Clock()
    assert only(clock.findings()).level == "ok"
    monkeypatch.setattr(machine, "time", SimpleNamespace(time=lambda: time.time() - 3600, monotonic=time.monotonic))
    assert told(bad(clock.findings())) == ("warning", "moved by -3600.0 s during this check")


def test_a_clock_before_the_code_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deploy").mkdir()
    written = tmp_path / "deploy" / "versions.py"
    written.write_text("")
    os.utime(written, (4e9, 4e9))
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    finding = bad(machine.Clock().findings())
    assert finding.level == "problem"
    assert "before this code was written (2096-" in finding.says


# --- certificates -----------------------------------------------------------------------------------------------------


@pytest.fixture
def certs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an authority and the certificates of the server, of alice and of bob."""
    monkeypatch.chdir(tmp_path)
    init(Path("certs"), ["127.0.0.1"])
    issue(Path("certs"), ["alice", "bob"])
    return Path("certs")


@pytest.fixture
def travel(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set our clock so many days ahead of the real one."""

    def to(days: float) -> None:
        for module in (certificates, party):
            monkeypatch.setattr(module, "now", lambda: datetime.now(UTC) + timedelta(days=days))

    return to


def test_folders_of_certificates_that_are_good(certs: Path) -> None:
    said = [(each.level, each.about) for each in party.look(certs / "alice")]
    assert said == [("ok", "tls"), ("ok", "key")]
    server = list(party.look(certs / "server"))
    assert [each.level for each in server] == ["ok", "ok", "ok"]
    assert "certs/server: server, as 127.0.0.1, until 20" in server[0].says
    assert "every certified client may take part" in server[2].says
    revoke(certs, ["bob"])
    assert [each.says for each in party.look(certs / "server")][2] == "ca.crl in certs/server: valid"


def test_a_folder_that_is_not_there(certs: Path) -> None:
    assert bad(party.look(Path("nowhere"))).says == "--tls nowhere: no such folder; `breakwater certs` makes it"


def test_the_folder_of_the_authority(certs: Path) -> None:
    finding = bad(party.look(certs))
    assert told(finding) == ("problem", "certs is the authority's folder")
    assert "certs/server" in finding.fix


@pytest.mark.parametrize("name", ["ca.crt", "tls.crt", "tls.key"])
def test_a_file_that_is_missing_or_empty(certs: Path, name: str) -> None:
    (certs / "alice" / name).write_text("")
    assert bad(party.look(certs / "alice")).says.startswith(f"certs/alice/{name}: holds no ")
    (certs / "alice" / name).unlink()
    assert bad(party.look(certs / "alice")).says.startswith(f"certs/alice/{name}: no such file")


def test_a_key_of_another_certificate(certs: Path) -> None:
    shutil.copy(certs / "bob" / "tls.key", certs / "alice" / "tls.key")
    finding = bad(party.look(certs / "alice"))
    assert finding.says.startswith("certs/alice/tls.key: is not the key of certs/alice/tls.crt")


def test_an_authority_that_is_another(certs: Path) -> None:
    (certs / "alice" / "ca.crt").write_bytes(Authority.create().certificate)
    finding = bad(party.look(certs / "alice"))
    assert "but ca.crt is of " in finding.says
    assert finding.fix == "copy the whole folder from the one authority of this federation"


@pytest.mark.parametrize(
    ("days", "level", "says", "fix"),
    [
        (340, "warning", ", 24 days from now", "`breakwater certs issue DIR alice --renew`"),
        (366, "problem", "expired on ", "with --renew"),
        (-1, "problem", "is not valid before ", "set the clock"),
    ],
)
def test_a_certificate_whose_time_is_not_now(
    certs: Path, travel: Callable[[float], None], days: float, level: str, says: str, fix: str
) -> None:
    travel(days)
    finding = bad(party.look(certs / "alice"))
    assert finding.level == level
    assert says in finding.says
    assert fix in finding.fix


def test_a_key_that_others_can_read(certs: Path) -> None:
    (certs / "alice" / "tls.key").chmod(0o640)
    finding = bad(party.look(certs / "alice"))
    assert finding.level == "warning"
    assert "mode 0640" in finding.says
    assert finding.fix == "chmod 600 certs/alice/tls.key"


def test_the_authoritys_key_in_a_partys_folder(certs: Path) -> None:
    shutil.copy(certs / "ca.key", certs / "server" / "ca.key")
    assert bad(party.look(certs / "server")).says == "certs/server/ca.key: this key can impersonate any participant"


def test_a_client_that_is_revoked(certs: Path) -> None:
    revoke(certs, ["alice"])
    finding = bad(party.look(certs / "alice"))
    assert finding.level == "problem"
    assert finding.says.startswith("revoked: this certificate of 'alice' was revoked on ")
    assert [each.level for each in party.look(certs / "bob")] == ["ok", "ok"]


def test_lists_that_a_server_cannot_use(certs: Path, tmp_path: Path) -> None:
    (certs / "server" / "clients.txt").write_text("# nobody yet\n")
    assert bad(party.look(certs / "server")).says.startswith("certs/server/clients.txt: lists nobody")
    (tmp_path / "lists").mkdir()
    assert [each.level for each in party.look(certs / "server", tmp_path / "lists")] == ["ok", "ok", "ok"]
    (tmp_path / "lists" / "ca.crl").write_text("-----BEGIN X509 CRL-----")
    assert "must hold whole lists of revoked certificates" in bad(party.look(certs / "server", tmp_path / "lists")).says


# --- the network ------------------------------------------------------------------------------------------------------


def test_an_address_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        finding = bad(network.listening(Address.parse(address)))
    assert told(finding) == ("problem", f"{address}: Address already in use")
    assert f"ss -ltnp 'sport = :{address.rpartition(':')[2]}'" in finding.fix
    assert only(network.listening(Address.parse(address))).says == f"{address} is free"


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("192.0.2.7:9090", "192.0.2.7:9090: Cannot assign requested address"),
        ("[2001:db8::7]:9090", "[2001:db8::7]:9090: Cannot assign requested address"),
    ],
)
def test_an_address_that_cannot_be_had(address: str, says: str) -> None:
    assert told(bad(network.listening(Address.parse(address)))) == ("problem", says)


def grid(fingerprint: str, credentials: Identity | None = None) -> StreamGrid:
    return StreamGrid(
        run_id=2,
        clients=2,
        welcome=lambda name, worker: {},
        fingerprint=fingerprint,
        max_reply_bytes=1000,
        credentials=None if credentials is None else server_credentials(credentials),
        access=None if credentials is None else AccessControl.of(credentials),
    )


@pytest.fixture
def server(request: pytest.FixtureRequest, certs: Path) -> Iterator[tuple[StreamGrid, str]]:
    """A server, with TLS if asked for; and its address."""
    tls = request.param != "open"
    made = grid(
        "0123456789ab" if request.param == "other code" else code_fingerprint(),
        Identity.load(certs / "server") if tls else None,
    )
    try:
        yield made, made.listen("127.0.0.1:0")
    finally:
        made.close("over")


@pytest.mark.parametrize("server", ["open"], indirect=True)
def test_a_server_without_tls_that_would_take_us(server: tuple[StreamGrid, str], certs: Path) -> None:
    grid, address = server
    finding = only(network.connecting(Address.parse(address), None))
    assert told(finding) == ("ok", f"{address}: a Breakwater server of the same code, without TLS")
    assert grid.seats() == {}, "to look takes no seat"
    finding = bad(network.connecting(Address.parse(address), certs / "alice"))
    assert "it speaks no TLS; start it with --tls" in finding.says


@pytest.mark.parametrize("server", ["tls"], indirect=True)
def test_a_server_with_tls(server: tuple[StreamGrid, str], certs: Path, tmp_path: Path) -> None:
    grid, address = server
    finding = only(network.connecting(Address.parse(address), certs / "alice"))
    assert told(finding) == (
        "ok",
        f"{address}: a Breakwater server of the same code, over TLS, both certificates valid, as 'alice'",
    )
    assert grid.seats() == {}
    assert (
        "it speaks TLS; give this client its certificate" in bad(network.connecting(Address.parse(address), None)).says
    )

    init(tmp_path / "others", ["127.0.0.1"])
    issue(tmp_path / "others", ["alice"])
    finding = bad(network.connecting(Address.parse(address), tmp_path / "others" / "alice"))
    assert f"{address}: the server's certificate was issued by " in finding.says
    assert bad(network.connecting(Address.parse(address), certs / "server")).says.endswith(
        "certs/server/tls.crt: is not a client's certificate"
    )
    by_name = address.replace("127.0.0.1", "localhost")
    assert (
        "is for '127.0.0.1', and not for 'localhost'"
        in bad(network.connecting(Address.parse(by_name), certs / "alice")).says
    )


@pytest.mark.parametrize("server", ["tls"], indirect=True)
def test_a_certificate_for_watching(server: tuple[StreamGrid, str], certs: Path) -> None:
    authority = Authority((certs / "ca.crt").read_bytes(), (certs / "ca.key").read_bytes())
    eve = authority.issue_watcher("eve")
    (certs / "eve").mkdir()
    for name, content in (("ca.crt", eve.authority), ("tls.crt", eve.certificate), ("tls.key", eve.key)):
        (certs / "eve" / name).write_bytes(content)
    assert next(party.look(certs / "eve")).says.startswith("certs/eve: watcher 'eve', until 20")
    finding = only(network.connecting(Address.parse(server[1]), certs / "eve"))
    assert told(finding) == (
        "ok",
        f"{server[1]}: a Breakwater server, over TLS, both certificates valid, as 'eve', which may only watch",
    )


@pytest.mark.parametrize("server", ["tls"], indirect=True)
def test_a_server_that_has_taken_the_certificate_back(server: tuple[StreamGrid, str], certs: Path) -> None:
    grid, address = server
    revoke(certs, ["bob"])
    for _ in range(2):  # a change counts once a file looks the same twice
        assert grid._access is not None
        grid._access.look()
    finding = bad(network.connecting(Address.parse(address), certs / "bob"))
    assert f"{address}: refused: revoked: this certificate of 'bob' was revoked on " in finding.says


@pytest.mark.parametrize("server", ["other code"], indirect=True)
def test_a_server_of_another_version(server: tuple[StreamGrid, str], certs: Path) -> None:
    finding = bad(network.connecting(Address.parse(server[1]), certs / "alice"))
    assert f"but it runs 0.1.0 (0123456789ab), this machine 0.1.0 ({code_fingerprint()})" in finding.says
    assert finding.fix == "install the same version at both ends"


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = f"127.0.0.1:{gone.getsockname()[1]}"
    finding = bad(network.connecting(Address.parse(address), None))
    assert told(finding) == ("problem", f"{address}: Connection refused")
    assert "nothing listens" in finding.fix
    assert "cannot resolve the name" in bad(network.connecting(Address.parse("no-such-host.invalid:1"), None)).fix


def test_somebody_else_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "ANSWER_S", 5.0)

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=serve, args=(listener,))
    thread.start()
    try:
        finding = bad(network.connecting(Address.parse(f"127.0.0.1:{listener.getsockname()[1]}"), None))
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(SLOW_S)
    assert "no Breakwater server answers: " in finding.says
    assert not thread.is_alive()


# --- data and config --------------------------------------------------------------------------------------------------


def test_no_data_folder_is_no_problem_and_one_that_is_not_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BREAKWATER_DATA", raising=False)
    assert only(data.look(None)).level == "ok"
    monkeypatch.setenv("BREAKWATER_DATA", "nowhere")
    assert told(bad(data.look(None))) == ("problem", "nowhere: no such folder")


def test_a_data_folder_with_nothing_in_it(tmp_path: Path) -> None:
    assert told(bad(data.look(tmp_path))) == ("warning", f"{tmp_path} holds no data set that a task reads")


def test_a_table_that_is_cut_off_or_nonsense(tmp_path: Path) -> None:
    (tmp_path / "libsvm").mkdir()
    path = tmp_path / "libsvm" / "a9a.gz"
    path.write_bytes(gzip.compress(b"-1 3:1 11:1\n+1 5:0.5\n"))
    assert told(only(data.look(tmp_path))) == ("ok", "libsvm/a9a.gz: 2 samples, 11 features")
    path.write_bytes(path.read_bytes()[:-6])
    assert f"data file {path}: cannot be read (" in bad(data.look(tmp_path)).says
    path.write_bytes(gzip.compress(b"<html>404</html>"))
    assert f'data file {path}: line 1 is "<html>404</html>"' in bad(data.look(tmp_path)).says


def test_a_file_that_is_not_what_the_sums_say(tmp_path: Path) -> None:
    (tmp_path / "libsvm").mkdir()
    path = tmp_path / "libsvm" / "small"
    path.write_text("-1 3:1\n+1 5:0.5\n")
    sums = tmp_path / data.SUMS
    sums.write_text(f"{sha256(path.read_bytes()).hexdigest()}  libsvm/small\n")
    assert [each.level for each in data.look(tmp_path)] == ["ok", "ok"]
    path.write_text("-1 3:1\n+1 5:0.6\n")
    assert told(bad(data.look(tmp_path))) == ("problem", f"{path} does not match SHA256SUMS")
    path.unlink()
    assert f"{path} is in SHA256SUMS, but missing" in [each.says for each in data.look(tmp_path)]


def test_mnist_that_is_not_whole_or_not_the_published_one(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, shape in zip(FILES, [(5, 28, 28), (5,), (2, 28, 28), (2,)], strict=True):
        head = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
        (raw / f"{name}.gz").write_bytes(gzip.compress(head + bytes(int(np.prod(shape)))))
    finding = bad(data.look(tmp_path))
    assert finding.level == "warning"
    assert "not as published" in finding.says
    (raw / f"{FILES[1]}.gz").write_bytes(b"\x1f\x8b")
    assert bad(data.look(tmp_path)).level == "problem"
    (raw / f"{FILES[1]}.gz").unlink()
    assert told(bad(data.look(tmp_path))) == ("problem", f"MNIST in {raw} lacks {FILES[1]}")


def test_cifar10_that_is_not_whole_or_not_the_published_one(tmp_path: Path) -> None:
    folder = tmp_path / BATCHES
    folder.mkdir()
    for name in (*TRAIN, TEST):
        batch = {b"labels": [0, 9], b"data": np.zeros((2, 3072), np.uint8)}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=3))
    finding = bad(data.look(tmp_path))
    assert finding.level == "warning"
    assert "not as published" in finding.says
    (folder / TEST).write_bytes(b"")
    assert "not a batch of CIFAR-10" in bad(data.look(tmp_path)).says
    (folder / TEST).unlink()
    assert told(bad(data.look(tmp_path))) == ("problem", f"CIFAR-10 in {folder} lacks test_batch")
    images, labels = np.zeros((3, 32, 32, 3), np.uint8), np.zeros(3, np.uint8)
    np.savez(tmp_path / SUBSET, x_train=images, y_train=labels, x_test=images, y_test=labels)
    assert "CIFAR-10: 3 training images in cifar10_subset.npz" in [each.says for each in data.look(tmp_path)]


def test_a_config_that_cannot_run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BREAKWATER_DATA", raising=False)
    demand = Demand()
    assert only(data.config(CONFIG, None, demand)).says == f"{CONFIG}: digits, d = 2410, 10 clients"
    assert demand.clients == 10
    assert 10_000 < demand.disk < 10_000_000
    demand = Demand()
    finding = bad(data.config(CONFIG.with_name("a9a.toml"), tmp_path, demand))
    assert demand == Demand(clients=None, disk=0)
    assert finding.says.startswith('[task] data file "a9a.gz" is not in the folder ')
    assert "absent.toml: no such file" in bad(data.config(tmp_path / "absent.toml", None, demand)).says


def test_nothing_of_a_probe_is_left_running() -> None:
    probe = machine.Probe("print('{}')")
    assert probe.result() == {}
    assert probe._process.poll() == 0
    assert probe._process.args[0] == sys.executable  # type: ignore[index]  # a list, as Probe makes it
