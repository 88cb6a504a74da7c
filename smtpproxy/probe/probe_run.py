"""One probe run: the greeting and EHLO first, then each check on its own connections.

The probe must never have a message delivered; `smtp_connection.py` ensures that.
"""

from collections.abc import Callable
from time import monotonic

from smtpproxy.probe import behaviour_checks, pipelining_checks, tls_checks
from smtpproxy.probe.connector import Connector, ProbeOptions, unverified
from smtpproxy.probe.findings import Findings
from smtpproxy.probe.smtp_connection import (
    CheckFailed,
    HandshakeFailed,
    NoReply,
    NoReplyReason,
    OutOfTime,
    ProbeReply,
    SmtpConnection,
)

Step = Callable[[str], None]
Test = Callable[[], object]


class Unreachable(Exception):
    """The server cannot be tested at all; the text gives the reason, escaped for a terminal."""


def examine(options: ProbeOptions, on_step: Step) -> Findings:
    """Run all checks against a server.

    Args:
        options: The server, and how to test it.
        on_step: Called with the name of each check before it starts.

    Raises:
        Unreachable: The server cannot be reached, or sends no greeting.
    """
    begun = monotonic()
    connector = Connector(options)
    found = _introduction(connector, on_step)
    if not found.refusal:
        _test(connector, options, found, on_step)
    found.seconds, found.connections = connector.seconds, connector.connections
    found.took_s = monotonic() - begun
    return found


def _introduction(connector: Connector, on_step: Step) -> Findings:
    on_step("greeting")
    try:
        connector.find()
        connection, greeting = _greeting(connector, on_step)
    except OSError as error:
        raise Unreachable(f"it can't be reached: {_why(error)}") from None
    except HandshakeFailed as failure:
        raise Unreachable(f"the TLS handshake failed: {failure}") from None
    except CheckFailed as failure:
        raise Unreachable(f"it sends no greeting: {failure}") from None
    found = Findings(connector.address, greeting, connector.ip, connector.name)
    found.is_implicit = connector.is_implicit
    try:
        with connection:
            _introduce(connector, connection, found)
    except (NoReply, OutOfTime) as failure:
        verb = connector.hello.decode() if found.hello is None else "MAIL"
        found.refusal = f"no reply to {verb}: {failure}"
    return found


def _greeting(connector: Connector, on_step: Step) -> tuple[SmtpConnection, ProbeReply]:
    """Wait for the greeting; if none comes, try implicit TLS, as the server may wait for that."""
    try:
        connection = connector.connect()
        try:
            return connection, connector.greeting(connection)
        except NoReply:
            connection.abort()
            raise
    except NoReply as failure:
        if failure.how is not NoReplyReason.SILENT or connector.is_implicit:
            raise
    on_step("greeting inside TLS")
    connector.use_implicit_tls()
    try:
        connection = connector.connect()
    except CheckFailed as failure:
        raise CheckFailed(f"neither in plaintext nor inside TLS ({failure})") from None
    return connection, connector.greeting(connection)


def _introduce(connector: Connector, connection: SmtpConnection, found: Findings) -> None:
    """Send EHLO, then HELO to a server that does not know EHLO (RFC 5321 section 3.2)."""
    if not found.greeting.is_accepting:
        found.refusal = f"it refuses connections from this machine{_later(found.greeting)}"
        return
    hello = connector.say_hello(connection)
    if hello.code in (500, 502):
        found.ehlo_refused = hello
        connector.use_helo()
        hello = connector.say_hello(connection)
    found.hello = hello
    if not hello.is_accepting:
        verb = "EHLO and HELO are refused" if found.ehlo_refused else "EHLO is refused"
        advice = f"; try another name than {connector.name} with --helo"
        found.refusal = f"{verb}{_later(hello) or advice}"
        return
    mail = connection.ask(connector.mail)
    if b"STARTTLS" in found.words:
        outside = _refusal_or_last(connection, mail)
        if not outside.is_accepting and _takes_more_inside(connector, outside):
            found.insists_on_tls = True
            connector.use_starttls()


def _refusal_or_last(connection: SmtpConnection, mail: ProbeReply) -> ProbeReply:
    """Return the reply to RCPT, or to MAIL if that was refused."""
    return connection.ask(b"RCPT TO:<postmaster>") if mail.is_accepting else mail


def _takes_more_inside(connector: Connector, outside: ProbeReply) -> bool:
    """Test whether the server accepts inside TLS what it refused in plaintext.

    If the TLS handshake fails, a 530 in plaintext decides.
    """
    try:
        with connector.introduced(connector.secured(unverified(), None)) as connection:
            inside = _refusal_or_last(connection, connection.ask(connector.mail))
    except (CheckFailed, OSError):
        return outside.code == 530
    return inside.is_accepting or (outside.code == 530 and inside.octets != outside.octets)


def _test(connector: Connector, options: ProbeOptions, found: Findings, on_step: Step) -> None:
    for name, test in _tests(connector, options, found):
        on_step(name)
        try:
            test()
        except CheckFailed as failure:
            found.undetermined[name] = str(failure)
        except OSError as error:
            found.undetermined[name] = _why(error)


def _tests(connector: Connector, options: ProbeOptions, found: Findings) -> list[tuple[str, Test]]:
    def note(field: str, test: Test) -> Test:
        return lambda: setattr(found, field, test())

    tests = [
        ("groups", note("groups", lambda: pipelining_checks.examine(connector))),
        ("DATA", note("data", lambda: behaviour_checks.data_without_recipients(connector))),
        ("bare LF", note("lf", lambda: behaviour_checks.bare_lf(connector))),
        ("bare CR", note("cr", lambda: behaviour_checks.bare_cr(connector))),
    ]
    if connector.is_implicit or b"STARTTLS" in found.words:
        tests.append(("TLS", note("tls", lambda: tls_checks.examine(connector))))
    if options.relay_to:
        ask = lambda: behaviour_checks.relay(connector, options.sender, options.relay_to)  # noqa: E731
        tests.append(("relay", note("relay", ask)))
    return tests


def _later(reply: ProbeReply) -> str:
    return " at present: try again later" if reply.code < 500 else ""


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
