"""Command lines: their end, and which are valid (RFC 5321 section 2.3.8 and 4.1.1)."""

import re
from ipaddress import IPv6Address
from typing import Final

from smtpproxy.core import replies
from smtpproxy.core.violations import ClientViolation

NUL: Final = 0
"""The octet; a search for it as `bytes` takes ten times as long (bench S3)."""
WHITE_SPACE: Final = b" \t\v\f"
_HEADER: Final = re.compile(rb"[!-9;-~]+:")
"""The start of a header field (RFC 5322 section 2.2)."""
_BDAT: Final = re.compile(rb"BDAT[ \t]+([0-9]{1,20})([ \t]+LAST)?[ \t]*\r\n", re.IGNORECASE)
TLS_HANDSHAKE: Final = b"\x16\x03"
"""The start of a ClientHello record (RFC 8446 section 5.1)."""
PROXY_V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
PROXY_HEADERS: Final = (b"PROXY ", PROXY_V2)
"""The start of a PROXY header, versions 1 and 2 (HAProxy's proxy-protocol.txt, section 2)."""
SSH_VERSION: Final = b"SSH-"
"""The start of the first line of SSH (RFC 4253 section 4.2)."""
_SECRET_VERBS: Final = (b"AUTH", b"X-EXPS", b"XCLIENT")
_MECHANISM: Final = re.compile(
    rb"(?i)PLAIN|LOGIN|CRAM-MD5|DIGEST-MD5|SCRAM-[A-Z0-9-]{4,16}|XOAUTH2|OAUTHBEARER|EXTERNAL"
    rb"|GSSAPI|GSS-SPNEGO|NTLM|ANONYMOUS"
)
"""The words that observers see after AUTH; any other may be a misplaced password."""
_XFORWARD_IPV6 = re.compile(rb"(?i)(?<=[ \t]ADDR=)(?:IPV6:)?([0-9a-f:.]{2,45})(?=[ \t\r])")
_BEFORE_TEXT: Final = re.compile(rb"[0-9]{3}[ -](?:[245]\.[0-9]{1,3}\.[0-9]{1,3} )?")


def end_of_line(octets: bytes, start: int, limit: int) -> int:
    """Return the index after the LF of the line at `start`, or 0 if the line is incomplete.

    Args:
        octets: Octets from the client.
        start: The index where the line starts.
        limit: The limit of the line, in octets including the LF.

    Raises:
        ClientViolation: line_too_long; the line exceeds the limit.
    """
    end = octets.find(b"\n", start, start + limit) + 1
    if not end and len(octets) - start >= limit:
        raise _violation("line_too_long", replies.LINE_TOO_LONG, octets[start : start + limit])
    return end


def is_auth(octets: bytes, start: int) -> bool:
    """Return whether an AUTH command, which may be longer, is at `start` (RFC 4954 section 4)."""
    return octets[start : start + 5].upper() == b"AUTH "


def command_line(line: bytes) -> bytes:
    """Return a line as it is sent to the backend, with CRLF.

    Args:
        line: The line with its LF or CRLF.

    Raises:
        ClientViolation: An MTA could read the line differently.  It contains a bare CR or a NUL
            (`NOOP<CR>MAIL FROM:<x>` is two commands to some MTAs), or starts with white space,
            which some MTAs skip and then find a different verb.
    """
    line = _checked(line)
    if line[0] in WHITE_SPACE:
        raise _violation("white_space_before_verb", replies.BAD_SYNTAX, line)
    return line


def auth_line(line: bytes) -> bytes:
    """Return a client's line after a 334 as it is sent to the backend, with CRLF.

    Raises:
        ClientViolation: The line contains a bare CR or a NUL.
    """
    return _checked(line)


def xforward_line(line: bytes) -> bytes:
    """Return a trusted client's XFORWARD line as it is sent to the backend.

    An IPv4-mapped IPv6 address in it becomes the IPv4 address, as everywhere in the proxy.

    Raises:
        ClientViolation: As `command_line`.
    """
    return _XFORWARD_IPV6.sub(_unmapped, command_line(line))


def _unmapped(found: re.Match[bytes]) -> bytes:
    try:
        ip = IPv6Address(found[1].decode("ascii")).ipv4_mapped
    except ValueError:
        ip = None
    return str(ip).encode("ascii") if ip else found[0]


def _checked(line: bytes) -> bytes:
    line = line if line.endswith(b"\r\n") else line[:-1] + b"\r\n"
    if line.find(b"\r") != len(line) - 2 or NUL in line:
        raise _violation("bare_cr_or_nul_in_command", replies.BARE_CR_OR_NUL, line)
    return line


