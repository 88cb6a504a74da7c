"""Whether the server answers commands that are sent together, or loses some of them.

Each of the groups may be sent to any server with PIPELINING (RFC 2920 section 3.1), and changes
nothing.  First all are asked one command at a time, which tells how each is answered there; then
each travels as one, on a connection of its own.
"""

from dataclasses import dataclass
from enum import Enum

from smtpproxy.probe.connector import Connector
from smtpproxy.probe.smtp_connection import NoReply, ProbeReply, SendMode, SmtpConnection

Commands = tuple[bytes, ...]


class GroupEnd(Enum):
    """How a group ended."""

    ANSWERED = "answered"
    DIFFERENT = "otherwise than one at a time"
    SURPLUS = "more replies than commands"
    LOST = "the rest never seen"
    SILENT = "then nothing more"
    CLOSED = "then it closed"
    BROKEN = "then what is no reply"


@dataclass(frozen=True, slots=True)
class GroupResult:
    """Commands that were sent together, the replies that came, and the usual ones.

    usual: the code of each when they went one at a time.
    """

    commands: Commands
    replies: tuple[ProbeReply, ...]
    usual: tuple[int, ...]
    end: GroupEnd

    @property
    def verbs(self) -> list[str]:
        """The verbs as they travelled."""
        return [command[:4].decode() for command in self.commands]


def examine(connector: Connector) -> list[GroupResult]:
    """Send every group, one command at a time and then as one."""
    groups = _groups(connector.mail)
    with connector.greeted() as connection:
        usual = [tuple(connection.ask(command).code for command in group) for group in groups]
    return [_together(connector, *each) for each in zip(groups, usual, strict=True)]


def _groups(mail: bytes) -> list[Commands]:
    """Return the groups, each of which tells servers apart that have different failings."""
    rcpt = b"RCPT TO:<postmaster>"
    return [
        (b"RSET", b"RSET", b"NOOP"),
        (mail, rcpt, b"RSET", b"NOOP"),  # it may hand the connection over at MAIL
        (b"RSET", rcpt, b"RSET", b"NOOP"),  # it may forget its input when it refuses RCPT
        (b"RSET", b"RSET", b"QUIT"),  # it may look for QUIT ahead of all else
    ]


def _together(connector: Connector, commands: Commands, usual: tuple[int, ...]) -> GroupResult:
    replies: list[ProbeReply] = []
    with connector.greeted() as connection:
        try:
            connection.say(b"".join(command + b"\r\n" for command in commands))
            while len(replies) < len(commands):
                replies.append(connection.reply(connector.patience_s))
            end = _end_of_answered(connector, connection, commands)
        except NoReply as failure:
            end = _end_of_unanswered(connector, connection, failure.how, len(commands), replies)
    if end is GroupEnd.ANSWERED and tuple(reply.code for reply in replies) != usual:
        end = GroupEnd.DIFFERENT
    return GroupResult(commands, tuple(replies), usual, end)


def _end_of_answered(
    connector: Connector, connection: SmtpConnection, commands: Commands
) -> GroupEnd:
    """Tell whether what comes next is the reply to what is asked next."""
    try:
        if commands[-1] != b"QUIT":
            return GroupEnd.ANSWERED if connection.ask(b"QUIT").code == 221 else GroupEnd.SURPLUS
        connection.reply(connector.patience_s)
    except NoReply as failure:
        return GroupEnd.BROKEN if failure.how is SendMode.BROKEN else GroupEnd.ANSWERED
    return GroupEnd.SURPLUS


def _end_of_unanswered(
    connector: Connector,
    connection: SmtpConnection,
    how: SendMode,
    expected: int,
    replies: list[ProbeReply],
) -> GroupEnd:
    """Tell a server that has lost commands from one that is slow: ask for one reply more."""
    if how is not SendMode.SILENT:
        return GroupEnd.CLOSED if how is SendMode.CLOSED else GroupEnd.BROKEN
    late: list[ProbeReply] = []
    missing = expected - len(replies)
    try:
        connection.say(b"NOOP\r\n")
        while len(late) <= missing:
            late.append(connection.reply(connector.patience_s))
    except NoReply:
        if not late:
            return GroupEnd.SILENT
    if len(late) <= missing:
        return GroupEnd.LOST
    replies += late[:missing]
    return GroupEnd.ANSWERED
