r"""The schedule: octets that say what client and backend send, and when; the fuzzer's input.

Records with an FF octet between them.  The first names the rules, a letter for each setting that is
not the default (RULES).  Each one after it is a turn, named by its first octet:

    C octets   the client sends them              B octets   the backend sends them
    A text     the backend answers what it owes, if it owes a reply: `A` as it should, `A550` or
               `A250 SIZE 9|CHUNKING` so, each line after `|` one more of the reply
    h d e l x s t u n   what else happens (HAPPENINGS)

Any octets are a schedule: what means nothing is passed over.  So a file of the corpus can be read,
and what a mutation does to it is again something that a peer might do.
"""

from dataclasses import dataclass
from functools import lru_cache

from smtpproxy.core.content import BareNewlines
from smtpproxy.core.policy import BackendTls, ClientTls, SessionPolicy
from smtpproxy.core.verbs import Sync

END = b"\xff"

CLIENT, ANSWER, BACKEND = "C", "A", "B"
HAPPENINGS = {
    "h": "hold",
    "d": "drain",
    "e": "C: EOF",
    "l": "B< EOF",
    "x": "expire",
    "s": "stop",
    "t": "client secured",
    "u": "backend secured",
    "n": "not secured",
}

RULES: dict[str, dict[str, object]] = {
    "s": {"sync": Sync.STRICT},
    "o": {"sync": Sync.OFF},
    "r": {"bare_newlines": BareNewlines.REJECT},
    "p": {"bare_newlines": BareNewlines.PASS},
    "P": {"use_pipelining": False},
    "H": {"helo_fallback": False},
    "G": {"guard_data": False},
    "1": {"queue_commands": 1},
    "2": {"queue_commands": 2},
    "Q": {"queue_bytes": 64},
    "L": {"command_line": 64, "auth_line": 80},
    "E": {"consecutive_errors": 1},
    "M": {"message_bytes": 30},
    "R": {"recipients": 1},
    "c": {"add_chunking": True},
    "T": {"client_tls": ClientTls.OFFERED},
    "q": {"client_tls": ClientTls.OFFERED, "require_tls": True},
    "t": {"client_tls": ClientTls.PASSED},
    "b": {"backend_tls": BackendTls.OPPORTUNISTIC},
    "B": {"backend_tls": BackendTls.REQUIRED},
    "X": {},
}
"""By letter; with `X` the client's address is passed by XCLIENT."""

SMALL_QUEUE = frozenset("12Q")


@dataclass(frozen=True)
class Turn:
    """A peer sends octets, or something else happens."""

    kind: str
    octets: bytes = b""


@dataclass(frozen=True)
class Schedule:
    """The policy by its letters, and the turns in order."""

    letters: frozenset[str]
    turns: tuple[Turn, ...]

    @property
    def policy(self) -> SessionPolicy:
        return policy_of(self.letters)

    @classmethod
    def decode(cls, octets: bytes) -> "Schedule":
        """Read the octets of a schedule."""
        first, *records = octets.split(END)
        turns = []
        for record in records:
            kind = chr(record[0]) if record else ""
            if kind in HAPPENINGS or (kind in (CLIENT, BACKEND) and record[1:]) or kind == ANSWER:
                turns.append(Turn(kind, record[1:] if kind not in HAPPENINGS else b""))
        letters = frozenset(first.decode("latin-1")).intersection(RULES)
        if letters & {"b", "B"}:
            letters -= {"t"}  # as the settings do not allow it
        return cls(letters, tuple(turns))

    def encode(self) -> bytes:
        """Return the schedule as octets; FF octets within a turn are lost."""
        turns = [t.kind.encode() + t.octets.replace(END, b"") for t in self.turns]
        return END.join(["".join(sorted(self.letters)).encode(), *turns])


@lru_cache(maxsize=4096)
def policy_of(letters: frozenset[str]) -> SessionPolicy:
    """Return the policy for these letters."""
    values: dict[str, object] = {"hostname": b"proxy"}
    for letter in sorted(letters):
        values |= RULES[letter]
    return SessionPolicy(**values)  # type: ignore[arg-type]  # as the table says
