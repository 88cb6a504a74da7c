"""Groups: whether the server answers commands that are sent together, or loses some of them.

Each of the groups may be sent to any server with PIPELINING (RFC 2920 section 3.1), and changes
nothing.  First all are asked one command at a time, which tells how each is answered there; then
each travels as one, on a connection of its own.
"""

from dataclasses import dataclass
from enum import Enum

from smtpproxy.probe.connector import Access
from smtpproxy.probe.smtp_connection import Dialogue, How, NoReply, Reply

Commands = tuple[bytes, ...]


class End(Enum):
    """How a group ended."""

    ANSWERED = "answered"
    DIFFERENT = "otherwise than one at a time"
    SURPLUS = "more replies than commands"
    LOST = "the rest never seen"
    SILENT = "then nothing more"
    CLOSED = "then it closed"
    BROKEN = "then what is no reply"


@dataclass(frozen=True, slots=True)
class Group:
    """Commands that were sent together, the replies that came, and the usual ones.

    usual: the code of each when they went one at a time.
    """

    commands: Commands
    replies: tuple[Reply, ...]
    usual: tuple[int, ...]
    end: End

    @property
    def verbs(self) -> list[str]:
        """The verbs as they travelled."""
        return [command[:4].decode() for command in self.commands]


def examine(access: Access) -> list[Group]:
    """Send every group, one command at a time and then as one."""
    groups = _groups(access.mail)
    with access.greeted() as dialogue:
        usual = [tuple(dialogue.ask(command).code for command in group) for group in groups]
    return [_together(access, *each) for each in zip(groups, usual, strict=True)]


def _groups(mail: bytes) -> list[Commands]:
    """Return the groups, each of which tells servers apart that have different failings."""
    rcpt = b"RCPT TO:<postmaster>"
    return [
        (b"RSET", b"RSET", b"NOOP"),
        (mail, rcpt, b"RSET", b"NOOP"),  # it may hand the connection over at MAIL
        (b"RSET", rcpt, b"RSET", b"NOOP"),  # it may forget its input when it refuses RCPT
        (b"RSET", b"RSET", b"QUIT"),  # it may look for QUIT ahead of all else
    ]


def _together(access: Access, commands: Commands, usual: tuple[int, ...]) -> Group:
    replies: list[Reply] = []
    with access.greeted() as dialogue:
        try:
            dialogue.say(b"".join(command + b"\r\n" for command in commands))
            while len(replies) < len(commands):
                replies.append(dialogue.reply(access.patience_s))
            end = _end_of_answered(access, dialogue, commands)
        except NoReply as failure:
            end = _end_of_unanswered(access, dialogue, failure.how, len(commands), replies)
    if end is End.ANSWERED and tuple(reply.code for reply in replies) != usual:
        end = End.DIFFERENT
    return Group(commands, tuple(replies), usual, end)


def _end_of_answered(access: Access, dialogue: Dialogue, commands: Commands) -> End:
    """Tell whether what comes next is the reply to what is asked next."""
    try:
        if commands[-1] != b"QUIT":
            return End.ANSWERED if dialogue.ask(b"QUIT").code == 221 else End.SURPLUS
        dialogue.reply(access.patience_s)
    except NoReply as failure:
        return End.BROKEN if failure.how is How.BROKEN else End.ANSWERED
    return End.SURPLUS


def _end_of_unanswered(
    access: Access, dialogue: Dialogue, how: How, expected: int, replies: list[Reply]
) -> End:
    """Tell a server that has lost commands from one that is slow: ask for one reply more."""
    if how is not How.SILENT:
        return End.CLOSED if how is How.CLOSED else End.BROKEN
    late: list[Reply] = []
    missing = expected - len(replies)
    try:
        dialogue.say(b"NOOP\r\n")
        while len(late) <= missing:
            late.append(dialogue.reply(access.patience_s))
    except NoReply:
        if not late:
            return End.SILENT
    if len(late) <= missing:
        return End.LOST
    replies += late[:missing]
    return End.ANSWERED