def check_protocol(octets: bytes, start: int) -> None:
    """Check that the octets at `start` are not TLS or SSH.

    This check comes first, since a ClientHello may have no LF and exceed the limit of a line.

    Raises:
        ClientViolation: tls_unexpected or not_smtp, which closes the session.  It quotes only the
            fixed prefix, since how much more has arrived depends on the network.
    """
    if octets.startswith(TLS_HANDSHAKE, start):
        reply, shown = replies.TLS_NOT_EXPECTED, TLS_HANDSHAKE
        raise ClientViolation("tls_unexpected", reply, shown, closes=True)
    if octets.startswith(SSH_VERSION, start):
        raise ClientViolation("not_smtp", replies.NOT_SMTP, SSH_VERSION, closes=True)


def check_header(line: bytes) -> None:
    """Check that the first line of a session is not a header field, such as HTTP's.

    Raises:
        ClientViolation: not_smtp, which closes the session.
    """
    if _HEADER.match(line):
        raise ClientViolation("not_smtp", replies.NOT_SMTP, line, closes=True)


def check_proxy_v2(octets: bytes, start: int) -> bool:
    """Return whether the first octets of a session may be an incomplete PROXY header, version 2.

    Its first octets would otherwise be read as empty lines.

    Raises:
        ClientViolation: proxy_header_unexpected, which closes the session; it is such a header.
    """
    begin = octets[start : start + len(PROXY_V2)]
    if begin == PROXY_V2:
        kind, reply = "proxy_header_unexpected", replies.PROXY_UNEXPECTED
        raise ClientViolation(kind, reply, begin, closes=True)
    return PROXY_V2.startswith(begin)


def may_begin_proxy_header(octets: bytes) -> bool:
    """Return whether the octets may be the start of a PROXY header, but are still too few."""
    return any(each.startswith(octets) and each != octets for each in PROXY_HEADERS)


def first_word(octets: bytes, start: int) -> bytes:
    """Return the word at `start` in upper case; empty if white space is there."""
    begin = octets[start : start + 64]
    return b"" if begin[:1].isspace() else b"".join(begin.split(None, 1)[:1]).upper()


def is_bdat(octets: bytes, start: int) -> bool:
    """Return whether the line at `start` may be a BDAT command, even a malformed one.

    The client sends the payload after it in any case, and that must not be read as commands.
    """
    # Does not skip an LF, since the next line is checked by itself.
    return octets[start : start + 64].lstrip(WHITE_SPACE + b"\r")[:4].upper() == b"BDAT"


def bdat_size(line: bytes) -> int:
    """Return the size of the payload after a BDAT line, in octets (RFC 3030 section 2).

    Raises:
        ClientViolation: bad_bdat, which closes the session, since the size is not known.
    """
    found = _BDAT.fullmatch(line)
    if found is None:
        raise ClientViolation("bad_bdat", replies.BAD_BDAT, line, closes=True)
    return int(found[1])


def is_last_chunk(line: bytes) -> bool:
    """Return whether a BDAT line announces the last chunk of its message."""
    return line.upper().split()[2:] == [b"LAST"]


def may_be_secret(word: bytes) -> bool:
    """Return whether the text after a command's first word, such as `AUTH=`, may be secret."""
    word = word.upper()
    return any(verb in word for verb in _SECRET_VERBS)


def redacted(line: bytes) -> bytes:
    """Return a command line with possible secrets replaced by `*`."""
    words = line.replace(b"\0", b" ").split(None, 2)
    if not words or not may_be_secret(words[0]):
        return line
    verb = words[0].upper()
    if verb not in _SECRET_VERBS:
        return b"*\r\n"
    shown = 2 if verb != b"XCLIENT" and _MECHANISM.fullmatch(b"".join(words[1:2])) else 1
    return b" ".join([*words[:shown], b"*\r\n"]) if len(words) > shown else line


def without_login(line: bytes) -> bytes:
    """Return the proxy's own XCLIENT line with the value of LOGIN replaced by `*`."""
    return _LOGIN.sub(rb"\1*", line)


def redacted_reply(reply: bytes) -> bytes:
    """Return a reply with its text replaced by `*`, since it may quote the command."""
    found = _BEFORE_TEXT.match(reply)
    return found[0] + b"*\r\n" if found else reply  # a reply without text


def _violation(kind: str, reply: bytes, line: bytes) -> ClientViolation:
    return ClientViolation(kind, reply, redacted(line))


_LOGIN: Final = re.compile(rb"( LOGIN=)[^ \r]+")
_PATH: Final = re.compile(rb'[^:]*: *(?:<(?:"(?:[^"\\]|\\.)*"|[^">])*>|[^ <][^ ]*)')
_DECLARED_SIZE: Final = re.compile(rb"(?i) SIZE=([0-9]+)(?=[ \r])")


def declared_size(line: bytes) -> int:
    """Return the message size that a MAIL command declares (RFC 1870), or 0.

    If SIZE is repeated, the largest counts.  Numbers are cut to 21 digits.  If path and parameters
    cannot be separated, the result is 0, and the backend decides.
    """
    path = _PATH.match(line)
    declared = _DECLARED_SIZE.findall(line, path.end()) if path else []
    return max((int(each.lstrip(b"0")[:21] or b"0") for each in declared), default=0)
