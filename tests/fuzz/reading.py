"""How octets must be read: a second implementation from the RFCs, to compare with the first.

Nothing of the core's framing, content or reply reading is used here; only its fixed texts, and the
list of capabilities that pass.
"""

import re

from smtpproxy.core import replies
from smtpproxy.core.capabilities import PASSED
from smtpproxy.core.content import BareNewlines
from smtpproxy.core.policy import ClientTls, SessionPolicy
from tests.fuzz.server import verb_of

_OWN = {
    text % b"proxy" if b"%b" in text else text
    for name, text in vars(replies).items()
    if name.isupper() and isinstance(text, bytes)
}
OWN_421 = {text for text in _OWN if text.startswith(b"421")}
"""The proxy's own replies that end a session."""
CONTENT_REFUSALS = {*replies.BARE_NEWLINE.values(), replies.MESSAGE_TOO_BIG}

ALWAYS_ACCEPTED = frozenset((b"EHLO", b"HELO", b"STARTTLS", b"NOOP", b"RSET", b"QUIT"))
_OTHER_PROTOCOLS = frozenset((b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"CONNECT", b"PRI"))
_NEVER = frozenset(
    b"""TURN ATRN VERB BURL CHECKPOINT PRDR REQUIRETLS PIPECONNECT X_PIPE_CONNECT
    X-EXPS X-ANONYMOUSTLS XSHADOW XSHADOWREQUEST XQDISCARD XSESSIONPARAMS XMESSAGECONTEXT
    XPROXY XPROXYFROM XPROXYTO""".split()
)
_NEVER_AND_CLOSED = frozenset((b"XEXCH50", b"X-LINK2STATE"))
_PLAIN = frozenset(
    b"MAIL RCPT RSET SEND SOML SAML EHLO HELO DATA BDAT AUTH QUIT".split()
) | frozenset(b"NOOP VRFY EXPN HELP ETRN STARTTLS".split())
_BEHIND_A_HELLO = frozenset((b"EHLO", b"HELO", b"NOOP", b"VRFY", b"EXPN", b"ETRN"))


def split_replies(octets: bytes) -> list[tuple[int, bytes]]:
    """Return what a client got as replies with their codes; fail on anything else."""
    found: list[tuple[int, bytes]] = []
    reply = b""
    for line in octets.split(b"\n")[:-1]:
        assert re.fullmatch(rb"[2-5]\d\d([ -][^\r\n\0]*)?\r", line), line
        reply += line + b"\n"
        if line[3:4] != b"-":
            found.append((int(line[:3]), reply))
            reply = b""
    assert b"".join(each for _, each in found) == octets, octets
    return found


# --- command lines --------------------------------------------------------------------------------


def line_at(octets: bytes, limit: int) -> tuple[bytes, int, bool]:
    """Return the first line, its length, and whether it is too long.

    Without an end it is empty, unless it is too long already.
    """
    end = octets.find(b"\n") + 1
    size = end or len(octets)
    if size > limit or (not end and size == limit):
        return octets[:size], size, True
    return octets[:end], end, False


PROXY_V2 = b"\r\n\r\n\0\r\nQUIT\n"
PROXY_HEADERS = (b"PROXY ", PROXY_V2)
"""The start of a PROXY header, by version."""


def forwarded(line: bytes) -> bytes:
    """Return a line as the backend must get it."""
    return line.removesuffix(b"\n").removesuffix(b"\r") + b"\r\n"


def overlong(line: bytes) -> tuple[bytes, bool]:
    """Return the reply to a line that is too long, and whether it closes."""
    if found := _never_and_closed(line):
        return found, True
    return replies.LINE_TOO_LONG, seems_bdat(line)


def _never_and_closed(line: bytes) -> bytes:
    """Return the reply that ends the session, as the protocol is another, or a payload follows."""
    if line.startswith(b"\x16\x03"):
        return replies.TLS_NOT_EXPECTED
    if line.startswith(b"SSH-"):
        return replies.NOT_SMTP
    reply, closes = (b"", False) if line[:1].isspace() else never_forwarded(verb_of(line))
    return reply if closes else b""


def misread(line: bytes, *, first: bool) -> tuple[bytes, bool]:
    """Return the reply to an invalid command line, and whether it closes; None if it is valid.

    `first`: nothing has come before it.
    """
    verb = verb_of(line)
    if verb not in _PLAIN | _NEVER | _NEVER_AND_CLOSED | _OTHER_PROTOCOLS | {
        b"XCLIENT",
        b"XFORWARD",
        b"LHLO",
    }:
        if line.startswith(b"\x16\x03"):
            return replies.TLS_NOT_EXPECTED, True
        header = line.endswith(b"\n") and re.match(rb"[!-9;-~]+:", line)
        if line.startswith(b"SSH-") or (first and header):
            return replies.NOT_SMTP, True
    text = forwarded(line)[:-2]
    if line.endswith(b"\n") and (b"\r" in text or b"\0" in text):
        if found := _never_and_closed(line):
            return found, True
        return replies.BARE_CR_OR_NUL, seems_bdat(line)
    if line.endswith(b"\n") and line[:1] in {b" ", b"\t", b"\v", b"\f"}:
        return replies.BAD_SYNTAX, seems_bdat(line)
    return b"", False


