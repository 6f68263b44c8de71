"""HOST:PORT, as people write it, and what every command says where it is none."""

import re
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.cli import main
from foundation.errors import ConfigError
from link.address import Address, parse_host

DEMO = "deploy/configs/demo.toml"


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("server.example:9090", "server.example", 9090),
        ("my_server-2.internal.:1", "my_server-2.internal.", 1),
        ("192.0.2.7:65535", "192.0.2.7", 65535),
        ("[2001:db8::7]:9090", "2001:db8::7", 9090),
        ("[fe80::1%eth0]:9090", "fe80::1%eth0", 9090),
        ("[::]:00080", "::", 80),
        ("127.1:9090", "127.1", 9090),
    ],
)
def test_an_address_is_read(text: str, host: str, port: int) -> None:
    address = Address.parse(text)
    assert (address.host, address.port) == (host, port)
    assert Address.parse(str(address)) == address


def test_a_name_with_umlauts_is_looked_up_as_the_domain_name_system_has_it() -> None:
    assert str(Address.parse("müller.example:9090")) == "xn--mller-kva.example:9090"


def test_what_grpc_is_given_cannot_be_mistaken() -> None:
    assert Address.parse("dns:9090").target == "dns:///dns:9090"  # gRPC alone would look for the host 9090
    assert Address.parse("[fe80::1%eth0]:9090").target == "dns:///[fe80::1%25eth0]:9090"


@pytest.mark.parametrize(
    ("text", "flaw", "write"),
    [
        ("::1:9090", "an IPv6 address needs brackets", "[::1]:9090"),
        ("2001:db8::7", "an IPv6 address needs brackets", "[2001:db8::7]:9090"),
        ("fe80::1%eth0:80", "an IPv6 address needs brackets", "[fe80::1%eth0]:80"),
        ("http://host:8080", "it is a URL", "host:8080"),
        ("https://host:8080/", "it is a URL", "host:8080"),
        ("grpc://host/flower?x=1", "it is a URL", "host:9090"),
        ("http://[::1]:80/", "it is a URL", "[::1]:80"),
        ("me@host:80", "leave out the user name", "host:80"),
        ("host:80/path", "leave out the path", "host:80"),
        (" host:80", "it contains a space", "host:80"),
        ("host: 80", "it contains a space", "host:80"),
        ("host:80\n", "it contains a space", "host:80"),
        ("host", "the port is missing", "host:9090"),
        ("host:", "the port is missing", "host:9090"),
        ("[::1]", "the port is missing", "[::1]:9090"),
        ("[::1]:", "the port is missing", "[::1]:9090"),
        ("host:65536", "there is no port 65536", "host:9090"),
        ("host:-1", "the port '-1' is no number", "host:9090"),
        ("host:0x50", "the port '0x50' is no number", "host:9090"),
        ("host:٨٠", "the port '٨٠' is no number", "host:9090"),
        ("host:http", "the port 'http' is no number", "host:9090"),
        ("host:0", "port 0 means any free one, which only a server can ask for", "host:9090"),
        ("", "it is empty", "127.0.0.1:9090"),
        (":80", "the host is missing", "127.0.0.1:80"),
        ("*:80", "* is no host", ""),
        ("[::1:80", "the bracket is not closed", ""),
        ("[127.0.0.1]:80", "brackets are for an IPv6 address", ""),
        ("a:b:80", "it has a colon too many", ""),
        ("1.2.3.999:80", "'1.2.3.999' is no IPv4 address", ""),
        ("a..b:80", "'a..b' is no host name", ""),
        ("-x:80", "'-x' is no host name", ""),
    ],
)
def test_what_is_no_address_is_refused_with_what_to_write(text: str, flaw: str, write: str) -> None:
    with pytest.raises(ConfigError) as error:
        Address.parse(text, what="--connect")
    head = f"--connect {text!r}: must be HOST:PORT with a port from 1 to 65535: {flaw}"
    shown = str(error.value).replace("...@", "me@")
    assert shown == head + (f"; write {write}" if write else "")
    if write:
        assert str(Address.parse(write)) == write


