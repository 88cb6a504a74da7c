"""Checks for DATA without recipients, bare newlines, and relaying for this machine.

Each check opens its own connection, so a broken reply cannot affect the next check.
"""

from dataclasses import dataclass
from enum import Enum

from smtpproxy.probe.connector import Connector
from smtpproxy.probe.smtp_connection import (
    NoReply,
    NoReplyReason,
    ProbeReply,
    Refused,
    SmtpConnection,
)

_REFUSED = (b"RCPT TO:<smtpproxy-probe@refused.invalid>", b"RCPT TO:<>")
"""Recipients that a server should refuse: a reserved domain (RFC 2606), then the null path."""


@dataclass(frozen=True, slots=True)
class DataWithoutRecipients:
    """The reply to DATA in a transaction without an accepted recipient."""

    refused: ProbeReply | None
    """The reply to the refused RCPT; None if DATA was sent without any RCPT."""
    reply: ProbeReply
    """The reply to DATA."""


class NewlineResult(Enum):
    """How the server reacts to a bare LF or CR after a command."""

    ENDS = "ends a command"
    REFUSED = "is refused"
    CLOSES = "makes it close the connection"
    NOTHING = "does not end a command"


@dataclass(frozen=True, slots=True)
class RelayResult:
    """Whether the server accepts a recipient in another domain from this machine."""

    sender: str
    recipient: str
    verb: str
    """The command that decided it: RCPT, or MAIL if that was already refused."""
    reply: ProbeReply
    """The reply to `verb`."""

    @property
    def would(self) -> bool:
        """Whether the server would relay."""
        return self.verb == "RCPT" and self.reply.is_accepting


def data_without_recipients(connector: Connector) -> DataWithoutRecipients:
    """Send DATA after a refused recipient, or without RCPT if the server refuses none.

    DATA is never sent on a connection on which a recipient was accepted: the server may
    have kept it despite RSET.
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
    """Test whether LF alone ends a command."""
    return _newline(connector, b"\n", b"\r\n")


def bare_cr(connector: Connector) -> NewlineResult:
    """Test whether CR alone ends a command."""
    return _newline(connector, b"\r", b"\n")


def _newline(connector: Connector, bare: bytes, rest: bytes) -> NewlineResult:
    """Send NOOP with a bare newline; if no reply comes, send `rest` to complete the CRLF."""
    with connector.greeted() as connection:
        usual = connection.ask(b"NOOP").code
        connection.say(b"NOOP" + bare)
        try:
            reply = connection.reply(connector.patience_s)
        except NoReply as failure:
            if failure.how is not NoReplyReason.SILENT:
                return NewlineResult.CLOSES
        else:
            return NewlineResult.ENDS if reply.code == usual else NewlineResult.REFUSED
        connection.say(rest)
        connection.reply()  # proves that the server was waiting for the rest of the line
        return NewlineResult.NOTHING


def relay(connector: Connector, sender: str, recipient: str) -> RelayResult:
    """Test with MAIL and RCPT whether the server accepts a recipient in another domain."""
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
