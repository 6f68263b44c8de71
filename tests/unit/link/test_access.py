"""Who may be in the federation: lists that are read, refused, and read again while the server runs."""

import base64
import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from foundation.errors import ConfigError
from link.identity import certificates
from link.identity.access import LISTED_FILE, REVOKED_FILE, AccessControl, Revoked, read_listed, read_revoked
from link.identity.authority import Authority
from link.identity.certificates import certificates_in
from link.identity.tls import Identity

AUTHORITY, OTHER = Authority.create(), Authority.create()
ALICE, BOB = AUTHORITY.issue_client("alice"), AUTHORITY.issue_client("bob")
WHEN = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
TRUSTED = certificates_in(AUTHORITY.certificate, "")


def serial(identity: Identity) -> int:
    return x509.load_pem_x509_certificate(identity.certificate).serial_number


def taken_back(*identities: Identity, number: int = 1, authority: Authority = AUTHORITY) -> bytes:
    return authority.revocation_list(dict.fromkeys(map(serial, identities), WHEN), number)


class Server:
    """A server's folder and its lists."""

    def __init__(self, folder: Path, authority: bytes = AUTHORITY.certificate) -> None:
        self.folder = folder
        self.access = AccessControl.of(Identity(authority, b"", b"", str(folder)))

    def put(self, name: str, content: bytes) -> None:
        """Write a file as `breakwater certs` does: it is there at once, and is another one than before."""
        draft = self.folder / "draft"
        draft.write_bytes(content)
        draft.replace(self.folder / name)

    def settle(self) -> None:
        """Look as often as it takes until a change counts."""
        self.access.look()
        self.access.look()

    def validate(self, identity: Identity) -> str:
        return self.access.flaw_of(identity.certificate) or "none"


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """What has been logged at a level so far."""
    monkeypatch.setattr(logging.getLogger("breakwater"), "propagate", True)
    caplog.set_level(logging.INFO, "breakwater.link")
    return lambda level: [record.getMessage() for record in caplog.records if record.levelno == level]


# --- what the lists say -----------------------------------------------------------------------------------------------


def test_without_lists_everybody_is_welcome(server: Server) -> None:
    assert server.validate(ALICE) == "none"
    server.settle()
    assert server.validate(ALICE) == "none"


def test_a_revoked_certificate_is_refused_and_another_of_the_same_name_is_not(server: Server) -> None:
    server.put(REVOKED_FILE, taken_back(ALICE))
    server.settle()
    assert server.validate(ALICE) == "revoked: this certificate of 'alice' was revoked on 2026-03-04 05:06 UTC"
    assert server.validate(AUTHORITY.issue_client("alice")) == "none"
    assert server.validate(BOB) == "none"


def test_a_serial_number_counts_for_its_own_issuer_alone(tmp_path: Path) -> None:
    both = AUTHORITY.certificate + OTHER.certificate  # while one authority follows another
    (tmp_path / REVOKED_FILE).write_bytes(taken_back(BOB) + taken_back(ALICE, authority=OTHER))
    server = Server(tmp_path, both)
    assert server.validate(ALICE) == "none"
    assert server.validate(BOB).startswith("revoked: ")


def test_who_is_not_on_the_list_of_clients_is_refused(server: Server) -> None:
    server.put(LISTED_FILE, b"\xef\xbb\xbf# who may\r\n\r\n  alice # since spring\r\n")
    server.settle()
    assert server.validate(ALICE) == "none"
    assert server.validate(BOB) == "not listed: 'bob' is not in the server's clients.txt"


def test_to_be_listed_does_not_help_a_revoked_certificate(tmp_path: Path) -> None:
    (tmp_path / LISTED_FILE).write_text("alice", encoding="utf-8")
    (tmp_path / REVOKED_FILE).write_bytes(taken_back(ALICE))
    assert Server(tmp_path).validate(ALICE).startswith("revoked: ")


@pytest.mark.parametrize("shown", [b"", b"garbage", ALICE.certificate + BOB.certificate, ALICE.key], ids=range(4))
def test_who_shows_nothing_that_can_be_read_is_refused(server: Server, shown: bytes) -> None:
    assert str(server.access.flaw_of(shown)).startswith("revoked: this client's certificate cannot be read")


