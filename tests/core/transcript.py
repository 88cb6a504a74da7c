r"""Transcripts: dialogues kept as text files, played against the pipeline without loop or sockets.

A file holds dialogues, each headed by `== what it shows`.  A dialogue is played line by line:

    C: octets     the client sends a segment            C: EOF   it sends no more
    C| octets     ... of which this is part, too
    S: octets     the client gets a write                S| octets   ... with this in the same write
    B> octets     the backend gets octets
    B< octets     the backend sends a segment            B< EOF   it is gone
    B<| octets    ... of which this is part, too

CRLF is implied; a `\` at the end of the line says that there is none.  `\r`, `\n`, `\x00` and `\\`
stand for raw octets, `{x*2048}` for repetition.  `#` at the start of a line is a comment.

What the proxy writes stands below what made it write; anything more or less fails the dialogue.
Other happenings: `hold` (the oldest held reply is old enough), `expire` (a time limit is over),
`drain`, `stop`, `break down`, `unavailable` (no server; a greeting that refused may follow), `no
place` (the backend has as many connections as it may), `abandon` (the client is gone before),
`client secured`, `backend secured`, `not secured` (a TLS handshake is over).

Settings, before the first line: `rules: sync=strict errors=2 hide=AUTH,SIZE`; `secret: word` (no
observer may ever see it); `refuse XCLIENT: reply` (to that of a client); `introduce: XCLIENT` (or
XFORWARD; the client, to the backend, as it says in INTRODUCED); `segments: as written` (what
happens depends on how the client's or the backend's octets are cut, so the dialogue is not played
again octet by octet); `given:` one of
`greeting`, `HELO`, `EHLO [CAPABILITY...]`, `MAIL [CAPABILITY...]`, `DATA [CAPABILITY...]`: the
session has come as far as that.

Claims, anywhere: `ends: reason`; `full: yes|no`; `waiting: time limit`; `upgrade: client|backend|
tunnel` (what is asked of the caller), `introduced: line` (what it is told of another client); and,
on the whole dialogue, `violation: kind [octets]`, `observed: command line`, `waits: n` (turnarounds
that the client makes), `pipelined: n`, `messages: n`.
"""

import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from smtpproxy.core import replies
from smtpproxy.core.capabilities import Filter
from smtpproxy.core.commands import Sync
from smtpproxy.core.content import BareNewlines
from smtpproxy.core.exchange import Exchange
from smtpproxy.core.pipeline import Pipeline
from smtpproxy.core.rules import Auth, BackendTls, ClientTls, Rules

TRANSCRIPTS = Path(__file__).parent.parent / "transcripts"

_LINE = re.compile(r"(C:|C\||S:|S\||B>|B<\||B<|refuse XCLIENT:|[a-z ]+:|[a-z ]+$) ?(.*)")
_REPEATED = re.compile(r"\{(.+?)\*(\d+)\}")
_SENDERS = ("C:", "B<")
_HANDSHAKES = ("client secured", "backend secured", "not secured")
_HAPPENINGS = (
    "hold",
    "expire",
    "drain",
    "stop",
    "break down",
    "unavailable",
    "no place",
    "abandon",
    *_HANDSHAKES,
)
_CLAIMS = ("ends", "full", "waiting", "upgrade", "introduced")
_WHOLE = ("violation", "observed", "waits", "pipelined", "messages")
_SETTINGS = ("rules", "secret", "segments", "given", "introduce", "refuse XCLIENT")
_UPGRADES = ("client", "backend", "tunnel")

INTRODUCED = (b"HELO=%b", b"ADDR=192.0.2.1")
"""What the client is introduced by: these attributes, each in a line of its own."""


@dataclass
class Step:
    """Something happens, and what the proxy does then."""

    place: str
    kind: str
    octets: bytes = b""
    to_client: list[bytes] = field(default_factory=list)
    to_backend: bytes = b""
    claims: dict[str, str] = field(default_factory=dict)


