"""The server: a backend that reads strictly, and answers what the schedule makes it answer.

Unlike the model MTA of tests/core it may say anything at any time; so it keeps for each thing that
it records which of its replies was the answer.
"""

import re

from smtpproxy.core.policy import SessionPolicy

GROUPABLE = frozenset((b"MAIL", b"RCPT", b"RSET", b"SEND", b"SOML", b"SAML"))
"""The commands that may be anywhere in a group (RFC 2920 section 3.1)."""

COMMANDS, CONTENT, PAYLOAD, AUTH, TLS = "commands", "content", "payload", "AUTH", "TLS"

_REPLY_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])[^\r\n\0]*)?\r?\n")
_LONGEST_LINE = 4096


class Said:
    """One unit that the server received: a line, content, or a line with its payload.

    whole: all of it has come.  reply: the server's answer, with CRLF; code: its last one.
    early: answered before it was whole.
    """

    def __init__(self, kind: str, octets: bytes = b"", *, whole: bool = True) -> None:
        self.kind = kind
        self.octets = octets
        self.payload = b""
        self.whole = whole
        self.reply = b""
        self.code = 0
        self.early = False

    @property
    def verb(self) -> bytes:
        return b"" if self.kind != "line" else verb_of(self.octets)

    def may_be_passed_on(self, verb: bytes) -> bool:
        """Return whether the reply makes clear how the client continues after this verb."""
        if self.code >= 400:
            return True
        allowed = {b"DATA": (354,), b"AUTH": (*range(200, 300), 334)}.get(verb, range(200, 300))
        return self.code in allowed and (self.code < 300 or self.reply[:3] == b"%d" % self.code)

    def __repr__(self) -> str:
        return f"<{self.kind} {self.octets!r} {self.payload!r} -> {self.reply!r}>"