def test_an_old_list_locks_nobody_out_and_still_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / REVOKED_FILE).write_bytes(taken_back(BOB))
    monkeypatch.setattr(certificates, "now", lambda: datetime.now(UTC) + timedelta(days=4000))
    server = Server(tmp_path)
    assert server.validate(ALICE) == "none"
    assert server.validate(BOB).startswith("revoked: ")


def test_the_lists_may_lie_apart_from_the_certificate(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / REVOKED_FILE).write_bytes(taken_back(BOB))
    (tmp_path / LISTED_FILE).write_text("nobody-here", encoding="utf-8")
    access = AccessControl.of(Identity(AUTHORITY.certificate, b"", b"", str(tmp_path)), tmp_path / "lists")
    assert access.flaw_of(ALICE.certificate) is None
    assert str(access.flaw_of(BOB.certificate)).startswith("revoked: ")


# --- what cannot be used ----------------------------------------------------------------------------------------------


def foreign(*, critical: bool = False, signer: Authority = AUTHORITY, named: Authority = AUTHORITY) -> bytes:
    """Return a list as another tool may write it."""
    key = serialization.load_pem_private_key(signer.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(x509.load_pem_x509_certificate(named.certificate).subject)
        .last_update(WHEN)
        .next_update(WHEN + timedelta(days=1))
    )
    if critical:
        builder = builder.add_extension(x509.DeltaCRLIndicator(1), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def damaged() -> bytes:
    """Return a list whose signature differs by one bit from a good one."""
    der = bytearray(x509.load_pem_x509_crl(taken_back(ALICE)).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    return b"-----BEGIN X509 CRL-----\n" + base64.encodebytes(der) + b"-----END X509 CRL-----\n"


BAD_REVOKED = {
    "empty": (b"", "must hold whole lists of revoked certificates"),
    "garbage": (b"garbage", "must hold whole lists of revoked certificates"),
    "a-certificate": (ALICE.certificate, "must hold whole lists of revoked certificates"),
    "cut": (taken_back(ALICE)[:-30], "must hold whole lists of revoked certificates"),
    "the-second-cut": (taken_back(ALICE) + taken_back(BOB)[:-30], "must hold whole lists"),
    "no-base64": (b"-----BEGIN X509 CRL-----\n!!!\n-----END X509 CRL-----\n", "cannot be read"),
    "a-damaged-signature": (damaged(), "is not signed by an authority of ca.crt"),
    "of-another-authority": (taken_back(ALICE, authority=OTHER), "is not signed by an authority of ca.crt"),
    "in-anothers-name": (foreign(signer=OTHER), "is not signed by an authority of ca.crt"),
    "by-another-name": (foreign(named=OTHER), "is not signed by an authority of ca.crt"),
    "a-difference-only": (foreign(critical=True), "has the critical extension 2.5.29.27"),
}
BAD_LISTED = {
    "empty": (b"", "lists nobody"),
    "comments": (b"# nobody\n\n", "lists nobody"),
    "two-names": (b"alice\nbob carol\n", "line 2: name 'bob carol': must be 1 to 64 characters"),
    "a-path": (b"\n\n../alice", "line 3: name '../alice': must be"),
    "too-long": (b"x" * 65, "line 1: name 'xxxx"),
    "not-unicode": (b"\xff\xfe", "is text in UTF-16; save it as UTF-8"),
}
BAD = [
    pytest.param(name, *bad, id=f"{name}-{kind}")
    for name, table in ((REVOKED_FILE, BAD_REVOKED), (LISTED_FILE, BAD_LISTED))
    for kind, bad in table.items()
]


@pytest.mark.parametrize(("name", "content", "words"), BAD)
def test_a_server_does_not_start_with_a_list_that_cannot_be_used(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as refusal:
        Server(tmp_path)
    assert str(refusal.value).startswith(f"{tmp_path / name}: ")
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("name", "content", "words"), BAD)
def test_a_list_that_goes_wrong_leaves_in_force_what_was_and_is_told_once(
    server: Server, told: Callable[[int], list[str]], name: str, content: bytes, words: str
) -> None:
    server.put(REVOKED_FILE, taken_back(BOB))
    server.put(LISTED_FILE, b"alice\nbob")
    server.settle()
    good = (server.folder / name).read_bytes()
    for _ in range(3):
        server.put(name, content)
        for _ in range(5):
            server.access.look()
        (line,) = told(logging.ERROR)[-1:]
        assert line.startswith(f"{server.folder / name}: ")
        assert line.endswith("; the last valid version stays in force")
        assert words in line
        assert server.validate(ALICE) == "none"
        assert server.validate(BOB).startswith("revoked: ")
        assert server.validate(AUTHORITY.issue_client("carol")).startswith("not listed: ")
    assert len(told(logging.ERROR)) == 3, "once for each time that the file was written"
    server.put(name, good)
    server.settle()
    assert f"{server.folder / name}: in force, " in told(logging.INFO)[-1]


@pytest.mark.parametrize("name", [REVOKED_FILE, LISTED_FILE])
def test_a_list_that_vanishes_stays_in_force(server: Server, told: Callable[[int], list[str]], name: str) -> None:
    server.put(name, taken_back(BOB) if name == REVOKED_FILE else b"alice")
    server.settle()
    (server.folder / name).unlink()
    for _ in range(5):
        server.access.look()
    assert server.validate(BOB) != "none"
    assert told(logging.ERROR) == [
        f"{server.folder / name}: cannot be read: No such file or directory; the last valid version stays in force"
    ]
    server.put(name, taken_back(BOB, number=2) if name == REVOKED_FILE else b"alice\nbob")
    server.settle()
    assert server.validate(ALICE) == "none"
    assert (server.validate(BOB) == "none") is (name == LISTED_FILE)


def test_what_is_no_file_is_told_too(server: Server, told: Callable[[int], list[str]]) -> None:
    (server.folder / LISTED_FILE).mkdir()
    server.settle()
    (server.folder / REVOKED_FILE).symlink_to(REVOKED_FILE)
    server.settle()
    assert [line.partition(": ")[2] for line in told(logging.ERROR)] == [
        "cannot be read: Is a directory; the last valid version stays in force",
        "cannot be read: Too many levels of symbolic links; the last valid version stays in force",
    ]
    assert server.validate(ALICE) == "none"


def test_an_older_list_does_not_undo_a_newer_one(server: Server, told: Callable[[int], list[str]]) -> None:
    server.put(REVOKED_FILE, taken_back(ALICE, BOB, number=8))
    server.settle()
    server.put(REVOKED_FILE, taken_back(ALICE, number=7))
    server.settle()
    assert "is older than the list in force, number 8; revocations cannot be undone" in told(logging.ERROR)[0]
    assert server.validate(BOB).startswith("revoked: ")


def test_a_list_of_one_of_two_authorities_does_not_replace_both(tmp_path: Path) -> None:
    trusted = TRUSTED + certificates_in(OTHER.certificate, "")
    path = tmp_path / REVOKED_FILE
    path.write_bytes(taken_back(ALICE, number=3) + taken_back(BOB, authority=OTHER, number=2))
    before = read_revoked(path, trusted, Revoked())
    assert len(before.when) == 2
    path.write_bytes(taken_back(ALICE, number=4))
    with pytest.raises(ConfigError, match="is older than the list in force, number 2"):
        read_revoked(path, trusted, before)


# --- when a change counts ---------------------------------------------------------------------------------------------


def test_a_file_that_is_being_written_is_let_alone(server: Server, told: Callable[[int], list[str]]) -> None:
    path = server.folder / LISTED_FILE
    server.put(LISTED_FILE, b"alice\nbob\n")
    server.settle()
    with path.open("w", encoding="utf-8") as file:  # cut off at once, and then written name by name
        for name in ("", "alice\n", "bob\n", "carol\n"):
            file.write(name)
            file.flush()
            server.access.look()
            assert server.validate(BOB) == "none"
    server.settle()
    assert server.validate(AUTHORITY.issue_client("carol")) == "none"
    assert told(logging.ERROR) == []


def test_a_change_is_seen_that_alters_neither_length_nor_time(server: Server) -> None:
    path = server.folder / LISTED_FILE
    path.write_text("alice", encoding="utf-8")
    server.settle()
    stat = path.stat()
    server.put(LISTED_FILE, b"bobby")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    server.settle()
    assert server.validate(ALICE).startswith("not listed: ")


def test_what_has_not_changed_is_not_read_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.put(LISTED_FILE, b"alice")
    server.settle()

    def read_bytes(path: Path) -> bytes:
        raise AssertionError(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    for _ in range(5):
        server.access.look()
    assert server.validate(ALICE) == "none"


def test_names_are_read_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("a # b\n#c\n A-b_c.9\t\na\n", encoding="utf-8")
    assert read_listed(tmp_path / "list") == {"a", "A-b_c.9"}
