"""Capabilities: what the backend's EHLO reply lists, and which of it the client's reply does.

RFC 5321 section 4.1.1.1.  An extension changes the protocol that the proxy has to follow, so only
known words pass: those that add parameters or plain commands, and those that are framed here.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

PASSED: Final = {
    word: why
    for why, words in {
        "it adds parameters to MAIL or RCPT": b"""8BITMIME SIZE DSN SMTPUTF8 DELIVERBY MT-PRIORITY
        RRVS FUTURERELEASE MTRK CONPERM CONNEG SUBMITTER NO-SOLICITING VERP XVERP""",
        "it changes only the text of replies": b"ENHANCEDSTATUSCODES",
        "it only informs": b"LIMITS",
        "it adds a command with one reply": b"HELP VRFY EXPN ETRN SEND SOML SAML ONEX",
        "the proxy frames what it adds": b"AUTH CHUNKING BINARYMIME",
    }.items()
    for word in words.split()
}
"""Words that pass unless a listener hides them, and what they change."""

NEVER_PASSED: Final = {
    word: why
    for why, words in {
        "it changes how many replies a message gets": b"PRDR VERB XSHADOW XSHADOWREQUEST",
        "it lets commands come before the greeting": b"PIPECONNECT X_PIPE_CONNECT",
        "it changes what the bytes after a command mean": b"""BURL CHECKPOINT XEXCH50 X-LINK2STATE
        XQDISCARD XSESSIONPARAMS XMESSAGECONTEXT""",
        "it begins TLS, which is the proxy's part": b"STARTTLS REQUIRETLS X-ANONYMOUSTLS",
        "it reverses the connection": b"TURN ATRN",
        "it lets the client name another one": b"""XCLIENT XFORWARD XPROXY XPROXYFROM XPROXYTO
        X-EXPS""",
    }.items()
    for word in words.split()
}
"""Words that no listener may let pass, and why: they would break framing or trust.

As verbs they are refused, too.  Those with an X are of Exchange servers among themselves.
"""

_BOUND_TO_TLS: Final = re.compile(rb"(?i)EXTERNAL|.*-PLUS")
"""Mechanisms of AUTH that prove something of the TLS connection they run in.

RFC 4422 appendix A, RFC 5802 section 6.  Where TLS ends at the proxy, that is another connection.
"""


@dataclass(frozen=True, slots=True)
class CapabilityFilter:
    """Which capabilities a listener lets pass; words in capitals."""

    hide: frozenset[bytes] = frozenset()
    """Words that do not pass."""
    allow: frozenset[bytes] = frozenset()
    """Words that pass beside PASSED."""
    add: tuple[bytes, ...] = ()
    """Capabilities of the proxy itself, with their parameters."""
    ends_tls: bool = False
    """TLS of the client's connection or of the backend's may end at the proxy."""

    def passes(self, word: bytes) -> bool:
        """Tell whether the client may see a capability."""
        if word == b"BINARYMIME" and b"CHUNKING" in self.hide:
            return False  # RFC 3030 section 3: it is of no use without
        return word not in self.hide and (word in PASSED or word in self.allow)


@dataclass(frozen=True, slots=True)
class RewrittenOffer:
    """The EHLO reply for the client, and what the pipeline has to know of it."""

    reply: bytes
    pipelining: bool
    """The backend itself offers PIPELINING."""
    chunking: bool
    """The client is offered CHUNKING."""


def offer(reply: bytes, keep: CapabilityFilter, largest: int = 0) -> RewrittenOffer:
    """Rewrite the backend's positive EHLO reply: first line and order kept, PIPELINING last.

    Args:
        reply: The backend's reply.
        keep: What passes.
        largest: Octets of a message, to which SIZE is lowered (RFC 1870 section 3); 0: no limit.
    """
    first, _, rest = reply.partition(b"\r\n")
    kept, pipelining, chunking = _filter(rest, keep, largest)
    return RewrittenOffer(
        _multi_line(_code(reply), first, kept), pipelining=pipelining, chunking=chunking
    )


@lru_cache(maxsize=64)
def _filter(
    rest: bytes, keep: CapabilityFilter, largest: int
) -> tuple[tuple[bytes, ...], bool, bool]:
    """Return what passes of the lines after the first, and an Offer's flags.

    A backend sends the same lines to all clients, but for the first, which names the client.
    """
    lines = rest.split(b"\r\n")[:-1]
    words = [_word(line) for line in lines]
    kept = [
        _lowered(line[4:], largest) if word == b"SIZE" and largest else line[4:]
        for line, word in zip(lines, words, strict=True)
        if word != b"PIPELINING" and keep.passes(word)
    ]
    if keep.ends_tls:
        kept = [line for line in map(_without_bound_mechanisms, kept) if line]
    kept += _own(keep)
    chunking = b"CHUNKING" in words and keep.passes(b"CHUNKING")
    return tuple(kept), b"PIPELINING" in words, chunking


def _lowered(size: bytes, largest: int) -> bytes:
    """Return the capability SIZE with no more in it than `largest`; 0 in it is no limit."""
    words = size.split()
    offered = int(words[1]) if len(words) > 1 and words[1][:20].isdigit() else 0
    return b"SIZE %d" % (min(offered, largest) if offered else largest)


def _without_bound_mechanisms(line: bytes) -> bytes:
    """Return a capability without mechanisms bound to TLS; nothing if AUTH has no other."""
    if line[:4].upper() != b"AUTH":
        return line
    mechanisms = line[5:].split()
    kept = [each for each in mechanisms if not _BOUND_TO_TLS.fullmatch(each)]
    if len(kept) == len(mechanisms):
        return line
    return line[:5] + b" ".join(kept) if kept else b""


def offer_for_helo(reply: bytes, keep: CapabilityFilter) -> bytes:
    """Return the EHLO reply for a client of a backend that knows only HELO."""
    first = reply.split(b"\r\n", 1)[0]
    return _multi_line(_code(reply), first, _own(keep))


def words(reply: bytes) -> dict[bytes, frozenset[bytes]]:
    """Return the capabilities of an EHLO reply with the parameters of each, all in capitals."""
    lines = [line[4:].upper().split() for line in reply.split(b"\r\n")[1:]]
    return {line[0]: frozenset(line[1:]) for line in lines if line}


def _own(keep: CapabilityFilter) -> tuple[bytes, ...]:
    """Return what the proxy itself offers."""
    return keep.add if b"PIPELINING" in keep.hide else (*keep.add, b"PIPELINING")


def _word(line: bytes) -> bytes:
    """Return the keyword of a capability line; `AUTH=LOGIN` is AUTH as old clients want it."""
    words = line[4:].split(None, 1)
    return words[0].split(b"=", 1)[0].upper() if words else b""


def _code(reply: bytes) -> bytes:
    """Return the code of the last line, which is the one that counts where they differ."""
    return reply[reply.rfind(b"\n", 0, -1) + 1 :][:3]


def _multi_line(code: bytes, first: bytes, capabilities: tuple[bytes, ...]) -> bytes:
    *heads, last = [first[4:], *capabilities]
    return b"".join([code + b"-" + line + b"\r\n" for line in heads]) + code + b" " + last + b"\r\n"
