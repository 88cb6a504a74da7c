"""The examination: first who the server is, then each test, on connections of its own.

What it must never do is to have a message delivered; `dialogue.py` sees to that.
"""

from collections.abc import Callable
from time import monotonic

from smtpproxy.probe import behaviour_checks, pipelining_checks, tls_checks
from smtpproxy.probe.connector import Access, Wanted, unverified
from smtpproxy.probe.findings import Findings
from smtpproxy.probe.smtp_connection import (
    Dialogue,
    HandshakeFailed,
    How,
    NoReply,
    OutOfTime,
    Reply,
    Untold,
)

Step = Callable[[str], None]
Test = Callable[[], object]


class Unreachable(Exception):
    """There is nothing to examine; the text, safe to show, says why."""


def examine(wanted: Wanted, on_step: Step) -> Findings:
    """Examine a server; on_step is told what is being tested.  Raises Unreachable."""
    begun = monotonic()
    access = Access(wanted)
    found = _introduction(access, on_step)
    if not found.refusal:
        _test(access, wanted, found, on_step)
    found.seconds, found.connections = access.seconds, access.connections
    found.took_s = monotonic() - begun
    return found


def _introduction(access: Access, on_step: Step) -> Findings:
    on_step("greeting")
    try:
        access.find()
        dialogue, greeting = _greeting(access, on_step)
    except OSError as error:
        raise Unreachable(f"it can't be reached: {_why(error)}") from None
    except HandshakeFailed as failure:
        raise Unreachable(f"it does not begin with TLS: {failure}") from None
    except Untold as failure:
        raise Unreachable(f"it does not greet: {failure}") from None
    found = Findings(access.address, greeting, access.ip, access.name)
    found.is_implicit = access.is_implicit
    try:
        with dialogue:
            _introduce(access, dialogue, found)
    except (NoReply, OutOfTime) as failure:
        verb = access.hello.decode() if found.hello is None else "MAIL"
        found.refusal = f"{verb} has no reply: {failure}"
    return found


def _greeting(access: Access, on_step: Step) -> tuple[Dialogue, Reply]:
    """Wait for the greeting; a server that says nothing may wait for TLS to begin."""
    try:
        dialogue = access.connect()
        try:
            return dialogue, access.greeting(dialogue)
        except NoReply:
            dialogue.abort()
            raise
    except NoReply as failure:
        if failure.how is not How.SILENT or access.is_implicit:
            raise
    on_step("greeting inside TLS")
    access.is_implicit = True
    try:
        dialogue = access.connect()
    except Untold as failure:
        raise Untold(f"neither in plaintext, nor inside TLS ({failure})") from None
    return dialogue, access.greeting(dialogue)


def _introduce(access: Access, dialogue: Dialogue, found: Findings) -> None:
    """Say EHLO, and HELO to a server that does not know EHLO (RFC 5321 section 3.2)."""
    if not found.greeting.is_accepting:
        found.refusal = f"it does not serve this machine{_later(found.greeting)}"
        return
    hello = access.say_hello(dialogue)
    if hello.code in (500, 502):
        found.ehlo_refused, access.hello = hello, b"HELO"
        hello = access.say_hello(dialogue)
    found.hello = hello
    if not hello.is_accepting:
        verb = "HELO is refused like EHLO" if found.ehlo_refused else "EHLO is refused"
        advice = f"; if it dislikes the name {access.name}, --helo gives another"
        found.refusal = f"{verb}{_later(hello) or advice}"
        return
    mail = dialogue.ask(access.mail)
    if b"STARTTLS" in found.words:
        outside = _refusal_or_last(dialogue, mail)
        insists = not outside.is_accepting and _takes_more_inside(access, outside)
        found.insists_on_tls = access.through_tls = insists


def _refusal_or_last(dialogue: Dialogue, mail: Reply) -> Reply:
    """Go on to RCPT, unless MAIL was refused."""
    return dialogue.ask(b"RCPT TO:<postmaster>") if mail.is_accepting else mail


def _takes_more_inside(access: Access, outside: Reply) -> bool:
    """Tell whether it refuses outside of TLS what it takes inside; 530 tells so, if no TLS does."""
    try:
        with access.introduced(access.secured(unverified(), None)) as dialogue:
            inside = _refusal_or_last(dialogue, dialogue.ask(access.mail))
    except (Untold, OSError):
        return outside.code == 530
    return inside.is_accepting or (outside.code == 530 and inside.octets != outside.octets)


def _test(access: Access, wanted: Wanted, found: Findings, on_step: Step) -> None:
    for name, test in _tests(access, wanted, found):
        on_step(name)
        try:
            test()
        except Untold as failure:
            found.untold[name] = str(failure)
        except OSError as error:
            found.untold[name] = _why(error)


def _tests(access: Access, wanted: Wanted, found: Findings) -> list[tuple[str, Test]]:
    def note(field: str, test: Test) -> Test:
        return lambda: setattr(found, field, test())

    tests = [
        ("groups", note("groups", lambda: pipelining_checks.examine(access))),
        ("DATA", note("data", lambda: behaviour_checks.data_without_recipients(access))),
        ("bare LF", note("lf", lambda: behaviour_checks.bare_lf(access))),
        ("bare CR", note("cr", lambda: behaviour_checks.bare_cr(access))),
    ]
    if access.is_implicit or b"STARTTLS" in found.words:
        tests.append(("TLS", note("tls", lambda: tls_checks.examine(access))))
    if wanted.relay_to:
        ask = lambda: behaviour_checks.relay(access, wanted.sender, wanted.relay_to)  # noqa: E731
        tests.append(("relay", note("relay", ask)))
    return tests


def _later(reply: Reply) -> str:
    return " now: try again later" if reply.code < 500 else ""


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
