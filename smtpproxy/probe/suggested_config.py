"""Writes a valid settings file from the findings of a probe run.

What the probe could not determine stays at its default.  Settings that need a file, a privilege or
the operator's decision are comments.
"""

import json

from smtpproxy.probe.findings import Findings, word_of
from smtpproxy.probe.tls_checks import TlsFindings

_BESIDE = 30
"""The column of the comments after settings."""


def settings(found: Findings) -> list[str]:
    """Return the lines of a settings file for the server, in TOML."""
    return [*_listener(found), "", *_backend(found)]


def _listener(found: Findings) -> list[str]:
    lines = ["[listeners.smtp]", 'address = "127.0.0.1:2525"']
    if found.is_implicit:
        lines += [
            "# Clients that use implicit TLS need a certificate here:",
            '# tls = "implicit"',
            '# certificate = "/etc/smtpproxy/cert.pem"',
        ]
    elif b"STARTTLS" in found.words:
        lines += [
            "# Without these, clients lose STARTTLS:",
            '# tls = "starttls"',
            '# certificate = "/etc/smtpproxy/cert.pem"',
        ]
    return lines


def _backend(found: Findings) -> list[str]:
    quoted = json.dumps(str(found.address), ensure_ascii=False)
    servers = "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted)
    lines = ["[backends.mta]", f"servers = [{servers}]"]
    if found.offers_pipelining and found.loses_groups:
        lines.append(_beside('pipelining = "never"', "offered, but loses commands"))
    if _may_add_chunking(found):
        lines.append(_beside('# chunking = "add"', "one wait less for clients that send BDAT"))
    if found.ehlo_refused:
        lines.append(_beside("helo_fallback = true", "it does not know EHLO"))
    if found.data and found.data.reply.code == 354 and not _uses_its_pipelining(found):
        lines.append(_beside("guard_data = true", "it accepts DATA without recipients"))
    if found.tls is not None:
        lines += _tls(found, found.tls)
    return lines + _identity(found)


def _may_add_chunking(found: Findings) -> bool:
    knows_ehlo = found.hello is not None and not found.ehlo_refused and not found.refusal
    offered = b"CHUNKING" in found.words or b"CHUNKING" in map(word_of, found.inside)
    return knows_ehlo and not offered


def _uses_its_pipelining(found: Findings) -> bool:
    return found.offers_pipelining and not found.loses_groups


def _tls(found: Findings, tls: TlsFindings) -> list[str]:
    backend = tls.backend
    if backend is None:
        return (
            ["# Its TLS does not work with this machine's OpenSSL."] if not tls.undetermined else []
        )
    verified = tls.is_verified
    if found.address.is_loopback and not (found.is_implicit or found.insists_on_tls):
        return ["# The server is on this machine: TLS is not needed."]
    lines = [_beside(f'tls = "{backend.tls}"', "verified" if verified else "not verified")]
    if backend.server_name:
        said = "the name in its certificate: make sure that it is correct"
        lines.append(_beside(f'server_name = "{backend.server_name}"', said))
    if not backend.verify:
        lines.append(_beside("verify = false", tls.unverified))
    if backend.minimum_tls != "1.2":
        said = "its certificate or ciphers are too old"
        if max(tls.working) < "1.2":
            said = f"TLS {max(tls.working)} is its newest version"
        elif tls.lacks_secure_renegotiation:
            said = "it lacks secure renegotiation (RFC 5746)"
        lines.append(_beside(f'minimum_tls = "{backend.minimum_tls}"', said))
    return lines if verified else [*lines, *_how_to_verify(found, tls)]


def _how_to_verify(found: Findings, tls: TlsFindings) -> list[str]:
    certificate = tls.certificate
    if certificate is None or certificate.has_expired:
        why = "has expired" if certificate else "cannot be read"
        return [f"# Its certificate {why}, so it cannot be verified."]
    return [
        f"# Instead, to verify its certificate ({tls.unverified or 'which failed'}):",
        f'# tls = "{"implicit" if found.is_implicit else "starttls"}"',
        '# ca_file = "/etc/smtpproxy/mta-ca.pem"',
    ]


def _identity(found: Findings) -> list[str]:
    if found.offers_xclient:
        return [_beside('identity = "xclient"', "it offers XCLIENT to this machine")]
    relays = found.relay is not None and found.relay.would
    why = (
        "# It relays for this machine, so it would relay for every client of the listener."
        if relays
        else "# It sees this machine's address for all clients: if it trusts that, it trusts them."
    )
    if found.address.is_unix:
        return [
            why,
            '# On a Unix socket, identity = "proxy-v2" passes client addresses, if supported.',
        ]
    return [
        why,
        "# For clients on other machines, see `smtpproxy example nftables`, and set:",
        '# identity = "transparent"',
    ]


def _beside(setting: str, said: str) -> str:
    return f"{setting:<{_BESIDE}}# {said}"
