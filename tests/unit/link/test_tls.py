"""Certificates: what is issued, what is refused and how that is told; the folders that ``breakwater certs`` makes."""

import asyncio
import ipaddress
import stat
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from deploy.cli import main
from foundation.errors import ConfigError
from link.address import Address
from link.identity import certificates
from link.identity.authority import AUTHORITY_DAYS, Authority
from link.identity.certificates import CertificateRole, is_for
from link.identity.tls import Identity, channel_credentials, server_credentials, what_is_wrong
from link.proxy import Route

IMPORTED = datetime.now(UTC)
AUTHORITY = Authority.create()
OTHER = Authority.create()
ALICE = AUTHORITY.issue_client("alice")
SERVER = AUTHORITY.issue_server(["server.example", "10.0.0.1", "::1"])


@pytest.fixture
def travel(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set our clock so many days ahead of the real one."""

    def to(days: float) -> None:
        monkeypatch.setattr(certificates, "now", lambda: datetime.now(UTC) + timedelta(days=days))

    return to


def opened(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def policy(authority: Authority) -> PolicyBuilder:
    """The rules of the public web, which are stricter than TLS libraries are."""
    return PolicyBuilder().store(Store([opened(authority.certificate)]))


def flaw(identity: Identity, role: CertificateRole) -> str:
    with pytest.raises(ConfigError) as refusal:
        identity.check(role)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


# --- what is issued ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        x509.DNSName("server.example"),
        x509.IPAddress(ipaddress.ip_address("10.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ],
)
def test_a_strict_verifier_takes_the_server_for_its_hosts(host: x509.DNSName | x509.IPAddress) -> None:
    chain = policy(AUTHORITY).build_server_verifier(host).verify(opened(SERVER.certificate), [])
    assert len(chain) == 2


def test_a_strict_verifier_refuses_the_server_for_another_host_and_a_client_for_any() -> None:
    verifier = policy(AUTHORITY).build_server_verifier(x509.DNSName("alice"))
    for identity in (SERVER, ALICE):
        with pytest.raises(VerificationError):
            verifier.verify(opened(identity.certificate), [])


def test_a_strict_verifier_takes_a_client_and_reads_its_name() -> None:
    verified = policy(AUTHORITY).build_client_verifier().verify(opened(ALICE.certificate), [])
    assert verified.subjects is not None
    assert [subject.value for subject in verified.subjects] == ["urn:breakwater:client:alice"]
    for authority, identity in ((AUTHORITY, SERVER), (OTHER, ALICE)):
        with pytest.raises(VerificationError):
            policy(authority).build_client_verifier().verify(opened(identity.certificate), [])


@pytest.mark.parametrize("name", ["a", "A-b_c.9", "x" * 64, "..."])
def test_every_name_of_a_client_can_be_certified(name: str) -> None:
    identity = AUTHORITY.issue_client(name)
    identity.check(CertificateRole.CLIENT)
    assert identity.name == name


def test_how_long_certificates_are_valid(travel: Callable[[float], None]) -> None:
    def days(certificate: bytes) -> float:
        return (opened(certificate).not_valid_after_utc - IMPORTED) / timedelta(days=1)

    assert days(AUTHORITY.certificate) == pytest.approx(3650, abs=0.01)
    assert days(ALICE.certificate) == pytest.approx(365, abs=0.01)
    week = opened(AUTHORITY.issue_client("a", days=7).certificate).not_valid_after_utc
    assert (week - datetime.now(UTC)) / timedelta(days=1) == pytest.approx(7, abs=0.01)
    travel(3600)
    late = AUTHORITY.issue_client("late")
    assert late.valid_until == opened(AUTHORITY.certificate).not_valid_after_utc, "never longer than the authority"
    travel(-0.02)  # a machine whose clock is half an hour behind
    ALICE.check(CertificateRole.CLIENT)


def test_a_key_is_shown_to_nobody() -> None:
    assert "PRIVATE KEY" not in repr(ALICE) + repr(AUTHORITY)
    assert ALICE.key != AUTHORITY.issue_client("alice").key


@pytest.mark.parametrize("host", ["", "a b", "server:9090", "-a", "a..b", "*.example", "x" * 64, "1.2.3"])
def test_hosts_that_are_none(host: str) -> None:
    with pytest.raises(ConfigError, match=r"^host .*: must be a (DNS|host) name or an IP address"):
        AUTHORITY.issue_server(["good.example", host])


@pytest.mark.parametrize(
    ("issue", "words"),
    [
        (lambda: AUTHORITY.issue_server([]), "without a host"),
        (lambda: AUTHORITY.issue_client("a/b"), "must be 1 to 64 characters"),
        (lambda: AUTHORITY.issue_client("a", days=0), f"a certificate for 0 days: must be 1 to {AUTHORITY_DAYS}"),
        (lambda: AUTHORITY.issue_client("a", days=10**9), "must be 1 to"),
        (lambda: replace(AUTHORITY, key=OTHER.key).issue_client("a"), "ca.key: is not the key of ca.crt"),
        (lambda: replace(AUTHORITY, key=b"nonsense").issue_client("a"), "ca.key: holds no private key"),
        (lambda: replace(AUTHORITY, certificate=b"nonsense").issue_client("a"), "ca.crt: holds no certificate"),
        (lambda: Authority(ALICE.certificate, ALICE.key).issue_client("a"), "is not an authority's certificate"),
    ],
)
def test_what_an_authority_does_not_issue(issue: Callable[[], Identity], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        issue()


def test_an_expired_authority_issues_nothing(travel: Callable[[float], None]) -> None:
    travel(3651)
    with pytest.raises(ConfigError, match=r"^ca.crt: expired on \d{4}-\d\d-\d\d"):
        replace(AUTHORITY).issue_client("a")


# --- what is refused before anybody connects --------------------------------------------------------------------------


def test_what_can_be_used() -> None:
    SERVER.check(CertificateRole.SERVER)
    ALICE.check(CertificateRole.CLIENT)
    assert server_credentials(SERVER)
    assert channel_credentials(ALICE)
    both = replace(ALICE, authority=OTHER.certificate + AUTHORITY.certificate)  # while one authority follows another
    both.check(CertificateRole.CLIENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificates, "now", lambda: datetime.now(UTC) - timedelta(days=3700))
        old = Authority.create()
    replace(ALICE, authority=old.certificate + AUTHORITY.certificate).check(CertificateRole.CLIENT)


@pytest.mark.parametrize(
    ("identity", "role", "words"),
    [
        (ALICE, CertificateRole.SERVER, "tls.crt: is not a server's certificate"),
        (SERVER, CertificateRole.CLIENT, "tls.crt: is not a client's certificate"),
        (
            replace(ALICE, key=SERVER.key),
            CertificateRole.CLIENT,
            "tls.key: is not the key of tls.crt; copy both from one folder",
        ),
        (replace(ALICE, key=b""), CertificateRole.CLIENT, "tls.key: holds no private key"),
        (replace(ALICE, certificate=ALICE.key), CertificateRole.CLIENT, "tls.crt: holds no certificate"),
        (replace(ALICE, authority=b"\xff"), CertificateRole.CLIENT, "ca.crt: holds no certificate"),
        (
            replace(ALICE, origin="certs/alice", key=b""),
            CertificateRole.CLIENT,
            "certs/alice/tls.key: holds no private key",
        ),
        (
            replace(ALICE, authority=OTHER.certificate),
            CertificateRole.CLIENT,
            f"tls.crt: was issued by {opened(AUTHORITY.certificate).subject.rfc4514_string()[3:]!r}, but ca.crt is of "
            f"{opened(OTHER.certificate).subject.rfc4514_string()[3:]!r}",
        ),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(identity: Identity, role: CertificateRole, words: str) -> None:
    assert words in flaw(identity, role)
    with pytest.raises(ConfigError):
        (server_credentials if role is CertificateRole.SERVER else channel_credentials)(identity)


def test_an_encrypted_key_is_told_as_such() -> None:
    key = serialization.load_pem_private_key(ALICE.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    secret = key.private_bytes(*form, serialization.BestAvailableEncryption(b"secret"))
    assert "tls.key: the key is encrypted" in flaw(replace(ALICE, key=secret), CertificateRole.CLIENT)


def test_certificates_out_of_their_time(travel: Callable[[float], None]) -> None:
    travel(366)
    assert flaw(ALICE, CertificateRole.CLIENT) == f"tls.crt: expired on {ALICE.valid_until:%Y-%m-%d %H:%M} UTC"
    travel(3651)
    assert flaw(ALICE, CertificateRole.CLIENT).startswith("ca.crt: expired on ")
    travel(-1)
    assert "is not valid before " in flaw(ALICE, CertificateRole.CLIENT)
    assert ", and here it is " in flaw(ALICE, CertificateRole.CLIENT)


@pytest.mark.parametrize(
    ("host", "fits"),
    [
        ("server.example", True),
        ("SERVER.example", True),
        ("other.example", False),
        ("10.0.0.1", True),
        ("10.0.0.2", False),
        ("::1", True),
        ("0:0:0:0:0:0:0:1", True),
        ("a.wild.example", True),
        ("a.b.wild.example", False),
        ("wild.example", False),
    ],
)
def test_which_addresses_a_server_may_be_reached_by(host: str, fits: bool) -> None:
    assert is_for(["server.example", "10.0.0.1", "::1", "*.wild.example"], host) is fits


def test_what_is_wrong_with_a_server() -> None:
    def seen(identity: Identity, host: str = "server.example") -> str | None:
        return ALICE.flaw_of_server(opened(identity.certificate).public_bytes(serialization.Encoding.DER), host)

    assert seen(SERVER) is None
    assert seen(SERVER, "9.9.9.9") == (
        "the server's certificate is for 'server.example', '10.0.0.1', '::1', and not for '9.9.9.9'"
    )
    assert seen(AUTHORITY.issue_client("mallory")) == "the server's certificate is not a server's certificate"
    assert "the server's certificate was issued by " in str(seen(OTHER.issue_server(["server.example"])))
    assert ALICE.flaw_of_server(b"garbage", "server.example") == "the server's certificate cannot be read"


def test_no_bytes_that_a_server_shows_raise_here() -> None:
    certificate = opened(SERVER.certificate)
    der = bytearray(certificate.public_bytes(serialization.Encoding.DER))
    signed = range(
        start := der.index(certificate.tbs_certificate_bytes), start + len(certificate.tbs_certificate_bytes)
    )
    for at, byte in enumerate(der):
        for changed in (byte ^ 0x01, byte ^ 0x80, 0xFF - byte):
            der[at] = changed
            flaw = ALICE.flaw_of_server(bytes(der), "server.example")
            assert flaw is not None or at not in signed
            assert "\n" not in str(flaw)
        der[at] = byte
    assert ALICE.flaw_of_server(bytes(der), "server.example") is None


@pytest.mark.parametrize("host", ["127.0.0.1", "a..b", "x" * 64])
def test_a_look_at_what_is_no_server_tells_nothing(host: str) -> None:
    assert asyncio.run(what_is_wrong(Address(host, 1), ALICE, Route())) is None


# --- folders ----------------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str]]:
    """Run a command; return its status and what it said."""
    status = main(words)
    said = capsys.readouterr()
    return status, (said.out + said.err).splitlines()


@pytest.fixture
def certs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A folder with an authority and the certificates of the server and of alice."""
    monkeypatch.chdir(tmp_path)
    status, said = run(capsys, "certs", "init", "certs", "--host", "server.example", "--host", "10.0.0.1")
    assert (status, len(said)) == (0, 2)
    assert "certs/ca.key can impersonate any participant" in said[0]
    assert said[1].startswith("certs/server: the server's certificate for server.example, 10.0.0.1, valid until ")
    status, (line,) = run(capsys, "certs", "issue", "certs", "alice")
    assert line.startswith("certs/alice: the certificate of client 'alice', valid until ")
    return Path("certs")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_folders_hold_what_each_machine_needs_and_no_more(certs: Path) -> None:
    parts = [f"{name}/{file}" for name in ("alice", "server") for file in ("ca.crt", "tls.crt", "tls.key")]
    assert list(files(certs)) == sorted([*parts, "ca.crt", "ca.key", "issued.txt"])
    for path in certs.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600 if path.suffix == ".key" else 0o644), path
    Identity.load(certs / "server").check(CertificateRole.SERVER)
    alice = Identity.load(certs / "alice")
    alice.check(CertificateRole.CLIENT)
    assert alice.name == "alice"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["init", "certs", "--host", "x"], "certs/ca.crt: exists; --renew keeps the authority and replaces"),
        (["init", "new", "--host", "x:1"], "host 'x:1': must be a host name or an IP address: leave out"),
        (["init", "new", "--host", "x", "--days", "-1"], "a certificate for -1 days"),
        (
            ["init", "new", "--host", "x", "--renew"],
            "new/ca.crt: no such file; create it with `breakwater certs init new --host NAME`",
        ),
        (["init", "certs/ca.crt", "--host", "x"], "certs/ca.crt: cannot be written: File exists"),
        (["issue", "new", "bob"], "new/ca.crt: no such file; create it with `breakwater certs init new --host NAME`"),
        (["issue", "certs", "bob", "alice"], "certs/alice: exists; --renew replaces the certificate of 'alice'"),
        (["issue", "certs", "bob", "server"], "name 'server': cannot be the folder of a client"),
        (["issue", "certs", "bob", ".."], "name '..': cannot be the folder of a client"),
        (["issue", "certs", "bob", "ca.key"], "certs/ca.key: exists"),
        (["issue", "certs", "bob", "a/b"], "name 'a/b': must be 1 to 64 characters"),
        (["issue", "certs", "alice", "bob", "--renew"], "certs/bob: there is nothing to renew"),
    ],
)
def test_what_is_refused_leaves_everything_as_it_was(
    certs: Path, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    before = files(certs)
    status, said = run(capsys, "certs", *words)
    assert (status, len(said)) == (2, 1)
    assert said[0].startswith("breakwater: error: ")
    assert complaint in said[0]
    assert files(certs) == before
    assert not Path("new").exists()


def test_renewal_replaces_the_certificate_and_not_the_authority(
    certs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(certs)
    assert run(capsys, "certs", "issue", "certs", "alice", "--renew", "--days", "30")[0] == 0
    assert run(capsys, "certs", "init", "certs", "--host", "new.example", "--renew")[0] == 0
    after = files(certs)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"alice/tls.crt", "alice/tls.key", "server/tls.crt", "server/tls.key", "issued.txt"}
    assert list(after) == list(before), "no draft is left"
    Identity.load(certs / "alice").check(CertificateRole.CLIENT)
    renewed = Identity.load(certs / "server")
    assert certificates.hosts_of(opened(renewed.certificate)) == ["new.example"]


def test_folders_that_are_none(certs: Path) -> None:
    for folder, words in (
        (Path("absent"), "--tls absent: no such folder"),
        (certs / "ca.crt", "--tls certs/ca.crt: no such folder"),
        (certs, "certs/tls.crt: no such file; a folder for --tls holds ca.crt, tls.crt, tls.key"),
    ):
        with pytest.raises(ConfigError, match=words):
            Identity.load(folder)
    (certs / "alice" / "tls.key").unlink()
    (certs / "alice" / "tls.key").mkdir()
    with pytest.raises(ConfigError, match=r"certs/alice/tls.key: cannot be read: Is a directory"):
        Identity.load(certs / "alice")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--tls", "absent"], "--tls absent: no such folder"),
        (["--tls", "certs"], "certs/tls.crt: no such file"),
        (["--tls", "certs/server"], "certs/server/tls.crt: is not a client's certificate"),
        (
            ["--tls", "certs/alice", "--name", "bob"],
            "--tls certs/alice: is the certificate of 'alice', and not of 'bob'",
        ),
        (["--tls", "certs", "--attack", "foe", "--seats", "2"], "--seats 2: needs --name NAME; --tls holds the"),
        (
            ["--tls", "certs", "--name", "m", "--attack", "foe", "--seats", "2"],
            "--tls certs/m-0: no such folder",
        ),
    ],
)
def test_certificates_that_a_client_cannot_use(
    certs: Path, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    status, said = run(capsys, "client", "--connect", "127.0.0.1:1", *words)
    assert (status, len(said)) == (2, 1)
    assert complaint in said[0]


def test_a_coalition_needs_the_certificate_of_each_of_its_names(
    certs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "certs", "issue", "certs", "m-0", "m-1")
    (certs / "m-1").rename(certs / "away")
    (certs / "m-0").rename(certs / "m-1")
    (certs / "away").rename(certs / "m-0")
    words = ("--name", "m", "--attack", "foe", "--seats", "2")
    status, said = run(capsys, "client", "--connect", "127.0.0.1:1", "--tls", "certs", *words)
    assert (status, said) == (2, ["breakwater: error: --tls certs/m-0: is the certificate of 'm-1', and not of 'm-0'"])


def test_a_server_with_a_clients_certificate(certs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(Path(__file__).parents[3] / "deploy" / "configs" / "by-hand.toml")
    status, said = run(capsys, "server", config, "--listen", "127.0.0.1:0", "--tls", "certs/alice")
    assert (status, said) == (2, ["breakwater: error: certs/alice/tls.crt: is not a server's certificate"])
