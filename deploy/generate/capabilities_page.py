"""Makes deploy/reference/capabilities.md: how each EHLO capability and command is handled."""

from collections.abc import Iterable, Iterator
from itertools import groupby

from markdown import code, page, table

from smtpproxy.core.capabilities import NEVER_PASSED, PASSED
from smtpproxy.core.verbs import PROXY_HEADER, ROWS, Verb

_INTRODUCTION = """\
An SMTP extension may change the protocol that the proxy has to follow (RFC 5321 section 2.2), so
clients see only those capabilities of the MTA that are known to be safe. A listener hides more of
them with `listeners.NAME.capabilities.hide`.
"""
_OWN = """\
## Offered by the proxy

| capability | when |
| --- | --- |
| `PIPELINING` | always |
| `PIPECONNECT` | with `listeners.NAME.early_pipelining`, if all servers offer the same |
| `CHUNKING` | with `backends.NAME.chunking = "add"`, if the MTA offers none; then no `BINARYMIME` |
| `LIMITS` | with `limits.recipients`, if the MTA offers none: `RCPTMAX` |
| `STARTTLS` | with `listeners.NAME.tls = "starttls"`, until the client uses TLS |
| `XCLIENT` | to the networks of `listeners.NAME.xclient` |
"""
_PASSED = """\
## Passed

If the MTA offers them. `AUTH` is passed as `listeners.NAME.auth` specifies; if TLS ends at the
proxy, without the mechanisms that are bound to the TLS connection (EXTERNAL, and those ending in
-PLUS). The value of `SIZE` is lowered to `limits.message_bytes`, `RCPTMAX` of `LIMITS` to
`limits.recipients`.

Passed with certain settings only: `STARTTLS` with `listeners.NAME.tls = "passthrough"`; `XFORWARD`
to the networks of `listeners.NAME.xclient`; `REQUIRETLS` (RFC 8689) if both sides use TLS and the
MTA's certificate is verified.
"""
_NEVER = """\
## Never passed

`listeners.NAME.capabilities.allow` does not accept these keywords. As commands they are refused.
"""
_OTHERS = """\
## All others

Hidden, unless they are in `listeners.NAME.capabilities.allow`. Allow a capability only if it adds
nothing but parameters, or commands of one line with one reply.
"""
_COMMANDS = """\
## Commands

A groupable command may be anywhere in a group (RFC 2920 section 3.1): its reply may be held for the
others of the group. A command that is not in this table is forwarded, and is not groupable.
"""
_EXCEPTIONS = """\
With other settings `STARTTLS` is accepted (`listeners.NAME.tls`), and so are `XCLIENT` and
`XFORWARD` (`listeners.NAME.xclient`). A command whose capability is hidden is refused with 502.
"""


def capabilities_page() -> str:
    """Return the page."""
    return page(
        "Capabilities and commands",
        [
            _INTRODUCTION,
            _OWN,
            _PASSED,
            table(("capabilities", "what they change"), _by_reason(PASSED)),
            _NEVER,
            table(("capabilities", "why not"), _by_reason(NEVER_PASSED)),
            _OTHERS,
            _COMMANDS,
            table(("commands", "groupable", "reply"), _commands()),
            _EXCEPTIONS,
        ],
    )


def _by_reason(words: dict[bytes, str]) -> Iterator[tuple[str, str]]:
    for reason, same in groupby(words, words.__getitem__):
        yield _list(same), reason


def _commands() -> Iterator[tuple[str, str, str]]:
    found: dict[tuple[str, str], list[bytes]] = {}
    for verb in (*ROWS, PROXY_HEADER):
        if verb.name:
            shape = ("yes" if verb.groupable else "no", _outcome(verb))
            found.setdefault(shape, []).append(verb.name)
    for (groupable, outcome), names in found.items():
        yield _list(names), groupable, outcome


def _outcome(verb: Verb) -> str:
    if not verb.refusal:
        return "the MTA's"
    return code(verb.refusal.decode().strip()) + (", and the session ends" if verb.closes else "")


def _list(words: Iterable[bytes]) -> str:
    return ", ".join(code(word.decode()) for word in words)
