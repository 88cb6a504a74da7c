"""The suggested config: the settings file that follows from findings, valid as it stands.

What could not be found out is left at its default; what needs a file, a privilege or a decision
that only the operator can take is a comment.
"""

import json

from smtpproxy.probe.findings import Findings
from smtpproxy.probe.tls_checks import TlsFindings

_BESIDE = 30
"""The column where what is said of a setting begins."""


def settings(found: Findings) -> list[str]:
    """Return the lines of a settings file for the server, in TOML."""
    return [*_listener(found), "", *_backend(found)]


def _listener(found: Findings) -> list[str]:
    lines = ["[listeners.smtp]", 'address = "127.0.0.1:2525"']
    if found.is_implicit:
        lines += [
            "# Clients that begin with TLS need a certificate here:",
            '# tls = "implicit"',
            '# certificate = "/etc/smtpproxy/cert.pem"',
        ]
    elif b"STARTTLS" in found.words:
        lines += [
            "# Without these, its clients lose STARTTLS:",
            '# tls = "starttls"',
            '# certificate = "/etc/smtpproxy/cert.pem"',
        ]
    return lines


def _backend(found: Findings) -> list[str]:
    quoted = json.dumps(str(found.address), ensure_ascii=False)
    servers = "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted)
    lines = ["[backends.mta]", f"servers = [{servers}]"]
    if found.offers_pipelining and found.loses_groups:
        lines.append(_beside('pipelining = "never"', "it offers it, and does not keep to it"))
    if found.ehlo_refused:
        lines.append(_beside("helo_fallback = true", "it does not know EHLO"))
    if found.data and found.data.reply.code == 354 and not _uses_its_pipelining(found):
        lines.append(_beside("guard_data = true", "it takes DATA without recipients"))
    if found.tls is not None:
        lines += _tls(found, found.tls)
    return lines + _identity(found)


def _uses_its_pipelining(found: Findings) -> bool:
    return found.offers_pipelining and not found.loses_groups


def _tls(found: Findings, tls: TlsFindings) -> list[str]:
    backend = tls.backend
    if backend is None:
        return ["# No TLS of it works with this machine's OpenSSL."] if not tls.undetermined else []
    verified = tls.is_verified
    if found.address.is_loopback and not (found.is_implicit or found.insists_on_tls):
        return ["# It is on this machine: no TLS is needed on the way to it."]
    lines = [_beside(f'tls = "{backend.tls}"', "verified" if verified else "not verified")]
    if backend.server_name:
        said = "the name in its certificate: make sure that it is the right one"
        lines.append(_beside(f'server_name = "{backend.server_name}"', said))
    if not backend.verify:
        lines.append(_beside("verify = false", tls.unverified))
    if backend.minimum_tls != "1.2":
        newest = f"TLS {max(tls.working)} is the newest it has"
        said = newest if max(tls.working) < "1.2" else "its certificate or ciphers are too old"
        lines.append(_beside(f'minimum_tls = "{backend.minimum_tls}"', said))
    return lines if verified else [*lines, *_how_to_verify(found, tls)]


def _how_to_verify(found: Findings, tls: TlsFindings) -> list[str]:
    certificate = tls.certificate
    if certificate is None or certificate.has_expired:
        why = "has expired" if certificate else "can't be read"
        return [f"# Its certificate {why}: with another one it could be verified."]
    return [
        f"# In place of that, to have it verified ({tls.unverified or 'which failed'}):",
        f'# tls = "{"implicit" if found.is_implicit else "starttls"}"',
        '# ca_file = "/etc/smtpproxy/mta-ca.pem"',
    ]


def _identity(found: Findings) -> list[str]:
    if found.offers_xclient:
        return [_beside('identity = "xclient"', "it offers XCLIENT to this machine")]
    relays = found.relay is not None and found.relay.would
    why = (
        "# It relays for this machine, so it would for every client that reaches the listener."
        if relays
        else "# It sees this machine's address for all clients: if it trusts that, it trusts them."
    )
    if found.address.is_unix:
        return [
            why,
            '# On a Unix socket identity = "proxy-v2" tells it of them, if it knows that.',
        ]
    return [
        why,
        "# For clients on other machines, see `smtpproxy example nftables`, and set:",
        '# identity = "transparent"',
    ]


def _beside(setting: str, said: str) -> str:
    return f"{setting:<{_BESIDE}}# {said}"