def test_only_a_server_can_have_any_free_port() -> None:
    assert Address.parse("[::1]:0", listens=True) == Address("::1", 0)
    for text in ("*:80", ":80"):
        with pytest.raises(ConfigError, match=re.escape("with a port from 0 to 65535") + ".*write 0.0.0.0:80"):
            Address.parse(text, listens=True)


def test_a_password_is_not_shown() -> None:
    for text in ("http://me:secret@host:80", "me:se/secret@host:80", "http://a@b:secret@host:80"):
        with pytest.raises(ConfigError) as error:
            Address.parse(text)
        assert "secret" not in str(error.value)
        assert "write host:80" in str(error.value)


@given(st.text(max_size=40) | st.text(alphabet="[]:.%@/ *a1-\n", max_size=20))
def test_any_text_is_an_address_or_one_line(text: str) -> None:
    for listens in (False, True):
        try:
            address = Address.parse(text, listens=listens)
        except ConfigError as error:
            assert "\n" not in str(error)  # noqa: PT017  # either way is right
        else:
            assert Address.parse(str(address), listens=listens) == address
    try:
        host = parse_host(text)
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017  # as above
    else:
        assert parse_host(host) == host


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("host:80", "must be a host name or an IP address: leave out the port; write host"),
        ("http://host:80/", "it is a URL; write host"),
        ("[::1]:80", "leave out the port; write ::1"),
        ("*", "* is no host"),
        ("", "the host is missing"),
    ],
)
def test_what_is_no_host_is_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told) + "$"):
        parse_host(text)


def test_a_host_may_stand_in_brackets() -> None:
    assert (parse_host("[::1]"), parse_host("::1"), parse_host("localhost")) == ("::1", "::1", "localhost")


def test_a_taken_address_cannot_be_bound() -> None:
    taken = socket.create_server(("::1", 0), family=socket.AF_INET6)
    with taken, pytest.raises(OSError, match="Address already in use"):
        Address("::1", taken.getsockname()[1]).try_to_bind()
    Address("::1", 0).try_to_bind()
    with pytest.raises(OSError, match="no such host name"):
        Address("x" * 64, 80).try_to_bind()


@pytest.mark.parametrize(
    "arguments",
    [
        ["server", DEMO, "--listen", "::1:9090"],
        ["client", "--name", "a", "--connect", "::1:9090"],
        ["watch", "::1:9090"],
        ["doctor", "--connect", "::1:9090"],
        ["doctor", "--listen", "::1:9090"],
    ],
)
def test_every_command_says_at_once_what_to_write(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(arguments)
    except SystemExit as error:  # the argument parser's
        status = int(str(error.code))
    said = capsys.readouterr()
    assert (status, said.out, said.err.count("\n")) == (2, "", 1)
    assert "an IPv6 address needs brackets; write [::1]:9090" in said.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["certs", "init", "c", "--host", "localhost:9090"], "leave out the port; write localhost"),
        (["certs", "init", "c", "--host", "https://localhost/"], "it is a URL; write localhost"),
        (["certs", "init", "c", "--host", "fe80::1%eth0"], "leave out the zone; write fe80::1"),
        (["run", DEMO, "--metrics-port", "0", "--metrics-host", "http://0.0.0.0"], "it is a URL; write 0.0.0.0"),
        (["watch", "runs/typo"], "runs/typo: no such run folder; give a run folder or the HOST:PORT of a server"),
    ],
)
def test_hosts_and_folders_are_no_addresses(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments[0] != "run":
        monkeypatch.chdir(tmp_path)
    try:
        status = main(arguments)
    except SystemExit as error:  # the argument parser's
        status = int(str(error.code))
    said = capsys.readouterr()
    assert (status, said.err.count("\n")) == (2, 1)
    assert told in said.err
    assert not (tmp_path / "c").exists()
