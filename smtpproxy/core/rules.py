"""The rules of a session: what its listener and its backend lay down for the pipeline."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from smtpproxy.core import commands
from smtpproxy.core.capabilities import Filter
from smtpproxy.core.commands import Sync, Verb
from smtpproxy.core.content import BareNewlines

NO_CHANGES = Filter()


@dataclass(frozen=True)
class Rules:
    """Frozen, and shared by all sessions of a listener.

    hostname: named in the proxy's own 421 replies.
    use_pipelining: use the backend's own PIPELINING when it offers it.
    helo_fallback: send HELO to a backend that does not know EHLO.
    guard_data: DATA is not forwarded when every recipient of the transaction was refused.
    queue_commands, queue_octets: how much may wait before the client is no longer read.
    line, auth_line: octets of a command line and of an AUTH line, line end included.
    errors: how many 5xx replies in a row a client may collect.
    message_octets: how big a message may be.  recipients: how many may be accepted for one.
    Of both, 0 means as the backend likes.
    table, lock_step_table, greeting: rows of the verb table that follow from the rest.
    """

    hostname: bytes = b"localhost"
    sync: Sync = Sync.SAFE
    bare_newlines: BareNewlines = BareNewlines.NORMALIZE
    capabilities: Filter = NO_CHANGES
    use_pipelining: bool = True
    helo_fallback: bool = True
    guard_data: bool = True
    queue_commands: int = 1000
    queue_octets: int = 256 * 1024
    line: int = 2048
    auth_line: int = 12288
    errors: int = 20
    message_octets: int = 0
    recipients: int = 0
    table: Mapping[bytes, Verb] = field(init=False)
    lock_step_table: Mapping[bytes, Verb] = field(init=False)
    greeting: Verb = field(init=False)

    def __post_init__(self) -> None:
        """Make the tables, once for all sessions."""
        limited = {commands.MAIL: self.message_octets, commands.RCPT: self.recipients}
        weighed = frozenset(role for role, limit in limited.items() if limit)
        table = commands.table_for(self.sync, self.capabilities.hide, weighed)
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "lock_step_table", commands.lock_step(table))
        object.__setattr__(self, "greeting", commands.greeting_for(self.sync))
