"""Capabilities: which of the backend's EHLO reply are passed to the client.

RFC 5321 section 4.1.1.1.  An extension may change the protocol that the proxy has to follow, so
only known keywords pass: those that only add parameters or plain commands, and those that the core
can frame.
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, NamedTuple

PASSED: Final = {
    word: why
    for why, words in {
        "it adds parameters to MAIL or RCPT": b"""8BITMIME SIZE DSN SMTPUTF8 DELIVERBY MT-PRIORITY
        RRVS FUTURERELEASE MTRK CONPERM CONNEG SUBMITTER NO-SOLICITING VERP XVERP""",
        "it changes only the text of replies": b"ENHANCEDSTATUSCODES",
        "it only announces limits": b"LIMITS",
        "it adds a command with one reply": b"HELP VRFY EXPN ETRN SEND SOML SAML ONEX",
        "the proxy can frame what it adds": b"AUTH CHUNKING BINARYMIME",
    }.items()
    for word in words.split()
}
"""The keywords that pass unless a listener hides them, with what they change."""

NEVER_PASSED: Final = {
    word: why
    for why, words in {
        "it changes the number of replies to a message": b"PRDR VERB XSHADOW XSHADOWREQUEST",
        "it allows commands before the greeting": b"PIPECONNECT X_PIPE_CONNECT",
        "it changes the meaning of the bytes after a command": b"""BURL CHECKPOINT XEXCH50
        X-LINK2STATE XQDISCARD XSESSIONPARAMS XMESSAGECONTEXT""",
        "it starts TLS, which is the proxy's task": b"STARTTLS REQUIRETLS X-ANONYMOUSTLS",
        "it reverses the connection": b"TURN ATRN",
        "it lets the client act for another client": b"""XCLIENT XFORWARD XPROXY XPROXYFROM XPROXYTO
        X-EXPS""",
    }.items()
    for word in words.split()
}
"""The keywords that no listener may pass, with the reason: they would break framing or trust.

They are refused as verbs, too.  Most of those with an X are used between Exchange servers.
"""

_BOUND_TO_TLS: Final = re.compile(rb"(?i)EXTERNAL|.*-PLUS")
"""The AUTH mechanisms that are bound to the TLS connection they are used in.

RFC 4422 appendix A, RFC 5802 section 6.  They cannot work if TLS ends at the proxy.
"""


_LIMITS: Final = re.compile(rb"(?i)LIMITS( .*)?")


@dataclass(frozen=True, slots=True)
class CapabilityFilter:
    """Which capabilities a listener passes; keywords are in upper case."""

    hide: frozenset[bytes] = frozenset()
    """The keywords that do not pass."""
    allow: frozenset[bytes] = frozenset()
    """The keywords that pass in addition to `PASSED`."""
    add: tuple[bytes, ...] = ()
    """The proxy's own capabilities, with their parameters."""
    ends_tls: bool = False
    """Whether TLS of the client or the backend connection may end at the proxy."""
    add_chunking: bool = False
    """Whether to offer CHUNKING if the backend does not."""

    def passes(self, word: bytes) -> bool:
        """Return whether a capability passes, given its keyword in upper case."""
        if word == b"BINARYMIME" and b"CHUNKING" in self.hide:
            return False  # RFC 3030 section 3: it needs CHUNKING
        return word not in self.hide and (word in PASSED or word in self.allow)


class RewrittenOffer(NamedTuple):
    """The EHLO reply for the client."""

    reply: bytes
    """All its lines with their CRLF."""
    pipelining: bool
    """Whether the backend itself offers PIPELINING."""
    chunking: bool
    """Whether the client is offered CHUNKING."""
    chunking_added: bool
    """Whether the backend itself does not offer it."""


CACHED_OCTETS: Final = 4096
"""The longest EHLO reply whose filtered lines are cached; of many long ones a cache would grow."""


def offer(
    reply: bytes, keep: CapabilityFilter, largest: int = 0, recipients: int = 0
) -> RewrittenOffer:
    """Rewrite the backend's positive EHLO reply, keeping first line and order; PIPELINING is last.

    Args:
        reply: The backend's reply.
        keep: Which capabilities pass.
        largest: The limit of a message in octets, to which SIZE is lowered (RFC 1870 section 3);
            0 for no limit.
        recipients: The limit of recipients of a message, to which RCPTMAX is lowered (RFC 9422
            section 4.2), or which is announced if the backend has no RCPTMAX; 0 for no limit.
    """
    first, _, rest = reply.partition(b"\r\n")
    filtered = _filter_cached if len(rest) <= CACHED_OCTETS else _filter
    code = _code(reply)
    kept, pipelining, chunking, added = filtered(rest, code, keep, largest, recipients)
    return RewrittenOffer(_first_line(code, first, kept) + kept, pipelining, chunking, added)