def seems_bdat(line: bytes) -> bool:
    """Return whether the client may have meant BDAT, and sends a payload."""
    return line[:64].lstrip()[:4].upper() == b"BDAT"


def never_forwarded(verb: bytes) -> tuple[bytes, bool]:
    """Return the reply to a command that is never forwarded, and whether it closes."""
    if verb in _OTHER_PROTOCOLS:
        return replies.NOT_SMTP, True
    if verb == b"PROXY":
        return replies.PROXY_UNEXPECTED, True
    if verb == b"LHLO":
        return replies.NOT_LMTP, False
    if verb in _NEVER or verb in _NEVER_AND_CLOSED:
        return replies.NOT_IMPLEMENTED, verb in _NEVER_AND_CLOSED
    return (replies.NOT_AUTHORIZED, False) if verb in (b"XCLIENT", b"XFORWARD") else (b"", False)


def is_guarded(verb: bytes, policy: SessionPolicy, *, said_helo: bool) -> bool:
    """Return whether nothing may be sent after it before its reply."""
    if verb in (b"STARTTLS", b"X-ANONYMOUSTLS"):
        return True
    if policy.sync.value == "strict" and (
        verb in _BEHIND_A_HELLO or (said_helo and verb not in (b"QUIT", b"BDAT"))
    ):
        return True
    return verb == b"DATA" and policy.sync.value != "off"


def is_gate(verb: bytes) -> bool:
    """Return whether its reply decides how octets after it are read."""
    return verb not in _PLAIN or verb in (b"DATA", b"BDAT", b"AUTH", b"QUIT", b"STARTTLS")


def payload_size(line: bytes) -> int:
    """Return the size in a BDAT line, or -1 if there is none."""
    words = forwarded(line)[:-2].replace(b"\t", b" ").split(b" ")
    words = [words[0], *[word for word in words[1:] if word]]
    sized = len(words) in (2, 3) and re.fullmatch(rb"[0-9]{1,20}", words[1])
    sized = sized and words[0].upper() == b"BDAT"  # without white space that is no blank
    if not sized or (len(words) == 3 and words[2].upper() != b"LAST"):
        return -1
    return int(words[1])


def is_last_chunk(line: bytes) -> bool:
    """Return whether a well-formed BDAT line ends its message."""
    return line.split()[-1].upper() == b"LAST"


def declared_size(line: bytes) -> int:
    """Return the largest SIZE parameter of MAIL; 0 if there is none, or the path has no end."""
    path = line.partition(b":")[2].lstrip(b" ")
    end = _end_of_path(path) if path.startswith(b"<") else 0
    if end < 0:
        return 0
    words = path[end:].rstrip(b"\r\n").upper().split(b" ")[1:]
    return max((int(word[5:]) for word in words if re.fullmatch(rb"SIZE=[0-9]+", word)), default=0)


def _end_of_path(path: bytes) -> int:
    """Return where a path in angle brackets ends; -1 if nowhere."""
    quoted = escaped = False
    for at, octet in enumerate(path):
        if escaped:
            escaped = False
        elif octet == ord("\\"):
            escaped = quoted
        elif octet == ord('"'):
            quoted = not quoted
        elif octet == ord(">") and not quoted:
            return at + 1
    return -1


# --- content --------------------------------------------------------------------------------------


def content_end(octets: bytes) -> int:
    """Return the length of the content including its end; 0 if it has not ended."""
    at = (b"\r\n" + octets).find(b"\r\n.\r\n")
    return at + 3 if at >= 0 else 0


def has_bare(octets: bytes) -> bool:
    """Return whether there is a CR, LF or NUL that is not part of CRLF."""
    return bool(set(b"\r\n\0") & set(octets.replace(b"\r\n", b"")))


def content_refusal(content: bytes, policy: BareNewlines, most: int) -> bytes:
    """Return the reply that refuses content, without its end, for the first offence in it."""
    allowed = content[:most] if most else content
    kinds = {b"\n": "bare_lf", b"\r": "bare_cr", b"\0": "bare_nul"}
    if policy is BareNewlines.REJECT:
        for found in re.finditer(rb"\r\n|[\r\n\0]", allowed):
            undecided = found[0] == b"\r" and found.end() == len(allowed)
            if found[0] in kinds and not undecided:
                return replies.BARE_NEWLINE[kinds[found[0]]]
    return replies.MESSAGE_TOO_BIG if allowed != content else b""


