"""The verdict: what went to the backend, and what came back, against what the client has sent.

The client's octets are read once more, by the replies that it got; the backend has read what it was
received, by its replies.  Both readings must have the same units in the same order:

- each thing the client sent has one reply, in order, and each reply belongs to one;
- the backend got what the client sent, in order, except for what the proxy has to add of
  its own about a hello;
- a reply is the backend's own to this very thing, or one of the proxy's refusals that fits it;
- so nothing is acknowledged but by the backend's own reply to it.
"""

from smtpproxy.core import replies
from smtpproxy.core.content import BareNewlines
from smtpproxy.core.policy import ClientTls
from smtpproxy.core.verbs import Sync
from tests.fuzz import reading
from tests.fuzz.hellos import HELLO, Hellos
from tests.fuzz.server import Said, verb_of
from tests.fuzz.trial import Trial

_MAIL = (b"MAIL", b"SEND", b"SOML", b"SAML")


class Over(Exception):
    """Nothing more can be read: the session has ended, or waits for octets."""


def judge(trial: Trial) -> None:
    """Fail unless the dialogues of both sides agree."""
    Verdict(trial).reach()


class Verdict:
    """Follows a session from both sides at once."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._policy = trial.schedule.policy
        self._replies = reading.split_replies(trial.sent_to_client)
        self._said = list(trial.server.said)
        self._epochs = list(trial.epochs)
        self._unread = self._epochs.pop(0)
        self._cut = False  # some reply is missing from here on
        self._first = True
        self._hellos = Hellos(self._policy, introduces="X" in trial.schedule.letters)
        self._said_hello = not self._hello_first
        self._said_helo = False
        self._authenticated = False
        self._chunking = self._chunking_added = self._pipelining = False
        self._amid: Said | None = None  # content of which the last chunk has not come
        self._errors = 0
        self._open = self._at_rest = self._in_long_line = False
        self._begin_transaction()

    @property
    def _hello_first(self) -> bool:
        return self._policy.hello_first or self._hellos.inside_tls

    def _begin_transaction(self) -> None:
        self._recipients = self._accepted = self._chunks = 0
        self._put_off = True  # each recipient that was refused, for now
        self._chunk_refused = False
        self._payload = b""  # that becomes content

    def reach(self) -> None:
        """Read it all."""
        try:
            self._greeting()
            while True:
                self._command()
        except Over:
            pass
        assert not self._said, f"the client never sent {self._said!r}"
        if self._amid is not None:
            self._check_amid(self._amid)
        if self._at_rest and not self._trial.waits_for_nobody:
            assert self._open or not self._trial.pipeline.draining, "it drains, and yet it goes on"
        if self._replies:
            (_, reply), *more = self._replies
            assert self._trial.ended, f"a reply to nothing: {reply!r}"
            assert not more, f"after the end: {more!r}"
            self._check_421(reply)

    # --- replies ----------------------------------------------------------------------------------

    def _reply(self, what: object) -> tuple[int, bytes]:
        """Remove the next reply to the client; (0, b"") if the session ended without one."""
        if self._cut or not self._replies:
            assert self._trial.waits_for_nobody, f"no reply to {what!r}"
            self._cut = True
            return 0, b""
        code, reply = self._replies.pop(0)
        if code == 421:
            self._check_421(reply)
            assert not self._replies, f"after 421: {self._replies!r}"
            self._cut = True
            return 0, b""
        if code < 500:
            self._errors = 0
        elif not (isinstance(what, bytes) and what[:4].upper() == b"RCPT"):
            self._errors += 1
        if self._errors > self._policy.consecutive_errors > 0:
            assert self._trial.ended, "too many errors"
        return code, reply

    def _check_421(self, reply: bytes) -> None:
        assert self._trial.ended
        backend = [*self._trial.server.unasked, *[said.reply for said in self._trial.server.said]]
        assert reply in reading.OWN_421 or reply in backend, f"whose is {reply!r}?"

    def _take_said(self, octets: bytes) -> Said | None:
        """Remove the next unit that the backend got, if it is this."""
        if self._said and self._said[0].octets == octets and self._said[0].kind != "content":
            return self._said.pop(0)
        return None

    def _end_here(self) -> None:
        """The session has ended with this reply: nothing more was sent to either side."""
        assert self._trial.ended, "it should have ended"
        assert not self._replies, f"after the end: {self._replies!r}"
        raise Over

    def _greeting(self) -> None:
        greeting = self._said.pop(0)
        if not self._replies and not greeting.reply:
            raise Over
        code, reply = self._reply("greeting")
        if not code:
            raise Over
        if reply in (replies.NOT_SYNCHRONIZED, replies.PROXY_UNEXPECTED):
            assert self._policy.sync is Sync.STRICT
            assert self._unread
            named = self._unread[:64].startswith(reading.PROXY_HEADERS)
            assert named == (reply == replies.PROXY_UNEXPECTED)
            self._end_here()
        assert reply == greeting.reply
        if code >= 400:
            self._end_here()
        assert code < 300

    # --- commands ---------------------------------------------------------------------------------

    def _command(self) -> None:
        if self._first:
            self._check_no_proxy_header()
        auth = self._unread[:5].upper() == b"AUTH "
        limit = self._policy.auth_line if auth else self._policy.command_line
        line, size, too_long = reading.line_at(self._unread, limit)
        if too_long:
            self._in_long_line = not line.endswith(b"\n")
            reply, closes = reading.overlong(line)
        else:
            reply, closes = reading.misread(line or self._unread, first=self._first)
        if reply and self._unread:
            self._misread(line, size, reply, closes=closes)
            return
        if not line:
            self._at_rest = not (self._replies or self._in_long_line)
            raise Over
        self._unread = self._unread[size:]
        self._first = False
        verb = verb_of(line)
        refusal, closes = reading.never_forwarded(verb)
        refusal = self._refusal(verb) or refusal
        if verb == b"BDAT" and refusal:
            closes = True
        if refusal:
            self._refused(line, verb, refusal, closes=closes)
        elif verb == b"BDAT":
            self._chunk(line)
        elif self._amid is not None:
            self._amid_chunks(line, verb)
        else:
            self._valid(line, verb)

    def _valid(self, line: bytes, verb: bytes) -> None:
        if verb == b"STARTTLS" and self._policy.client_tls is not ClientTls.PASSED:
            self._starttls(line)
        elif verb in HELLO:
            self._hello(line)
        else:
            self._forwarded(line, verb)

    def _check_no_proxy_header(self) -> None:
        """Check that a PROXY header of version 2, whose octets are lines to others, is refused."""
        header = reading.PROXY_V2
        if self._unread.startswith(header):
            self._misread(header, len(header), replies.PROXY_UNEXPECTED, closes=True)
        elif header.startswith(self._unread):
            self._at_rest = not self._replies  # more may make it a header, or empty lines
            raise Over

    def _misread(self, line: bytes, size: int, refusal: bytes, *, closes: bool) -> None:
        self._unread = self._unread[size:]
        self._first = False
        self._refused(line, b"", refusal, closes=closes)

    def _refusal(self, verb: bytes) -> bytes:
        """Return the reply to a command while TLS or EHLO is required first."""
        if verb in reading.ALWAYS_ACCEPTED or reading.never_forwarded(verb)[0]:
            return b""
        if self._policy.require_tls and not self._hellos.inside_tls:
            return replies.TLS_REQUIRED
        return b"" if self._said_hello else replies.HELLO_FIRST

    def _refused(self, line: bytes, verb: bytes, refusal: bytes, *, closes: bool) -> None:
        """Check what the proxy itself must answer."""
        code, reply = self._reply(line)
        if not code:
            if closes or reading.is_gate(verb):
                raise Over
            return
        if reply == replies.NOT_SYNCHRONIZED:
            self._check_guard(verb)
        assert reply == refusal, f"{reply!r} to {line!r}, not {refusal!r}"
        if closes:
            self._end_here()

    def _check_guard(self, verb: bytes) -> None:
        assert reading.is_guarded(verb, self._policy, said_helo=self._said_helo), verb
        assert self._unread, "nothing was sent ahead"
        if self._said and self._said[0].kind == "content" and not self._said[0].octets:
            del self._said[0]  # its 354 was not used
        self._end_here()

    def _forwarded(self, line: bytes, verb: bytes) -> None:
        """Check a command that the backend must get, or that is refused in the current state."""
        refusal, must = self._refusal_in_turn(line, verb)
        code, reply = self._reply(line)
        if refusal and reply == refusal:
            self._follow(verb, code)
            return
        synchronized = reply != replies.NOT_SYNCHRONIZED
        assert not (must and code and synchronized), f"{reply!r} to {line!r}, not {refusal!r}"
        said = self._take_said(reading.forwarded(line))
        if not code:
            if reading.is_gate(verb) or reading.is_guarded(
                verb, self._policy, said_helo=self._said_helo
            ):
                raise Over
            return
        if not synchronized:
            self._check_guard(verb)
        assert said is not None, f"the backend did not get {line!r}, but {self._said[:1]!r}"
        assert reply == said.reply, f"{reply!r} to {line!r}, which the backend answered {said!r}"
        if verb == b"QUIT":
            self._end_here()
        assert said.may_be_passed_on(verb), said
        self._follow(verb, code)
        if verb == b"DATA" and code == 354:
            self._content()
        elif verb == b"AUTH":
            self._auth_lines(code)
        elif verb == b"STARTTLS" and code == 220:
            assert self._trial.handed_over
            raise Over

    def _refusal_in_turn(self, line: bytes, verb: bytes) -> tuple[bytes, bool]:
        """Return how a command may be refused in this state, and whether it must be."""
        policy = self._policy
        if verb == b"DATA" and policy.guard_data and not self._pipelining:
            if self._recipients and not self._accepted:
                put_off = self._put_off
                return replies.RECIPIENTS_PUT_OFF if put_off else replies.NO_VALID_RECIPIENTS, True
        elif verb == b"RCPT" and policy.recipients and self._accepted >= policy.recipients:
            return replies.TOO_MANY_RECIPIENTS, True
        elif verb in _MAIL and 0 < policy.message_bytes < reading.declared_size(line):
            return replies.MESSAGE_TOO_BIG, True
        return b"", False

    def _follow(self, verb: bytes, code: int) -> None:
        if verb == b"RCPT":
            self._recipients += 1
            self._accepted += code < 300
            self._put_off = self._put_off and code < 500
        elif verb in (*_MAIL, b"RSET", *HELLO) and code < 300:
            self._begin_transaction()
            self._open = verb in _MAIL
        if verb in HELLO and code < 300:
            self._said_hello = True
            self._said_helo = verb == b"HELO"

    def _auth_lines(self, code: int) -> None:
        """Check the lines after a 334 (RFC 4954 section 4)."""
        while code == 334:
            line, size, too_long = reading.line_at(self._unread, self._policy.auth_line)
            bad = b"\r" in reading.forwarded(line)[:-2] or b"\0" in line
            if too_long or (line and bad):
                refusal = replies.LINE_TOO_LONG if too_long else replies.BARE_CR_OR_NUL
                self._unread = self._unread[size:]
                self._refused(line, b"", refusal, closes=True)
            if not line:
                raise Over
            self._unread = self._unread[size:]
            code, reply = self._reply("a line after a 334")
            said = self._take_said(reading.forwarded(line))
            if not code:
                raise Over
            assert said is not None, f"the backend did not get {line!r}"
            assert said.kind == "auth"
            assert reply == said.reply
            assert said.may_be_passed_on(b"AUTH"), said
        self._authenticated = self._authenticated or code == 235

    # --- messages ---------------------------------------------------------------------------------

    def _content(self) -> None:
        said = self._said.pop(0)
        assert said.kind == "content"
        end = reading.content_end(self._unread)
        content = self._unread[: end or None]
        policy, most = self._policy.bare_newlines, self._policy.message_bytes
        relayed = reading.as_relayed(content, policy, whole=end > 0)
        assert relayed.startswith(said.octets), f"{said.octets!r} is not of {relayed!r}"
        assert not (said.whole and not end), "an end of data that the client did not send"
        if policy is BareNewlines.REJECT:
            assert not reading.has_bare(said.octets.removesuffix(b"\r"))
        refused = reading.content_refusal(content[: end - 3], policy, most) if end else b""
        if not end:
            raise Over
        self._unread = self._unread[end:]
        code, reply = self._reply(content)
        if not code and said.whole:
            return  # more may have been said after it
        if not code:
            raise Over
        if reply in reading.CONTENT_REFUSALS or said.early:
            assert not said.whole, "refused here, but whole at the backend"
            known = said.early and reply == said.reply and code >= 400
            assert reply == refused or known, f"{reply!r}, not {refused!r}"
            self._end_here()
        assert not refused, f"{reply!r} to content that is to be refused"
        assert said.whole, f"{reply!r} to content that the backend has not got"
        assert said.octets == relayed
        assert reply == said.reply, f"{reply!r} to content, which the backend answered {said!r}"
        assert code < 300 or code >= 400
        self._begin_transaction()
        self._open = False

    def _chunk(self, line: bytes) -> None:
        """Check BDAT and its payload (RFC 3030 section 2)."""
        size = reading.payload_size(line)
        if size < 0:
            self._refused(line, b"BDAT", replies.BAD_BDAT, closes=True)
        if self._chunking_added:
            self._content_chunk(line, size)
            return
        code, reply = self._reply(line)
        if not self._chunking and reply == replies.NOT_IMPLEMENTED:
            self._end_here()
        most = self._policy.message_bytes
        if most and self._chunks + size > most and reply == replies.MESSAGE_TOO_BIG:
            self._end_here()
        said = self._take_said(reading.forwarded(line))
        if said is not None:
            assert self._chunking, f"{line!r} was not offered"
            assert not most or self._chunks + size <= most, f"{said!r} makes the message too big"
        payload = self._unread[:size]
        if said is None or not code:
            assert not code, f"the backend did not get {line!r}"
            assert said is None or payload.startswith(said.payload)
            if said is None or not said.whole:
                raise Over
            self._unread = self._unread[size:]
            return
        assert reply == said.reply, f"{reply!r} to {line!r}, which the backend answered {said!r}"
        assert said.may_be_passed_on(b"BDAT"), said
        self._unread = self._unread[size:]
        assert said.payload == payload
        assert code >= 400 or (said.whole and not said.early)
        if len(payload) < size:
            raise Over
        self._chunks += size
        if reading.is_last_chunk(line):
            self._begin_transaction()
            self._open = False

    def _content_chunk(self, line: bytes, size: int) -> None:
        """Check BDAT whose payload must become content, as the backend does not offer CHUNKING."""
        most, last = self._policy.message_bytes, reading.is_last_chunk(line)
        if most and self._chunks + size > most:
            self._refused(line, b"BDAT", replies.MESSAGE_TOO_BIG, closes=True)
        may_be_another = self._cut and self._said[:1] and self._said[0].octets == b"DATA\r\n"
        if self._chunk_refused and not may_be_another:  # as after RSET, whose reply is held
            self._refused(line, b"BDAT", replies.CHUNK_REFUSED_BEFORE, closes=False)
            self._skip(size)
            return
        if self._amid is None and not self._begin_content(line, last=last):
            self._skip(size)
            return
        payload = self._unread[:size]
        self._payload += payload
        self._unread = self._unread[size:]
        self._chunks += size
        if len(payload) < size:
            raise Over  # without a reply, unless the session has ended
        self._end_chunk(line, size, last=last)

    def _begin_content(self, line: bytes, *, last: bool) -> bool:
        """Check DATA before the first chunk; return whether the backend accepted it."""
        refusal, must = self._refusal_in_turn(line, b"DATA")
        data = self._take_said(b"DATA\r\n")
        assert data is None or not must, f"the backend got DATA, and {refusal!r} was due"
        if data is not None and data.code == 354 and data.may_be_passed_on(b"DATA"):
            self._amid = self._said.pop(0)
            assert self._amid.kind == "content"
            self._open = True
            return True
        code, reply = self._reply(line)
        if not code:
            raise Over
        expected = data.reply if data is not None else refusal
        assert reply == expected, f"{reply!r} to {line!r}, and the backend answered {data!r}"
        assert code >= 400, reply
        self._chunk_refused = not last
        return False

    def _skip(self, size: int) -> None:
        if len(self._unread) < size:
            raise Over
        self._unread = self._unread[size:]

    def _end_chunk(self, line: bytes, size: int, *, last: bool) -> None:
        """Check the reply to a chunk that has come whole."""
        said, policy = self._amid, self._policy.bare_newlines
        assert said is not None
        code, reply = self._reply(line)
        refused = reading.payload_refusal(self._payload, policy, whole=last)
        known = said.early and reply == said.reply and code >= 400
        if code and (refused or known):
            assert reply == refused or known, f"{reply!r}, not {refused!r}"
            self._end_here()
        if last and said.whole:
            assert said.octets == reading.payload_as_relayed(self._payload, policy, whole=True)
            self._amid = None
        elif not code:
            raise Over
        elif last:
            raise AssertionError(f"{reply!r} to content that the backend has not got")
        else:
            assert reply == replies.CHUNK_RECEIVED % size, reply
            return
        assert not code or reply == said.reply, f"{reply!r}, and the backend answered {said!r}"
        assert not code or not 300 <= code < 400
        self._begin_transaction()
        self._open = False

    def _check_amid(self, said: Said) -> None:
        """Check content that has no end."""
        policy = self._policy.bare_newlines
        relayed = reading.payload_as_relayed(self._payload, policy, whole=False)
        last = reading.payload_as_relayed(self._payload, policy, whole=True)
        assert not said.whole, "an end of data without a last chunk"
        assert relayed.startswith(said.octets) or last.startswith(said.octets), (said, relayed)

    def _amid_chunks(self, line: bytes, verb: bytes) -> None:
        """Check a command between chunks, which the backend would read as content."""
        code, reply = self._reply(line)
        if not code:
            raise Over
        if reply == replies.NOT_SYNCHRONIZED:
            self._check_guard(verb)
        if verb == b"QUIT":
            assert reply == replies.QUIT_AMID_CHUNKS
            self._end_here()
        assert verb not in (*_MAIL, *HELLO, b"RSET"), f"{reply!r} to {line!r}"
        expected = replies.NOTHING_DONE if verb == b"NOOP" else replies.AMID_CHUNKS
        if verb == b"STARTTLS" and self._policy.client_tls is ClientTls.HIDDEN:
            expected = replies.NOT_IMPLEMENTED
        elif verb == b"STARTTLS" and self._hellos.inside_tls:
            expected = replies.TLS_ACTIVE
        assert reply == expected, f"{reply!r} to {line!r}"

    # --- hello and TLS ----------------------------------------------------------------------------

    def _hello(self, line: bytes) -> None:
        """Check EHLO or HELO, and the commands that the proxy adds for it."""
        code, reply = self._reply(line)
        reported = self._hellos.take(reading.forwarded(line), self._said)
        if not code:
            if self._policy.sync is Sync.STRICT or not self._said_hello:
                raise Over
            return
        if reply == replies.NOT_SYNCHRONIZED:
            self._check_guard(verb_of(line))
        assert reported, f"the backend did not get {line!r}, but {self._said[:1]!r}"
        reply_due = self._hellos.reply(line, reported)
        assert reply == reply_due, f"{reply!r} to {line!r} after {reported!r}"
        if reported[-1].code < 300 and verb_of(line) == b"EHLO":
            words = [text[4:].upper().split()[:1] for text in self._hellos.offer.split(b"\r\n")[1:]]
            asked = reported[-1].verb != b"HELO"
            adds = asked and reading.adds_chunking(self._hellos.offer, self._policy)
            self._chunking = adds or (asked and [b"CHUNKING"] in words)
            self._chunking_added = adds
            self._pipelining = asked and [b"PIPELINING"] in words and self._policy.use_pipelining
        elif reported[-1].code < 300:
            self._chunking = self._chunking_added = self._pipelining = False
        self._follow(verb_of(line), 250 if reported[-1].code < 300 else reported[-1].code)

    def _starttls(self, line: bytes) -> None:
        """Check STARTTLS of the client, which the proxy handles or refuses (RFC 3207 section 4)."""
        code, reply = self._reply(line)
        if not code:
            raise Over
        if reply == replies.NOT_SYNCHRONIZED:
            self._check_guard(b"STARTTLS")
        if self._policy.client_tls is ClientTls.HIDDEN:
            assert reply == replies.NOT_IMPLEMENTED
        elif self._hellos.inside_tls:
            assert reply == replies.TLS_ACTIVE
        elif line[8:].strip():
            assert reply == replies.STARTTLS_ARGUMENT
        elif self._authenticated:
            assert reply == replies.AUTH_BEFORE_TLS
        else:
            assert reply == replies.READY_FOR_TLS
            self._enter_tls()

    def _enter_tls(self) -> None:
        """Continue with octets inside TLS; early plaintext must not count."""
        if not self._epochs or self._unread:
            assert self._trial.ended or not self._unread, f"{self._unread!r} may yet be used"
            raise Over
        self._unread = self._epochs.pop(0)
        self._hellos.start_tls()
        self._open = False
        self._said_hello = self._said_helo = self._authenticated = False
        self._chunking = self._chunking_added = self._pipelining = False
        self._errors = 0
        self._begin_transaction()
