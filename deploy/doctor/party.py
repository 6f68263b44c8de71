"""Checks a folder for ``--tls``: certificate, key, authority, and the lists of a server."""

import stat
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from cryptography import x509

from deploy.doctor.findings import Finding, ok, problem, warning
from foundation.errors import ConfigError
from link.identity.access import LISTED_FILE, REVOKED_FILE, AccessControl
from link.identity.authority import AUTHORITY_KEY_FILE
from link.identity.certificates import CertificateRole, certificates_in, extension, hosts_of, now
from link.identity.tls import AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE, Identity, may_watch

SOON = timedelta(days=30)
"""Warn about a certificate that expires sooner."""


def look(folder: Path, lists: Path | None = None) -> Iterator[Finding]:
    """Check the folder of one party.

    Args:
        folder: the party's ``--tls``.
        lists: folder of a server's lists; None for the same.
    """
    if (folder / AUTHORITY_KEY_FILE).exists() and not (folder / CERTIFICATE_FILE).exists():
        fix = f"give --tls {folder}/server, or {folder}/NAME of a client"
        yield problem("tls", f"{folder} is the authority's folder", fix)
        return
    try:
        identity = Identity.load(folder)
        leaf = certificates_in(identity.certificate, str(folder / CERTIFICATE_FILE))[0]
        role = role_of(leaf)
        identity.check(role)
    except ConfigError as error:
        yield problem("tls", str(error), _fix(folder, str(error)))
        return
    left = identity.valid_until - now()
    if role is CertificateRole.SERVER:
        who = f"server, as {', '.join(hosts_of(leaf)) or 'no host'}"
    else:
        who = f"{'watcher' if may_watch(identity.certificate) else 'client'} {identity.name!r}"
    text = f"{folder}: {who}, until {identity.valid_until:%Y-%m-%d}"
    if left < SOON:
        yield warning("tls", f"{text}, {left.days} days from now", _renewal(folder, role))
    else:
        yield ok("tls", text)
    yield from _secrets(folder)
    yield from _lists(identity, role, folder, lists)


def role_of(certificate: x509.Certificate) -> CertificateRole:
    """Return the role that a certificate is for; a client if it names none."""
    usages = extension(certificate, x509.ExtendedKeyUsage)
    serves = usages is not None and CertificateRole.SERVER.value in usages
    return CertificateRole.SERVER if serves else CertificateRole.CLIENT


def _secrets(folder: Path) -> Iterator[Finding]:
    """Check who can read the keys."""
    key = folder / KEY_FILE
    mode = stat.S_IMODE(key.stat().st_mode)
    if mode & 0o077:
        yield warning("key", f"{key}: mode {mode:04o}: other users of this machine can read it", f"chmod 600 {key}")
    else:
        yield ok("key", f"{key}: mode {mode:04o}, matches the certificate")
    if (folder / AUTHORITY_KEY_FILE).exists():
        says = f"{folder / AUTHORITY_KEY_FILE}: this key can impersonate any participant"
        yield warning("key", says, "keep it only on the machine that issues certificates")


def _lists(identity: Identity, role: CertificateRole, folder: Path, lists: Path | None) -> Iterator[Finding]:
    """Check the lists: for a server all of them, for a client those in the folder above its own."""
    place = lists or (folder if role is CertificateRole.SERVER else folder.absolute().parent)
    here = [name for name in (REVOKED_FILE, LISTED_FILE) if (place / name).exists()]
    if role is CertificateRole.SERVER and not here:
        yield ok("lists", f"neither {REVOKED_FILE} nor {LISTED_FILE} in {place}: every certified client may take part")
        return
    try:
        access = AccessControl.of(identity, place)
    except ConfigError as error:
        if role is CertificateRole.SERVER:
            yield problem("lists", str(error), "`breakwater certs revoke` rewrites the list of revoked certificates")
        return  # what lies beside a client's folder may be another authority's
    if role is CertificateRole.SERVER:
        yield ok("lists", f"{' and '.join(here)} in {place}: valid")
        return
    flaw = access.flaw_of(identity.certificate)
    if flaw is not None:
        yield problem("lists", f"{flaw} ({place})", _renewal(folder, role))


def _renewal(folder: Path, role: CertificateRole) -> str:
    issue = f"issue DIR {folder.absolute().name} --renew"
    command = "init DIR --renew --host ..." if role is CertificateRole.SERVER else issue
    return f"`breakwater certs {command}` on the authority's machine, and copy the folder again"


def _fix(folder: Path, flaw: str) -> str:
    if "expired" in flaw:
        return "`breakwater certs issue` or `init`, with --renew, and copy the folder again"
    if "not valid before" in flaw:
        return "set the clock of this machine, or of the one that issues certificates"
    if "issued by" in flaw or AUTHORITY_FILE in flaw:
        return "copy the whole folder from the one authority of this federation"
    return f"copy the whole folder {folder.name} again from where `breakwater certs` made it"