def as_relayed(content: bytes, policy: BareNewlines, *, whole: bool) -> bytes:
    """Return content as the backend must get it, or, if incomplete, what it may get."""
    if policy is not BareNewlines.NORMALIZE:
        return content
    body = content[:-3] if whole else content
    # A dot that begins a line only because a CR or NUL was rewritten is content.
    body = re.sub(rb"((?:\A|\n)\0+|\r\0*)(?=\.)", rb"\1.", body)
    lines = re.split(rb"\r\r\n|\r\n|\r|\n", body.replace(b"\0", b""))
    line = lines.pop()
    relayed = b"".join((b".." if each == b"." else each) + b"\r\n" for each in lines) + line
    return relayed + (b".\r\n" if whole else b"")


def payload_as_relayed(payload: bytes, policy: BareNewlines, *, whole: bool) -> bytes:
    """Return payload as the content that the backend must get, or, if incomplete, may get."""
    if policy is BareNewlines.NORMALIZE:
        payload = re.sub(rb"\r\r?\n|[\r\n]", b"\r\n", payload.replace(b"\0", b""))
    relayed = _ended(payload) if whole else payload
    before = rb"[\r\n\0]" if policy is BareNewlines.PASS else rb"\r\n"
    relayed = re.sub(rb"(\A|(?<=%b))\." % before, b"..", relayed)
    return relayed + (b".\r\n" if whole else b"")


def payload_refusal(payload: bytes, policy: BareNewlines, *, whole: bool) -> bytes:
    """Return the reply that refuses payload which becomes content, for the first offence in it."""
    return content_refusal(_ended(payload) if whole else payload, policy, 0)


def _ended(payload: bytes) -> bytes:
    """Return payload with a CRLF at the end of its last line."""
    return payload if not payload or payload.endswith(b"\r\n") else payload + b"\r\n"


# --- EHLO -----------------------------------------------------------------------------------------


def offered(reply: bytes, policy: SessionPolicy, *, inside_tls: bool) -> bytes:
    """Return what the client must get for an EHLO reply of the backend."""
    first, *rest = reply.split(b"\r\n")[:-1]
    code = [first, *rest][-1][:3]
    kept = []
    adds = adds_chunking(reply, policy)
    for line in rest:
        words = line[4:].split()
        word = words[0].upper().split(b"=")[0] if words else b""
        if word == b"SIZE" and policy.message_bytes:
            size = int(words[1]) if len(words) > 1 and words[1][:20].isdigit() else 0
            kept.append(b"SIZE %d" % min(size or policy.message_bytes, policy.message_bytes))
        elif word == b"BINARYMIME" and adds:
            pass  # needs what DATA cannot carry
        elif word in PASSED or (word == b"STARTTLS" and policy.client_tls is ClientTls.PASSED):
            kept.append(line[4:])
    own = [b"CHUNKING"] if adds else []
    return code + b"-" + first[4:] + b"\r\n" + _joined(code, kept, policy, inside_tls, own)


def adds_chunking(reply: bytes, policy: SessionPolicy) -> bool:
    """Return whether the client is offered CHUNKING that the backend's EHLO reply has not."""
    lines = reply.split(b"\r\n")[1:-1]
    words = [line[4:].split()[0].upper().split(b"=")[0] for line in lines if line[4:].split()]
    return policy.add_chunking and b"CHUNKING" not in words


def offered_for_helo(reply: bytes, policy: SessionPolicy, *, inside_tls: bool) -> bytes:
    """Return what the client must get for its EHLO if the backend knows only HELO."""
    lines = reply.split(b"\r\n")[:-1]
    code = lines[-1][:3]
    return code + b"-" + lines[0][4:] + b"\r\n" + _joined(code, [], policy, inside_tls, [])


def _joined(
    code: bytes, kept: list[bytes], policy: SessionPolicy, inside_tls: bool, own: list[bytes]
) -> bytes:
    if policy.recipients:
        kept = _with_limit(kept, policy.recipients)
    if policy.client_tls is ClientTls.OFFERED and not inside_tls:
        kept = [*kept, b"STARTTLS"]
    kept = [*kept, *own]
    return b"".join(code + b"-" + line + b"\r\n" for line in kept) + code + b" PIPELINING\r\n"


def _with_limit(kept: list[bytes], recipients: int) -> list[bytes]:
    """Return capabilities whose LIMITS have RCPTMAX, at most `recipients` (RFC 9422)."""
    result, announced = [], False
    for line in kept:
        word, *limits = line.split(b" ")
        if word.upper() != b"LIMITS":
            result.append(line)
            continue
        announced, most, others = True, recipients, []
        for limit in filter(None, limits):
            name, _, value = limit.partition(b"=")
            if name.upper() != b"RCPTMAX" or not limit[len(name) :]:
                others.append(limit)
            elif value.isdigit() and len(value) <= 20 and int(value):
                most = min(most, int(value))
        result.append(b" ".join([word, b"RCPTMAX=%d" % most, *others]))
    return result if announced else [*result, b"LIMITS RCPTMAX=%d" % recipients]
