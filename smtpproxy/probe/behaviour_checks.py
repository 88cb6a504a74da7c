"""Trials: DATA without recipients, bare newlines, and whether it would relay for this machine.

Each has a connection of its own, so that no answer, however broken, spoils another.
"""

from dataclasses import dataclass
from enum import Enum

from smtpproxy.probe.connector import Access
from smtpproxy.probe.smtp_connection import Dialogue, How, NoReply, Refused, Reply

_REFUSED = (b"RCPT TO:<smtpproxy-probe@refused.invalid>", b"RCPT TO:<>")
"""Most servers refuse the first, as nobody's (RFC 2606), and the others the second, as no path."""


@dataclass(frozen=True, slots=True)
class DataWithoutRecipients:
    """The reply to DATA where no recipient was accepted.

    refused: the reply to the recipient that was not; None: there was no RCPT at all.
    """

    refused: Reply | None
    reply: Reply


class Newline(Enum):
    """What a bare LF or CR does behind a command."""

    ENDS = "ends a command"
    REFUSED = "is refused"
    CLOSES = "makes it close the connection"
    NOTHING = "does not end a command"


@dataclass(frozen=True, slots=True)
class Relay:
    """Whether a recipient is accepted from this machine: the reply to `verb`, which settled it."""

    sender: str
    recipient: str
    verb: str
    reply: Reply

    @property
    def would(self) -> bool:
        """Whether it would relay."""
        return self.verb == "RCPT" and self.reply.is_accepting


def data_without_recipients(access: Access) -> DataWithoutRecipients:
    """Say DATA behind a recipient that is refused; without any, if the server refuses none.

    Never on a connection on which it has accepted one: a server may well forget RSET.
    """
    for recipient in _REFUSED:
        with access.greeted() as dialogue:
            _begin(access, dialogue)
            refused = dialogue.ask(recipient)
            if not refused.is_accepting:
                return DataWithoutRecipients(refused, dialogue.ask_for_content())
            dialogue.ask(b"RSET")
    with access.greeted() as dialogue:
        _begin(access, dialogue)
        return DataWithoutRecipients(None, dialogue.ask_for_content())


def bare_lf(access: Access) -> Newline:
    """Find out whether LF alone ends a command."""
    return _newline(access, b"\n", b"\r\n")


def bare_cr(access: Access) -> Newline:
    """Find out whether CR alone ends a command."""
    return _newline(access, b"\r", b"\n")


def _newline(access: Access, bare: bytes, rest: bytes) -> Newline:
    """Send NOOP and the bare newline; if there is no reply, the `rest` of a whole line end."""
    with access.greeted() as dialogue:
        usual = dialogue.ask(b"NOOP").code
        dialogue.say(b"NOOP" + bare)
        try:
            reply = dialogue.reply(access.patience_s)
        except NoReply as failure:
            if failure.how is not How.SILENT:
                return Newline.CLOSES
        else:
            return Newline.ENDS if reply.code == usual else Newline.REFUSED
        dialogue.say(rest)
        dialogue.reply()  # it was listening
        return Newline.NOTHING


def relay(access: Access, sender: str, recipient: str) -> Relay:
    """Ask by MAIL and RCPT whether a recipient elsewhere would be accepted; never more."""
    with access.greeted() as dialogue:
        reply = dialogue.ask(access.mail)
        if not reply.is_accepting:
            return Relay(sender, recipient, "MAIL", reply)
        reply = dialogue.ask(b"RCPT TO:<" + recipient.encode() + b">")
        dialogue.ask(b"RSET")
        return Relay(sender, recipient, "RCPT", reply)


def _begin(access: Access, dialogue: Dialogue) -> None:
    reply = dialogue.ask(access.mail)
    if not reply.is_accepting:
        raise Refused("MAIL", reply)
