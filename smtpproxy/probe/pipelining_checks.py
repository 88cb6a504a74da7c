"""Tests whether the server answers commands that are sent in groups, or loses some.

A client may send each of these groups to a server with PIPELINING (RFC 2920 section 3.1), and none
changes anything on the server.  First all commands are sent one at a time, to learn the usual
replies; then each group is sent as one, on its own connection.
"""

from dataclasses import dataclass
from enum import Enum

from smtpproxy.probe.connector import Connector
from smtpproxy.probe.smtp_connection import NoReply, NoReplyReason, ProbeReply, SmtpConnection

Commands = tuple[bytes, ...]


class GroupEnd(Enum):
    """How the server answered a group."""

    ANSWERED = "answered"
    DIFFERENT = "not the replies to single commands"
    SURPLUS = "more replies than commands"
    LOST = "the rest was discarded"
    SILENT = "then no reply to anything"
    CLOSED = "then it closed the connection"
    BROKEN = "then an invalid reply"


@dataclass(frozen=True, slots=True)
class GroupResult:
    """The result of one group of commands."""

    commands: Commands
    replies: tuple[ProbeReply, ...]
    usual: tuple[int, ...]
    """The reply code of each command when sent alone."""
    end: GroupEnd

    @property
    def verbs(self) -> list[str]:
        """The verbs in the order sent, each cut to four letters."""
        return [command[:4].decode() for command in self.commands]


def examine(connector: Connector) -> list[GroupResult]:
    """Send every group, first one command at a time and then as one.

    Raises:
        CheckFailed: The server does not answer the single commands.
    """
    groups = _groups(connector.mail)
    with connector.greeted() as connection:
        usual = [tuple(connection.ask(command).code for command in group) for group in groups]
    return [_together(connector, *each) for each in zip(groups, usual, strict=True)]


def _groups(mail: bytes) -> list[Commands]:
    """Return the groups; each reveals a different fault of servers."""
    rcpt = b"RCPT TO:<postmaster>"
    return [
        (b"RSET", b"RSET", b"NOOP"),
        (mail, rcpt, b"RSET", b"NOOP"),  # MAIL may pass the connection to another process
        (b"RSET", rcpt, b"RSET", b"NOOP"),  # a refused RCPT may discard the input buffer
        (b"RSET", b"RSET", b"QUIT"),  # the server may look for QUIT before it answers the others
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
    """Check that the next reply belongs to the next command, and is not a surplus one."""
    try:
        if commands[-1] != b"QUIT":
            return GroupEnd.ANSWERED if connection.ask(b"QUIT").code == 221 else GroupEnd.SURPLUS
        connection.reply(connector.patience_s)
    except NoReply as failure:
        return GroupEnd.BROKEN if failure.how is NoReplyReason.BROKEN else GroupEnd.ANSWERED
    return GroupEnd.SURPLUS


def _end_of_unanswered(
    connector: Connector,
    connection: SmtpConnection,
    how: NoReplyReason,
    expected: int,
    replies: list[ProbeReply],
) -> GroupEnd:
    """Distinguish lost commands from a slow server, by one more command."""
    if how is not NoReplyReason.SILENT:
        return GroupEnd.CLOSED if how is NoReplyReason.CLOSED else GroupEnd.BROKEN
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