def _filter(
    rest: bytes, code: bytes, keep: CapabilityFilter, largest: int, recipients: int
) -> tuple[bytes, bool, bool, bool]:
    """Return the lines of the capabilities that pass, and the three flags."""
    lines = rest.split(b"\r\n")[:-1]
    words = [_word(line) for line in lines]
    chunking = keep.passes(b"CHUNKING") and (keep.add_chunking or b"CHUNKING" in words)
    added = chunking and b"CHUNKING" not in words
    if added:  # DATA cannot carry BINARYMIME (RFC 3030 section 3)
        keep = replace(keep, hide=keep.hide | {b"BINARYMIME"}, add=(*keep.add, b"CHUNKING"))
    kept = [
        _lowered(line[4:], largest) if word == b"SIZE" and largest else line[4:]
        for line, word in zip(lines, words, strict=True)
        if word != b"PIPELINING" and keep.passes(word)
    ]
    if keep.ends_tls:
        kept = [line for line in map(_without_bound_mechanisms, kept) if line]
    kept = [*_with_limit(kept, keep, recipients), *_own(keep)]
    return _last_lines(code, kept), b"PIPELINING" in words, chunking, added


_filter_cached = lru_cache(maxsize=64)(_filter)
"""A backend sends the same lines to all clients but for the first, which may name the client."""


def _lowered(size: bytes, largest: int) -> bytes:
    """Return the capability SIZE, lowered to `largest`; a SIZE of 0 means no limit."""
    words = size.split()
    offered = int(words[1]) if len(words) > 1 and words[1][:20].isdigit() else 0
    return b"SIZE %d" % (min(offered, largest) if offered else largest)


def _with_limit(lines: list[bytes], keep: CapabilityFilter, recipients: int) -> list[bytes]:
    """Return capability lines in which RCPTMAX is at most `recipients`; LIMITS is added if missing.

    They are unchanged if `recipients` is 0, or if LIMITS does not pass.
    """
    if not recipients or not keep.passes(b"LIMITS"):
        return lines
    if not any(map(_LIMITS.fullmatch, lines)):
        return [*lines, b"LIMITS RCPTMAX=%d" % recipients]
    return [_limited(line, recipients) for line in lines]


def _limited(line: bytes, recipients: int) -> bytes:
    """Return the capability LIMITS with RCPTMAX lowered or added; other lines unchanged."""
    if not _LIMITS.fullmatch(line):
        return line
    words = line.split()
    others = [each for each in words[1:] if each[:8].upper() != b"RCPTMAX="]
    values = [each[8:] for each in words[1:] if each[:8].upper() == b"RCPTMAX="]
    known = [int(each) for each in values if 0 < len(each) <= 20 and each.isdigit()]
    most = min([recipients, *(each for each in known if each)])
    return b" ".join([words[0], b"RCPTMAX=%d" % most, *others])


def _without_bound_mechanisms(line: bytes) -> bytes:
    """Return a capability line without TLS-bound AUTH mechanisms; empty if none are left."""
    if line[:4].upper() != b"AUTH":
        return line
    mechanisms = line[5:].split()
    kept = [each for each in mechanisms if not _BOUND_TO_TLS.fullmatch(each)]
    if len(kept) == len(mechanisms):
        return line
    return line[:5] + b" ".join(kept) if kept else b""


def offer_for_helo(reply: bytes, keep: CapabilityFilter, recipients: int = 0) -> bytes:
    """Return the client's EHLO reply, given the HELO reply of a backend that knows only HELO.

    Args:
        reply: The backend's reply.
        keep: Which capabilities pass.
        recipients: The limit of recipients of a message; 0 for none.
    """
    first = reply.split(b"\r\n", 1)[0]
    code, kept = _code(reply), [*_with_limit([], keep, recipients), *_own(keep)]
    lines = _last_lines(code, kept)
    return _first_line(code, first, lines) + lines


def with_pipeconnect(reply: bytes) -> bytes:
    """Return an EHLO reply for the client with the capability PIPECONNECT as its last line."""
    start = reply.rfind(b"\n", 0, -1) + 1
    last = reply[start:]
    return b"%b%b-%b%b PIPECONNECT\r\n" % (reply[:start], last[:3], last[4:], last[:3])


def capability_lines(reply: bytes) -> bytes:
    """Return an EHLO reply without its first line, which may name the client."""
    return reply.partition(b"\r\n")[2]


def words(reply: bytes) -> dict[bytes, frozenset[bytes]]:
    """Return the parameters of each capability in an EHLO reply by keyword, all in upper case."""
    lines = [line[4:].upper().split() for line in reply.split(b"\r\n")[1:]]
    return {line[0]: frozenset(line[1:]) for line in lines if line}


def _own(keep: CapabilityFilter) -> tuple[bytes, ...]:
    """Return the proxy's own capabilities."""
    return keep.add if b"PIPELINING" in keep.hide else (*keep.add, b"PIPELINING")


def _word(line: bytes) -> bytes:
    """Return the keyword of a capability line; for `AUTH=LOGIN`, an old form, it is AUTH."""
    words = line[4:].split(None, 1)
    return words[0].split(b"=", 1)[0].upper() if words else b""


def _code(reply: bytes) -> bytes:
    """Return the code of the last line, which decides if they differ."""
    return reply[reply.rfind(b"\n", 0, -1) + 1 :][:3]


def _first_line(code: bytes, first: bytes, others: bytes) -> bytes:
    """Return the first line of a reply, which the other lines follow, if any."""
    return b"%b%b%b\r\n" % (code, b"-" if others else b" ", first[4:])


def _last_lines(code: bytes, capabilities: list[bytes]) -> bytes:
    """Return the lines of a reply after the first one."""
    if not capabilities:
        return b""
    *others, last = capabilities
    return b"".join([b"%b-%b\r\n" % (code, each) for each in others]) + b"%b %b\r\n" % (code, last)