class Server:
    """Fails the trial if an octet arrives while it owes a reply, or an invalid line.

    said: all units received, and first the greeting, which it owes from the start.
    owed: what it has not answered.  unasked: replies that answered nothing.
    broken: it said something that is no reply.
    """

    def __init__(self, policy: SessionPolicy) -> None:
        self._policy = policy
        self.said = [Said("greeting")]
        self.owed = list(self.said)
        self.state = COMMANDS
        self.pipelining = False
        self.unasked: list[bytes] = []
        self.broken = False
        self._unsaid = b""
        self._reply = b""
        self._missing = 0
        self._count = 0

    # --- what it receives -------------------------------------------------------------------------

    def receive(self, octets: bytes) -> None:
        """Read what the proxy sends."""
        assert self.state != TLS, f"in plaintext: {octets!r}"
        if self.state in (COMMANDS, AUTH):
            assert not self._must_wait(), f"{octets!r} while {self.owed!r} is owed"
            assert self.owed or not (self.in_a_reply or self.unasked), f"{octets!r} after a surplus"
        while octets:
            if self.state == CONTENT:
                octets = self._read_content(octets)
            elif self.state == PAYLOAD:
                octets = self._read_payload(octets)
            else:
                octets = self._read_line(octets)

    def _must_wait(self) -> bool:
        if not self.owed:
            return False
        last = self.owed[-1]
        may_follow = last.verb in GROUPABLE or last.kind == "content" or last.verb == b"BDAT"
        return not (self.pipelining and may_follow)

    def _read_line(self, octets: bytes) -> bytes:
        assert not self._must_wait(), f"{octets!r} after a command"
        line, end, rest = octets.partition(b"\r\n")
        assert end, f"half a line: {octets!r}"
        assert not re.search(rb"[\r\n\0]", line), line
        said = Said("auth" if self.state == AUTH else "line", line + end)
        self.state = COMMANDS
        self.said.append(said)
        self.owed.append(said)
        if said.verb == b"BDAT":
            self._missing = int(line.split()[1])
            self.state = PAYLOAD if self._missing else COMMANDS
            said.whole = not self._missing
        return rest

    def _read_content(self, octets: bytes) -> bytes:
        said = self.said[-1]
        assert not said.early, f"{octets!r} after a refusal"
        before = len(said.octets)
        said.octets += octets
        end = (b"\r\n" + said.octets).find(b"\r\n.\r\n") + 3
        if end < 3:
            return b""
        rest = octets[end - before :]
        said.octets = said.octets[:end]
        said.whole = True
        self.owed.append(said)
        self.state = COMMANDS
        return rest

    def _read_payload(self, octets: bytes) -> bytes:
        said = self.said[-1]
        said.payload += octets[: self._missing]
        rest = octets[self._missing :]
        self._missing -= len(octets) - len(rest)
        if not self._missing:
            self.state = COMMANDS
            said.whole = True
        return rest

    def secured(self) -> None:
        """Continue inside TLS."""
        self.state = COMMANDS

    # --- what it says -----------------------------------------------------------------------------

    @property
    def in_a_reply(self) -> bool:
        """Whether a reply is incomplete."""
        return bool(self._unsaid or self._reply)

    def answer(self, text: bytes) -> bytes:
        """Return a reply to what is owed, valid or as scheduled; all replies differ."""
        first = self.owed[0]
        offer = b"SIZE 99" if self._policy.add_chunking else b"PIPELINING|CHUNKING|SIZE 99"
        natural = {b"DATA": b"354", b"EHLO": b"250 " + offer}
        matched = re.match(rb"[2-5][0-9][0-9]", text)
        text = text if matched else natural.get(first.verb, b"250")
        code, *lines = text[:3], *re.sub(rb"[\r\n\0]", b"", text[3:]).split(b"|")
        self._count += 1
        lines = [b"r%d" % self._count, *[line.strip() for line in lines if line.strip()]]
        *heads, last = lines
        return (
            b"".join(code + b"-" + line + b"\r\n" for line in heads) + code + b" " + last + b"\r\n"
        )

    def say(self, octets: bytes) -> None:
        """Record what is sent to the proxy: complete replies answer what was owed."""
        self._unsaid += octets
        while not self.broken and (end := self._unsaid.find(b"\n") + 1):
            line, self._unsaid = self._unsaid[:end], self._unsaid[end:]
            matched = _REPLY_LINE.fullmatch(line)
            if matched is None or len(line) > _LONGEST_LINE:
                self.broken = True
                return
            self._reply += line.rstrip(b"\r\n") + b"\r\n"
            if matched[2] != b"-":
                reply, self._reply = self._reply, b""
                self._take(reply, int(matched[1]))
        self.broken = self.broken or len(self._unsaid) >= _LONGEST_LINE

    def _take(self, reply: bytes, code: int) -> None:
        if self.owed:
            said = self.owed.pop(0)
        elif self.state == CONTENT and not self.said[-1].early:
            said = self.said[-1]
        else:
            self.unasked.append(reply)
            return
        said.early = not said.whole
        said.reply = reply
        said.code = code
        opens = reply[:3] == b"%d" % code
        if said.verb == b"DATA" and code == 354 and opens:
            self.state = CONTENT
            self.said.append(Said("content", whole=False))
        elif (said.verb == b"AUTH" or said.kind == "auth") and code == 334 and opens:
            self.state = AUTH
        elif said.verb == b"STARTTLS" and code == 220:
            self.state = TLS
        elif said.verb == b"EHLO" and code < 300:
            offered = [line[4:].split(None, 1)[:1] for line in reply.upper().split(b"\r\n")[1:]]
            self.pipelining = [b"PIPELINING"] in offered and self._policy.use_pipelining
        elif said.verb == b"HELO" and code < 300:
            self.pipelining = False


def verb_of(line: bytes) -> bytes:
    """Return the first word of a line in upper case."""
    words = line.split(None, 1)
    return words[0].upper() if words else b""