@dataclass
class Dialogue:
    """One dialogue of a file."""

    name: str
    settings: list[tuple[str, str]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    claims: list[tuple[str, str]] = field(default_factory=list)

    def all_settings(self, name: str) -> list[str]:
        """Return the values of a setting, in order."""
        return [value for key, value in self.settings if key == name]

    @property
    def depends_on_segments(self) -> bool:
        """Tell whether it may be played as written only."""
        return "as written" in self.all_settings("segments")


def read_all() -> list[Dialogue]:
    """Return the dialogues of all files."""
    return [dialogue for file in sorted(TRANSCRIPTS.glob("*.txt")) for dialogue in read(file)]


def read(file: Path) -> list[Dialogue]:
    """Return the dialogues of one file; any line that says nothing known is an error."""
    dialogues: list[Dialogue] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
        if line.startswith("== "):
            dialogues.append(Dialogue(f"{file.stem}: {line[3:]}"))
        elif line.strip() and not line.startswith("#"):
            place = f"{file.name}:{number}: {line}"
            match = _LINE.fullmatch(line)
            assert match is not None, place
            _read_line(dialogues[-1], match[1], match[2], place)
    return dialogues


def _read_line(dialogue: Dialogue, mark: str, text: str, place: str) -> None:
    word = mark.removesuffix(":")
    if mark in _SENDERS and text == "EOF":
        dialogue.steps.append(Step(place, f"{mark} EOF"))
    elif mark in _SENDERS or mark in _HAPPENINGS or word == "unavailable":
        octets = as_octets(text) if text or mark in _SENDERS else b""
        dialogue.steps.append(Step(place, mark if mark in _SENDERS else word, octets))
    elif mark in ("C|", "B<|"):
        step = dialogue.steps[-1]
        assert step.kind == {"C|": "C:", "B<|": "B<"}[mark], place
        step.octets += as_octets(text)
    elif mark == "S:":
        dialogue.steps[-1].to_client.append(as_octets(text))
    elif mark == "S|":
        dialogue.steps[-1].to_client[-1] += as_octets(text)
    elif mark == "B>":
        dialogue.steps[-1].to_backend += as_octets(text)
    elif word in _CLAIMS:
        dialogue.steps[-1].claims[word] = text
    elif word in _WHOLE:
        dialogue.claims.append((word, text))
    else:
        assert word in _SETTINGS, place
        assert not dialogue.steps, place
        dialogue.settings.append((word, text))


def as_octets(text: str) -> bytes:
    """Return the octets that a line of a transcript stands for."""
    escapes = len(text) - len(text.rstrip("\\"))
    text = text[:-1] if escapes % 2 else text + r"\r\n"
    text = _REPEATED.sub(lambda match: match[1] * int(match[2]), text)
    return text.encode().decode("unicode_escape").encode("latin-1")


_CHOICES = {
    "sync": Sync,
    "bare_newlines": BareNewlines,
    "client_tls": ClientTls,
    "backend_tls": BackendTls,
    "auth": Auth,
}


class Introduced:
    """Introduces the client with what is asked of it."""

    def __init__(self, verb: str) -> None:
        self.verb = verb.encode()

    def lines(self, attributes: frozenset[bytes], hello: bytes) -> list[bytes]:
        """Return a line for each attribute in INTRODUCED that the backend knows."""
        words = [word % hello[5:].strip() if b"%" in word else word for word in INTRODUCED]
        return [
            self.verb + b" " + word + b"\r\n" for word in words if word.split(b"=")[0] in attributes
        ]


def rules_of(text: str) -> Rules:
    """Return the rules that `name=value` pairs lay down."""
    values: dict[str, object] = {}
    words: dict[str, frozenset[bytes]] = {}
    for pair in text.split():
        name, value = pair.split("=")
        if name in ("hide", "allow"):
            words[name] = frozenset(value.encode().split(b","))
        elif name in _CHOICES:
            values[name] = _CHOICES[name](value)
        elif name == "hostname":
            values[name] = value.encode()
        else:
            values[name] = {"yes": True, "no": False}[value] if value.isalpha() else int(value)
    return Rules(capabilities=Filter(**words), **{"hostname": b"proxy", **values})  # type: ignore[arg-type]  # checked by the dataclass's use


class Stage:
    """A pipeline with both of its sides and its observer played by a test.

    to_client, to_backend: what was written since they were last cleared.  observed: all exchanges
    that an observer was shown.  The clock goes on by one second with each call.
    """

    def __init__(self, rules: Rules | None = None) -> None:
        self.now = 1000.0
        self.to_client: list[bytes] = []
        self.to_backend: list[bytes] = []
        self.observed: list[Exchange] = []
        self.sent_to_client = b""
        self.pipeline = Pipeline(rules or rules_of(""), self._write, self.observed.extend, self.now)
        self.pipeline.connect_backend(self.to_backend.append)
        self.pipeline.upgrade = self._upgrade
        self.upgrades: list[str] = []
        self.pipeline.introduce = self._introduce
        self.introduced = ""
        self.refusal = b""  # of the client's XCLIENT

    def _upgrade(self, what: int) -> None:
        self.upgrades.append(_UPGRADES[what])

    def _introduce(self, line: bytes) -> bytes:
        self.introduced += line.decode().rstrip()
        return self.refusal

    def _write(self, octets: bytes) -> None:
        assert octets, "an empty write"
        self.to_client.append(octets)
        self.sent_to_client += octets

    def clear(self) -> None:
        """Forget what was written so far."""
        self.to_client.clear()
        self.to_backend.clear()
        self.upgrades.clear()
        self.introduced = ""

    def client(self, octets: bytes) -> None:
        """Let the client send a segment."""
        self.now += 1
        self.pipeline.client_received(octets, self.now)

    def backend(self, octets: bytes) -> None:
        """Let the backend send a segment."""
        self.now += 1
        self.pipeline.backend_received(octets, self.now)

    def happen(self, kind: str, octets: bytes = b"") -> None:
        """Let something else happen."""
        self.now += 1
        pipeline = self.pipeline
        if kind == "unavailable":
            pipeline.backend_unavailable(octets, self.now)
            return
        {
            "C: EOF": pipeline.client_eof,
            "B< EOF": pipeline.backend_lost,
            "hold": pipeline.flush,
            "expire": pipeline.expire,
            "drain": pipeline.drain,
            "stop": partial(pipeline.fail, "stopped", replies.DRAINING),
            "break down": partial(pipeline.fail, "internal_error", replies.INTERNAL_ERROR),
            "no place": partial(pipeline.fail, "backend_full", replies.BACKEND_FULL),
            "abandon": partial(pipeline.end, "client_lost"),
            "client secured": pipeline.client_secured,
            "backend secured": pipeline.backend_secured,
            "not secured": partial(pipeline.fail, "backend_tls_failed", replies.BACKEND_TLS_FAILED),
        }[kind](self.now)

    def come_to(self, given: str) -> None:
        """Play the usual beginning of a session up to where a transcript begins."""
        state, *capabilities = given.split()
        order = ("greeting", "EHLO", "MAIL", "DATA")
        level = 1 if state == "HELO" else order.index(state)
        self.backend(b"220 mx ESMTP\r\n")
        if state == "HELO":
            self._command(b"HELO client", b"250 mx")
        elif level >= 1:
            offer = "".join(f"250-{word}\r\n" for word in ["mx", *capabilities])
            self._command(b"EHLO client", f"{offer}250 SIZE".encode())
        if level >= 2:
            self._command(b"MAIL FROM:<a@a>", b"250 sender")
            self._command(b"RCPT TO:<b@b>", b"250 recipient")
        if level == 3:
            self._command(b"DATA", b"354 go")
        assert not self.pipeline.ended, given
        self.clear()

    def _command(self, line: bytes, reply: bytes) -> None:
        self.client(line + b"\r\n")
        self.backend(reply + b"\r\n")


def play(dialogue: Dialogue, *, octet_by_octet: bool = False) -> None:
    """Play a dialogue and fail where the proxy does anything else than it says."""
    stage = Stage(rules_of(" ".join(dialogue.all_settings("rules"))))
    for verb in dialogue.all_settings("introduce"):
        stage.pipeline.hello.introduction = Introduced(verb)
    for refusal in dialogue.all_settings("refuse XCLIENT"):
        stage.refusal = as_octets(refusal)
    for given in dialogue.all_settings("given"):
        stage.come_to(given)
    for step in dialogue.steps:
        _do(stage, step, octet_by_octet=octet_by_octet)
        _check(stage, step, octet_by_octet=octet_by_octet)
        stage.clear()
    _check_whole(stage, dialogue, octet_by_octet=octet_by_octet)


def _do(stage: Stage, step: Step, *, octet_by_octet: bool) -> None:
    if step.kind not in _SENDERS:
        stage.happen(step.kind, step.octets)
        return
    send = stage.client if step.kind == "C:" else stage.backend
    size = 1 if octet_by_octet else max(1, len(step.octets))
    for at in range(0, len(step.octets), size):
        send(step.octets[at : at + size])


def _check(stage: Stage, step: Step, *, octet_by_octet: bool) -> None:
    place = step.place
    if octet_by_octet:  # how replies are grouped depends on how commands are
        assert b"".join(stage.to_client) == b"".join(step.to_client), place
    else:
        assert stage.to_client == step.to_client, place
    assert b"".join(stage.to_backend) == step.to_backend, place
    assert stage.introduced == step.claims.get("introduced", ""), place
    assert " ".join(stage.upgrades) == step.claims.get("upgrade", ""), place
    assert stage.pipeline.ended == step.claims.get("ends", stage.pipeline.ended), place
    assert "ends" not in step.claims or stage.pipeline.ended, place
    if "full" in step.claims:
        assert stage.pipeline.full == (step.claims["full"] == "yes"), place
    if "waiting" in step.claims:
        assert stage.pipeline.waiting()[0] == step.claims["waiting"], place


def _check_whole(stage: Stage, dialogue: Dialogue, *, octet_by_octet: bool) -> None:
    check_observed(stage)
    ends = any("ends" in step.claims for step in dialogue.steps)
    assert bool(stage.pipeline.ended) == ends, f"ended: {stage.pipeline.ended!r}"
    for secret in dialogue.all_settings("secret"):
        assert secret.encode() not in seen_by_observers(stage.observed), secret
    problems = [exchange.problem for exchange in stage.observed if exchange.problem]
    claimed = [text.split(" ", 1) for name, text in dialogue.claims if name == "violation"]
    assert [problem.kind for problem in problems] == [claim[0] for claim in claimed]
    for problem, claim in zip(problems, claimed, strict=True):
        assert len(claim) == 1 or octet_by_octet or problem.octets == as_octets(claim[1]), claim
    for name, text in dialogue.claims:
        if name == "observed":
            assert as_octets(text) in [exchange.line for exchange in stage.observed], text
        elif name == "messages":
            assert stage.pipeline.transaction.messages == int(text)
        elif name == "pipelined" and not octet_by_octet:
            assert stage.pipeline.framer.pipelined == int(text)
        elif name == "waits":
            assert waits(dialogue) == int(text)


def waits(dialogue: Dialogue) -> int:
    """Count how often the client waits for the server, the greeting included."""
    count, served = 0, False
    for step in dialogue.steps:
        if step.kind == "C:":
            served = False
        if step.to_client and not served:
            count, served = count + 1, True
    return count


def check_observed(stage: Stage) -> None:
    """Check what holds for the exchanges of any session."""
    flushed = [exchange for exchange in stage.observed if exchange.flushed]
    assert b"".join(exchange.reply for exchange in flushed) == stage.sent_to_client
    assert len({id(exchange) for exchange in stage.observed}) == len(stage.observed)
    for exchange in flushed:
        assert exchange.framed <= exchange.replied <= exchange.flushed
        assert not exchange.sent or exchange.framed <= exchange.sent <= exchange.replied
        assert 200 <= exchange.code <= 599


def seen_by_observers(exchanges: list[Exchange]) -> bytes:
    """Return all octets that observers can learn from exchanges."""
    return b"\n".join(
        b"\n".join(
            (
                exchange.line,
                exchange.reply,
                exchange.refusal,
                repr(exchange).encode(),
                exchange.problem.octets if exchange.problem else b"",
                str(exchange.problem).encode(),
            )
        )
        for exchange in exchanges
    )
