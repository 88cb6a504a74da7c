r"""Transcripts: dialogues kept as text files, played against the pipeline without loop or sockets.

A file holds dialogues, each headed by `== what it shows`.  A dialogue is played line by line:

    C: octets     the client sends a segment            C: EOF   it sends no more; RST: it is gone
    C| octets     more of the same segment
    S: octets     the proxy writes to the client         S| octets   more of the same write
    B> octets     the proxy writes to the backend
    B< octets     the backend sends a segment            B< EOF   it is gone
    B<| octets    more of the same segment

CRLF is implied; a `\` at the end of the line says that there is none.  `\r`, `\n`, `\x00` and `\\`
stand for raw octets, `{x*2048}` for repetition.  `#` at the start of a line is a comment.

What the proxy writes is noted below the event that caused it; any difference fails the dialogue.
Other events: `hold` (the oldest held reply is old enough), `expire` (a time limit is over),
`drain`, `reclaim` (of the connection slot), `stop`, `break down`, `unavailable` (no server; a
greeting that refused may follow), `no place` (the backend has its maximum of connections),
`client secured`, `backend secured`, `not secured` (a TLS handshake is over).

Settings, before the first line: `policy: sync=strict consecutive_errors=2 hide=AUTH,SIZE`;
`secret: word` (no observer may ever see it); `refuse XCLIENT: reply` (the reply to a client's
XCLIENT); `introduce: XCLIENT` or `introduce: XFORWARD` (the proxy passes the client's address to
the backend, with the attributes in INTRODUCED); `segments: as written` (what happens depends on how
the client's or the backend's octets are cut, so the dialogue is not played again octet by octet);
`given:` one of `greeting`, `HELO`, `EHLO [CAPABILITY...]`, `MAIL [CAPABILITY...]`,
`DATA [CAPABILITY...]`: the session has already reached that point.

Assertions, anywhere: `ends: reason`; `full: yes|no`; `waiting: time limit`;
`upgrade: client|backend|tunnel` (what the caller is asked for), `introduced: line` (the XCLIENT
line passed to it), `backend idle: yes|no` (whether it may be sent QUIT after the end); and, on the
whole dialogue, `violation: kind [octets]`, `observed: command line`, `waits: n` (how often the
client waits for a reply), `pipelined: n`, `messages: n`.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from smtpproxy.core.capabilities import CapabilityFilter
from smtpproxy.core.content import BareNewlines
from smtpproxy.core.policy import Auth, BackendTls, ClientTls, SessionPolicy
from smtpproxy.core.verbs import Sync
from tests.support.pipeline_stage import Introduced, Stage, check_observed, seen_by_observers

TRANSCRIPTS = Path(__file__).parent.parent / "core" / "transcripts"

_LINE = re.compile(r"(C:|C\||S:|S\||B>|B<\||B<|refuse XCLIENT:|[a-z ]+:|[a-z ]+$) ?(.*)")
_REPEATED = re.compile(r"\{(.+?)\*(\d+)\}")
_SENDERS = ("C:", "B<")
_ENDS = (("C:", "EOF"), ("C:", "RST"), ("B<", "EOF"))
_HANDSHAKES = ("client secured", "backend secured", "not secured")
_HAPPENINGS = (
    "hold",
    "expire",
    "drain",
    "reclaim",
    "stop",
    "break down",
    "unavailable",
    "no place",
    *_HANDSHAKES,
)
_CLAIMS = ("ends", "full", "waiting", "upgrade", "introduced", "backend idle")
_WHOLE = ("violation", "observed", "waits", "pipelined", "messages")
_SETTINGS = ("policy", "secret", "segments", "given", "introduce", "refuse XCLIENT")


@dataclass
class Step:
    """An event, and what the proxy must write then."""

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
        """Return whether the dialogue may be played only in its own segments."""
        return "as written" in self.all_settings("segments")


def read_all() -> list[Dialogue]:
    """Return the dialogues of all files."""
    return [dialogue for file in sorted(TRANSCRIPTS.glob("*.txt")) for dialogue in read(file)]


def read(file: Path) -> list[Dialogue]:
    """Return the dialogues of one file; a line that is not understood is an error."""
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
    if (mark, text) in _ENDS:
        dialogue.steps.append(Step(place, f"{mark} {text}"))
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
    """Return the octets that a line of a transcript means."""
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


def policy_of(text: str) -> SessionPolicy:
    """Return the policy of `name=value` pairs."""
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
    return SessionPolicy(capabilities=CapabilityFilter(**words), **{"hostname": b"proxy", **values})  # type: ignore[arg-type]  # checked by the dataclass's use


def play(dialogue: Dialogue, *, octet_by_octet: bool = False) -> None:
    """Play a dialogue, and fail if the proxy does anything else."""
    stage = Stage(policy_of(" ".join(dialogue.all_settings("policy"))))
    for verb in dialogue.all_settings("introduce"):
        stage.pass_address(Introduced(verb))
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
    if "backend idle" in step.claims:
        assert stage.pipeline.backend_idle == (step.claims["backend idle"] == "yes"), place
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
