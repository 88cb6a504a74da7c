"""Command lines: where one ends, and what may be one.  RFC 5321 section 2.3.8 and 4.1.1."""

import re
from ipaddress import IPv6Address
from typing import Final

from smtpproxy.core import replies
from smtpproxy.core.violations import ClientViolation

WHITE_SPACE: Final = b" \t\v\f"
_HEADER: Final = re.compile(rb"[!-9;-~]+:")
"""How a header field begins (RFC 5322 section 2.2)."""
_BDAT: Final = re.compile(rb"BDAT[ \t]+([0-9]{1,20})([ \t]+LAST)?[ \t]*\r\n", re.IGNORECASE)
TLS_HANDSHAKE: Final = b"\x16\x03"
"""How the record of a ClientHello begins (RFC 8446 section 5.1)."""
PROXY_V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
PROXY_HEADERS: Final = (b"PROXY ", PROXY_V2)
"""How the two versions of a PROXY header begin (HAProxy's proxy-protocol.txt, section 2)."""
SSH_VERSION: Final = b"SSH-"
"""How the first line of SSH begins (RFC 4253 section 4.2)."""
_SECRET_VERBS: Final = (b"AUTH", b"X-EXPS", b"XCLIENT")
_MECHANISM: Final = re.compile(
    rb"(?i)PLAIN|LOGIN|CRAM-MD5|DIGEST-MD5|SCRAM-[A-Z0-9-]{4,16}|XOAUTH2|OAUTHBEARER|EXTERNAL"
    rb"|GSSAPI|GSS-SPNEGO|NTLM|ANONYMOUS"
)
"""Words that observers see after AUTH; any other may be a misplaced password."""
_XFORWARD_IPV6 = re.compile(rb"(?i)(?<=[ \t]ADDR=)(?:IPV6:)?([0-9a-f:.]{2,45})(?=[ \t\r])")
_BEFORE_TEXT: Final = re.compile(rb"[0-9]{3}[ -](?:[245]\.[0-9]{1,3}\.[0-9]{1,3} )?")


def end_of_line(octets: bytes, start: int, limit: int) -> int:
    """Return the index after the line that begins at `start`, or 0 while its LF has not come.

    Raises:
        ClientViolation: line_too_long; it has more than `limit` octets, the LF counted.
    """
    end = octets.find(b"\n", start, start + limit) + 1
    if not end and len(octets) - start >= limit:
        raise _violation("line_too_long", replies.LINE_TOO_LONG, octets[start : start + limit])
    return end


def is_auth(octets: bytes, start: int) -> bool:
    """Tell whether an AUTH command begins at `start`: it may be longer (RFC 4954 section 4)."""
    return octets[start : start + 5].upper() == b"AUTH "


def command_line(line: bytes) -> bytes:
    """Return a line, which ends in LF, as it goes to the backend.

    Raises:
        ClientViolation: Another reader could read something else in it.  It has a CR inside or a
            NUL (`NOOP<CR>MAIL FROM:<x>` is two commands to some MTAs), or white space before the
            verb, which some MTAs skip and then find another verb.
    """
    line = _checked(line)
    if line[0] in WHITE_SPACE:
        raise _violation("white_space_before_verb", replies.BAD_SYNTAX, line)
    return line


def auth_line(line: bytes) -> bytes:
    """Return a client's line after a 334 as it goes to the backend; raises as `command_line`."""
    return _checked(line)


