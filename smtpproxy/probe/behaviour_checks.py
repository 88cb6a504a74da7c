"""Checks: DATA without recipients, bare newlines, and whether it would relay for this machine.

Each has a connection of its own, so that no answer, however broken, spoils another.
"""

from dataclasses import dataclass
from enum import Enum

from smtpproxy.probe.connector import Connector
from smtpproxy.probe.smtp_connection import NoReply, ProbeReply, Refused, SendMode, SmtpConnection

_REFUSED = (b"RCPT TO:<smtpproxy-probe@refused.invalid>", b"RCPT TO:<>")
"""Most servers refuse the first, as nobody's (RFC 2606), and the others the second, as no path."""


@dataclass(frozen=True, slots=True)
class DataWithoutRecipients:
    """The reply to DATA where no recipient was accepted.

    refused: the reply to the recipient that was not; None: there was no RCPT at all.
    """

    refused: ProbeReply | None
    reply: ProbeReply


class NewlineResult(Enum):
    """What a bare LF or CR does behind a command."""

    ENDS = "ends a command"
    REFUSED = "is refused"
    CLOSES = "makes it close the connection"
    NOTHING = "does not end a command"


@dataclass(frozen=True, slots=True)
class RelayResult:
    """Whether a recipient is accepted from this machine: the reply to `verb`, which settled it."""

    sender: str
    recipient: str
    verb: str
    reply: ProbeReply

    @property
    def would(self) -> bool:
        """Whether it would relay."""
        return self.verb == "RCPT" and self.reply.is_accepting


def data_without_recipients(connector: Connector) -> DataWithoutRecipients:
    """Say DATA behind a recipient that is refused; without any, if the server refuses none.

    Never on a connection on which it has accepted one: a server may well forget RSET.
    """
    for recipient in _REFUSED:
        with connector.greeted() as connection:
            _begin(connector, connection)
            refused = connection.ask(recipient)
            if not refused.is_accepting:
                return DataWithoutRecipients(refused, connection.ask_for_content())
            connection.ask(b"RSET")
    with connector.greeted() as connection:
        _begin(connector, connection)
        return DataWithoutRecipients(None, connection.ask_for_content())


def bare_lf(connector: Connector) -> NewlineResult:
    """Find out whether LF alone ends a command."""
    return _newline(connector, b"\n", b"\r\n")


def bare_cr(connector: Connector) -> NewlineResult:
    """Find out whether CR alone ends a command."""
    return _newline(connector, b"\r", b"\n")


def _newline(connector: Connector, bare: bytes, rest: bytes) -> NewlineResult:
    """Send NOOP and the bare newline; if there is no reply, the `rest` of a whole line end."""
    with connector.greeted() as connection:
        usual = connection.ask(b"NOOP").code
        connection.say(b"NOOP" + bare)
        try:
            reply = connection.reply(connector.patience_s)
        except NoReply as failure:
            if failure.how is not SendMode.SILENT:
                return NewlineResult.CLOSES
        else:
            return NewlineResult.ENDS if reply.code == usual else NewlineResult.REFUSED
        connection.say(rest)
        connection.reply()  # it was listening
        return NewlineResult.NOTHING


def relay(connector: Connector, sender: str, recipient: str) -> RelayResult:
    """Ask by MAIL and RCPT whether a recipient elsewhere would be accepted; never more."""
    with connector.greeted() as connection:
        reply = connection.ask(connector.mail)
        if not reply.is_accepting:
            return RelayResult(sender, recipient, "MAIL", reply)
        reply = connection.ask(b"RCPT TO:<" + recipient.encode() + b">")
        connection.ask(b"RSET")
        return RelayResult(sender, recipient, "RCPT", reply)


def _begin(connector: Connector, connection: SmtpConnection) -> None:
    reply = connection.ask(connector.mail)
    if not reply.is_accepting:
        raise Refused("MAIL", reply)
