"""Addresses and certificates of the page that cannot work are refused before a run begins, in one line."""

import re
import shutil
import socket
from pathlib import Path

import pytest

from deploy.certs import init, issue
from deploy.cli import main
from foundation.errors import ConfigError
from link.address import Address
from server.monitor.exporters import Monitoring
from server.monitor.web.options import WebOptions

EVERYWHERE = Address("0.0.0.0", 0)  # noqa: S104  # what is tested
HERE = Address("127.0.0.1", 0)


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    init(folder, ["127.0.0.1"])
    issue(folder, ["alice"])
    issue(folder, ["ops"], watcher=True)
    return folder


def test_beyond_this_machine_the_page_needs_tls(certs: Path) -> None:
    words = r"^--web: 0\.0\.0\.0:0 can be reached from other machines, which needs TLS: give --web-tls DIR"
    with pytest.raises(ConfigError, match=words):
        WebOptions(address=EVERYWHERE).check()
    WebOptions(address=EVERYWHERE, tls=certs / "server").check()
    for host in ("127.0.0.1", "localhost"):
        WebOptions(address=Address(host, 0)).check()


def test_a_server_with_tls_lends_the_page_its_certificate_only_where_it_needs_one(certs: Path) -> None:
    server = certs / "server"
    assert Monitoring(web=WebOptions(address=EVERYWHERE)).with_tls(server).web == WebOptions(
        address=EVERYWHERE, tls=server
    )
    assert Monitoring(web=WebOptions(address=HERE)).with_tls(server).web == WebOptions(address=HERE)
    own = WebOptions(address=EVERYWHERE, tls=certs)
    assert Monitoring(web=own).with_tls(server).web == own
    assert Monitoring().with_tls(server).web is None


def test_a_port_that_is_taken_is_reported_before_the_run() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        words = rf"^--web: 127\.0\.0\.1:{number} cannot be bound: Address already in use; choose another port$"
        with pytest.raises(ConfigError, match=words):
            Monitoring(web=WebOptions(address=Address("127.0.0.1", number))).check()
    with pytest.raises(ConfigError, match=r"^--web: no host\.invalid:1 cannot be bound"):
        WebOptions(address=Address("no host.invalid", 1)).check()


@pytest.mark.parametrize(
    ("name", "flaw"),
    [
        ("alice", "tls.crt: is not a server's certificate; `breakwater certs init DIR --host NAME` makes one"),
        ("ops", "tls.crt: is not a server's certificate; `breakwater certs init DIR --host NAME` makes one"),
        ("nothing", "tls.crt: no such file; the page needs tls.crt and tls.key"),
        ("mixed", "tls.key: is not the key of "),
        ("text", "tls.crt: holds no certificate"),
    ],
)
def test_a_certificate_that_cannot_serve_is_named(certs: Path, tmp_path: Path, name: str, flaw: str) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "tls.crt").write_text("hello")
    shutil.copytree(certs / "server", tmp_path / "mixed")
    shutil.copy(certs / "alice" / "tls.key", tmp_path / "mixed")
    folder = certs / name if (certs / name).exists() else tmp_path / name
    with pytest.raises(ConfigError, match=re.escape(f"{folder}/{flaw}")) as refused:
        WebOptions(address=HERE, tls=folder).check()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "command", [["server", "x.toml", "--listen", "127.0.0.1:0"], ["run", "x.toml"], ["watch", "runs"]]
)
def test_a_command_refuses_an_address_that_is_none(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("8080", "http://localhost:8080", "127.0.0.1:70000"):
        with pytest.raises(SystemExit) as refused:
            main([*command, "--web", wrong])
        assert refused.value.code == 2
        assert f"argument --web: '{wrong}': must be HOST:PORT" in capsys.readouterr().err


def test_a_certificate_without_a_page_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "127.0.0.1:1", "--web-tls", "certs"]) == 2
    assert capsys.readouterr().err == "breakwater: error: --web-tls certs: is for the page; give --web HOST:PORT too\n"