def xforward_line(line: bytes) -> bytes:
    """Return a trusted client's XFORWARD line as it goes to the backend; raises as `command_line`.

    An IPv4-mapped address in it becomes the IPv4 address, as those from everywhere else do.
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
    if line.find(b"\r") != len(line) - 2 or b"\0" in line:
        raise _violation("bare_cr_or_nul_in_command", replies.BARE_CR_OR_NUL, line)
    return line


def check_protocol(octets: bytes, start: int) -> None:
    """Raise ClientViolation, which closes, if what begins at `start` is TLS or SSH.

    That is looked at first: a ClientHello may be longer than a line, and have no LF in it.  Only
    what it is known by is shown: how much more has come yet depends on the network.
    """
    if octets.startswith(TLS_HANDSHAKE, start):
        reply, shown = replies.TLS_NOT_EXPECTED, TLS_HANDSHAKE
        raise ClientViolation("tls_unexpected", reply, shown, closes=True)
    if octets.startswith(SSH_VERSION, start):
        raise ClientViolation("not_smtp", replies.NOT_SMTP, SSH_VERSION, closes=True)


def check_header(line: bytes) -> None:
    """Raise ClientViolation, which closes, if the first line of a session is a header (HTTP's)."""
    if _HEADER.match(line):
        raise ClientViolation("not_smtp", replies.NOT_SMTP, line, closes=True)


def check_proxy_v2(octets: bytes, start: int) -> bool:
    """Tell whether what begins a session may yet turn out to be a PROXY header of version 2.

    To anybody else its first octets are empty lines.  Raises ClientViolation, which closes, if it
    is one.
    """
    begin = octets[start : start + len(PROXY_V2)]
    if begin == PROXY_V2:
        kind, reply = "proxy_header_unexpected", replies.PROXY_UNEXPECTED
        raise ClientViolation(kind, reply, begin, closes=True)
    return PROXY_V2.startswith(begin)


def may_begin_proxy_header(octets: bytes) -> bool:
    """Tell whether these are not yet known to be the beginning of a PROXY header, but may be."""
    return any(each.startswith(octets) and each != octets for each in PROXY_HEADERS)


def first_word(octets: bytes, start: int) -> bytes:
    """Return the word that begins at `start`, in capitals; empty if white space does."""
    begin = octets[start : start + 64]
    return b"" if begin[:1].isspace() else b"".join(begin.split(None, 1)[:1]).upper()


def is_bdat(octets: bytes, start: int) -> bool:
    """Tell whether what begins at `start` may be taken for BDAT, whatever is wrong with it.

    The client sends the payload after it in any case, and it must not be read as commands.
    """
    # Not over an LF: what follows it is another line, and checked by itself.
    return octets[start : start + 64].lstrip(WHITE_SPACE + b"\r")[:4].upper() == b"BDAT"


def bdat_size(line: bytes) -> int:
    """Return how many octets of payload follow a BDAT line (RFC 3030 section 2).

    Raises:
        ClientViolation: bad_bdat, which closes the session: the size is not known.
    """
    found = _BDAT.fullmatch(line)
    if found is None:
        raise ClientViolation("bad_bdat", replies.BAD_BDAT, line, closes=True)
    return int(found[1])


def is_last_chunk(line: bytes) -> bool:
    """Tell whether a BDAT line announces the last chunk of its message."""
    return line.upper().split()[2:] == [b"LAST"]


def may_be_secret(word: bytes) -> bool:
    """Tell whether what follows a command's first word may be secret, as after `AUTH=`, too."""
    word = word.upper()
    return any(verb in word for verb in _SECRET_VERBS)


def redacted(line: bytes) -> bytes:
    """Return a command line with all that may be secret replaced by `*`; others as they are."""
    words = line.replace(b"\0", b" ").split(None, 2)
    if not words or not may_be_secret(words[0]):
        return line
    verb = words[0].upper()
    if verb not in _SECRET_VERBS:
        return b"*\r\n"
    shown = 2 if verb != b"XCLIENT" and _MECHANISM.fullmatch(b"".join(words[1:2])) else 1
    return b" ".join([*words[:shown], b"*\r\n"]) if len(words) > shown else line


def redacted_reply(reply: bytes) -> bytes:
    """Return a reply with its text replaced by `*`: it may quote what was asked."""
    found = _BEFORE_TEXT.match(reply)
    return found[0] + b"*\r\n" if found else reply  # a code alone quotes nothing


def _violation(kind: str, reply: bytes, line: bytes) -> ClientViolation:
    return ClientViolation(kind, reply, redacted(line))


_PATH: Final = re.compile(rb'[^:]*: *(?:<(?:"(?:[^"\\]|\\.)*"|[^">])*>|[^ <][^ ]*)')
_DECLARED_SIZE: Final = re.compile(rb"(?i) SIZE=([0-9]+)(?=[ \r])")


def declared_size(line: bytes) -> int:
    """Return what a MAIL command says of the size of its message (RFC 1870); 0 if nothing.

    It may say so several times; the largest counts.  More than 20 digits are cut to 21.  Where no
    path can be told from its parameters, it is the backend's to refuse.
    """
    path = _PATH.match(line)
    declared = _DECLARED_SIZE.findall(line, path.end()) if path else []
    return max((int(each.lstrip(b"0")[:21] or b"0") for each in declared), default=0)
