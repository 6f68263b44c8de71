"""`breakwater certs revoke`: what is taken back, what is written, and what is refused and then left as it was."""

import os
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509

from deploy.certs import init, issue, revoke
from deploy.register import REGISTER_FILE
from experiment.config import load
from foundation.errors import ConfigError
from link.identity.access import LISTED_FILE, REVOKED_FILE, AccessControl
from link.identity.tls import Identity
from server.process import ServerOptions
from server.run_folder.manifest import RunManifest
from tests.unit.link.test_tls import files, run


@pytest.fixture
def certs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an authority and the certificates of the server, of alice and of bob."""
    monkeypatch.chdir(tmp_path)
    init(Path("certs"), ["server.example"])
    issue(Path("certs"), ["alice", "bob"])
    return Path("certs")


def serial(path: Path) -> int:
    return x509.load_pem_x509_certificate((path / "tls.crt").read_bytes()).serial_number


def listed(path: Path) -> x509.CertificateRevocationList:
    return x509.load_pem_x509_crl(path.read_bytes())


def flaw(certs: Path, identity: Identity) -> str | None:
    """Return what a server that has just started says of a client."""
    return AccessControl.of(Identity.load(certs / "server")).flaw_of(identity.certificate)


def test_every_certificate_that_a_name_ever_had_is_revoked(certs: Path) -> None:
    had = [Identity.load(certs / "alice")]
    for _ in range(2):
        issue(certs, ["alice"], renew=True)
        had.append(Identity.load(certs / "alice"))
    bob = Identity.load(certs / "bob")
    for path in (certs / "alice").iterdir():
        path.unlink()
    (certs / "alice").rmdir()  # the register is enough
    assert [flaw(certs, identity) for identity in (*had, bob)] == [None] * 4
    lines = revoke(certs, ["alice"])
    assert lines[:3] == [
        "'alice': 3 certificates revoked",
        "certs/ca.crl: the list of all that are revoked, 3 certificates",
        "certs/server/ca.crl: the same; a server that uses this folder reads it within seconds",
    ]
    assert lines[3].startswith("if the server's folder is elsewhere, copy certs/ca.crl into it")
    assert len(lines) == 5
    for identity in had:
        assert str(flaw(certs, identity)).startswith("revoked: this certificate of 'alice' was revoked on ")
    assert flaw(certs, bob) is None

    issue(certs, ["alice"])
    again = Identity.load(certs / "alice")
    assert flaw(certs, again) is None, "a new certificate is good again"
    assert revoke(certs, ["alice", "bob", "alice"])[:3] == [
        "'alice': 1 certificate revoked",
        "'bob': 1 certificate revoked",
        "certs/ca.crl: the list of all that are revoked, 5 certificates",
    ]
    assert all(flaw(certs, identity) for identity in (*had, bob, again))


def test_to_revoke_twice_says_so_and_changes_nothing_but_the_number_of_the_list(certs: Path) -> None:
    revoke(certs, ["alice"])
    before, register = listed(certs / REVOKED_FILE), (certs / REGISTER_FILE).read_bytes()
    assert revoke(certs, ["alice"])[0] == "'alice': was revoked already"
    after = listed(certs / REVOKED_FILE)
    assert [(r.serial_number, r.revocation_date_utc) for r in after] == [
        (r.serial_number, r.revocation_date_utc) for r in before
    ]
    numbers = [r.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number for r in (before, after)]
    assert numbers[1] > numbers[0]
    assert (certs / REGISTER_FILE).read_bytes() == register


def test_the_list_is_one_that_other_tools_take(certs: Path) -> None:
    revoke(certs, ["alice"])
    authority = x509.load_pem_x509_certificate((certs / "ca.crt").read_bytes())
    revocations = listed(certs / REVOKED_FILE)
    key = authority.public_key()
    assert revocations.is_signature_valid(key)  # type: ignore[arg-type]  # ours is a key that signs
    assert revocations.issuer == authority.subject
    assert revocations.next_update_utc == authority.not_valid_after_utc, "no other list is ever overdue"
    assert revocations.get_revoked_certificate_by_serial_number(serial(certs / "alice")) is not None
    assert not any(extension.critical for extension in revocations.extensions)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_keys_are_their_owners_alone_whatever_is_done_and_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        init(tmp_path / "certs", ["server.example"])
        issue(tmp_path / "certs", ["alice", "bob"])
        revoke(tmp_path / "certs", ["alice"])
        issue(tmp_path / "certs", ["alice", "bob"], renew=True)
        init(tmp_path / "certs", ["server.example"], renew=True)
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "certs").rglob("*")}
    assert sum(path.suffix == ".key" for path in modes) == 4
    for path, mode in modes.items():
        assert mode == (0o700 if path.is_dir() else 0o600 if path.suffix == ".key" else 0o644), path
    assert not [path for path in modes if path.name.startswith(".")], "no draft is left"


def test_a_renewed_server_keeps_the_list_and_one_that_was_lost_gets_it_back(certs: Path) -> None:
    alice = Identity.load(certs / "alice")
    revoke(certs, ["alice"])
    init(certs, ["server.example"], renew=True)
    assert flaw(certs, alice) is not None
    (certs / "server" / REVOKED_FILE).unlink()
    init(certs, ["server.example"], renew=True)
    assert flaw(certs, alice) is not None
    assert [int(word, 16) for word in register_words(certs, "server")][-1] == serial(certs / "server")


def register_words(certs: Path, name: str) -> list[str]:
    """Return the serial numbers that the register has for a name."""
    lines = [line.split() for line in (certs / REGISTER_FILE).read_text(encoding="utf-8").splitlines()]
    return [words[1] for words in lines if words[0] != "#" and words[2] == name]


def test_a_folder_without_a_register_gets_one_from_what_lies_there(certs: Path) -> None:
    (certs / REGISTER_FILE).unlink()
    (certs / "other").mkdir()
    (certs / "other" / "tls.crt").write_bytes(Identity.load(certs / "alice").key)  # no certificate
    alice = Identity.load(certs / "alice")
    first, second, *_ = revoke(certs, ["alice"])
    assert first == "'alice': 1 certificate revoked"
    assert second.startswith("'alice': certificates replaced before certs/issued.txt existed are unknown; they")
    assert flaw(certs, alice) is not None
    assert len(register_words(certs, "server")) == len(register_words(certs, "bob")) == 1


def test_what_is_replaced_in_a_folder_without_a_register_is_not_forgotten(certs: Path) -> None:
    (certs / REGISTER_FILE).unlink()
    old = Identity.load(certs / "alice")
    issue(certs, ["alice"], renew=True)
    new = Identity.load(certs / "alice")
    assert revoke(certs, ["alice"])[0] == "'alice': 2 certificates revoked"
    assert flaw(certs, old) is not None
    assert flaw(certs, new) is not None


def test_a_certificate_of_another_authority_is_not_taken_for_ones_own(certs: Path, tmp_path: Path) -> None:
    init(tmp_path / "others", ["server.example"])
    issue(tmp_path / "others", ["carol"])
    (tmp_path / "others" / "carol").rename(certs / "carol")
    (certs / REGISTER_FILE).unlink()
    with pytest.raises(ConfigError, match=r"'carol': certs/issued\.txt knows of no certificate of this name"):
        revoke(certs, ["carol"])


def test_a_list_that_was_lost_is_made_again_from_the_register_and_the_other_way_round(certs: Path) -> None:
    alice, bob = (Identity.load(certs / name) for name in ("alice", "bob"))
    revoke(certs, ["alice"])
    (certs / REVOKED_FILE).unlink()
    revoke(certs, ["bob"])
    assert len(listed(certs / "server" / REVOKED_FILE)) == 2
    (certs / REGISTER_FILE).unlink()
    issue(certs, ["alice"], renew=True)
    revoke(certs, ["alice"])
    assert len(listed(certs / "server" / REVOKED_FILE)) == 3
    assert flaw(certs, alice) is not None
    assert flaw(certs, bob) is not None


def test_the_list_is_made_where_the_servers_folder_has_gone_elsewhere(certs: Path, tmp_path: Path) -> None:
    (certs / "server").rename(tmp_path / "away")
    lines = revoke(certs, ["alice"])
    assert "certs/server" not in "".join(lines)
    assert listed(certs / REVOKED_FILE)
    assert not (certs / "server").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["alice", "zed"], "'zed': certs/issued.txt knows of no certificate of this name"),
        (["alice", "server"], "the server's certificate cannot be revoked: clients read no list; make a new authority"),
        (["alice", "a/b"], "name 'a/b': must be 1 to 64 characters"),
    ],
    ids=["unknown", "server", "no-name"],
)
def test_what_cannot_be_revoked_leaves_everything_as_it_was(
    certs: Path, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    before = files(certs)
    status, said = run(capsys, "certs", "revoke", "certs", *words)
    assert (status, len(said)) == (2, 1)
    assert said[0].startswith(f"breakwater: error: {complaint}")
    assert files(certs) == before


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        (REGISTER_FILE, b"issued 12 alice\n", "certs/issued.txt: line 1: 'issued 12 alice': must be issued, found or"),
        (REGISTER_FILE, b"# head\nissued xy alice 2026-01-01T00:00:00Z", "certs/issued.txt: line 2: 'issued xy alice"),
        (REGISTER_FILE, b"lost 12 alice 2026-01-01T00:00:00Z", "certs/issued.txt: line 1: 'lost 12 alice"),
        (REGISTER_FILE, b"issued 12 alice yesterday", "certs/issued.txt: line 1: 'issued 12 alice yesterday'"),
        (REGISTER_FILE, b"\xff", "certs/issued.txt: is not UTF-8: byte 0xff in line 1"),
        (REVOKED_FILE, b"garbage", "certs/ca.crl: must hold whole lists of revoked certificates"),
        ("ca.key", b"garbage", "certs/ca.key: holds no private key"),
    ],
    ids=["three-words", "no-serial", "no-such-word", "no-time", "no-text", "no-list", "no-key"],
)
def test_a_folder_that_is_damaged_is_told_and_left_as_it_was(
    certs: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, complaint: str
) -> None:
    (certs / name).write_bytes(content)
    before = files(certs)
    status, said = run(capsys, "certs", "revoke", "certs", "alice")
    assert (status, len(said)) == (2, 1)
    assert said[0].startswith(f"breakwater: error: {complaint}")
    assert files(certs) == before


def test_there_is_nothing_to_revoke_without_an_authority(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, said = run(capsys, "certs", "revoke", str(tmp_path / "none"), "alice")
    assert (status, len(said)) == (2, 1)
    assert "none/ca.crt: no such file; create it with `breakwater certs init " in said[0]


@pytest.mark.parametrize("name", [REVOKED_FILE, REGISTER_FILE])
def test_no_client_can_have_the_name_of_a_file_of_the_authority(certs: Path, name: str) -> None:
    before = files(certs)
    with pytest.raises(ConfigError, match="cannot be the folder of a client"):
        issue(certs, [name])
    assert files(certs) == before


@pytest.mark.parametrize("name", [REVOKED_FILE, REGISTER_FILE])
def test_a_new_authority_is_not_made_over_the_remains_of_another(certs: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / name).write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match=f"{name}: exists"):
        init(tmp_path / "new", ["server.example"])


def test_commands_at_the_same_time_lose_no_line_of_the_register(certs: Path) -> None:
    names = [f"client-{i}" for i in range(24)]
    threads = [threading.Thread(target=issue, args=(certs, [name])) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(register_words(certs, name)) == 1 for name in names)
    assert revoke(certs, names)[: len(names)] == [f"'{name}': 1 certificate revoked" for name in names]


@pytest.mark.parametrize("name", [REVOKED_FILE, LISTED_FILE])
def test_a_server_with_a_list_that_cannot_be_used_does_not_start(
    certs: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (certs / "server" / name).write_text("a b c", encoding="utf-8")
    config = str(Path(__file__).parents[3] / "deploy" / "configs" / "by-hand.toml")
    status, said = run(capsys, "server", config, "--listen", "127.0.0.1:0", "--tls", "certs/server")
    assert (status, len(said)) == (2, 1)
    assert said[0].startswith(f"breakwater: error: certs/server/{name}: ")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--lists", "certs"], "--lists certs: needs --tls; without it nobody's name is certain"),
        (
            ["--tls", "certs/server", "--lists", "none"],
            "--lists none: no such folder; it may be empty, and is read",
        ),
        (["--tls", "certs/server", "--lists", "elsewhere"], "elsewhere/clients.txt: lists nobody"),
    ],
    ids=["plain", "nowhere", "elsewhere"],
)
def test_lists_in_a_folder_of_their_own(
    certs: Path, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    Path("elsewhere").mkdir()
    Path("elsewhere", LISTED_FILE).write_text("# nobody", encoding="utf-8")
    config = str(Path(__file__).parents[3] / "deploy" / "configs" / "by-hand.toml")
    status, said = run(capsys, "server", config, "--listen", "127.0.0.1:0", *words)
    assert (status, len(said)) == (2, 1)
    assert said[0].startswith(f"breakwater: error: {complaint}")


def test_a_run_that_goes_on_has_the_lists_that_it_had(tmp_path: Path) -> None:
    config = load(Path(__file__).parents[3] / "deploy" / "configs" / "by-hand.toml")
    manifest = RunManifest(run_id=7, listen="h:1", data=None, config_dir=None, tls="/tls", lists="/lists")
    manifest.write(tmp_path, config.to_toml())
    options = ServerOptions.of_run(tmp_path, RunManifest.read(tmp_path), config, listen=None, data=None, tls=None)
    assert (options.tls, options.lists) == (Path("/tls"), Path("/lists"))
    options = ServerOptions.of_run(
        tmp_path, RunManifest.read(tmp_path), config, listen=None, data=None, tls=None, lists=Path("other")
    )
    assert options.lists == Path("other")
